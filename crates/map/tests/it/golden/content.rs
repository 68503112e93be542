//! What stands in the golden images: a directory tree, its items encoded here by hand from what
//! `docs/format.md` says, so that the document and the code check each other.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::checksum::name_hash;
use gabion_base::codec::Put;
use gabion_base::disk::Disk;
use gabion_base::ids::{Ino, SubvolId, Uuid};

use gabion_map::format::subvolume::{Hold, Most, Schedule};
use gabion_map::format::superblock::Superblock;
use gabion_map::open::{FormatOptions, format};
use gabion_map::{FileId, Kind, Limits, LocalMap, OpenMode, Payload, Stop, Txn};

use crate::image::{Image, ImageDisk};

const BLOCKS: u64 = 4096;
/// Two groups, the second of which is short.
const GROWN: u64 = 40_000;
const SEED: u64 = 0x5eed;
const SUBVOL: SubvolId = SubvolId(1);
const DIRECTORY: u16 = 0o040_755;
const REGULAR: u16 = 0o100_644;
const SYMLINK: u16 = 0o120_777;

/// An object of the first subvolume.
pub fn file(ino: u64) -> FileId {
    FileId::new(SUBVOL, Ino(ino))
}

/// Attributes; `length` is the number of a directory's entries or of a symlink's bytes.
fn inode(mode: u16, nlink: u32, parent: u64, length: u64) -> Vec<u8> {
    let mut out = vec![1, 0];
    out.put_u16(mode);
    out.put_u32(0);
    out.put_u32(1000);
    out.put_u32(100);
    out.put_u32(nlink);
    out.put_u32(0);
    out.put_u64(0x1122_3344_5566_7788);
    out.put_u64(parent);
    out.put_u64(length);
    out.put_u64(1);
    for second in 0..4 {
        out.put_u64(1_700_000_000 + second);
        out.put_u32(500 + second as u32);
    }
    out
}

fn put_entry<T: Txn>(
    txn: &mut T,
    directory: u64,
    name: &[u8],
    ino: u64,
    file_type: u8,
) -> Result<(), Stop> {
    let at = ((name_hash(name, SEED) >> 1) & !0xf).max(16);
    let mut value = vec![1];
    value.put_u64(ino);
    value.put_u8(file_type);
    value.put_u8(name.len() as u8);
    value.extend_from_slice(name);
    txn.put(file(directory).key(Kind::DIRENT, at), value)
}

fn put_attribute<T: Txn>(txn: &mut T, ino: u64, name: &[u8], attribute: &[u8]) -> Result<(), Stop> {
    let mut value = vec![1, name.len() as u8];
    value.put_u16(attribute.len() as u16);
    value.extend_from_slice(name);
    value.extend_from_slice(attribute);
    txn.put(file(ino).key(Kind::XATTR, name_hash(name, SEED)), value)
}

/// A mostly empty block that is like no other.
fn block(text: &str, number: usize) -> Vec<u8> {
    let mut block = format!("block {number} of {text}\n").into_bytes();
    block.resize(BLOCK_SIZE, 0);
    block
}

/// Three blocks, a hole, and a part of a block.
pub fn large() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..3).flat_map(|number| block("large", number)).collect();
    bytes.resize(20 * BLOCK_SIZE, 0);
    bytes.extend_from_slice(b"the end of large");
    bytes
}

fn write(map: &LocalMap, ino: u64, offset: u64, bytes: &[u8]) {
    map.transact(|txn| txn.write(file(ino), offset, Payload::Copied(bytes))).expect("space");
}

fn open(disk: &Arc<ImageDisk>) -> LocalMap {
    let disk = Arc::clone(disk) as Arc<dyn Disk>;
    LocalMap::open(disk, OpenMode::ReadWrite, Limits::within(4 << 20)).expect("whole")
}

fn make_names(map: &LocalMap) {
    map.transact(|txn| -> Result<(), Stop> {
        // All numbers are taken in order, so that the subvolume knows them.
        for ino in 1..10 {
            assert_eq!(txn.new_inode(SUBVOL)?, Ino(ino));
        }
        txn.put(file(1).key(Kind::INODE, 0), inode(DIRECTORY, 3, 1, 6))?;
        let entries: [(&[u8], u64, u8, u16); 5] = [
            (b"small", 2, 8, REGULAR),
            (b"large", 3, 8, REGULAR),
            (b"aside", 4, 8, REGULAR),
            (b"copy", 5, 8, REGULAR),
            (b"link", 6, 10, SYMLINK),
        ];
        for (name, ino, file_type, mode) in entries {
            put_entry(txn, 1, name, ino, file_type)?;
            let length = if file_type == 10 { 9 } else { 0 };
            txn.put(file(ino).key(Kind::INODE, 0), inode(mode, 1, 0, length))?;
        }
        txn.put(file(6).key(Kind::SYMLINK, 0), b"dir/inner".to_vec())?;
        put_entry(txn, 1, b"dir", 7, 4)?;
        txn.put(file(7).key(Kind::INODE, 0), inode(DIRECTORY, 2, 1, 1))?;
        put_entry(txn, 7, b"inner", 8, 8)?;
        let mut inner = inode(REGULAR, 1, 0, 0);
        inner[4] = 1; // It has extended attributes.
        txn.put(file(8).key(Kind::INODE, 0), inner)?;
        // More than a node holds, so that the tree has two levels.
        for number in 0..6 {
            let name = format!("user.attribute{number}");
            put_attribute(txn, 8, name.as_bytes(), &[0; 3000])?;
        }
        // Removed while it was open.
        txn.put(file(9).key(Kind::INODE, 0), inode(REGULAR, 0, 0, 0))?;
        txn.put(file(0).key(Kind::ORPHAN, 9), Vec::new())
    })
    .expect("space");
}

fn make_bytes(map: &LocalMap) {
    write(map, 2, 0, b"in the snapshot\n");
    let large = large();
    write(map, 3, 0, &large[..3 * BLOCK_SIZE]);
    write(map, 3, 20 * BLOCK_SIZE as u64, &large[20 * BLOCK_SIZE..]);
    map.transact(|txn| {
        txn.allocate(file(4), 0, 32_768)?;
        txn.set_size(file(4), 32_768)
    })
    .expect("space");
    write(map, 4, 4096, &block("aside", 1));
    map.sync().expect("a working disk");
    map.transact(|txn| txn.share(file(3), 0, file(5), 0, 8192)).expect("space");
    map.sync().expect("a working disk");
}

/// As it was before superblocks said what was laid out: at this length that changes no place.
fn forget_what_was_laid_out(disk: &Arc<ImageDisk>) {
    let mut image = disk.image();
    // mkfs is commit 1, and writes nothing else.
    let addr = image.written()[0];
    let mut superblock = Superblock::decode(&image.read(addr, 1), addr).expect("just made");
    superblock.incompatible = 0;
    superblock.laid_out = None;
    image.write(addr, superblock.encode(addr).bytes());
    disk.replace(image);
}

fn make() -> Arc<ImageDisk> {
    let disk = make_empty();
    forget_what_was_laid_out(&disk);
    fill(&disk);
    disk
}

fn make_empty() -> Arc<ImageDisk> {
    let disk = ImageDisk::new(Image::zeroed(BLOCKS));
    let options = FormatOptions {
        uuid: Uuid(*b"gabion golden v1"),
        label: "golden".into(),
        name_seed: SEED,
        created: 1_700_000_000,
        blocks: None,
    };
    format(&(Arc::clone(&disk) as Arc<dyn Disk>), &options).expect("a large enough disk");
    disk
}

fn fill(disk: &Arc<ImageDisk>) {
    let map = open(disk);
    assert_eq!(map.create_subvolume().expect("writable"), SUBVOL);
    make_names(&map);
    make_bytes(&map);
    map.snapshot(SUBVOL).expect("a working disk");
    write(&map, 2, 0, b"changed after the snapshot\n");
    write(&map, 5, 8192, &block("copy", 2));
    map.transact(|txn| txn.punch(file(4), 16_384, 32_768)).expect("space");
    map.sync().expect("a working disk");
}

/// Made with room to grow, and grown twice.
pub fn grown() -> Image {
    let disk = make_empty();
    fill(&disk);
    disk.lengthen(GROWN);
    let map = open(&disk);
    map.grow(GROWN - 5000).expect("a long enough disk");
    map.grow(GROWN).expect("a long enough disk");
    write(&map, 11, 0, &large()[..3 * BLOCK_SIZE]);
    map.sync().expect("a working disk");
    disk.image()
}

/// With snapshots that have names, a rollback, a clone, and a clone that is half removed.
pub fn with_snapshots() -> Image {
    let disk = make_empty();
    fill(&disk);
    let map = open(&disk);
    let monday = map.create_snapshot(SUBVOL, b"monday", 1_700_000_001).expect("room");
    write(&map, 3, 0, &block("tuesday", 1));
    let tuesday = map.create_snapshot(SUBVOL, b"tuesday", 1_700_000_002).expect("room");
    map.set_hold(tuesday, Hold::Held).expect("a working disk");
    let gone = map.clone_snapshot(tuesday, SUBVOL, 1_700_000_003).expect("room");
    let clone = map.clone_snapshot(monday, SUBVOL, 1_700_000_004).expect("room");
    for (subvol, ino) in [(clone, 3), (gone, 3), (gone, 4)] {
        let id = FileId::new(subvol, Ino(ino));
        let bytes = block("clone", ino as usize);
        map.transact(|txn| txn.write(id, 0, Payload::Copied(&bytes))).expect("room");
        map.transact(|txn| txn.share(id, 0, FileId::new(subvol, Ino(20)), 0, 4096)).expect("room");
    }
    map.rollback(SUBVOL, monday, b"before", 1_700_000_005).expect("room");
    write(&map, 2, 0, b"changed after the rollback\n");
    map.sync().expect("a working disk");
    map.remove(&[gone]).expect("a working disk");
    // To walk, and the walk: its records of what was freed are still there.
    for _ in 0..2 {
        map.remove_step().expect("a working disk");
    }
    disk.image()
}

/// With a quota, a schedule, a snapshot that has the quota as it was, and changes in the journal
/// that count.
pub fn with_quota() -> Image {
    let disk = make_empty();
    fill(&disk);
    let map = open(&disk);
    let most = Most { blocks: Some(1000), objects: Some(150) };
    map.set_quota(SUBVOL, most).expect("a working disk");
    let schedule = Schedule { hourly: 24, daily: 7, weekly: 0, monthly: 1 };
    map.set_schedule(SUBVOL, Some(schedule)).expect("a working disk");
    map.create_snapshot(SUBVOL, b"hourly-2023-11-14T22:00Z", 1_700_000_001).expect("room");
    write(&map, 11, 0, &large()[..3 * BLOCK_SIZE]);
    map.sync().expect("a working disk");
    write(&map, 12, 0, &large());
    map.flush_file(file(12)).expect("a working disk");
    map.transact(|txn| txn.put(file(12).key(Kind::INODE, 0), inode(REGULAR, 1, 0, 0)))
        .expect("space");
    map.sync_file(file(12)).expect("a working disk");
    disk.image()
}

/// After a commit.
pub fn whole() -> Image {
    make().image()
}

/// With changes in the journal only.
pub fn with_journal() -> Image {
    let disk = make();
    let map = open(&disk);
    write(&map, 2, 0, b"journaled");
    map.transact(|txn| txn.set_size(file(2), 7)).expect("space");
    write(&map, 2, 0, b"journaled after the snapshot\n");
    map.transact(|txn| txn.set_size(file(3), 5000)).expect("space");
    map.transact(|txn| txn.remove_bytes(file(5)).map(drop)).expect("readable");
    let made = map.transact(|txn| -> Result<Ino, Stop> {
        let ino = txn.new_inode(SUBVOL)?;
        put_entry(txn, 1, b"new", ino.0, 8)?;
        txn.put(file(ino.0).key(Kind::INODE, 0), inode(REGULAR, 1, 0, 0))?;
        txn.delete(file(0).key(Kind::ORPHAN, 9))?;
        txn.put(file(1).key(Kind::INODE, 0), inode(DIRECTORY, 3, 1, 7))?;
        Ok(ino)
    });
    assert_eq!(made.expect("space"), Ino(10));
    write(&map, 10, 0, b"made in the journal");
    map.flush_file(file(4)).expect("a working disk");
    write(&map, 4, 65_536, &[4; 3 * BLOCK_SIZE]);
    map.flush_file(file(4)).expect("a working disk");
    for ino in [10, 2, 3] {
        map.sync_file(file(ino)).expect("a working disk");
    }
    disk.image()
}
