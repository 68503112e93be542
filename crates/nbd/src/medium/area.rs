//! A disk without its head.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, Ticket};
use gabion_base::ids::BlockAddr;

/// What lies behind the first blocks of a disk. Failures name the block as the disk counts.
pub(super) struct Area {
    disk: Arc<dyn Disk>,
    start: u64,
    blocks: u64,
}

impl Area {
    /// All of `disk` from block `start` on, which must be there.
    pub(super) fn new(disk: Arc<dyn Disk>, start: u64) -> Self {
        let blocks = disk.blocks() - start;
        Self { disk, start, blocks }
    }

    fn check(&self, request: &DiskRequest) -> Result<(), DiskError> {
        request.check(&self.disk.name(), self.blocks)
    }
}

impl Disk for Area {
    fn name(&self) -> Arc<str> {
        self.disk.name()
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn submit(&self, mut request: DiskRequest) -> Ticket {
        if let Err(error) = self.check(&request) {
            return Ticket::ready(Err(error));
        }
        match &mut request {
            DiskRequest::Read { addr, .. }
            | DiskRequest::Write { addr, .. }
            | DiskRequest::Discard { addr, .. }
            | DiskRequest::WriteZeroes { addr, .. } => *addr = addr.plus(self.start),
            DiskRequest::Flush => {}
        }
        self.disk.submit(request)
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
}

#[cfg(test)]
mod tests {
    use gabion_base::buffer::Blocks;
    use gabion_base::disk::MemDisk;

    use super::*;

    #[test]
    fn every_request_lands_behind_the_head_and_none_behind_the_end() {
        let disk = Arc::new(MemDisk::from_image(vec![9; 8 * BLOCK_SIZE]));
        let area = Area::new(disk.clone(), 3);
        let block = || BlockSlice::new(Blocks::from_bytes(&[5; BLOCK_SIZE]));
        area.write(BlockAddr(0), block(), Durability::Cached).unwrap();
        let (addr, parts) = (BlockAddr(1), vec![block()]);
        let write = DiskRequest::Write { addr, parts, durability: Durability::Cached };
        area.submit(write).wait().unwrap();
        area.submit(DiskRequest::WriteZeroes { addr: BlockAddr(2), count: 1 }).wait().unwrap();
        area.submit(DiskRequest::Discard { addr: BlockAddr(4), count: 1 }).wait().unwrap();
        area.flush().unwrap();
        let firsts: Vec<u8> = disk.image().chunks(BLOCK_SIZE).map(|block| block[0]).collect();
        assert_eq!(firsts, [9, 9, 9, 5, 5, 0, 9, 9]);
        let mut read = vec![0; 2 * BLOCK_SIZE];
        area.read(BlockAddr(1), &mut read).unwrap();
        assert_eq!((read[0], read[BLOCK_SIZE]), (5, 0));
        assert!(area.read(BlockAddr(4), &mut read).is_err());
        assert!(area.write(BlockAddr(5), block(), Durability::Cached).is_err());
        assert!(area.submit(DiskRequest::Read { addr: BlockAddr(4), count: 2 }).wait().is_err());
        assert_eq!(area.blocks(), 5);
    }
}
