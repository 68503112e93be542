//! What the coordinator keeps of a volume: its members, how they are put together, and which copies
//! are to be trusted.
//!
//! The record is JSON, so that people can read it with the coordinator's own tools. Its layout is
//! spelled out here field by field, with a version; `docs/volumes.md` explains it.

use gabion_base::ids::Uuid;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::coordinator::RECORD_BYTES_MAX;
use crate::copies::COPIES_MAX;
use crate::epoch::{Epoch, OPENINGS_MAX, Opening};
use crate::format::header::MEMBER_DATA_START;
use crate::geometry::Geometry;

const VERSION: u64 = 1;
/// Members of a volume, at most.
pub const MEMBERS_MAX: usize = 64;
/// Levels of a layout, at most.
const DEPTH_MAX: usize = 8;
/// The longest name of a volume.
const NAME_BYTES_MAX: usize = 64;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name with the coordinator.
    pub name: String,
    /// Its identity, which its members know.
    pub uuid: Uuid,
    /// The latest openings, oldest first. The last one has the volume's epoch.
    pub openings: Vec<Opening>,
    /// The latest opening that was completed: since then it is known what every copy has.
    pub completed: Epoch,
    /// How often somebody has asked to have all copies compared.
    pub compare: u64,
    /// How the members are put together.
    pub layout: Layout,
}

/// A device made of members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One member.
    Member(Member),
    /// One after the other.
    Linear(Vec<Layout>),
    /// In turns of `chunk_blocks` blocks.
    Stripe {
        /// Blocks on one part before it is the next one's turn.
        chunk_blocks: u64,
        /// The parts.
        parts: Vec<Layout>,
    },
    /// The same on all.
    Mirror {
        /// Names it in its bitmaps.
        uuid: Uuid,
        /// Blocks of each copy that are used, with the mirror's own at their heads.
        blocks: u64,
        /// The copies; their places never change.
        copies: Vec<MirrorCopy>,
    },
}

/// A disk that is part of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity, which is in its header.
    pub uuid: Uuid,
    /// Where it is: a path, or the URI of an export.
    pub url: String,
    /// How many blocks of it are used, with its header.
    pub blocks: u64,
}

/// A copy in a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorCopy {
    /// Whether it is to be trusted.
    pub state: CopyState,
    /// What the administrator wants of it.
    pub wish: Wish,
    /// The latest opening in which it was used: a copy whose members do not know of that one is an
    /// older state of itself, as from a backup, and nothing on it can be used.
    pub since: Epoch,
    /// What it is on.
    pub on: Layout,
}

/// Whether a copy is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// It has everything that was ever acknowledged.
    InSync,
    /// It lacks what the bitmaps of the others say; if `full`, it may lack anything.
    Stale {
        /// Nothing on it can be used.
        full: bool,
    },
    /// As stale, and not to be brought up to date until somebody says so.
    Suspended {
        /// Nothing on it can be used.
        full: bool,
    },
    /// It was taken out; its place stays empty until somebody adds a copy.
    Removed,
}

/// What an administrator wants of a copy. Whoever has the volume open sees to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// That it is used.
    Use,
    /// That it is left alone.
    Suspend,
    /// That it is taken out.
    Remove,
}

impl CopyState {
    /// Whether it is [`CopyState::InSync`].
    pub fn is_in_sync(self) -> bool {
        self == Self::InSync
    }

    /// Whether nothing on it can be used.
    pub fn is_full(self) -> bool {
        matches!(self, Self::Stale { full: true } | Self::Suspended { full: true })
    }
}

/// Why text is no record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// It is no JSON.
    #[error("the record is no JSON: {0}")]
    Json(String),
    /// A later program has written it.
    #[error("the record has version {0}, and this program knows {VERSION}")]
    Version(u64),
    /// A field is missing or wrong.
    #[error("the record's {0} is missing or not possible")]
    Field(&'static str),
}

/// Why `name` cannot be a volume's, if so.
pub fn unfit_name(name: &str) -> Option<&'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Some("it must have 1 to 64 characters");
    }
    if name.starts_with(['.', '-']) || !name.bytes().all(fits) {
        return Some("it must be letters, digits, '-', '_' and '.', and not begin with '.' or '-'");
    }
    None
}

impl Record {
    /// The volume's epoch; 0 if it was never opened.
    pub fn epoch(&self) -> Epoch {
        self.openings.last().map_or(Epoch(0), |opening| opening.epoch)
    }

    /// The text that is kept.
    pub fn encode(&self) -> String {
        let openings: Vec<_> = self.openings.iter().map(encode_opening).collect();
        let value = json!({
            "gabion-volume": VERSION,
            "name": self.name,
            "uuid": self.uuid.to_string(),
            "completed": self.completed.0,
            "compare": self.compare,
            "openings": openings,
            "layout": encode_layout(&self.layout),
        });
        let text = format!("{value:#}\n");
        assert!(text.len() <= RECORD_BYTES_MAX, "a record of {} bytes", text.len());
        text
    }

    /// The record in `text`.
    pub fn decode(text: &str) -> Result<Self, RecordError> {
        if text.len() > RECORD_BYTES_MAX {
            return Err(RecordError::Field("length"));
        }
        let value: Value =
            serde_json::from_str(text).map_err(|error| RecordError::Json(error.to_string()))?;
        let object = value.as_object().ok_or(RecordError::Field("outermost object"))?;
        match number(object, "gabion-volume")? {
            VERSION => {}
            other => return Err(RecordError::Version(other)),
        }
        let name = string(object, "name")?;
        if unfit_name(&name).is_some() {
            return Err(RecordError::Field("name"));
        }
        let openings = list(object, "openings")?;
        if openings.len() > OPENINGS_MAX {
            return Err(RecordError::Field("openings"));
        }
        let openings = openings.iter().map(decode_opening).collect::<Result<Vec<_>, _>>()?;
        if !openings.is_sorted_by(|a, b| a.epoch < b.epoch) {
            return Err(RecordError::Field("openings"));
        }
        let mut members = 0;
        let layout = field(object, "layout")?;
        let record = Self {
            name,
            uuid: uuid(object, "uuid")?,
            completed: Epoch(number(object, "completed")?),
            compare: number(object, "compare")?,
            openings,
            layout: decode_layout(layout, 0, &mut members)?,
        };
        if record.completed > record.epoch() {
            return Err(RecordError::Field("completed"));
        }
        if record.layout.blocks().is_none() {
            return Err(RecordError::Field("blocks"));
        }
        Ok(record)
    }
}

impl Layout {
    /// All members, in order.
    pub fn members(&self) -> Vec<&Member> {
        match self {
            Self::Member(member) => vec![member],
            Self::Linear(parts) | Self::Stripe { parts, .. } => {
                parts.iter().flat_map(Self::members).collect()
            }
            Self::Mirror { copies, .. } => {
                copies.iter().flat_map(|copy| copy.on.members()).collect()
            }
        }
    }

    /// Blocks that the device has for whoever uses it; nothing if its parts are too small, or do
    /// not fit together.
    pub fn blocks(&self) -> Option<u64> {
        match self {
            Self::Member(member) => member.blocks.checked_sub(MEMBER_DATA_START),
            Self::Linear(parts) => {
                parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.blocks()?))
            }
            Self::Stripe { chunk_blocks, parts } => {
                let least = parts.iter().map(Self::blocks).min().flatten()?;
                (least / chunk_blocks * chunk_blocks).checked_mul(parts.len() as u64)
            }
            Self::Mirror { blocks, copies, .. } => {
                let mut there = copies.iter().filter(|copy| copy.state != CopyState::Removed);
                let fits = there.all(|copy| copy.on.blocks().is_some_and(|on| on >= *blocks));
                Some(Geometry::of_copies(*blocks).filter(|_| fits)?.blocks())
            }
        }
        .filter(|blocks| *blocks > 0)
    }

    /// All mirrors, the outer ones first.
    pub fn mirrors(&self) -> Vec<(Uuid, &[MirrorCopy])> {
        match self {
            Self::Member(_) => Vec::new(),
            Self::Linear(parts) | Self::Stripe { parts, .. } => {
                parts.iter().flat_map(Self::mirrors).collect()
            }
            Self::Mirror { uuid, copies, .. } => {
                let inner = copies.iter().flat_map(|copy| copy.on.mirrors());
                std::iter::once((*uuid, copies.as_slice())).chain(inner).collect()
            }
        }
    }

    /// The copies of the mirror `wanted`, if it is in here.
    pub fn mirror_mut(&mut self, wanted: Uuid) -> Option<&mut Vec<MirrorCopy>> {
        match self {
            Self::Member(_) => None,
            Self::Linear(parts) | Self::Stripe { parts, .. } => {
                parts.iter_mut().find_map(|part| part.mirror_mut(wanted))
            }
            Self::Mirror { uuid, copies, .. } => match *uuid == wanted {
                true => Some(copies),
                false => copies.iter_mut().find_map(|copy| copy.on.mirror_mut(wanted)),
            },
        }
    }
}

fn encode_opening(opening: &Opening) -> Value {
    json!({
        "epoch": opening.epoch.0,
        "nonce": opening.nonce,
        "seconds": opening.seconds,
        "holder": opening.holder,
    })
}

fn decode_opening(value: &Value) -> Result<Opening, RecordError> {
    let object = value.as_object().ok_or(RecordError::Field("openings"))?;
    let seconds = field(object, "seconds")?.as_i64().ok_or(RecordError::Field("seconds"))?;
    let holder = crate::epoch::holder(&string(object, "holder")?);
    let epoch = Epoch(number(object, "epoch")?);
    Ok(Opening { epoch, nonce: number(object, "nonce")?, seconds, holder })
}

fn encode_layout(layout: &Layout) -> Value {
    let all = |parts: &[Layout]| parts.iter().map(encode_layout).collect::<Vec<_>>();
    match layout {
        Layout::Member(member) => json!({
            "member": member.uuid.to_string(),
            "url": member.url,
            "blocks": member.blocks,
        }),
        Layout::Linear(parts) => json!({ "linear": all(parts) }),
        Layout::Stripe { chunk_blocks, parts } => {
            json!({ "stripe": all(parts), "chunk-blocks": chunk_blocks })
        }
        Layout::Mirror { uuid, blocks, copies } => {
            let copy = |copy: &MirrorCopy| {
                json!({
                    "state": state_name(copy.state),
                    "wish": wish_name(copy.wish),
                    "full": copy.state.is_full(),
                    "since": copy.since.0,
                    "on": encode_layout(&copy.on),
                })
            };
            let copies: Vec<_> = copies.iter().map(copy).collect();
            json!({ "mirror": copies, "uuid": uuid.to_string(), "blocks": blocks })
        }
    }
}

fn state_name(state: CopyState) -> &'static str {
    match state {
        CopyState::InSync => "in-sync",
        CopyState::Stale { .. } => "stale",
        CopyState::Suspended { .. } => "suspended",
        CopyState::Removed => "removed",
    }
}

fn wish_name(wish: Wish) -> &'static str {
    match wish {
        Wish::Use => "use",
        Wish::Suspend => "suspend",
        Wish::Remove => "remove",
    }
}

fn decode_layout(value: &Value, depth: usize, members: &mut usize) -> Result<Layout, RecordError> {
    let object = value.as_object().ok_or(RecordError::Field("layout"))?;
    if depth >= DEPTH_MAX {
        return Err(RecordError::Field("depth"));
    }
    if object.contains_key("member") {
        *members += 1;
        if *members > MEMBERS_MAX {
            return Err(RecordError::Field("number of members"));
        }
        let blocks = number(object, "blocks")?;
        let uuid = uuid(object, "member")?;
        return Ok(Layout::Member(Member { uuid, url: string(object, "url")?, blocks }));
    }
    let mut parts = |key| {
        let parts = list(object, key)?;
        if parts.is_empty() || parts.len() > MEMBERS_MAX {
            return Err(RecordError::Field("number of parts"));
        }
        parts.iter().map(|part| decode_layout(part, depth + 1, members)).collect()
    };
    if object.contains_key("linear") {
        return Ok(Layout::Linear(parts("linear")?));
    }
    if object.contains_key("stripe") {
        let parts = parts("stripe")?;
        let chunk_blocks = number(object, "chunk-blocks")?;
        if !chunk_blocks.is_power_of_two() || chunk_blocks > 1 << 20 {
            return Err(RecordError::Field("chunk-blocks"));
        }
        return Ok(Layout::Stripe { chunk_blocks, parts });
    }
    let copies = list(object, "mirror")?;
    if copies.is_empty() || copies.len() > COPIES_MAX {
        return Err(RecordError::Field("number of copies"));
    }
    let copies = copies.iter().map(|copy| decode_copy(copy, depth, members));
    let copies = copies.collect::<Result<_, _>>()?;
    Ok(Layout::Mirror { uuid: uuid(object, "uuid")?, blocks: number(object, "blocks")?, copies })
}

fn decode_copy(
    value: &Value,
    depth: usize,
    members: &mut usize,
) -> Result<MirrorCopy, RecordError> {
    let object = value.as_object().ok_or(RecordError::Field("copy"))?;
    let full = field(object, "full")?.as_bool().ok_or(RecordError::Field("full"))?;
    let state = match &*string(object, "state")? {
        "in-sync" => CopyState::InSync,
        "stale" => CopyState::Stale { full },
        "suspended" => CopyState::Suspended { full },
        "removed" => CopyState::Removed,
        _ => return Err(RecordError::Field("state")),
    };
    let wish = match &*string(object, "wish")? {
        "use" => Wish::Use,
        "suspend" => Wish::Suspend,
        "remove" => Wish::Remove,
        _ => return Err(RecordError::Field("wish")),
    };
    let since = Epoch(number(object, "since")?);
    Ok(MirrorCopy {
        state,
        wish,
        since,
        on: decode_layout(field(object, "on")?, depth + 1, members)?,
    })
}

fn field<'a>(object: &'a Map<String, Value>, key: &'static str) -> Result<&'a Value, RecordError> {
    object.get(key).ok_or(RecordError::Field(key))
}

fn number(object: &Map<String, Value>, key: &'static str) -> Result<u64, RecordError> {
    field(object, key)?.as_u64().ok_or(RecordError::Field(key))
}

fn string(object: &Map<String, Value>, key: &'static str) -> Result<String, RecordError> {
    Ok(field(object, key)?.as_str().ok_or(RecordError::Field(key))?.to_owned())
}

fn list<'a>(
    object: &'a Map<String, Value>,
    key: &'static str,
) -> Result<&'a Vec<Value>, RecordError> {
    field(object, key)?.as_array().ok_or(RecordError::Field(key))
}

fn uuid(object: &Map<String, Value>, key: &'static str) -> Result<Uuid, RecordError> {
    Uuid::parse(&string(object, key)?).ok_or(RecordError::Field(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let member = |byte: u8| {
            let url = format!("nbd://host{byte}/tank");
            Layout::Member(Member { uuid: Uuid([byte; 16]), url, blocks: 1 << 20 })
        };
        let copy = |state, on| MirrorCopy { state, wish: Wish::Suspend, since: Epoch(3), on };
        let stripe = Layout::Stripe { chunk_blocks: 256, parts: vec![member(1), member(2)] };
        let copies = vec![
            copy(CopyState::InSync, stripe),
            copy(CopyState::Stale { full: true }, Layout::Linear(vec![member(3), member(4)])),
            copy(CopyState::Suspended { full: false }, member(5)),
            copy(CopyState::Removed, member(6)),
        ];
        let opening =
            Opening { epoch: Epoch(4), nonce: u64::MAX, seconds: 9, holder: "host".to_owned() };
        Record {
            name: "tank".to_owned(),
            uuid: Uuid([9; 16]),
            openings: vec![opening],
            completed: Epoch(4),
            compare: 0,
            layout: Layout::Mirror { uuid: Uuid([8; 16]), blocks: 1 << 19, copies },
        }
    }

    #[test]
    fn records_round_trip() {
        assert_eq!(Record::decode(&record().encode()), Ok(record()));
    }

    #[test]
    fn records_without_a_field_are_refused_by_its_name() {
        let text = record().encode();
        for (key, complaint) in [
            ("\"url\"", "url"),
            ("\"epoch\"", "epoch"),
            ("\"full\"", "full"),
            ("\"layout\"", "layout"),
            ("\"chunk-blocks\"", "chunk-blocks"),
        ] {
            let error = Record::decode(&text.replacen(key, "\"other\"", 1)).unwrap_err();
            assert_eq!(error, RecordError::Field(complaint));
        }
        let newer = text.replace("\"gabion-volume\": 1", "\"gabion-volume\": 2");
        assert_eq!(Record::decode(&newer), Err(RecordError::Version(2)));
        Record::decode("{").unwrap_err();
    }

    #[test]
    fn a_layout_is_bounded() {
        let mut layout = record().layout;
        for _ in 0..DEPTH_MAX {
            layout = Layout::Linear(vec![layout]);
        }
        let error = Record::decode(&Record { layout, ..record() }.encode()).unwrap_err();
        assert_eq!(error, RecordError::Field("depth"));
        let member = record().layout.members()[0].clone();
        let many = vec![Layout::Member(member); MEMBERS_MAX + 1];
        let layout = Layout::Linear(many);
        let error = Record::decode(&Record { layout, ..record() }.encode()).unwrap_err();
        assert_eq!(error, RecordError::Field("number of parts"));
    }

    #[test]
    fn names_are_plain() {
        assert_eq!(unfit_name("tank-1.a_b"), None);
        for name in ["", ".a", "-a", "a/b", "ä", &"a".repeat(65)] {
            assert!(unfit_name(name).is_some(), "{name}");
        }
    }
}
