//! Image files as disks, with both ways of carrying out what is submitted.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::{process, thread};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, Ticket};
use gabion_base::ids::BlockAddr;
use gabion_host::file_disk::{
    Access, Caching, FileDisk, Kind, OpenError, OpenMode, OpenOptions, Submission, create_image,
};

use crate::temp::{Mount, TempDir, is_root};

const WAYS: [Submission; 2] = [Submission::Best, Submission::Threads];

fn open(path: &Path, mode: OpenMode, submission: Submission) -> FileDisk {
    let options = OpenOptions { submission, ..OpenOptions::new(mode) };
    FileDisk::open_with(path, options).unwrap()
}

/// A new image of so many blocks, open for writing.
fn image(folder: &TempDir, blocks: u64, submission: Submission) -> FileDisk {
    let path = folder.join(&format!("image-{submission:?}"));
    create_image(&path, blocks * BLOCK_SIZE as u64).unwrap();
    open(&path, OpenMode::ReadWrite, submission)
}

/// Blocks that say their own address and a version.
fn content(addr: u64, count: u64, version: u8) -> Blocks {
    let mut blocks = Blocks::zeroed(count as usize);
    for (number, block) in blocks.bytes_mut().chunks_exact_mut(BLOCK_SIZE).enumerate() {
        block.fill(version);
        block[..8].copy_from_slice(&(addr + number as u64).to_le_bytes());
    }
    blocks
}

fn write(addr: u64, count: u64, version: u8, durability: Durability) -> DiskRequest {
    let parts = vec![BlockSlice::new(content(addr, count, version))];
    DiskRequest::Write { addr: BlockAddr(addr), parts, durability }
}

fn read(disk: &FileDisk, addr: u64, count: usize) -> Blocks {
    disk.submit(DiskRequest::Read { addr: BlockAddr(addr), count }).wait().unwrap().unwrap()
}

fn read_directly(disk: &FileDisk, addr: u64, count: usize) -> Blocks {
    let mut blocks = Blocks::from_bytes(&vec![0xee; count * BLOCK_SIZE]);
    disk.read(BlockAddr(addr), blocks.bytes_mut()).unwrap();
    blocks
}

#[test]
fn what_is_written_is_read_by_every_way() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = image(&folder, 64, way);
        disk.submit(write(3, 5, 1, Durability::Cached)).wait().unwrap();
        disk.submit(write(20, 2, 2, Durability::Fua)).wait().unwrap();
        let part = BlockSlice::new(content(0, 4, 3)).part(1, 2);
        disk.write(BlockAddr(40), part.clone(), Durability::Cached).unwrap();
        disk.write(BlockAddr(50), part.clone(), Durability::Fua).unwrap();
        disk.submit(DiskRequest::Flush).wait().unwrap();
        disk.flush().unwrap();
        for read in [read, read_directly] {
            assert_eq!(read(&disk, 3, 5).bytes(), content(3, 5, 1).bytes());
            assert_eq!(read(&disk, 20, 2).bytes(), content(20, 2, 2).bytes());
            assert_eq!(read(&disk, 40, 2).bytes(), part.bytes());
            assert_eq!(read(&disk, 50, 2).bytes(), part.bytes());
            assert_eq!(read(&disk, 8, 1).bytes(), Blocks::zeroed(1).bytes());
        }
    }
}

#[test]
fn a_disk_says_how_it_is_read_and_written() {
    let folder = TempDir::new();
    let disk = image(&folder, 2, Submission::Threads);
    assert_eq!(disk.kind(), Kind::Image);
    let text = disk.describe();
    assert!(text.contains("image file, 2 blocks, read-write, "), "{text}");
    assert!(text.ends_with("nothing submitted yet"), "{text}");
    read(&disk, 0, 1);
    assert!(disk.describe().ends_with("threads"));
}

#[test]
fn more_requests_than_the_queue_holds_all_complete() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = image(&folder, 1000, way);
        let tickets: Vec<Ticket> =
            (0..1000).map(|addr| disk.submit(write(addr, 1, 7, Durability::Cached))).collect();
        for ticket in tickets {
            assert!(ticket.wait().unwrap().is_none());
        }
        let tickets: Vec<Ticket> = (0..250)
            .map(|part| disk.submit(DiskRequest::Read { addr: BlockAddr(part * 4), count: 4 }))
            .collect();
        for (part, ticket) in tickets.into_iter().enumerate() {
            let blocks = ticket.wait().unwrap().unwrap();
            assert_eq!(blocks.bytes(), content(part as u64 * 4, 4, 7).bytes());
        }
    }
}

#[test]
fn many_threads_share_one_disk() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = image(&folder, 8 * 64, way);
        thread::scope(|scope| {
            for thread in 0..8_u64 {
                let disk = &disk;
                scope.spawn(move || {
                    for round in 0..64 {
                        let addr = thread * 64 + round;
                        disk.submit(write(addr, 1, round as u8, Durability::Cached))
                            .wait()
                            .unwrap();
                        let wanted = content(addr, 1, round as u8);
                        assert_eq!(read(disk, addr, 1).bytes(), wanted.bytes());
                    }
                });
            }
        });
    }
}

/// The kernel cancels what an ending thread has in a ring; it must be done all the same.
#[test]
fn requests_of_a_thread_that_ends_are_done() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = Arc::new(image(&folder, 512, way));
        let mut tickets = Vec::new();
        for start in (0..512).step_by(8) {
            let submitter = Arc::clone(&disk);
            let submit = move || -> Vec<Ticket> {
                let write = |addr| submitter.submit(write(addr, 1, 9, Durability::Fua));
                let mut tickets: Vec<Ticket> = (start..start + 8).map(write).collect();
                tickets.push(submitter.submit(DiskRequest::Flush));
                tickets
            };
            tickets.extend(thread::spawn(submit).join().unwrap());
        }
        for ticket in tickets {
            ticket.wait().unwrap();
        }
        assert_eq!(read(&disk, 0, 512).bytes(), content(0, 512, 9).bytes());
    }
}

#[test]
fn a_request_outlives_its_waiter_and_a_disk_its_requests() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = image(&folder, 2048, way);
        let path = disk.name().to_string();
        for addr in (0..2048).step_by(8) {
            drop(disk.submit(DiskRequest::Read { addr: BlockAddr(addr), count: 8 }));
        }
        for addr in (0..2048).step_by(8) {
            drop(disk.submit(write(addr, 8, 5, Durability::Cached)));
        }
        drop(disk);
        let disk = open(path.as_ref(), OpenMode::ReadOnly, way);
        assert_eq!(read(&disk, 0, 2048).bytes(), content(0, 2048, 5).bytes());
    }
}

#[test]
fn a_write_of_more_parts_than_one_call_takes_is_whole() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = image(&folder, 2500, way);
        let whole = BlockSlice::new(content(0, 2500, 4));
        let parts: Vec<BlockSlice> = (0..2500).map(|block| whole.part(block, 1)).collect();
        let request = DiskRequest::Write { addr: BlockAddr(0), parts, durability: Durability::Fua };
        disk.submit(request).wait().unwrap();
        assert_eq!(read(&disk, 0, 2500).bytes(), whole.bytes());
    }
}

#[test]
fn an_image_that_became_shorter_reads_as_zeros_behind_its_end() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = image(&folder, 600, way);
        let whole = content(0, 600, 8);
        disk.write(BlockAddr(0), BlockSlice::new(whole.clone()), Durability::Cached).unwrap();
        let left = BLOCK_SIZE + 1500;
        let file = File::options().write(true).open(disk.name().as_ref()).unwrap();
        file.set_len(left as u64).unwrap();
        for read in [read, read_directly] {
            let blocks = read(&disk, 0, 600);
            assert_eq!(blocks.bytes()[..left], whole.bytes()[..left]);
            assert!(blocks.bytes()[left..].iter().all(|byte| *byte == 0));
            assert_eq!(read(&disk, 599, 1).bytes(), Blocks::zeroed(1).bytes());
        }
        assert_eq!(disk.blocks(), 600);
    }
}

#[test]
fn a_length_is_rounded_down_to_whole_blocks() {
    let folder = TempDir::new();
    let path = folder.join("image");
    create_image(&path, 3 * BLOCK_SIZE as u64 + 4095).unwrap();
    let disk = FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
    assert_eq!((disk.blocks(), disk.bytes()), (3, 3 * BLOCK_SIZE as u64 + 4095));
    create_image(&folder.join("empty"), 0).unwrap();
    let disk = FileDisk::open(&folder.join("empty"), OpenMode::ReadWrite).unwrap();
    assert_eq!(disk.blocks(), 0);
    disk.read(BlockAddr(0), &mut []).unwrap();
    assert_eq!(read(&disk, 0, 0).count(), 0);
}

#[test]
fn requests_past_the_end_are_refused() {
    let folder = TempDir::new();
    let disk = image(&folder, 10, Submission::Best);
    let count = u64::MAX;
    let requests = [
        DiskRequest::Read { addr: BlockAddr(10), count: 1 },
        write(9, 2, 0, Durability::Cached),
        DiskRequest::Discard { addr: BlockAddr(1), count },
        DiskRequest::WriteZeroes { addr: BlockAddr(1), count },
    ];
    for request in requests {
        let error = disk.submit(request).wait().unwrap_err();
        assert!(matches!(error, DiskError::OutOfRange { blocks: 10, .. }), "{error}");
    }
    let mut blocks = Blocks::zeroed(2);
    assert!(matches!(
        disk.read(BlockAddr(9), blocks.bytes_mut()),
        Err(DiskError::OutOfRange { operation: "read", .. })
    ));
    let part = BlockSlice::new(Blocks::zeroed(2));
    assert!(matches!(
        disk.write(BlockAddr(9), part, Durability::Cached),
        Err(DiskError::OutOfRange { operation: "write", .. })
    ));
}

fn errno(error: &DiskError) -> Option<i32> {
    match error {
        DiskError::Io { source, .. } => source.raw_os_error(),
        DiskError::OutOfRange { .. } | DiskError::Fenced { .. } => None,
    }
}

#[test]
fn a_disk_that_is_open_for_reading_is_not_changed() {
    let folder = TempDir::new();
    let disk = image(&folder, 10, Submission::Best);
    let path = disk.name().to_string();
    drop(disk);
    for mode in [OpenMode::ReadOnly, OpenMode::ReadOnlyShared] {
        let disk = open(path.as_ref(), mode, Submission::Best);
        for request in [
            write(0, 1, 1, Durability::Cached),
            DiskRequest::Discard { addr: BlockAddr(0), count: 1 },
            DiskRequest::WriteZeroes { addr: BlockAddr(0), count: 1 },
        ] {
            assert_eq!(errno(&disk.submit(request).wait().unwrap_err()), Some(libc::EROFS));
        }
        let part = BlockSlice::new(Blocks::zeroed(1));
        let error = disk.write(BlockAddr(0), part, Durability::Fua).unwrap_err();
        assert_eq!(errno(&error), Some(libc::EROFS));
        disk.flush().unwrap();
        assert_eq!(read(&disk, 0, 10).bytes(), Blocks::zeroed(10).bytes());
    }
}

#[test]
fn discarding_frees_space_and_keeps_the_length() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = image(&folder, 1024, way);
        disk.submit(write(0, 1024, 1, Durability::Fua)).wait().unwrap();
        let before = fs::metadata(disk.name().as_ref()).unwrap();
        let request = DiskRequest::Discard { addr: BlockAddr(100), count: 800 };
        disk.submit(request).wait().unwrap();
        let after = fs::metadata(disk.name().as_ref()).unwrap();
        assert!(after.blocks() < before.blocks() / 2, "{} blocks left", after.blocks());
        assert_eq!(after.len(), before.len());
        assert_eq!(read(&disk, 99, 1).bytes(), content(99, 1, 1).bytes());
        assert_eq!(read(&disk, 900, 1).bytes(), content(900, 1, 1).bytes());
    }
}

#[test]
fn zeroed_blocks_read_as_zeros_and_their_neighbours_stay() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = image(&folder, 1024, way);
        disk.submit(write(0, 1024, 1, Durability::Cached)).wait().unwrap();
        let request = DiskRequest::WriteZeroes { addr: BlockAddr(10), count: 700 };
        disk.submit(request).wait().unwrap();
        assert_eq!(read(&disk, 10, 700).bytes(), Blocks::zeroed(700).bytes());
        assert_eq!(read(&disk, 0, 10).bytes(), content(0, 10, 1).bytes());
        assert_eq!(read(&disk, 710, 314).bytes(), content(710, 314, 1).bytes());
    }
}

#[test]
fn a_second_writer_is_told_who_the_first_is() {
    let folder = TempDir::new();
    let disk = image(&folder, 1, Submission::Best);
    let path = disk.name().to_string();
    for mode in [OpenMode::ReadWrite, OpenMode::ReadOnly] {
        let error = FileDisk::open(path.as_ref(), mode).unwrap_err();
        let OpenError::InUse { holder: Some(holder), .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(holder.pid, process::id());
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        let wanted = format!("{path} is in use by process {} ({})", holder.pid, name.trim_end());
        assert_eq!(error.to_string(), wanted);
    }
    FileDisk::open(path.as_ref(), OpenMode::ReadOnlyShared).unwrap();
    drop(disk);
    FileDisk::open(path.as_ref(), OpenMode::ReadWrite).unwrap();
}

#[test]
fn readers_share_and_keep_a_writer_out() {
    let folder = TempDir::new();
    let path = folder.join("image");
    create_image(&path, 4096).unwrap();
    let _first = FileDisk::open(&path, OpenMode::ReadOnly).unwrap();
    let _second = FileDisk::open(&path, OpenMode::ReadOnly).unwrap();
    let error = FileDisk::open(&path, OpenMode::ReadWrite).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
}

#[test]
fn what_has_no_blocks_is_not_opened() {
    let folder = TempDir::new();
    let path = folder.join("missing");
    let error = FileDisk::open(&path, OpenMode::ReadOnly).unwrap_err();
    assert!(error.to_string().starts_with("cannot open "), "{error}");
    for path in [Path::new("/dev/null"), Path::new("/proc")] {
        let error = FileDisk::open(path, OpenMode::ReadOnly).unwrap_err();
        assert!(matches!(error, OpenError::NotADisk { .. }), "{error}");
    }
}

#[test]
fn an_image_is_made_sparse_and_never_over_another() {
    let folder = TempDir::new();
    let path = folder.join("image");
    create_image(&path, 1 << 30).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (1 << 30, 0o600));
    assert!(metadata.blocks() < 100);
    let error = create_image(&path, 1).unwrap_err();
    assert!(error.to_string().contains("cannot create"), "{error}");
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 30);
}

#[test]
fn a_signature_is_found_and_wiped_through_a_direct_disk() {
    let folder = TempDir::new();
    let path = folder.join("image");
    create_image(&path, 1 << 20).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(b"XFSB", 0).unwrap();
    let disk = FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
    assert_eq!(disk.signature().unwrap().unwrap().name, "xfs");
    assert_eq!(disk.wipe().unwrap().len(), 1);
    assert_eq!(disk.signature().unwrap(), None);
    assert_eq!(read_directly(&disk, 0, 1).bytes(), Blocks::zeroed(1).bytes());
}

#[test]
fn a_filesystem_without_direct_io_is_used_through_the_cache() {
    if !is_root() {
        return;
    }
    let folder = Mount::new("ramfs", "mode=700");
    let path = folder.join("image");
    create_image(&path, 64 * BLOCK_SIZE as u64).unwrap();
    for way in WAYS {
        let disk = open(&path, OpenMode::ReadWrite, way);
        assert_eq!(disk.access(), Access::Buffered);
        assert!(disk.describe().contains("buffered I/O"));
        disk.submit(write(1, 20, 1, Durability::Fua)).wait().unwrap();
        // Neither is known there: one is no failure, the other is done by writing.
        let (addr, count) = (BlockAddr(5), 10);
        disk.submit(DiskRequest::Discard { addr, count }).wait().unwrap();
        disk.submit(DiskRequest::WriteZeroes { addr, count }).wait().unwrap();
        assert_eq!(read(&disk, 5, 10).bytes(), Blocks::zeroed(10).bytes());
        assert_eq!(read(&disk, 1, 4).bytes(), content(1, 4, 1).bytes());
        assert_eq!(read_directly(&disk, 15, 6).bytes(), content(15, 6, 1).bytes());
    }
}

#[test]
fn a_failed_write_keeps_the_systems_reason() {
    if !is_root() {
        return;
    }
    let folder = Mount::new("tmpfs", "size=256k");
    let path = folder.join("image");
    create_image(&path, 1 << 20).unwrap();
    for way in WAYS {
        let disk = open(&path, OpenMode::ReadWrite, way);
        // The first part of it fits: what counts is how the rest fails.
        let error = disk.submit(write(0, 256, 1, Durability::Cached)).wait().unwrap_err();
        assert_eq!(errno(&error), Some(libc::ENOSPC), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("write of {} at block 0: ", path.display())), "{text}");
        let part = BlockSlice::new(Blocks::zeroed(256));
        let error = disk.write(BlockAddr(0), part, Durability::Fua).unwrap_err();
        assert_eq!(errno(&error), Some(libc::ENOSPC), "{error}");
    }
}

#[test]
fn an_image_that_became_longer_is_used_once_it_was_measured() {
    let folder = TempDir::new();
    for way in WAYS {
        let disk = image(&folder, 8, way);
        let path = folder.join(&format!("image-{way:?}"));
        let write = |addr| disk.submit(write(addr, 1, 1, Durability::Fua)).wait();
        File::options().write(true).open(&path).unwrap().set_len(16 * 4096 + 100).unwrap();
        assert_eq!(disk.blocks(), 8);
        assert!(write(8).is_err());
        disk.measure().unwrap();
        assert_eq!(disk.blocks(), 16);
        write(15).unwrap();
        disk.lengthen(32 * 4096).unwrap();
        write(31).unwrap();
        assert_eq!((disk.blocks(), fs::metadata(&path).unwrap().len()), (32, 32 * 4096));
        assert_eq!(read(&disk, 15, 1).bytes(), content(15, 1, 1).bytes());
        // It is never made shorter, and what is missing is not forgotten.
        disk.lengthen(4096).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        disk.measure().unwrap();
        assert_eq!(disk.blocks(), 32);
    }
}

/// Opens a disk for writing, through the page cache.
fn open_cached(path: &Path, submission: Submission) -> FileDisk {
    let options = OpenOptions { submission, ..OpenOptions::new(OpenMode::ReadWrite) };
    FileDisk::open_with(path, OpenOptions { caching: Caching::Writeback, ..options }).unwrap()
}

#[test]
fn a_disk_in_the_page_cache_does_what_any_other_does() {
    let folder = TempDir::new();
    for way in WAYS {
        drop(image(&folder, 64, way));
        let path = folder.join(&format!("image-{way:?}"));
        let disk = open_cached(&path, way);
        assert_eq!(disk.access(), Access::Cached);
        assert!(disk.describe().contains("read-write, buffered I/O, "), "{}", disk.describe());
        disk.submit(write(3, 20, 1, Durability::Cached)).wait().unwrap();
        disk.submit(write(30, 9, 2, Durability::Fua)).wait().unwrap();
        let (addr, count) = (BlockAddr(5), 10);
        disk.submit(DiskRequest::WriteZeroes { addr, count }).wait().unwrap();
        disk.submit(DiskRequest::Discard { addr: BlockAddr(31), count: 2 }).wait().unwrap();
        disk.submit(DiskRequest::Flush).wait().unwrap();
        disk.flush().unwrap();
        disk.lengthen(128 * BLOCK_SIZE as u64).unwrap();
        disk.submit(write(127, 1, 3, Durability::Fua)).wait().unwrap();
        drop(disk);
        let direct = open(&path, OpenMode::ReadWrite, way);
        for disk in [&direct, &open(&path, OpenMode::ReadOnlyShared, way)] {
            assert_eq!(read(disk, 3, 2).bytes(), content(3, 2, 1).bytes());
            assert_eq!(read(disk, 5, 10).bytes(), Blocks::zeroed(10).bytes());
            assert_eq!(read(disk, 15, 8).bytes(), content(15, 8, 1).bytes());
            assert_eq!(read(disk, 33, 6).bytes(), content(33, 6, 2).bytes());
            assert_eq!(read_directly(disk, 127, 1).bytes(), content(127, 1, 3).bytes());
        }
    }
}
