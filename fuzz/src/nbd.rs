//! What the peers of NBD say, and the header of a medium.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::checksum::crc64;
use gabion_base::codec::DecodeError;
use gabion_base::disk::MemDisk;
use gabion_base::ids::Uuid;

use gabion_nbd::medium::format::{Header, HeaderError};
use gabion_nbd::server::handshake::{Encryption, Handshake, Step, Welcome};
use gabion_nbd::server::{Export, Exports, Permission};
use gabion_nbd::wire::error::ErrorCode;
use gabion_nbd::wire::name::{Claim, Medium, split};
use gabion_nbd::wire::option::{
    BlockSizes, ClientOption, ExportFacts, Information, go_data, kind, option,
};
use gabion_nbd::wire::reply::{CHUNK_BYTES, Payload, REPLY_BYTES, ReplyHead, failure, hole};
use gabion_nbd::wire::request::{REQUEST_BYTES, Request};
use gabion_nbd::wire::{OPTION_BYTES_MAX, STRING_BYTES_MAX};

use super::inputs::Target;

/// All targets of NBD.
pub fn targets() -> Vec<Target> {
    let target = |name, run, samples| Target { name, run, samples };
    let request = Request { flags: 1, command: 1, cookie: 2, offset: 4096, length: 512 };
    let facts = Information::Export(ExportFacts { bytes: 4096, flags: 1 });
    let sizes = BlockSizes { minimum: 1, preferred: 4096, maximum: 1 << 20 };
    let claim = Claim { epoch: 3, holder: "a b".to_owned(), connection: 9 };
    let medium = Medium { uuid: Uuid([4; 16]), epoch: 3, holder: "a b".to_owned() };
    let header = Header { uuid: Uuid([4; 16]), sequence: 6, epoch: 3, holder: "a".to_owned() };
    let go = [&[kind::GO as u8][..], &go_data("disk", &[1, 3])].concat();
    let haggling = [vec![0, 0, 0, 3], option(kind::LIST, &[]), option(kind::GO, &go[1..])].concat();
    vec![
        target("option", client_option, vec![go]),
        target("handshake", handshake, vec![haggling]),
        target("request", wire_request, vec![request.encode().to_vec()]),
        target("reply", reply, vec![hole(7, 512, 512), failure(7, ErrorCode::Io, "no")]),
        target(
            "information",
            information,
            vec![
                facts.encode(),
                Information::BlockSize(sizes).encode(),
                Information::Description(&medium.to_string()).encode(),
            ],
        ),
        target("claim", name, vec![claim.name("disk").into_bytes()]),
        target("medium", header_of_medium, vec![header.encode().bytes().to_vec()]),
    ]
}

/// An option of a client: its number in the first byte, and its data.
pub fn client_option(bytes: &[u8]) -> Result<(), DecodeError> {
    let (number, data) = bytes.split_first().ok_or(DecodeError::Short)?;
    let option = ClientOption::decode(u32::from(*number), data)
        .map_err(|fault| DecodeError::Invalid(fault.reason))?;
    match option {
        ClientOption::Info(name) | ClientOption::Go(name) | ClientOption::ExportName(name) => {
            assert!(name.len() <= STRING_BYTES_MAX && !name.contains('\0'));
        }
        ClientOption::ListMetaContext(query) | ClientOption::SetMetaContext(query) => {
            assert!(query.queries.len() * 4 <= data.len());
            assert!(query.queries.iter().all(|query| query.contains(':')));
        }
        _ => {}
    }
    Ok(())
}

/// Everything that a client says in its handshake; an error if the server hangs up.
pub fn handshake(bytes: &[u8]) -> Result<(), DecodeError> {
    let disk = Arc::new(MemDisk::new(4));
    let exports = Exports::new(vec![Export::new("disk", disk, Permission::ReadWrite)]);
    let mut out = Vec::new();
    let mut machine = Handshake::new(&exports, "it".into(), Encryption::Unavailable, &mut out);
    let mut rest = bytes;
    while let Some((head, tail)) = rest.split_at_checked(machine.needs()) {
        rest = tail;
        match machine.take(head, Welcome::Open, &mut out) {
            Step::More => {}
            Step::Go(_) => return Ok(()),
            Step::StartTls => unreachable!("there is no encryption"),
            Step::End(reason) => return Err(DecodeError::Invalid(reason)),
        }
        assert!((1..=OPTION_BYTES_MAX as usize).contains(&machine.needs()));
    }
    Ok(())
}

/// A request without its data.
pub fn wire_request(bytes: &[u8]) -> Result<(), DecodeError> {
    let bytes = bytes.first_chunk::<REQUEST_BYTES>().ok_or(DecodeError::Short)?;
    let request = Request::decode(bytes)?;
    assert_eq!(request.encode(), *bytes);
    Ok(())
}

/// A reply up to the data of a read.
pub fn reply(bytes: &[u8]) -> Result<(), DecodeError> {
    let head = bytes.first_chunk::<REPLY_BYTES>().ok_or(DecodeError::Short)?;
    let ReplyHead::Chunk { kind, .. } = ReplyHead::decode(head)? else { return Ok(()) };
    let payload = bytes.get(CHUNK_BYTES..).ok_or(DecodeError::Short)?;
    if let Payload::Error { message, .. } = Payload::decode(kind, payload)? {
        assert!(message.len() <= payload.len());
    }
    Ok(())
}

/// What a server tells about an export.
pub fn information(bytes: &[u8]) -> Result<(), DecodeError> {
    let information = Information::decode(bytes)?;
    if information != Information::Other {
        assert_eq!(information.encode(), bytes);
    }
    if let Information::Description(text) = information
        && let Some(medium) = Medium::of_description(text)
    {
        assert_eq!(Medium::of_description(&medium.to_string()), Some(medium));
    }
    Ok(())
}

/// A name with parameters.
pub fn name(bytes: &[u8]) -> Result<(), DecodeError> {
    let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::Invalid("UTF-8"))?;
    let (name, parameters) = split(text);
    let claim = Claim::decode(parameters.unwrap_or_default()).map_err(DecodeError::Invalid)?;
    let again = claim.name(name);
    let (_, parameters) = split(&again);
    assert_eq!(Claim::decode(parameters.unwrap_or_default()), Ok(claim));
    Ok(())
}

/// The header of a medium, at the place that it names.
pub fn header_of_medium(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut block = bytes[..bytes.len().min(BLOCK_SIZE)].to_vec();
    block.resize(BLOCK_SIZE, 0);
    let checksum = crc64(&block[..BLOCK_SIZE - 8]).to_le_bytes();
    block[BLOCK_SIZE - 8..].copy_from_slice(&checksum);
    let place = u32::from(block[12]);
    let header = Header::decode(&block, place).map_err(|error| match error {
        HeaderError::Damaged(reason) => reason,
        HeaderError::Foreign | HeaderError::Version(_) => DecodeError::Invalid("kind"),
    })?;
    assert_eq!(header.encode().bytes(), block);
    Ok(())
}
