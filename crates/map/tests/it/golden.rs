//! What earlier versions wrote is read by this one, for ever.
//!
//! `golden/` holds, for each version of the format:
//!
//! - `v1-whole.gbimg`: a filesystem after a commit, with one of everything;
//! - `v1-journal.gbimg`: the same one a little later, with a journal that waits to be replayed;
//! - `v1-grown.gbimg`: one that says what it was laid out for, as all do by now, and has grown;
//! - `v1-snapshots.gbimg`: one with named snapshots, a rollback, a clone and half a removal;
//! - `v1-quota.gbimg`: one with a quota and a schedule, and changes in the journal that count;
//! - a listing (`.txt`) of all that is in each, as the version that made it saw it;
//! - `v1-format.txt`: every size, place and constant, and an encoded sample of every structure.
//!
//! An image is stored as its bytes that are not zero:
//!
//! ```text
//! magic "GBIMG\0\0\x01", length in blocks u64, then spans: offset u64, length u32, bytes;
//! at the end CRC-64/NVME of all before
//! ```
//!
//! `GABION_REWRITE_GOLDEN=1` writes the files anew. That is for a new version of the format, whose
//! files get a new name: those of a version that was released never change.

mod content;
mod listing;
mod structures;

use std::path::PathBuf;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::checksum::crc64;
use gabion_base::codec::{Put, Reader};
use gabion_base::disk::Disk;
use gabion_base::ids::BlockAddr;

use gabion_map::audit::audit;
use gabion_map::format::item::decode_file;
use gabion_map::format::subvolume::{Count, Most, Schedule};
use gabion_map::removal::Removing;
use gabion_map::scrub::scrub;
use gabion_map::{Kind, Limits, LocalMap, OpenMode, Payload, Txn};

use self::content::file;
use crate::image::{Image, ImageDisk};

const MAGIC: &[u8; 8] = b"GBIMG\0\0\x01";
/// Zeros that are worth a new span.
const GAP: usize = 16;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn rewrites() -> bool {
    std::env::var_os("GABION_REWRITE_GOLDEN").is_some()
}

/// Compares with a golden text, or writes it.
fn check_text(name: &str, text: &str) {
    let path = path(name);
    if rewrites() {
        std::fs::write(&path, text).expect("a writable checkout");
    }
    let golden = std::fs::read_to_string(&path).expect("a golden file");
    for (number, (golden, found)) in golden.lines().zip(text.lines()).enumerate() {
        assert_eq!(golden, found, "{name}, line {}", number + 1);
    }
    assert_eq!(golden.lines().count(), text.lines().count(), "lines of {name}");
}

fn pack(image: &Image) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.put_u64(image.blocks);
    for addr in image.written() {
        let block = image.read(addr, 1);
        let mut at = 0;
        while let Some(start) = (at..BLOCK_SIZE).find(|at| block[*at] != 0) {
            let quiet = |at: &usize| block[*at..(at + GAP).min(BLOCK_SIZE)].iter().all(|b| *b == 0);
            at = (start..BLOCK_SIZE).find(quiet).unwrap_or(BLOCK_SIZE);
            out.put_u64(addr.byte_offset() + start as u64);
            out.put_u32((at - start) as u32);
            out.extend_from_slice(&block[start..at]);
        }
    }
    let checksum = crc64(&out);
    out.put_u64(checksum);
    out
}

fn unpack(bytes: &[u8]) -> Image {
    let (content, checksum) = bytes.split_last_chunk::<8>().expect("a whole file");
    assert_eq!(crc64(content).to_le_bytes(), *checksum, "a golden file is damaged");
    let mut reader = Reader::new(content);
    assert_eq!(reader.bytes(8), Ok(&MAGIC[..]));
    let mut image = Image::zeroed(reader.u64().expect("a length"));
    while reader.remaining() > 0 {
        let offset = reader.u64().expect("an offset");
        let length = reader.u32().expect("a length") as usize;
        let addr = BlockAddr(offset / BLOCK_SIZE as u64);
        let at = offset as usize % BLOCK_SIZE;
        let mut block = image.read(addr, 1);
        block[at..at + length].copy_from_slice(reader.bytes(length).expect("a span"));
        image.write(addr, &block);
    }
    image
}

/// A golden image, which is written before if that was asked for.
fn golden(name: &str, make: impl Fn() -> Image) -> Image {
    let path = path(name);
    if rewrites() {
        std::fs::write(&path, pack(&make())).expect("a writable checkout");
    }
    unpack(&std::fs::read(&path).expect("a golden file"))
}

fn open(image: Image, mode: OpenMode) -> (Arc<ImageDisk>, LocalMap) {
    let disk = ImageDisk::new(image);
    let map = LocalMap::open(Arc::clone(&disk) as Arc<dyn Disk>, mode, Limits::within(4 << 20));
    (disk, map.expect("what an earlier version wrote is read"))
}

fn read(map: &LocalMap, ino: u64) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let length = map.transact(|txn| txn.read(file(ino), 0, &mut bytes)).expect("readable");
    bytes.truncate(length);
    bytes
}

/// The filesystem is as it should be, can be changed, and is then as it should be still.
fn use_it(image: Image) {
    let (disk, map) = open(image, OpenMode::ReadWrite);
    let whole = |map: &LocalMap| {
        map.sync().expect("a working disk");
        let audit = audit(map).expect("readable");
        assert!(audit.is_exact(), "{audit:?}");
        let report = scrub(map, &mut |_| std::ops::ControlFlow::Continue(()));
        assert!(report.expect("readable").findings.is_empty());
    };
    whole(&map);
    for ino in 1..20 {
        map.transact(|txn| txn.put(file(ino).key(Kind::XATTR, 1), vec![1; 300])).expect("space");
        map.transact(|txn| txn.write(file(ino + 100), 0, Payload::Copied(&[7; 9000])))
            .expect("space");
    }
    whole(&map);
    drop(map);
    let (_, map) = open(disk.image(), OpenMode::ReadWrite);
    whole(&map);
    assert_eq!(read(&map, 101), [7; 9000]);
}

#[test]
fn version_1_is_read_as_it_was_written() {
    let image = golden("v1-whole.gbimg", content::whole);
    let (_, map) = open(image.clone(), OpenMode::ReadOnly);
    check_text("v1-whole.txt", &listing::of(&map));
    assert_eq!(read(&map, 2), b"changed after the snapshot\n");
    assert_eq!(read(&map, 3), content::large());
    assert_eq!(read(&map, 5)[..8192], content::large()[..8192]);
    use_it(image);
}

#[test]
fn the_journal_of_version_1_is_replayed() {
    let image = golden("v1-journal.gbimg", content::with_journal);
    let (_, map) = open(image.clone(), OpenMode::ReadOnly);
    check_text("v1-journal.txt", &listing::of(&map));
    assert_eq!(read(&map, 2), b"journaled after the snapshot\n");
    assert_eq!(read(&map, 3), content::large()[..5000]);
    assert_eq!(read(&map, 10), b"made in the journal");
    use_it(image);
}

#[test]
fn a_filesystem_that_has_grown_is_read_as_it_was_written() {
    let image = golden("v1-grown.gbimg", content::grown);
    let (_, map) = open(image.clone(), OpenMode::ReadOnly);
    check_text("v1-grown.txt", &listing::of(&map));
    assert_eq!(map.blocks(), image.blocks);
    assert_eq!(read(&map, 3), content::large());
    assert_eq!(read(&map, 11), content::large()[..3 * BLOCK_SIZE]);
    use_it(image);
}

#[test]
fn snapshots_clones_and_a_removal_under_way_are_read_as_they_were_written() {
    let image = golden("v1-snapshots.gbimg", content::with_snapshots);
    let (_, map) = open(image.clone(), OpenMode::ReadOnly);
    check_text("v1-snapshots.txt", &listing::of(&map));
    assert_eq!(read(&map, 2), b"changed after the rollback\n");
    let names: Vec<_> =
        map.snapshots(file(1).subvol).into_iter().map(|(_, it)| it.extended.name).collect();
    assert_eq!(names, [&b"monday"[..], b"tuesday", b"before"]);
    assert!(map.is_removing());
    drop(map);
    let (disk, map) = open(image, OpenMode::ReadWrite);
    while map.remove_step().expect("a working disk") == Removing::Step {}
    drop(map);
    use_it(disk.image());
}

#[test]
fn a_quota_and_a_schedule_are_read_as_they_were_written() {
    let image = golden("v1-quota.gbimg", content::with_quota);
    let subvol = file(1).subvol;
    let (_, map) = open(image.clone(), OpenMode::ReadOnly);
    check_text("v1-quota.txt", &listing::of(&map));
    let quota = map.quota(subvol).expect("it has one");
    assert_eq!(quota.most, Most { blocks: Some(1000), objects: Some(150) });
    // 21 of the blocks, and an object, are in the journal only.
    assert_eq!(quota.count, Some(counted(&map)));
    let snapshot = map.snapshots(subvol)[0].1.extended.quota;
    let before = snapshot.and_then(|quota| quota.count).expect("it was counted");
    let now = counted(&map);
    assert_eq!((before.blocks + 3 + 21, before.objects + 1), (now.blocks, now.objects));
    let schedule = Schedule { hourly: 24, daily: 7, weekly: 0, monthly: 1 };
    assert_eq!(map.schedules(), [(subvol, schedule)]);
    use_it(image);
}

/// What the files of the images refer to, one by one.
fn counted(map: &LocalMap) -> Count {
    let mut count = Count::default();
    for ino in 1..200 {
        let item = |kind| map.transact(|txn| txn.get(file(ino).key(kind, 0))).expect("readable");
        count.objects += u64::from(item(Kind::INODE).is_some());
        let bytes = item(Kind::FILE).map(|value| decode_file(&value).expect("whole"));
        count.blocks += bytes.map_or(0, |bytes| bytes.blocks);
    }
    count
}

#[test]
fn what_was_made_without_room_to_grow_grows_as_far_as_its_tables_reach() {
    let image = golden("v1-whole.gbimg", content::whole);
    let (disk, map) = open(image, OpenMode::ReadWrite);
    assert_eq!(map.superblock().laid_out, None);
    let reach = map.reach();
    assert_eq!(reach, 255 * 32_768);
    disk.lengthen(reach + 1);
    map.grow(reach + 1).expect_err("one block too far");
    map.grow(40_000).expect("a long enough disk");
    assert!(map.superblock().laid_out.is_some());
    use_it(disk.image());
    map.grow(reach).expect("a long enough disk");
    drop(map);
    let (_, map) = open(disk.image(), OpenMode::ReadOnly);
    assert_eq!((map.blocks(), read(&map, 3)), (reach, content::large()));
}

#[test]
fn sizes_places_and_constants_are_those_of_version_1() {
    check_text("v1-format.txt", &structures::text());
}
