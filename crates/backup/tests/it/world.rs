//! A small tree with one of everything, streams of it, and what a reader sees.

use std::collections::BTreeMap;

use gabion_backup::format::header::Lock;
use gabion_backup::format::record::Content;
use gabion_backup::scan::Kept;
use gabion_backup::{
    Attributes, Error, Hash, Header, Object, Record, Result, Secret, Stream, StreamId, Time, Tree,
    Writer,
};

pub const ROOT: u64 = 1;

/// A header of a full stream, or of one that follows another.
pub fn header(number: u8, base: Option<u8>) -> Header {
    Header {
        stream: StreamId([number; 16]),
        base: base.map(|base| StreamId([base; 16])),
        filesystem: [7; 16],
        created: Time { seconds: 1_700_000_000 + i64::from(number), nanoseconds: 5 },
        root: ROOT,
        snapshot: format!("backup-{number}").into_bytes(),
        origin: b"/mnt".to_vec(),
        lock: Lock::Open,
        hash: Hash::default(),
    }
}

pub fn object(ino: u64, mode: u32, size: u64) -> Object {
    let time = |seconds| Time { seconds, nanoseconds: 123_456_789 };
    Object {
        ino,
        attributes: Attributes {
            mode,
            uid: 1000,
            gid: 4_000_000_000,
            rdev: if mode & 0o170_000 == 0o020_000 { 0x103 } else { 0 },
            size,
            read: time(-1),
            written: time(2),
            changed: time(3),
            born: time(4),
        },
        content: Content::Fresh,
        target: if mode & 0o170_000 == 0o120_000 { b"target".to_vec() } else { Vec::new() },
        xattrs: vec![(b"user.name".to_vec(), vec![0, 1, 2])],
    }
}

fn name(dir: u64, ino: u64, name: &[u8]) -> Record {
    Record::Name { dir, ino, name: name.to_vec() }
}

/// Bytes that do not pack well, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    gabion_base::rng::Rng::new(seed).fill(&mut bytes);
    bytes
}

/// What is written of the tree: in the order of a walk.
pub enum Step {
    Say(Record),
    Piece(u64, u64, Vec<u8>),
}

/// The steps of a full stream.
pub fn full() -> Vec<Step> {
    let mut steps = Vec::new();
    let mut say = |record| steps.push(Step::Say(record));
    say(Record::Object(object(ROOT, 0o040_755, 0)));
    say(name(ROOT, 2, b"file"));
    say(name(ROOT, 2, b"its other name"));
    say(name(ROOT, 3, b"dir"));
    say(name(ROOT, 4, &[0xff, b'\n']));
    say(name(ROOT, 7, b"copy"));
    say(Record::Complete { ino: ROOT });
    say(Record::Object(object(3, 0o041_777, 0)));
    say(name(3, 5, b"null"));
    say(name(3, 6, b"empty"));
    say(Record::Complete { ino: 3 });
    for (ino, mode) in [(4, 0o120_777), (5, 0o020_600), (6, 0o100_000)] {
        say(Record::Object(object(ino, mode, 0)));
        say(Record::Complete { ino });
    }
    for ino in [2, 7] {
        steps.push(Step::Say(Record::Object(object(ino, 0o100_644, 20_000))));
        steps.push(Step::Piece(ino, 0, noise(1, 4096)));
        steps.push(Step::Piece(ino, 8192, vec![9; 8192]));
        steps.push(Step::Say(Record::Complete { ino }));
    }
    steps
}

/// The steps of one that follows: a renaming, a removal, changed bytes, a shorter file.
pub fn changes() -> Vec<Step> {
    let kept = |size| Object { content: Content::Kept, ..object(2, 0o100_600, size) };
    vec![
        Step::Say(Record::NoObject { ino: 7 }),
        Step::Say(Record::NoName { dir: ROOT, name: b"copy".to_vec() }),
        Step::Say(Record::NoName { dir: ROOT, name: b"its other name".to_vec() }),
        Step::Say(name(3, 2, b"its other name")),
        Step::Say(Record::Object(kept(12_000))),
        Step::Say(Record::Hole { ino: 2, from: 0, to: 6000 }),
        Step::Piece(2, 4096, noise(2, 1904)),
        Step::Say(Record::Complete { ino: 2 }),
    ]
}

/// Takes steps. Those of objects that are known are left out, as who goes on would.
pub fn take<W: std::io::Write>(
    writer: &mut Writer<W>,
    steps: &[Step],
    known: Option<&Kept>,
) -> Result<()> {
    let is_known = |ino: &u64| known.is_some_and(|kept| kept.complete.contains(ino));
    for step in steps {
        match step {
            Step::Say(Record::Object(object)) if is_known(&object.ino) => {}
            Step::Say(Record::Complete { ino }) | Step::Piece(ino, ..) if is_known(ino) => {}
            Step::Say(record) => writer.record(record)?,
            Step::Piece(ino, offset, bytes) => writer.piece(*ino, *offset, bytes)?,
        }
    }
    Ok(())
}

/// A stream of these steps; a checkpoint after each few.
pub fn stream(header: Header, steps: &[Step], secret: Option<&Secret>) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), header, secret).unwrap();
    for some in steps.chunks(5) {
        take(&mut writer, some, None).unwrap();
        writer.checkpoint().unwrap();
    }
    writer.finish().unwrap().0
}

/// All that a reader sees of a chain: each path with its attributes and bytes.
pub fn content(streams: &[&[u8]], secret: Option<&Secret>) -> Result<BTreeMap<Vec<u8>, String>> {
    let mut tree = Tree::default();
    let mut open = Vec::new();
    for (number, bytes) in streams.iter().enumerate() {
        let stream = Stream::open(bytes.to_vec(), secret)?;
        stream.verify(|_| {})?;
        stream.records(|record| tree.apply(number as u16, record))?;
        open.push(stream);
    }
    let root = open.last().unwrap().header().root;
    tree.check(root)?;
    let mut seen = BTreeMap::new();
    let mut waiting = vec![(Vec::new(), root)];
    while let Some((path, ino)) = waiting.pop() {
        let object = tree.object(ino)?;
        let mut bytes = vec![0; object.attributes.size as usize];
        for (at, part) in tree.parts(ino) {
            let segment = open[usize::from(part.stream)].segment(part.segment)?;
            let (from, length) = (part.at as usize, part.length as usize);
            bytes[at as usize..at as usize + length].copy_from_slice(&segment[from..from + length]);
        }
        for (name, ino) in tree.names(ino) {
            waiting.push(([&path[..], b"/", name].concat(), ino));
        }
        let object = Object { content: Content::Fresh, ..object.clone() };
        seen.insert(path, format!("{object:?} {:?}", gabion_base::checksum::crc64(&bytes)));
    }
    Ok(seen)
}

pub fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Damaged { .. } | Error::Unfinished(_) | Error::NotABackup)
}
