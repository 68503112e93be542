//! A part of a disk as a disk.
//!
//! Failures name the block as the whole disk counts, as that is where people have to look.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::BLOCK_SIZE;
use crate::buffer::BlockSlice;
use crate::disk::{Disk, DiskError, DiskRequest, Durability, Extent, Repair, Ticket, Zeroing};
use crate::ids::BlockAddr;

/// The blocks of a disk from `start` on, `blocks` of them.
pub struct Window {
    disk: Arc<dyn Disk>,
    start: u64,
    blocks: AtomicU64,
}

impl Window {
    /// A part of `disk`, which must have it.
    pub fn new(disk: Arc<dyn Disk>, start: u64, blocks: u64) -> Self {
        let end = start.checked_add(blocks);
        assert!(end.is_some_and(|end| end <= disk.blocks()), "{start}+{blocks} of {}", disk.name());
        Self { disk, start, blocks: AtomicU64::new(blocks) }
    }

    /// All of `disk` from block `start` on, which must be there.
    pub fn from(disk: Arc<dyn Disk>, start: u64) -> Self {
        let blocks = disk.blocks().saturating_sub(start);
        Self::new(disk, start, blocks)
    }

    /// Has more of the disk, which must have it: `blocks` of them, or as many as before if that
    /// is less.
    pub fn lengthen(&self, blocks: u64) {
        let end = self.start.checked_add(blocks);
        let fits = end.is_some_and(|end| end <= self.disk.blocks());
        assert!(fits, "{}+{blocks} of {}", self.start, self.disk.name());
        self.blocks.fetch_max(blocks, Ordering::AcqRel);
    }

    /// The disk that it is a part of.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    fn check(&self, request: &DiskRequest) -> Result<(), DiskError> {
        request.check(&self.disk.name(), self.blocks())
    }
}

impl Disk for Window {
    fn name(&self) -> Arc<str> {
        self.disk.name()
    }

    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = self.check(&request) {
            return Ticket::ready(Err(error));
        }
        self.disk.submit(request.moved(self.start))
    }

    fn read(&self, addr: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
        self.check(&DiskRequest::Read { addr, count: into.len() / BLOCK_SIZE })?;
        self.disk.read(addr.plus(self.start), into)
    }

    fn write(
        &self,
        addr: BlockAddr,
        part: BlockSlice,
        durability: Durability,
    ) -> Result<(), DiskError> {
        // The length is all that is looked at.
        self.check(&DiskRequest::WriteZeroes { addr, count: part.count() as u64 })?;
        self.disk.write(addr.plus(self.start), part, durability)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.disk.flush()
    }

    fn extents(
        &self,
        addr: BlockAddr,
        count: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, DiskError> {
        self.check(&DiskRequest::Read { addr, count: count as usize })?;
        self.disk.extents(addr.plus(self.start), count, extents_max)
    }

    fn zero_if_fast(&self, addr: BlockAddr, count: u64) -> Result<Zeroing, DiskError> {
        self.check(&DiskRequest::WriteZeroes { addr, count })?;
        self.disk.zero_if_fast(addr.plus(self.start), count)
    }

    fn copies(&self) -> usize {
        self.disk.copies()
    }

    fn submit_copy(&self, copy: usize, addr: BlockAddr, count: usize) -> Ticket {
        if let Err(error) = self.check(&DiskRequest::Read { addr, count }) {
            return Ticket::ready(Err(error));
        }
        self.disk.submit_copy(copy, addr.plus(self.start), count)
    }

    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        self.check(&DiskRequest::Read { addr, count: 1 })?;
        self.disk.repair_copy(copy, addr.plus(self.start), bad, good)
    }
}

#[cfg(test)]
mod tests {
    use crate::buffer::Blocks;
    use crate::disk::MemDisk;

    use super::*;

    #[test]
    fn every_request_lands_in_the_window_and_none_behind_its_end() {
        let disk = Arc::new(MemDisk::from_image(vec![9; 10 * BLOCK_SIZE]));
        let window = Window::new(disk.clone(), 3, 5);
        let block = || BlockSlice::new(Blocks::from_bytes(&[5; BLOCK_SIZE]));
        window.write(BlockAddr(0), block(), Durability::Cached).unwrap();
        let (addr, parts) = (BlockAddr(1), vec![block()]);
        let write = DiskRequest::Write { addr, parts, durability: Durability::Cached };
        window.submit(write).wait().unwrap();
        window.submit(DiskRequest::WriteZeroes { addr: BlockAddr(2), count: 1 }).wait().unwrap();
        window.submit(DiskRequest::Discard { addr: BlockAddr(4), count: 1 }).wait().unwrap();
        window.flush().unwrap();
        let firsts: Vec<u8> = disk.image().chunks(BLOCK_SIZE).map(|block| block[0]).collect();
        assert_eq!(firsts, [9, 9, 9, 5, 5, 0, 9, 9, 9, 9]);
        let mut read = vec![0; 2 * BLOCK_SIZE];
        window.read(BlockAddr(1), &mut read).unwrap();
        assert_eq!((read[0], read[BLOCK_SIZE]), (5, 0));
        window.read_copy(0, BlockAddr(1), &mut read[..BLOCK_SIZE]).unwrap();
        assert_eq!(read[0], 5);
        assert_eq!(window.extents(BlockAddr(4), 1, 1).unwrap()[0].count, 1);
        assert!(window.extents(BlockAddr(4), 2, 1).is_err());
        assert!(window.zero_if_fast(BlockAddr(4), 2).is_err());
        assert!(window.read(BlockAddr(4), &mut read).is_err());
        assert!(window.read_copy(0, BlockAddr(5), &mut read[..BLOCK_SIZE]).is_err());
        assert!(window.write(BlockAddr(5), block(), Durability::Cached).is_err());
        assert!(window.submit(DiskRequest::Read { addr: BlockAddr(4), count: 2 }).wait().is_err());
        assert_eq!((window.blocks(), Window::from(disk, 3).blocks()), (5, 7));
    }

    #[test]
    fn a_window_that_was_lengthened_has_more_and_never_less() {
        let disk = Arc::new(MemDisk::from_image(vec![9; 10 * BLOCK_SIZE]));
        let window = Window::new(disk, 3, 5);
        let mut read = vec![0; BLOCK_SIZE];
        assert!(window.read(BlockAddr(6), &mut read).is_err());
        window.lengthen(7);
        window.lengthen(6);
        assert_eq!(window.blocks(), 7);
        window.read(BlockAddr(6), &mut read).unwrap();
        assert!(window.read(BlockAddr(7), &mut read).is_err());
    }
}
