//! What earlier versions kept of a volume is read by this one, for ever.
//!
//! `golden/` holds, for each version:
//!
//! - `v1-header.hex`, `v1-page.hex`: a member's header and a page of a bitmap, up to the last byte
//!   that is not zero;
//! - `v1-record.json`: a record with one of everything;
//! - `v1-sizes.txt`: every size, place and constant.
//!
//! `GABION_REWRITE_GOLDEN=1` writes the files anew. That is for a new version, whose files get a
//! new name: those of a version that was released never change.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::Uuid;
use gabion_block::copies::{COPIES_MAX, CopyIndex};
use gabion_block::epoch::{Epoch, HOLDER_BYTES_MAX, OPENINGS_MAX, Opening};
use gabion_block::format::bitmap::{PAGE_BITS, PAGE_WORDS, PageIdentity};
use gabion_block::format::header::{Header, MEMBER_DATA_START};
use gabion_block::geometry::{Geometry, METADATA_BLOCKS, PAGES_MAX, SLOTS, Slot};
use gabion_block::record::{CopyState, Layout, MEMBERS_MAX, Member, MirrorCopy, Record, Wish};

/// The golden text `name`; in a rewriting run it becomes `text` first.
fn golden(name: &str, text: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("GABION_REWRITE_GOLDEN").is_some() {
        fs::write(&path, text).expect("a writable checkout");
    }
    fs::read_to_string(&path).expect("a golden file")
}

/// Sixteen bytes a line, without the zeros at the end.
fn hex(block: &[u8]) -> String {
    let end = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let line = |bytes: &[u8]| {
        let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(" ") + "\n"
    };
    block[..end].chunks(16).map(line).collect()
}

fn block(hex: &str) -> Vec<u8> {
    let bytes = hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap());
    let mut block: Vec<_> = bytes.collect();
    block.resize(BLOCK_SIZE, 0);
    block
}

fn uuid(first: u8) -> Uuid {
    Uuid(std::array::from_fn(|at| first + at as u8))
}

fn opening(epoch: u64) -> Opening {
    let holder = format!("host{epoch}, process {}", 700 + epoch);
    let seconds = 1_795_000_000 + epoch as i64;
    Opening { epoch: Epoch(epoch), nonce: 0x0123_4567_89ab_cdef ^ epoch, seconds, holder }
}

fn header() -> Header {
    Header {
        volume: uuid(0x10),
        member: uuid(0x20),
        sequence: 0x0102_0304_0506_0708,
        blocks: 262_144,
        openings: vec![opening(1), opening(2), opening(5)],
    }
}

fn record() -> Record {
    let member = |first: u8, url: &str| {
        Layout::Member(Member { uuid: uuid(first), url: url.to_owned(), blocks: 262_144 })
    };
    let copy = |state, wish, on| MirrorCopy { state, wish, since: Epoch(4), on };
    let stripe = Layout::Stripe {
        chunk_blocks: 64,
        parts: vec![member(0x20, "nbd://host1/a"), member(0x21, "/dev/sdb")],
    };
    let linear = Layout::Linear(vec![
        member(0x22, "nbd+unix:///b?socket=/run/b"),
        member(0x23, "nbds://host2:4711/c?tls-certificates=/etc/pki"),
    ]);
    let copies = vec![
        copy(CopyState::InSync, Wish::Use, stripe),
        copy(CopyState::Stale { full: false }, Wish::Suspend, linear),
        copy(CopyState::Stale { full: true }, Wish::Use, member(0x24, "nbd://[::1]/d")),
        copy(CopyState::Suspended { full: false }, Wish::Suspend, member(0x25, "/e")),
        copy(CopyState::Removed, Wish::Remove, member(0x26, "/f")),
    ];
    Record {
        name: "tank-1.a_b".to_owned(),
        uuid: uuid(0x10),
        openings: vec![opening(4), opening(5)],
        completed: Epoch(4),
        compare: 3,
        layout: Layout::Mirror { uuid: uuid(0x30), blocks: 261_888, grows_to: 261_888, copies },
        append: None,
    }
}

#[test]
fn a_header_of_version_1_is_read_and_written() {
    let written = hex(header().encode().bytes());
    let kept = golden("v1-header.hex", &written);
    assert_eq!(Header::decode(&block(&kept)), Ok(header()));
    assert_eq!(written, kept);
}

#[test]
fn a_page_of_version_1_is_read_and_written() {
    let identity = PageIdentity { mirror: uuid(0x30), slot: 3, page: 2, region_blocks: 2048 };
    let mut bits = [0; PAGE_WORDS];
    (bits[0], bits[1], bits[7]) = (1, 0xff00, 1 << 63);
    let written = hex(identity.encode(&bits).bytes());
    let kept = golden("v1-page.hex", &written);
    assert_eq!(*identity.decode(&block(&kept)).unwrap(), bits);
    assert_eq!(written, kept);
}

#[test]
fn a_record_of_version_1_is_read_and_written() {
    let written = record().encode();
    let kept = golden("v1-record.json", &written);
    assert_eq!(Record::decode(&kept), Ok(record()));
    assert_eq!(written, kept);
}

#[test]
fn sizes_and_places_of_version_1_stay() {
    let mut text = String::new();
    let mut say = |name: &str, value: u64| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name} = {value}");
    };
    say("MEMBER_DATA_START", MEMBER_DATA_START);
    say("OPENINGS_MAX", OPENINGS_MAX as u64);
    say("HOLDER_BYTES_MAX", HOLDER_BYTES_MAX as u64);
    say("METADATA_BLOCKS", METADATA_BLOCKS);
    say("COPIES_MAX", COPIES_MAX as u64);
    say("MEMBERS_MAX", MEMBERS_MAX as u64);
    say("SLOTS", SLOTS as u64);
    say("PAGES_MAX", PAGES_MAX as u64);
    say("PAGE_BITS", PAGE_BITS as u64);
    say("fence of epoch 3, attachment 2", Epoch(3).fence(2));
    for blocks in [257, 262_144, 1 << 30, 1 << 40] {
        let geometry = Geometry::of_copies(blocks).unwrap();
        say(&format!("{blocks} blocks: data"), geometry.blocks());
        say(&format!("{blocks} blocks: of a region"), geometry.region_blocks());
        say(&format!("{blocks} blocks: pages of a slot"), geometry.pages() as u64);
        let last = Slot::Missing(CopyIndex(7));
        let last_page = geometry.page_addr(last, geometry.pages() - 1);
        say(&format!("{blocks} blocks: last page of the last slot"), last_page.0);
    }
    let kept = golden("v1-sizes.txt", &text);
    assert_eq!(text, kept);
}
