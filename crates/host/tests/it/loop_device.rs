//! Loop devices, and disks on top of them.

use std::path::Path;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskRequest, Durability};
use gabion_base::ids::BlockAddr;
use gabion_host::file_disk::{
    Caching, Claim, FileDisk, Kind, OpenError, OpenMode, OpenOptions, create_image,
};
use gabion_host::loop_device::{LoopAccess, LoopDevice, attached_to};

use crate::temp::{Mount, TempDir, is_root};

const BLOCKS: u64 = 256;

/// An image, or nothing where loop devices cannot be had.
fn image(folder: &TempDir) -> Option<std::path::PathBuf> {
    let path = folder.join("image");
    create_image(&path, BLOCKS * BLOCK_SIZE as u64).unwrap();
    (is_root() && Path::new("/dev/loop-control").exists()).then_some(path)
}

#[test]
fn a_device_is_attached_found_and_detached() {
    let folder = TempDir::new();
    let Some(image) = image(&folder) else { return };
    assert_eq!(attached_to(&image).unwrap(), [] as [std::path::PathBuf; 0]);
    let first = LoopDevice::attach(&image, LoopAccess::ReadWrite).unwrap();
    let second = LoopDevice::attach(&image, LoopAccess::ReadOnly).unwrap();
    let mut wanted = [first.path().to_owned(), second.path().to_owned()];
    wanted.sort();
    assert_eq!(attached_to(&image).unwrap(), wanted);
    first.detach().unwrap();
    assert_eq!(attached_to(&image).unwrap(), [second.path()]);
    drop(second);
    assert_eq!(attached_to(&image).unwrap(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn a_device_is_a_disk() {
    let folder = TempDir::new();
    let Some(image) = image(&folder) else { return };
    let device = LoopDevice::attach(&image, LoopAccess::ReadWrite).unwrap();
    let disk = FileDisk::open(device.path(), OpenMode::ReadWrite).unwrap();
    assert_eq!((disk.kind(), disk.blocks()), (Kind::Device, BLOCKS));
    let ones = BlockSlice::new(Blocks::from_bytes(&[1; 8 * BLOCK_SIZE]));
    let addr = BlockAddr(16);
    let write = |durability| DiskRequest::Write { addr, parts: vec![ones.clone()], durability };
    disk.submit(write(Durability::Fua)).wait().unwrap();
    disk.write(BlockAddr(BLOCKS - 8), ones.clone(), Durability::Fua).unwrap();
    disk.submit(DiskRequest::WriteZeroes { addr: BlockAddr(18), count: 2 }).wait().unwrap();
    disk.submit(DiskRequest::Discard { addr: BlockAddr(100), count: 50 }).wait().unwrap();
    disk.flush().unwrap();
    let under = FileDisk::open(&image, OpenMode::ReadOnly).unwrap();
    for disk in [&disk, &under] {
        let mut blocks = Blocks::zeroed(8);
        disk.read(BlockAddr(16), blocks.bytes_mut()).unwrap();
        let wanted = [1, 1, 0, 0, 1, 1, 1, 1].map(|byte| [byte; BLOCK_SIZE]).concat();
        assert!(blocks.bytes() == wanted);
        disk.read(BlockAddr(BLOCKS - 8), blocks.bytes_mut()).unwrap();
        assert!(blocks.bytes() == ones.bytes());
    }
}

#[test]
fn a_claimed_device_is_not_opened_again() {
    let folder = TempDir::new();
    let Some(image) = image(&folder) else { return };
    let device = LoopDevice::attach(&image, LoopAccess::ReadWrite).unwrap();
    let shared = OpenOptions { claim: Claim::Shared, ..OpenOptions::new(OpenMode::ReadWrite) };
    for options in [OpenOptions::new(OpenMode::ReadWrite), shared] {
        let disk = FileDisk::open_with(device.path(), options).unwrap();
        let error = FileDisk::open(device.path(), OpenMode::ReadWrite).unwrap_err();
        let OpenError::InUse { holder: Some(holder), .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(holder.pid, std::process::id());
        let error = FileDisk::open_with(device.path(), shared).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
        drop(disk);
    }
}

#[test]
fn a_read_only_device_is_not_opened_for_writing() {
    let folder = TempDir::new();
    let Some(image) = image(&folder) else { return };
    let device = LoopDevice::attach(&image, LoopAccess::ReadOnly).unwrap();
    FileDisk::open(device.path(), OpenMode::ReadOnly).unwrap();
    let disk = FileDisk::open(device.path(), OpenMode::ReadWrite);
    let refused = disk.and_then(|disk| {
        let part = BlockSlice::new(Blocks::zeroed(1));
        disk.write(BlockAddr(0), part, Durability::Cached).map_err(|error| OpenError::Io {
            operation: "open",
            path: device.path().to_owned(),
            source: std::io::Error::other(error),
        })
    });
    assert!(refused.is_err());
}

#[test]
fn after_a_flush_has_failed_all_do_until_the_device_is_opened_again() {
    if !is_root() || !Path::new("/dev/loop-control").exists() {
        return;
    }
    let folder = Mount::new("tmpfs", "size=2m");
    let (image, filler) = (folder.join("image"), folder.join("filler"));
    // There is room for half of the device.
    create_image(&image, BLOCKS * BLOCK_SIZE as u64).unwrap();
    std::fs::write(&filler, vec![1; (2 << 20) - BLOCKS as usize / 2 * BLOCK_SIZE]).unwrap();
    let device = LoopDevice::attach(&image, LoopAccess::ReadWrite).unwrap();
    let options =
        OpenOptions { caching: Caching::Writeback, ..OpenOptions::new(OpenMode::ReadWrite) };
    let open = || FileDisk::open_with(device.path(), options).unwrap();
    let disk = open();
    let all = BlockSlice::new(Blocks::from_bytes(&vec![7; BLOCKS as usize * BLOCK_SIZE]));
    disk.write(BlockAddr(0), all.clone(), Durability::Cached).unwrap();
    let first = disk.flush().unwrap_err().to_string();
    assert!(first.contains("os error"), "the system's reason: {first}");
    // The kernel has told it, and would not tell it again.
    let later = [
        disk.flush(),
        disk.submit(DiskRequest::Flush).wait().map(drop),
        disk.write(BlockAddr(0), all.part(0, 1), Durability::Fua),
    ];
    for outcome in later {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("a flush has failed") && error.contains("open it again"), "{error}");
    }
    drop(disk);
    std::fs::remove_file(&filler).unwrap();
    let disk = open();
    let mut found = Blocks::zeroed(BLOCKS as usize);
    disk.read(BlockAddr(0), found.bytes_mut()).unwrap();
    assert!(found.bytes() != all.bytes(), "what the device does not have is still in the cache");
    disk.write(BlockAddr(0), all.clone(), Durability::Cached).unwrap();
    disk.flush().unwrap();
    assert!(std::fs::read(&image).unwrap() == all.bytes());
}
