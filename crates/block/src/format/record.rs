//! The record's text: JSON, so that people can read it with the coordinator's own tools. It is
//! spelled out here field by field, with a version; `docs/volumes.md` explains it.

use gabion_base::ids::Uuid;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::coordinator::RECORD_BYTES_MAX;
use crate::copies::COPIES_MAX;
use crate::epoch::{Epoch, OPENINGS_MAX, Opening};
use crate::record::{CopyState, Layout, MEMBERS_MAX, Member, MirrorCopy, Record, Wish, unfit_name};

const VERSION: u64 = 1;
/// Levels of a layout, at most.
const DEPTH_MAX: usize = 8;

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

impl Record {
    /// The text that is kept.
    pub fn encode(&self) -> String {
        let openings: Vec<_> = self.openings.iter().map(encode_opening).collect();
        let mut value = json!({
            "gabion-volume": VERSION,
            "name": self.name,
            "uuid": self.uuid.to_string(),
            "completed": self.completed.0,
            "compare": self.compare,
            "openings": openings,
            "layout": encode_layout(&self.layout),
        });
        if let Some(part) = &self.append {
            value["append"] = encode_layout(part);
        }
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
            append: object
                .get("append")
                // What is appended is one level further in.
                .map(|part| decode_layout(part, 1, &mut members))
                .transpose()?,
        };
        if record.completed > record.epoch() {
            return Err(RecordError::Field("completed"));
        }
        let mut all = std::iter::once(&record.layout).chain(&record.append);
        let sum = all.try_fold(0_u64, |sum, part| sum.checked_add(part.blocks()?));
        if sum.is_none() {
            return Err(RecordError::Field("blocks"));
        }
        Ok(record)
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
        Layout::Mirror { uuid, blocks, grows_to, copies } => {
            let copy = |copy: &MirrorCopy| {
                let mut value = json!({
                    "state": state_name(copy.state),
                    "wish": wish_name(copy.wish),
                    "full": copy.state.is_full(),
                    "since": copy.since.0,
                    "on": encode_layout(&copy.on),
                });
                if let Wish::Replace { by } = copy.wish {
                    value["by"] = by.to_string().into();
                }
                value
            };
            let copies: Vec<_> = copies.iter().map(copy).collect();
            let mut value = json!({ "mirror": copies, "uuid": uuid.to_string(), "blocks": blocks });
            if grows_to > blocks {
                value["grows-to"] = (*grows_to).into();
            }
            value
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
        Wish::Replace { .. } => "replace",
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
    let blocks = number(object, "blocks")?;
    let grows_to = match object.contains_key("grows-to") {
        true => number(object, "grows-to")?,
        false => blocks,
    };
    if grows_to < blocks {
        return Err(RecordError::Field("grows-to"));
    }
    Ok(Layout::Mirror { uuid: uuid(object, "uuid")?, blocks, grows_to, copies })
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
        "replace" => Wish::Replace { by: uuid(object, "by")? },
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
            layout: Layout::Mirror {
                uuid: Uuid([8; 16]),
                blocks: 1 << 19,
                grows_to: 1 << 19,
                copies,
            },
            append: None,
        }
    }

    #[test]
    fn records_round_trip() {
        assert_eq!(Record::decode(&record().encode()), Ok(record()));
    }

    #[test]
    fn a_copy_that_is_replaced_says_by_which() {
        let mut record = record();
        let Layout::Mirror { copies, .. } = &mut record.layout else { unreachable!("a mirror") };
        copies[1].wish = Wish::Replace { by: Uuid([5; 16]) };
        let text = record.encode();
        assert_eq!(Record::decode(&text), Ok(record));
        let error = Record::decode(&text.replacen("\"by\"", "\"other\"", 1)).unwrap_err();
        assert_eq!(error, RecordError::Field("by"));
    }

    #[test]
    fn a_volume_that_is_to_grow_says_to_what() {
        let mut record = record();
        let more = Member { uuid: Uuid([6; 16]), url: "/dev/sdz".to_owned(), blocks: 1 << 20 };
        record.append = Some(Layout::Member(more));
        let Layout::Mirror { grows_to, .. } = &mut record.layout else { unreachable!("a mirror") };
        *grows_to = 1 << 20;
        let text = record.encode();
        assert_eq!(Record::decode(&text), Ok(record));
        let less = text.replacen("\"grows-to\": 1048576", "\"grows-to\": 1", 1);
        assert_eq!(Record::decode(&less), Err(RecordError::Field("grows-to")));
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
}
