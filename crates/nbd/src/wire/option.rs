//! Options of the handshake and the replies to them.
//!
//! An option that is malformed is a [`Fault`], which has a reply of its own; it never ends the
//! connection. Only a wrong magic number does, as nothing that follows it could be understood.

use gabion_base::codec::DecodeError;

use super::fields::{Fields, array, text};
use super::{OPTION_MAGIC, OPTION_REPLY_MAGIC, STRING_BYTES_MAX};

/// Bytes of an option without its data.
pub const OPTION_BYTES: usize = 16;
/// Bytes of a reply to an option without its data.
pub const OPTION_REPLY_BYTES: usize = 20;

/// Numbers of options.
pub mod kind {
    /// Use this export, without any reply if it is not there.
    pub const EXPORT_NAME: u32 = 1;
    /// Say goodbye.
    pub const ABORT: u32 = 2;
    /// Name all exports.
    pub const LIST: u32 = 3;
    /// Encrypt.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Use an export.
    pub const GO: u32 = 7;
    /// Answer in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Numbers of replies.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// The name of an export.
    pub const SERVER: u32 = 2;
    /// Something about an export.
    pub const INFO: u32 = 3;
    /// The number and name of a metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Bit of all errors.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUPPORTED: u32 = ERROR + 1;
    /// The option is not allowed here.
    pub const ERR_POLICY: u32 = ERROR + 2;
    /// The option makes no sense.
    pub const ERR_INVALID: u32 = ERROR + 3;
    /// The option is not possible on this system.
    pub const ERR_PLATFORM: u32 = ERROR + 4;
    /// Only with encryption.
    pub const ERR_TLS_REQUIRED: u32 = ERROR + 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    /// The server is about to end.
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    /// The client must ask for the block sizes.
    pub const ERR_BLOCK_SIZE_REQUIRED: u32 = ERROR + 8;
    /// Longer than can be looked at.
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
}

/// Numbers of what can be told about an export.
pub mod info {
    /// Length and flags.
    pub const EXPORT: u16 = 0;
    /// Its proper name.
    pub const NAME: u16 = 1;
    /// Words for people.
    pub const DESCRIPTION: u16 = 2;
    /// Units of requests.
    pub const BLOCK_SIZE: u16 = 3;
}

/// An option without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// One of [`kind`].
    pub kind: u32,
    /// Bytes of data that follow, as the peer claims.
    pub length: u32,
}

impl OptionHead {
    /// Fails unless the magic number is right.
    pub fn decode(bytes: &[u8; OPTION_BYTES]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        if fields.u64()? != OPTION_MAGIC {
            return Err(DecodeError::Invalid("the magic number of an option"));
        }
        Ok(Self { kind: fields.u32()?, length: fields.u32()? })
    }
}

/// Why an option is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The reply's number.
    pub reply: u32,
    /// Words for people.
    pub reason: &'static str,
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        let reason = match error {
            DecodeError::Short => "the option ends too early",
            DecodeError::Invalid(reason) => reason,
        };
        Self { reply: reply::ERR_INVALID, reason }
    }
}

/// What a client wants in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOption<'a> {
    /// Use this export.
    ExportName(&'a str),
    /// Say goodbye.
    Abort,
    /// Name all exports.
    List,
    /// Encrypt.
    StartTls,
    /// Describe this export.
    Info(&'a str),
    /// Use this export, answering first.
    Go(&'a str),
    /// Answer in chunks.
    StructuredReply,
    /// Name metadata contexts.
    ListMetaContext(MetaQuery<'a>),
    /// Choose metadata contexts.
    SetMetaContext(MetaQuery<'a>),
    /// Something newer.
    Unknown,
}

/// Queries for metadata contexts; each is text with a colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaQuery<'a> {
    /// The export.
    pub export: &'a str,
    /// What is looked for.
    pub queries: Vec<&'a str>,
}

impl<'a> ClientOption<'a> {
    /// Fails if `data` is not what the option needs.
    pub fn decode(number: u32, data: &'a [u8]) -> Result<Self, Fault> {
        let mut fields = Fields::new(data);
        let option = match number {
            kind::EXPORT_NAME => {
                let length = data.len();
                Self::ExportName(name(&mut fields, length)?)
            }
            // Whatever data there is: the client goes in any case.
            kind::ABORT => return Ok(Self::Abort),
            kind::LIST => Self::List,
            kind::STARTTLS => Self::StartTls,
            kind::INFO => Self::Info(query(&mut fields)?),
            kind::GO => Self::Go(query(&mut fields)?),
            kind::STRUCTURED_REPLY => Self::StructuredReply,
            kind::LIST_META_CONTEXT => Self::ListMetaContext(meta_query(&mut fields)?),
            kind::SET_META_CONTEXT => Self::SetMetaContext(meta_query(&mut fields)?),
            _ => return Ok(Self::Unknown),
        };
        fields.finish()?;
        Ok(option)
    }
}

/// A string of the protocol, of which the length is known.
fn name<'a>(fields: &mut Fields<'a>, length: usize) -> Result<&'a str, Fault> {
    let bytes = fields.bytes(length)?;
    if length > STRING_BYTES_MAX {
        return Err(Fault { reply: reply::ERR_TOO_BIG, reason: "a name is too long" });
    }
    let name = text(bytes, "a name is not UTF-8")?;
    if name.contains('\0') {
        return Err(Fault { reply: reply::ERR_INVALID, reason: "a name contains zero bytes" });
    }
    Ok(name)
}

fn counted<'a>(fields: &mut Fields<'a>) -> Result<&'a str, Fault> {
    let length = fields.u32()? as usize;
    name(fields, length)
}

/// A name, and the numbers of what the client wants to know: it is told everything.
fn query<'a>(fields: &mut Fields<'a>) -> Result<&'a str, Fault> {
    let name = counted(fields)?;
    let wishes = usize::from(fields.u16()?);
    fields.bytes(wishes * 2)?;
    Ok(name)
}

fn meta_query<'a>(fields: &mut Fields<'a>) -> Result<MetaQuery<'a>, Fault> {
    let export = counted(fields)?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    // Bounded by the data, as each takes at least 4 bytes of it.
    for _ in 0..count {
        let query = counted(fields)?;
        if !query.contains(':') {
            return Err(Fault { reply: reply::ERR_INVALID, reason: "a query has no namespace" });
        }
        queries.push(query);
    }
    Ok(MetaQuery { export, queries })
}

/// An option with its data.
pub fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u32).to_be_bytes();
    [&OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &length, data].concat()
}

/// The data of [`kind::GO`] and [`kind::INFO`].
pub fn go_data(name: &str, wishes: &[u16]) -> Vec<u8> {
    let mut data = counted_bytes(name);
    data.extend((wishes.len() as u16).to_be_bytes());
    data.extend(wishes.iter().flat_map(|wish| wish.to_be_bytes()));
    data
}

fn counted_bytes(name: &str) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat()
}

/// A reply without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHead {
    /// The option that is answered.
    pub option: u32,
    /// One of [`reply`].
    pub reply: u32,
    /// Bytes of data that follow, as the peer claims.
    pub length: u32,
}

impl OptionReplyHead {
    /// Fails unless the magic number is right.
    pub fn decode(bytes: &[u8; OPTION_REPLY_BYTES]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        if fields.u64()? != OPTION_REPLY_MAGIC {
            return Err(DecodeError::Invalid("the magic number of a reply to an option"));
        }
        Ok(Self { option: fields.u32()?, reply: fields.u32()?, length: fields.u32()? })
    }
}

/// Appends a reply to an option.
pub fn put_reply(out: &mut Vec<u8>, option: u32, reply: u32, data: &[u8]) {
    out.extend(array::<OPTION_REPLY_BYTES>(&[
        &OPTION_REPLY_MAGIC.to_be_bytes(),
        &option.to_be_bytes(),
        &reply.to_be_bytes(),
        &(data.len() as u32).to_be_bytes(),
    ]));
    out.extend(data);
}

/// The data of [`reply::SERVER`].
pub fn server_data(name: &str) -> Vec<u8> {
    counted_bytes(name)
}

/// The data of [`reply::META_CONTEXT`].
pub fn context_data(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

/// Length and abilities of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportFacts {
    /// Length in bytes.
    pub bytes: u64,
    /// Bits of [`super::export_flag`].
    pub flags: u16,
}

/// Which requests are possible, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Unit of offsets and lengths, a power of two.
    pub minimum: u32,
    /// Unit that is served best, a power of two.
    pub preferred: u32,
    /// Data in one request.
    pub maximum: u32,
}

/// What [`reply::INFO`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Information<'a> {
    /// Length and abilities.
    Export(ExportFacts),
    /// Units.
    BlockSize(BlockSizes),
    /// Words for people.
    Description(&'a str),
    /// Anything else.
    Other,
}

impl<'a> Information<'a> {
    /// The data of the reply; empty for what has no fixed layout.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Export(facts) => [
                &info::EXPORT.to_be_bytes()[..],
                &facts.bytes.to_be_bytes(),
                &facts.flags.to_be_bytes(),
            ]
            .concat(),
            Self::BlockSize(sizes) => [
                &info::BLOCK_SIZE.to_be_bytes()[..],
                &sizes.minimum.to_be_bytes(),
                &sizes.preferred.to_be_bytes(),
                &sizes.maximum.to_be_bytes(),
            ]
            .concat(),
            Self::Description(words) => {
                [&info::DESCRIPTION.to_be_bytes()[..], words.as_bytes()].concat()
            }
            Self::Other => Vec::new(),
        }
    }

    /// Fails if a known one has another layout, or sizes that the standard forbids.
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(data);
        let information = match fields.u16()? {
            info::EXPORT => {
                Self::Export(ExportFacts { bytes: fields.u64()?, flags: fields.u16()? })
            }
            info::BLOCK_SIZE => {
                let (minimum, preferred) = (fields.u32()?, fields.u32()?);
                let maximum = fields.u32()?;
                let powers = minimum.is_power_of_two() && preferred.is_power_of_two();
                if !powers || minimum > 1 << 16 || preferred < minimum || maximum < preferred {
                    return Err(DecodeError::Invalid("the block sizes of an export"));
                }
                Self::BlockSize(BlockSizes { minimum, preferred, maximum })
            }
            info::DESCRIPTION => {
                Self::Description(text(fields.rest(), "a description is not UTF-8")?)
            }
            _ => return Ok(Self::Other),
        };
        fields.finish()?;
        Ok(information)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_has_the_bytes_of_the_standard() {
        let golden = [
            b'I', b'H', b'A', b'V', b'E', b'O', b'P', b'T', 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 1,
            b'x', 0, 1, 0, 3,
        ];
        assert_eq!(option(kind::GO, &go_data("x", &[info::BLOCK_SIZE])), golden);
        let head = OptionHead::decode(golden[..OPTION_BYTES].try_into().unwrap()).unwrap();
        assert_eq!(head, OptionHead { kind: kind::GO, length: 9 });
        assert_eq!(ClientOption::decode(7, &golden[OPTION_BYTES..]), Ok(ClientOption::Go("x")));
    }

    #[test]
    fn replies_have_the_bytes_of_the_standard() {
        let mut out = Vec::new();
        put_reply(&mut out, kind::LIST, reply::SERVER, &server_data("a"));
        let golden = [
            0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 1,
            b'a',
        ];
        assert_eq!(out, golden);
        let facts = Information::Export(ExportFacts { bytes: 1 << 20, flags: 0x105 });
        assert_eq!(facts.encode(), [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 1, 5]);
        assert_eq!(Information::decode(&facts.encode()), Ok(facts));
    }

    #[test]
    fn malformed_options_say_which_reply_they_deserve() {
        let reply_to = |kind, data: &[u8]| ClientOption::decode(kind, data).unwrap_err().reply;
        assert_eq!(reply_to(kind::LIST, b"?"), reply::ERR_INVALID);
        assert_eq!(reply_to(kind::GO, &[0xff; 8]), reply::ERR_INVALID);
        assert_eq!(reply_to(kind::GO, &[0, 0, 0, 1, 0xff, 0, 0]), reply::ERR_INVALID);
        // A count of wishes that the data has no room for.
        assert_eq!(reply_to(kind::GO, &[0, 0, 0, 0, 0xff, 0xff]), reply::ERR_INVALID);
        let long = "x".repeat(STRING_BYTES_MAX + 1);
        assert_eq!(reply_to(kind::GO, &go_data(&long, &[])), reply::ERR_TOO_BIG);
        let many = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(reply_to(kind::SET_META_CONTEXT, &many), reply::ERR_INVALID);
    }

    proptest! {
        #[test]
        fn any_option_is_a_value_or_a_reason(
            number in 0_u32..12, data in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let _ = ClientOption::decode(number, &data);
            let _ = Information::decode(&data);
        }

        #[test]
        fn any_name_survives_the_way(name in "[^\0]{0,80}") {
            let data = go_data(&name, &[info::EXPORT, info::BLOCK_SIZE]);
            prop_assert_eq!(ClientOption::decode(kind::GO, &data), Ok(ClientOption::Go(&name)));
        }
    }
}
