//! A part of a disk as a disk.

use std::sync::Arc;

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskError, DiskRequest, Repair, Ticket};
use gabion_base::ids::BlockAddr;

/// The blocks from `start` on, `blocks` of them.
pub struct Window {
    disk: Arc<dyn Disk>,
    start: u64,
    blocks: u64,
}

impl Window {
    /// A part of `disk`, which must have it.
    pub fn new(disk: Arc<dyn Disk>, start: u64, blocks: u64) -> Self {
        let end = start.checked_add(blocks);
        assert!(end.is_some_and(|end| end <= disk.blocks()), "{start}+{blocks} of {}", disk.name());
        Self { disk, start, blocks }
    }
}

impl Disk for Window {
    fn name(&self) -> Arc<str> {
        self.disk.name()
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn submit(&self, mut request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.disk.name(), self.blocks) {
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

    fn copies(&self) -> usize {
        self.disk.copies()
    }

    fn read_copy(&self, copy: usize, addr: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
        self.disk.read_copy(copy, addr.plus(self.start), into)
    }

    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        self.disk.repair_copy(copy, addr.plus(self.start), bad, good)
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::BLOCK_SIZE;
    use gabion_base::buffer::Blocks;
    use gabion_base::disk::{Durability, MemDisk};

    use super::*;

    #[test]
    fn a_window_shows_its_part_and_nothing_else() {
        let disk = Arc::new(MemDisk::new(10));
        let window = Window::new(Arc::clone(&disk) as Arc<dyn Disk>, 4, 3);
        let block = BlockSlice::new(Blocks::from_bytes(&[7; BLOCK_SIZE]));
        window.write(BlockAddr(2), block.clone(), Durability::Cached).unwrap();
        assert_eq!(disk.image()[6 * BLOCK_SIZE], 7);
        window.write(BlockAddr(3), block, Durability::Cached).unwrap_err();
    }
}
