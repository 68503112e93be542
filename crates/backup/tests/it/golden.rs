//! Streams of earlier versions are read, and written in the same bytes, for ever.
//!
//! `golden/v1-full.bin` and `golden/v1-changes.bin` are a chain, and those of `v2` another one.
//! What packing gives is not promised to be the same by every version of the library, so written
//! streams are compared in what a reader sees; the bytes that are no library's are compared one by
//! one, with every record, frame and header in `golden/v1.txt` and `golden/v2.txt`.
//!
//! `GABION_REWRITE_GOLDEN=1` writes those of the last version anew, which is right as long as it
//! was not released.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use gabion_backup::format::index::{End, Entry, Totals, encode_entries, encode_tail};
use gabion_backup::format::parts::Parts;
use gabion_backup::format::segment::{Frame, Kind, Packing};
use gabion_backup::{Hash, Header, Stream};

use crate::world::{Step, changes, content, full, header, stream};

/// The last version.
const LAST: u16 = 2;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn rewrites() -> bool {
    std::env::var_os("GABION_REWRITE_GOLDEN").is_some()
}

/// The headers of a chain of this version.
fn headers(version: u16) -> [Header; 2] {
    let hash = if version == 1 { Hash::Sha256 } else { Hash::Blake3 };
    [header(1, None), header(2, Some(1))].map(|header| Header { hash, ..header })
}

#[test]
fn a_chain_of_version_1_is_read_as_it_always_was() {
    reads_a_chain_of(1);
}

#[test]
fn a_chain_of_version_2_is_read_as_it_always_was() {
    reads_a_chain_of(2);
}

fn reads_a_chain_of(version: u16) {
    let [first, second] = headers(version);
    let new = [stream(first, &full(), None), stream(second, &changes(), None)];
    let names = ["full", "changes"].map(|name| format!("v{version}-{name}.bin"));
    if rewrites() && version == LAST {
        for (name, bytes) in names.iter().zip(&new) {
            fs::write(path(name), bytes).expect("a writable checkout");
        }
    }
    let old = names.map(|name| fs::read(path(&name)).expect("a golden file"));
    for old in &old {
        Stream::open(old.clone(), None).unwrap().verify(|_| ()).unwrap();
    }
    let see = |streams: &[Vec<u8>; 2]| content(&[&streams[0], &streams[1]], None).unwrap();
    assert_eq!(see(&old), see(&new));
    assert_eq!(content(&[&old[0]], None).unwrap(), content(&[&new[0]], None).unwrap());
}

#[test]
fn version_1_is_written_as_it_always_was() {
    writes(1);
}

#[test]
fn version_2_is_written_as_it_always_was() {
    writes(2);
}

fn writes(version: u16) {
    let [first, second] = headers(version);
    let mut samples = vec![("header".to_owned(), second.encode())];
    for (number, step) in full().into_iter().chain(changes()).enumerate() {
        if let Step::Say(record) = step {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            samples.push((format!("record {number}"), bytes));
        }
    }
    let frame = Frame { kind: Kind::Data, packing: Packing::Zstd, number: 7, raw: 100, stored: 4 };
    samples.push(("frame".to_owned(), frame.encode(b"data")));
    let entry = Entry { offset: 200, kind: Kind::Records, raw: 100, stored: 50 };
    samples.push(("index".to_owned(), encode_entries(&[entry])));
    let totals = Totals { objects: 3, bytes: 4 };
    samples.push(("end".to_owned(), End { segments: 8, totals, index: vec![900] }.encode()));
    samples.push(("tail".to_owned(), encode_tail(1000, first.stream)));
    let parts = Parts { stream: first.stream, lengths: vec![16 << 20, 1000] };
    samples.push(("parts".to_owned(), parts.encode()));
    let mut text = String::new();
    for (name, bytes) in samples {
        let _ = writeln!(text, "{name}");
        for line in bytes.chunks(16) {
            let line: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(text, "  {}", line.join(" "));
        }
    }
    let name = format!("v{version}.txt");
    if rewrites() && version == LAST {
        fs::write(path(&name), &text).expect("a writable checkout");
    }
    assert_eq!(fs::read_to_string(path(&name)).expect("a golden file"), text);
}
