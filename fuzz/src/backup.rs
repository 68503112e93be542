//! Streams of backups.

use gabion_base::checksum::crc64;
use gabion_base::codec::{DecodeError, Reader};

use gabion_backup::format::header::{Header, Lock, StreamId};
use gabion_backup::format::index::{End, Entry, Totals, decode_entries, encode_entries};
use gabion_backup::format::parts::Parts;
use gabion_backup::format::record::{Content, Piece, Record};
use gabion_backup::format::segment::{Frame, Kind, Packing};
use gabion_backup::{Attributes, Hash, Object, Stream, Time, Tree, Writer, forward};

use super::inputs::Target;

/// What an input is taken for: its first byte.
const HEADER: u8 = 0;
const FRAME: u8 = 1;
const RECORDS: u8 = 2;
const INDEX: u8 = 3;
const END: u8 = 4;
const PARTS: u8 = 5;
const STREAM: u8 = 6;

/// All targets of backups.
pub fn targets() -> Vec<Target> {
    let mut samples = Vec::new();
    let mut add = |kind: u8, bytes: &[u8]| samples.push([&[kind], bytes].concat());
    for lock in locks() {
        add(HEADER, &header(lock).encode());
    }
    let frame = Frame { kind: Kind::Data, packing: Packing::Zstd, number: 7, raw: 9, stored: 4 };
    add(FRAME, &frame.encode(b"data"));
    let mut all = Vec::new();
    for record in records() {
        let mut one = Vec::new();
        record.encode(&mut one);
        add(RECORDS, &one);
        all.extend_from_slice(&one);
    }
    add(RECORDS, &all);
    let entry = Entry { offset: 200, kind: Kind::Records, raw: 100, stored: 50 };
    add(INDEX, &encode_entries(&[entry, entry]));
    let totals = Totals { objects: 3, bytes: 4 };
    add(END, &End { segments: 8, totals, index: vec![900, 1000] }.encode());
    add(PARTS, &Parts { stream: StreamId([1; 16]), lengths: vec![70, 80] }.encode());
    add(STREAM, &stream());
    vec![Target { name: "backup", run: backup, samples }]
}

fn locks() -> Vec<Lock> {
    let (salt, key) = ([1; 16], [2; 60]);
    let passphrase = Lock::Passphrase { memory: 65_536, passes: 3, lanes: 4, salt, key };
    vec![Lock::Open, passphrase, Lock::KeyFile { salt, key }]
}

fn header(lock: Lock) -> Header {
    Header {
        stream: StreamId([1; 16]),
        base: Some(StreamId([2; 16])),
        filesystem: [3; 16],
        created: Time { seconds: 1_700_000_000, nanoseconds: 5 },
        root: 1,
        snapshot: b"snapshot".to_vec(),
        origin: b"/mnt".to_vec(),
        lock,
        hash: Hash::default(),
    }
}

fn records() -> Vec<Record> {
    let time = Time { seconds: -5, nanoseconds: 999_999_999 };
    let object = |ino, mode, size, target: &[u8]| {
        let attributes = Attributes {
            mode,
            uid: 1,
            gid: 2,
            rdev: 3,
            size,
            read: time,
            written: time,
            changed: time,
            born: time,
        };
        let xattrs = vec![(b"user.name".to_vec(), b"value".to_vec())];
        let (content, target) = (Content::Fresh, target.to_vec());
        Record::Object(Object { ino, attributes, content, target, xattrs })
    };
    let piece = Piece { offset: 4096, length: 100, segment: 0, at: 5, digest: [6; 16] };
    vec![
        object(1, 0o040_755, 0, b""),
        object(2, 0o100_644, 9000, b""),
        object(3, 0o120_777, 0, b"target"),
        Record::Name { dir: 1, ino: 2, name: b"file".to_vec() },
        Record::Name { dir: 1, ino: 3, name: b"link".to_vec() },
        Record::Pieces { ino: 2, pieces: vec![piece, Piece { offset: 0, ..piece }] },
        Record::Hole { ino: 2, from: 50, to: 4200 },
        Record::NoName { dir: 1, name: b"gone".to_vec() },
        Record::NoObject { ino: 9 },
        Record::Complete { ino: 2 },
    ]
}

/// A small stream.
fn stream() -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), header(Lock::Open), None).expect("no secret");
    // Pieces that somebody else tells of are nowhere in it.
    let mut told = records().into_iter().filter(|it| !matches!(it, Record::Pieces { .. }));
    let mut written = told.try_for_each(|record| writer.record(&record));
    written = written.and_then(|()| writer.piece(2, 0, b"some bytes"));
    written.and_then(|()| writer.finish()).expect("memory takes everything").0
}

/// A header, a frame or a list of parts with its checksum put right, records, a part of the index,
/// or a stream that comes from a pipe. What is understood is said in the same bytes; records that
/// apply make a tree, or a reason why not; what passes from a pipe is good from a file, too.
pub fn backup(bytes: &[u8]) -> Result<(), DecodeError> {
    let (kind, bytes) = bytes.split_first().ok_or(DecodeError::Short)?;
    let reason = |_| DecodeError::Invalid("a stream");
    let again = match *kind {
        HEADER => {
            let mut whole = bytes.to_vec();
            let (head, checksum) = whole.split_last_chunk_mut::<8>().ok_or(DecodeError::Short)?;
            *checksum = crc64(head).to_le_bytes();
            let again = Header::decode(&whole).map_err(reason)?.encode();
            assert_eq!(again, whole);
            return Ok(());
        }
        FRAME => {
            let (head, data) = bytes.split_first_chunk().ok_or(DecodeError::Short)?;
            let (frame, _) = Frame::decode(head)?;
            let again = frame.encode(data);
            assert_eq!(again[..24], head[..24]);
            return Ok(());
        }
        RECORDS => records_again(bytes)?,
        INDEX => encode_entries(&decode_entries(bytes)?),
        END => End::decode(bytes)?.encode(),
        PARTS => {
            let mut whole = bytes.to_vec();
            let (head, checksum) = whole.split_last_chunk_mut::<8>().ok_or(DecodeError::Short)?;
            *checksum = crc64(head).to_le_bytes();
            assert_eq!(Parts::decode(&whole)?.encode(), whole);
            return Ok(());
        }
        STREAM => {
            let mut pipe = bytes;
            let coming = forward::next(&mut pipe, None).map_err(reason)?;
            let coming = coming.ok_or(DecodeError::Short)?;
            let passed = coming.pass(|_| Ok(()), |_| {}).map_err(reason)?;
            let stream = Stream::open(bytes[..passed.length as usize].to_vec(), None);
            return stream.and_then(|stream| stream.verify(|_| {})).map_err(reason);
        }
        _ => return Err(DecodeError::Invalid("the kind of an input")),
    };
    assert_eq!(again, bytes);
    Ok(())
}

fn records_again(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut tree = Tree::default();
    let mut again = Vec::new();
    let mut applied = Ok(());
    while reader.remaining() > 0 {
        let record = Record::decode(&mut reader)?;
        record.encode(&mut again);
        applied = applied.and_then(|()| tree.apply(0, record));
    }
    if applied.and_then(|()| tree.check(1)).is_ok() {
        for ino in 0..4 {
            let mut end = 0;
            for (at, part) in tree.parts(ino) {
                assert!(at >= end, "parts overlap");
                end = at + u64::from(part.length);
            }
        }
    }
    Ok(again)
}
