//! A record as one line of JSON, and back.
//!
//! ```text
//! {"sequence":7,"seconds":1795355101,"nanos":5,"program":"gabion mount","pid":71,
//!  "event":"member-stale","volume":"tank","member":"b","reason":"write failed"}
//! ```
//!
//! Keys beside those of the event and its object are ignored on reading, so that a later version
//! can add some. A point in time inside an event is `{"seconds":..,"nanos":..}`.

use serde_json::{Map, Value};

use super::{
    BlockEvent, ClientEvent, CoordinatorEvent, Event, FilesystemEvent, LINE_BYTES_MAX, LogEvent,
    MemberEvent, Record, ResyncEvent, Sequence, Source, TEXT_BYTES_MAX, TargetEvent, VolumeEvent,
};
use crate::codec::DecodeError;
use crate::ids::BlockAddr;
use crate::time::Timestamp;

/// The fields of a line.
pub(super) type Fields = Map<String, Value>;

/// Something that a field can hold.
pub(super) trait Field: Sized {
    fn write(&self, key: &str, fields: &mut Fields);

    /// Takes it out of the fields, if it is there and makes sense.
    fn read(key: &str, fields: &mut Fields) -> Option<Self>;

    /// Any value, to show and to try.
    fn example(key: &str) -> Self;
}

impl Field for u64 {
    fn write(&self, key: &str, fields: &mut Fields) {
        fields.insert(key.to_owned(), Value::from(*self));
    }

    fn read(key: &str, fields: &mut Fields) -> Option<Self> {
        fields.get(key)?.as_u64()
    }

    fn example(key: &str) -> Self {
        key.len() as Self
    }
}

impl Field for BlockAddr {
    fn write(&self, key: &str, fields: &mut Fields) {
        self.0.write(key, fields);
    }

    fn read(key: &str, fields: &mut Fields) -> Option<Self> {
        u64::read(key, fields).map(Self)
    }

    fn example(_key: &str) -> Self {
        Self(4711)
    }
}

impl Field for String {
    fn write(&self, key: &str, fields: &mut Fields) {
        fields.insert(key.to_owned(), Value::from(clipped(self)));
    }

    fn read(key: &str, fields: &mut Fields) -> Option<Self> {
        Some(clipped(fields.get(key)?.as_str()?).to_owned())
    }

    fn example(key: &str) -> Self {
        format!("<{key}>")
    }
}

impl Field for Timestamp {
    fn write(&self, key: &str, fields: &mut Fields) {
        let mut time = Fields::new();
        write_time(*self, &mut time);
        fields.insert(key.to_owned(), Value::Object(time));
    }

    fn read(key: &str, fields: &mut Fields) -> Option<Self> {
        read_time(fields.get(key)?.as_object()?)
    }

    fn example(_key: &str) -> Self {
        Self::new(1_795_355_101, 500_000_000)
    }
}

fn write_time(time: Timestamp, fields: &mut Fields) {
    fields.insert("seconds".to_owned(), Value::from(time.seconds));
    fields.insert("nanos".to_owned(), Value::from(time.nanos));
}

fn read_time(fields: &Fields) -> Option<Timestamp> {
    let seconds = fields.get("seconds")?.as_i64()?;
    let nanos = u32::try_from(fields.get("nanos")?.as_u64()?).ok()?;
    (nanos < 1_000_000_000).then_some(Timestamp { seconds, nanos })
}

/// The head of a text that is too long.
fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

impl Event {
    /// Its name, which scripts may rely on.
    pub fn name(&self) -> &str {
        match self {
            Self::Volume { event, .. } => event.name(),
            Self::Member { event, .. } => event.name(),
            Self::Resync { event, .. } => event.name(),
            Self::Block { event, .. } => event.name(),
            Self::Coordinator { event, .. } => event.name(),
            Self::Target { event, .. } => event.name(),
            Self::Filesystem { event, .. } => event.name(),
            Self::Client { event, .. } => event.name(),
            Self::Log { event, .. } => event.name(),
            Self::Unknown { name, .. } => name,
        }
    }

    fn write(&self, fields: &mut Fields) {
        fields.insert("event".to_owned(), Value::from(clipped(self.name())));
        match self {
            Self::Volume { volume, event } => {
                volume.write("volume", fields);
                event.write(fields);
            }
            Self::Member { volume, member, event } => {
                volume.write("volume", fields);
                member.write("member", fields);
                event.write(fields);
            }
            Self::Resync { volume, member, event } => {
                volume.write("volume", fields);
                member.write("member", fields);
                event.write(fields);
            }
            Self::Block { device, event } => {
                device.write("device", fields);
                event.write(fields);
            }
            Self::Coordinator { coordinator, event } => {
                coordinator.write("coordinator", fields);
                event.write(fields);
            }
            Self::Target { export, event } => {
                export.write("export", fields);
                event.write(fields);
            }
            Self::Filesystem { filesystem, event } => {
                filesystem.write("filesystem", fields);
                event.write(fields);
            }
            Self::Client { filesystem, client, event } => {
                filesystem.write("filesystem", fields);
                client.write("client", fields);
                event.write(fields);
            }
            Self::Log { program, event } => {
                program.write("of_program", fields);
                event.write(fields);
            }
            Self::Unknown { fields: others, .. } => {
                let others: Fields = serde_json::from_str(others).unwrap_or_default();
                for (key, value) in others {
                    fields.entry(key).or_insert(value);
                }
            }
        }
    }

    fn read(name: &str, fields: &mut Fields) -> Self {
        Self::known(name, fields).unwrap_or_else(|| {
            let text = serde_json::to_string(fields).unwrap_or_default();
            Self::Unknown { name: name.to_owned(), fields: text }
        })
    }

    fn known(name: &str, fields: &mut Fields) -> Option<Self> {
        let f = fields;
        if let Some(event) = VolumeEvent::read(name, f) {
            return Some(Self::Volume { volume: Field::read("volume", f)?, event });
        }
        if let Some(event) = MemberEvent::read(name, f) {
            let volume = Field::read("volume", f)?;
            return Some(Self::Member { volume, member: Field::read("member", f)?, event });
        }
        if let Some(event) = ResyncEvent::read(name, f) {
            let volume = Field::read("volume", f)?;
            return Some(Self::Resync { volume, member: Field::read("member", f)?, event });
        }
        if let Some(event) = BlockEvent::read(name, f) {
            return Some(Self::Block { device: Field::read("device", f)?, event });
        }
        if let Some(event) = CoordinatorEvent::read(name, f) {
            return Some(Self::Coordinator { coordinator: Field::read("coordinator", f)?, event });
        }
        if let Some(event) = TargetEvent::read(name, f) {
            return Some(Self::Target { export: Field::read("export", f)?, event });
        }
        if let Some(event) = FilesystemEvent::read(name, f) {
            return Some(Self::Filesystem { filesystem: Field::read("filesystem", f)?, event });
        }
        if let Some(event) = ClientEvent::read(name, f) {
            let filesystem = Field::read("filesystem", f)?;
            return Some(Self::Client { filesystem, client: Field::read("client", f)?, event });
        }
        let event = LogEvent::read(name, f)?;
        Some(Self::Log { program: Field::read("of_program", f)?, event })
    }

    /// The names of all events that this version knows.
    pub fn names() -> Vec<&'static str> {
        let names = [
            VolumeEvent::NAMES,
            MemberEvent::NAMES,
            ResyncEvent::NAMES,
            BlockEvent::NAMES,
            CoordinatorEvent::NAMES,
            TargetEvent::NAMES,
            FilesystemEvent::NAMES,
            ClientEvent::NAMES,
            LogEvent::NAMES,
        ];
        names.concat()
    }

    /// One event of each name, in the order of [`Event::names`], with `<words>` in place of texts.
    pub fn examples() -> Vec<Self> {
        let text = |key: &str| String::example(key);
        let volume = || text("volume");
        let member = || text("member");
        let mut all: Vec<Self> = Vec::new();
        let volumes = VolumeEvent::examples().into_iter();
        all.extend(volumes.map(|event| Self::Volume { volume: volume(), event }));
        let members = MemberEvent::examples().into_iter();
        all.extend(members.map(|event| Self::Member { volume: volume(), member: member(), event }));
        let resyncs = ResyncEvent::examples().into_iter();
        all.extend(resyncs.map(|event| Self::Resync { volume: volume(), member: member(), event }));
        let blocks = BlockEvent::examples().into_iter();
        all.extend(blocks.map(|event| Self::Block { device: text("device"), event }));
        let coordinators = CoordinatorEvent::examples().into_iter();
        let coordinator = || text("coordinator");
        all.extend(
            coordinators.map(|event| Self::Coordinator { coordinator: coordinator(), event }),
        );
        let targets = TargetEvent::examples().into_iter();
        all.extend(targets.map(|event| Self::Target { export: text("export"), event }));
        let filesystems = FilesystemEvent::examples().into_iter();
        let filesystem = || text("filesystem");
        all.extend(filesystems.map(|event| Self::Filesystem { filesystem: filesystem(), event }));
        let of_client = |event| {
            let client = text("client");
            Self::Client { filesystem: filesystem(), client, event }
        };
        all.extend(ClientEvent::examples().into_iter().map(of_client));
        let logs = LogEvent::examples().into_iter();
        all.extend(logs.map(|event| Self::Log { program: text("program"), event }));
        all
    }
}

impl Record {
    /// The record as a line, without its end.
    pub fn to_line(&self) -> String {
        let mut fields = Fields::new();
        self.sequence.0.write("sequence", &mut fields);
        write_time(self.time, &mut fields);
        self.source.program.write("program", &mut fields);
        u64::from(self.source.pid).write("pid", &mut fields);
        self.event.write(&mut fields);
        let line = Value::Object(fields).to_string();
        if line.len() <= LINE_BYTES_MAX {
            return line;
        }
        // Only fields of an unknown event can be that long: they were not cut off one by one.
        assert!(matches!(self.event, Event::Unknown { .. }), "{} bytes", line.len());
        let name = clipped(self.event.name()).to_owned();
        let event = Event::Unknown { name, fields: String::new() };
        Self { event, ..self.clone() }.to_line()
    }

    /// Reads a line, with or without its end.
    pub fn from_line(line: &[u8]) -> Result<Self, DecodeError> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.len() > LINE_BYTES_MAX {
            return Err(DecodeError::Invalid("the length of the line"));
        }
        let mut fields: Fields =
            serde_json::from_slice(line).map_err(|_| DecodeError::Invalid("the line"))?;
        let sequence = u64::read("sequence", &mut fields).map(Sequence);
        let sequence = sequence.ok_or(DecodeError::Invalid("sequence"))?;
        let time = read_time(&fields).ok_or(DecodeError::Invalid("seconds or nanos"))?;
        let program = Field::read("program", &mut fields);
        let program = program.ok_or(DecodeError::Invalid("program"))?;
        let pid = u64::read("pid", &mut fields).and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.ok_or(DecodeError::Invalid("pid"))?;
        let name = String::read("event", &mut fields).ok_or(DecodeError::Invalid("event"))?;
        for key in ["sequence", "seconds", "nanos", "program", "pid", "event"] {
            fields.remove(key);
        }
        let event = Event::read(&name, &mut fields);
        Ok(Self { sequence, time, source: Source { program, pid }, event })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: Event) -> Record {
        let source = Source { program: "gabion mount".to_owned(), pid: 71 };
        Record { sequence: Sequence(7), time: Timestamp::new(1_795_355_101, 5), source, event }
    }

    #[test]
    fn every_event_comes_back_from_its_line() {
        let examples = Event::examples();
        let names: Vec<_> = examples.iter().map(Event::name).collect();
        assert_eq!(names, Event::names());
        for event in examples {
            let record = record(event);
            let line = record.to_line();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(Record::from_line(line.as_bytes()), Ok(record));
        }
    }

    #[test]
    fn names_are_unique_and_in_kebab_case() {
        let mut names = Event::names();
        for name in &names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
        }
        names.sort_unstable();
        names.windows(2).for_each(|pair| assert_ne!(pair[0], pair[1]));
    }

    /// Other programs read these lines: a change here breaks them.
    #[test]
    fn a_line_looks_as_promised() {
        let event = MemberEvent::Stale { reason: "say \"no\"".to_owned() };
        let (volume, member) = ("tank".to_owned(), "b".to_owned());
        let line = record(Event::Member { volume, member, event }).to_line();
        let wanted = concat!(
            r#"{"event":"member-stale","member":"b","nanos":5,"pid":71,"#,
            r#""program":"gabion mount","reason":"say \"no\"","seconds":1795355101,"#,
            r#""sequence":7,"volume":"tank"}"#
        );
        let sorted: serde_json::Value = serde_json::from_str(&line).unwrap();
        let wanted: serde_json::Value = serde_json::from_str(wanted).unwrap();
        assert_eq!(sorted, wanted);
    }

    #[test]
    fn what_another_version_tells_is_kept() {
        let head = r#""sequence":1,"seconds":2,"nanos":3,"program":"g","pid":4"#;
        for rest in [r#""event":"moon-full","x":[1]"#, r#""event":"volume-opened","epoch":"x""#] {
            let line = format!("{{{head},{rest}}}");
            let record = Record::from_line(line.as_bytes()).unwrap();
            let Event::Unknown { name, fields } = &record.event else { panic!("{record:?}") };
            assert!(rest.contains(name.as_str()) && fields.len() > 5, "{fields}");
            assert_eq!(Record::from_line(record.to_line().as_bytes()), Ok(record));
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_refused() {
        let line = record(Event::examples().remove(0)).to_line();
        for end in 0..line.len() {
            assert!(Record::from_line(&line.as_bytes()[..end]).is_err(), "{end}");
        }
        for byte in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            for value in [0, b'"', b'9', 0xff] {
                bytes[byte] = value;
                // Whatever comes out, nothing panics.
                let _ = Record::from_line(&bytes);
            }
        }
        let long = format!("{}{}", line, " ".repeat(LINE_BYTES_MAX));
        assert!(Record::from_line(long.as_bytes()).is_err());
    }

    #[test]
    fn long_texts_are_cut_off_and_the_line_stays_within_its_bound() {
        let long = "\u{1}".repeat(100_000);
        let event = MemberEvent::Stale { reason: long.clone() };
        let event = Event::Member { volume: long.clone(), member: long.clone(), event };
        let mut record = record(event);
        record.source.program = long.clone();
        let line = record.to_line();
        assert!(line.len() <= LINE_BYTES_MAX, "{}", line.len());
        let read = Record::from_line(line.as_bytes()).unwrap();
        let Event::Member { volume, .. } = read.event else { panic!("{read:?}") };
        assert_eq!(volume, long[..TEXT_BYTES_MAX]);
        let fields = format!("{{\"x\":\"{}\"}}", "y".repeat(LINE_BYTES_MAX));
        record.event = Event::Unknown { name: "moon-full".to_owned(), fields };
        assert!(Record::from_line(record.to_line().as_bytes()).is_ok());
        let clipped_umlaut = "ä".repeat(TEXT_BYTES_MAX);
        assert_eq!(clipped(&clipped_umlaut).len(), TEXT_BYTES_MAX);
    }
}
