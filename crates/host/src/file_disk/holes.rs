//! Where a file has holes, as the filesystem below tells by `SEEK_DATA` and `SEEK_HOLE`.
//!
//! What was written must never be called a hole. That it is not rests on this:
//!
//! 1. A write is acknowledged when the kernel has completed it. With direct I/O a filesystem turns
//!    the place of the data into a written one before that, also where io_uring completes later. So
//!    each seek sees what was acknowledged before it; a write that is on its way may be told or
//!    not.
//! 2. Each run of blocks is what one seek said. That the next seek comes later does no harm.
//! 3. Where the page cache is in between, not every filesystem looks into it when it seeks. Where
//!    that is not known everything is data; so it is on block devices, which have no such call, and
//!    for all that we know are thin below.
//! 4. A hole ends at whole blocks of ours: a block that holds any data is data.
//!
//! Space that was reserved and never written counts as a hole: it reads as zeros.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::{Content, Extent};

use crate::sys::retried;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// `linux/magic.h`: the filesystems that look into the page cache when they seek. On ext2 and ext3,
/// which have ext4's number, the kernel's ext4 serves, or everything is data.
const LOOKS_INTO_CACHE: [i64; 4] = [
    0xef53,      // ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0x0102_1994, // tmpfs
];

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seek {
    Data,
    Hole,
}

/// The extents of `file` from block `start` up to `end`, or as far as `extents_max` of them reach.
pub(super) fn extents(
    file: &File,
    start: u64,
    end: u64,
    extents_max: usize,
) -> io::Result<Vec<Extent>> {
    walk(start, end, extents_max, |what, from| seek(file, what, from))
}

/// Whether a seek sees what was written to the page cache only.
pub(super) fn looks_into_cache(file: &File) -> io::Result<bool> {
    // SAFETY: zero is a valid value of the structure, which the call fills.
    let mut about: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: the structure outlives the call.
    retried(|| unsafe { libc::fstatfs(file.as_raw_fd(), &mut about) })?;
    Ok(LOOKS_INTO_CACHE.contains(&about.f_type))
}

/// One seek for an extent at most, so that they are bounded, too.
fn walk(
    start: u64,
    end: u64,
    extents_max: usize,
    mut seek: impl FnMut(Seek, u64) -> io::Result<Option<u64>>,
) -> io::Result<Vec<Extent>> {
    let mut list = Vec::new();
    let mut at = start;
    for _ in 0..extents_max {
        if at == end {
            break;
        }
        let data = seek(Seek::Data, at * BLOCK)?.map_or(end, |offset| offset / BLOCK);
        let (to, content) = match data.clamp(at, end) {
            hole_end if hole_end > at => (hole_end, Content::Hole),
            _ => {
                let hole = seek(Seek::Hole, at * BLOCK)?;
                let hole = hole.map_or(end, |offset| offset.div_ceil(BLOCK));
                // If it has become a hole since, this block is data for the answer.
                (hole.clamp(at + 1, end), Content::Data)
            }
        };
        Extent { count: to - at, content }.append(&mut list);
        at = to;
    }
    Ok(list)
}

/// The next place of its kind at `from` or behind; nothing if there is none up to the file's end.
fn seek(file: &File, what: Seek, from: u64) -> io::Result<Option<u64>> {
    let whence = match what {
        Seek::Data => libc::SEEK_DATA,
        Seek::Hole => libc::SEEK_HOLE,
    };
    // SAFETY: takes no pointers. Nothing else here depends on the file's position.
    match retried(|| unsafe { libc::lseek(file.as_raw_fd(), from as i64, whence) as isize }) {
        Ok(offset) => Ok(Some(offset as u64)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use gabion_base::buffer::{BlockSlice, Blocks};
    use gabion_base::disk::{Disk, DiskRequest, Durability, Zeroing};
    use gabion_base::ids::BlockAddr;

    use super::*;
    use crate::file_disk::{Access, Caching, FileDisk, OpenMode, OpenOptions, create_image};

    const BLOCKS: u64 = 1 << 12;
    const WAYS: [Caching; 2] = [Caching::None, Caching::Writeback];

    /// A sparse image that is gone when it is closed.
    fn sparse(caching: Caching) -> FileDisk {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("gabion-holes-{process}-{number}"));
        create_image(&path, BLOCKS * BLOCK).unwrap();
        let options = OpenOptions { caching, ..OpenOptions::new(OpenMode::ReadWrite) };
        let disk = FileDisk::open_with(&path, options).unwrap();
        fs::remove_file(&path).unwrap();
        disk
    }

    fn write(addr: u64, durability: Durability) -> DiskRequest {
        let parts = vec![BlockSlice::new(Blocks::from_bytes(&[7; BLOCK_SIZE]))];
        DiskRequest::Write { addr: BlockAddr(addr), parts, durability }
    }

    #[test]
    fn what_was_written_is_data_as_soon_as_that_is_acknowledged() {
        for disk in WAYS.map(sparse) {
            thread::scope(|scope| {
                for first in 0..4 {
                    let disk = &disk;
                    scope.spawn(move || {
                        (first..BLOCKS).step_by(4 * 13).for_each(|addr| {
                            let durability =
                                if addr % 2 == 0 { Durability::Cached } else { Durability::Fua };
                            disk.submit(write(addr, durability)).wait().unwrap();
                            let told = disk.extents(BlockAddr(addr), 1, 1).unwrap();
                            assert_eq!(
                                told,
                                [Extent { count: 1, content: Content::Data }],
                                "{addr}"
                            );
                        })
                    });
                }
            });
        }
    }

    #[test]
    fn a_sparse_image_has_holes_and_what_is_zeroed_or_discarded_reads_as_zeros() {
        for disk in WAYS.map(sparse) {
            check_holes(&disk);
        }
    }

    fn check_holes(disk: &FileDisk) {
        for addr in 10..20 {
            disk.submit(write(addr, Durability::Cached)).wait().unwrap();
        }
        let zeroing = disk.zero_if_fast(BlockAddr(12), 2).unwrap();
        disk.submit(DiskRequest::Discard { addr: BlockAddr(15), count: 1 }).wait().unwrap();
        let told = disk.extents(BlockAddr(0), BLOCKS, 99).unwrap();
        assert_eq!(told.iter().map(|extent| extent.count).sum::<u64>(), BLOCKS);
        let file = &disk.backing.file;
        if disk.access() == Access::Direct || looks_into_cache(file).unwrap() {
            assert_eq!(told[0], Extent { count: 10, content: Content::Hole });
            assert_eq!(told.last().map(|extent| extent.content), Some(Content::Hole));
        }
        let mut at = 0;
        for extent in told {
            let mut read = vec![1; extent.count as usize * BLOCK_SIZE];
            disk.read(BlockAddr(at), &mut read).unwrap();
            assert!(extent.content == Content::Data || read.iter().all(|byte| *byte == 0), "{at}");
            at += extent.count;
        }
        let expected = if zeroing == Zeroing::Done { 0 } else { 7 };
        let mut read = vec![1; 2 * BLOCK_SIZE];
        disk.read(BlockAddr(12), &mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == expected));
    }

    /// Walks a file of which the bytes in `data` are data, and the rest is a hole.
    fn told(data: &[(u64, u64)], range: (u64, u64), extents_max: usize) -> Vec<(u64, Content)> {
        let inside = |at: u64| data.iter().find(|(from, to)| (*from..*to).contains(&at));
        let seek = |what, from| {
            Ok(match (what, inside(from)) {
                (Seek::Data, Some(_)) | (Seek::Hole, None) => Some(from),
                (Seek::Hole, Some((_, to))) => Some(*to),
                (Seek::Data, None) => data.iter().map(|run| run.0).find(|start| *start > from),
            })
        };
        let list = walk(range.0, range.1, extents_max, seek).unwrap();
        list.iter().map(|extent| (extent.count, extent.content)).collect()
    }

    #[test]
    fn holes_and_data_are_told_within_the_range_that_was_asked_for() {
        let data = [(2 * BLOCK, 4 * BLOCK), (7 * BLOCK, 8 * BLOCK)];
        let all = [
            (2, Content::Hole),
            (2, Content::Data),
            (3, Content::Hole),
            (1, Content::Data),
            (2, Content::Hole),
        ];
        assert_eq!(told(&data, (0, 10), 9), all);
        assert_eq!(told(&data, (0, 10), 5), all);
        assert_eq!(told(&data, (0, 10), 2), all[..2]);
        assert_eq!(told(&data, (3, 6), 9), [(1, Content::Data), (2, Content::Hole)]);
        assert_eq!(told(&data, (2, 3), 9), [(1, Content::Data)]);
        assert_eq!(told(&[], (2, 3), 1), [(1, Content::Hole)]);
        assert_eq!(told(&[(0, 99 * BLOCK)], (2, 9), 1), [(7, Content::Data)]);
    }

    #[test]
    fn a_block_that_holds_any_data_is_data() {
        // The second hole is less than a block, the third one but for its edges.
        let data = [(512, 1024), (2 * BLOCK - 1, 2 * BLOCK + 1), (3 * BLOCK - 1, 5 * BLOCK)];
        assert_eq!(told(&data, (0, 6), 9), [(5, Content::Data), (1, Content::Hole)]);
    }

    #[test]
    fn a_hole_that_comes_between_two_seeks_leaves_a_block_of_data() {
        let list = walk(0, 4, 9, |_, from| Ok((from == 0).then_some(0))).unwrap();
        let wanted = [
            Extent { count: 1, content: Content::Data },
            Extent { count: 3, content: Content::Hole },
        ];
        assert_eq!(list, wanted);
    }
}
