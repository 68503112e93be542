//! A small filesystem with one of everything, to be damaged.

use std::sync::{Arc, OnceLock};

use gabion_base::disk::Disk;
use gabion_base::ids::{Ino, SubvolId, Uuid};

use gabion_map::open::{FormatOptions, format};
use gabion_map::{FileId, Kind, Limits, LocalMap, OpenMode, Payload, Stop, Txn};

use crate::image::{Image, ImageDisk};

/// Length of the sample in blocks: the least there is.
pub const BLOCKS: u64 = 4096;
/// Its identity.
pub const UUID: Uuid = Uuid([7; 16]);
/// The subvolume that most of it is in.
pub const SUBVOL: SubvolId = SubvolId(1);

/// A file of the sample.
pub fn file(ino: u64) -> FileId {
    FileId::new(SUBVOL, Ino(ino))
}

/// Opens what is on `disk` for writing.
pub fn open(disk: &Arc<ImageDisk>) -> Result<LocalMap, gabion_map::MapError> {
    let disk = Arc::clone(disk) as Arc<dyn Disk>;
    LocalMap::open(disk, OpenMode::ReadWrite, Limits::within(4 << 20))
}

fn write(map: &LocalMap, ino: u64, offset: u64, bytes: &[u8]) {
    map.transact(|txn| txn.write(file(ino), offset, Payload::Copied(bytes))).expect("space");
}

fn put_items(map: &LocalMap, fill: u8) {
    map.transact(|txn| -> Result<(), Stop> {
        for ino in 1..200 {
            txn.put(file(ino).key(Kind::INODE, 0), vec![fill; 104])?;
            txn.put(file(ino).key(Kind::XATTR, ino * 77), vec![fill; 150])?;
            txn.put(file(1).key(Kind::DIRENT, ino * 16), vec![fill; 30])?;
        }
        txn.put(file(0).key(Kind::ORPHAN, 99), Vec::new())
    })
    .expect("space");
}

/// Inline bytes, extents with holes, blocks set aside, shared extents, and bytes past the size.
fn make_files(map: &LocalMap) {
    write(map, 10, 0, &[10; 300]);
    write(map, 11, 0, &[11; 80_000]);
    write(map, 11, 200_000, &[12; 5000]);
    map.transact(|txn| txn.allocate(file(12), 0, 300_000)).expect("space");
    write(map, 12, 8192, &[13; 9000]);
    map.sync().expect("a working disk");
    map.transact(|txn| txn.share(file(11), 0, file(13), 4096, 60_000)).expect("space");
    map.transact(|txn| txn.share(file(11), 8192, file(14), 0, 20_480)).expect("space");
    map.transact(|txn| txn.share(file(11), 16_384, file(14), 40_960, 8192)).expect("space");
    for block in 0..40 {
        write(map, 15, block * 8192, &[block as u8; 4096]);
    }
    map.transact(|txn| txn.set_size(file(16), 1 << 40)).expect("space");
    write(map, 17, 0, &[17; 2000]);
    map.sync().expect("a working disk");
}

fn make() -> Image {
    let disk = ImageDisk::new(Image::zeroed(BLOCKS));
    let options = FormatOptions {
        uuid: UUID,
        label: "sample".into(),
        name_seed: 5,
        created: 1_700_000_000,
        blocks: None,
    };
    format(&(Arc::clone(&disk) as Arc<dyn Disk>), &options).expect("a large enough disk");
    let map = open(&disk).expect("just made");
    assert_eq!(map.create_subvolume().expect("writable"), SUBVOL);
    put_items(&map, 1);
    make_files(&map);
    map.snapshot(SUBVOL).expect("a working disk");
    put_items(&map, 2);
    write(&map, 11, 4096, &[21; 30_000]);
    map.transact(|txn| txn.punch(file(13), 20_000, 50_000)).expect("space");
    let second = map.create_subvolume().expect("writable");
    let id = FileId::new(second, Ino(10));
    map.transact(|txn| txn.write(id, 0, Payload::Copied(&[22; 9000]))).expect("space");
    map.snapshot(SUBVOL).expect("a working disk");
    write(&map, 15, 20_000, &[23; 20_000]);
    map.sync().expect("a working disk");
    // What follows is in the journal only.
    write(&map, 10, 100, &[31; 500]);
    write(&map, 12, 100_000, &[32; 70_000]);
    write(&map, 15, 8192, &[33; 10_000]);
    map.transact(|txn| txn.remove_bytes(file(14)).map(drop)).expect("readable");
    for ino in [10, 12, 15] {
        map.sync_file(file(ino)).expect("a working disk");
    }
    map.transact(|txn| txn.put(file(50).key(Kind::INODE, 0), vec![3; 104])).expect("space");
    map.transact(|txn| txn.set_size(file(11), 70_000)).expect("space");
    map.sync_file(file(11)).expect("a working disk");
    disk.image()
}

/// The sample's image, whose journal waits to be replayed.
pub fn image() -> Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(make).clone()
}
