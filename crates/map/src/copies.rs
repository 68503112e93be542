//! Reading what a device keeps several copies of, when one of them is wrong.
//!
//! A device with copies, such as a mirror, does not know which one is right; whoever has the
//! checksum does. What [`read_right`] reads first may be any copy. If that is wrong, the others are
//! tried, and the wrong ones are written again from the right one.
//!
//! Blocks that are read here are not written by anybody meanwhile: they belong to a pinned state,
//! to a locked file, or to a filesystem that is just being opened. The device, too, replaces a copy
//! only if it still is what was found to be wrong ([`Disk::repair_copy`]).

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, Repair};
use gabion_base::ids::BlockAddr;

/// Reads `count` blocks at `addr` such that `decode` accepts them. Gives its first complaint if no
/// copy is right.
pub fn read_right<T, E: From<DiskError>>(
    disk: &dyn Disk,
    addr: BlockAddr,
    count: usize,
    mut decode: impl FnMut(&BlockSlice) -> Result<T, E>,
) -> Result<T, E> {
    let mut blocks = Blocks::zeroed(count);
    disk.read(addr, blocks.bytes_mut())?;
    match decode(&BlockSlice::new(blocks)) {
        Err(complaint) => right_copy(disk, addr, count, complaint, decode),
        decoded => decoded,
    }
}

/// Looks for a copy of what was found to be wrong, which is the `complaint`.
pub fn right_copy<T, E>(
    disk: &dyn Disk,
    addr: BlockAddr,
    count: usize,
    complaint: E,
    mut decode: impl FnMut(&BlockSlice) -> Result<T, E>,
) -> Result<T, E> {
    if disk.copies() == 1 {
        return Err(complaint);
    }
    for copy in 0..disk.copies() {
        let mut blocks = Blocks::zeroed(count);
        let read = disk.read_copy(copy, addr, blocks.bytes_mut());
        let blocks = BlockSlice::new(blocks);
        if let (Ok(()), Ok(right)) = (read, decode(&blocks)) {
            mend(disk, addr, &blocks);
            return Ok(right);
        }
    }
    Err(complaint)
}

/// Makes all copies of the blocks at `addr` be `right`. Gives how many blocks were put right. A
/// copy that cannot be read or written is the device's own concern.
pub fn mend(disk: &dyn Disk, addr: BlockAddr, right: &BlockSlice) -> u64 {
    (0..disk.copies()).map(|copy| mend_copy(disk, copy, addr, right)).sum()
}

/// The same for one copy.
pub fn mend_copy(disk: &dyn Disk, copy: usize, addr: BlockAddr, right: &BlockSlice) -> u64 {
    let mut mended = 0;
    for index in 0..right.count() {
        let part = right.part(index, 1);
        let addr = addr.plus(index as u64);
        let mut found = vec![0; BLOCK_SIZE];
        if disk.read_copy(copy, addr, &mut found).is_err() || found == part.bytes() {
            continue;
        }
        let repaired = disk.repair_copy(copy, addr, &found, part);
        mended += u64::from(matches!(repaired, Ok(Repair::Repaired)));
    }
    mended
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use gabion_base::disk::{DiskRequest, MemDisk, Ticket};

    use super::*;

    /// Two disks; reads are answered by each in turn.
    struct Pair([MemDisk; 2], AtomicUsize);

    impl Disk for Pair {
        fn name(&self) -> Arc<str> {
            "pair".into()
        }

        fn blocks(&self) -> u64 {
            self.0[0].blocks()
        }

        fn submit(&self, request: DiskRequest) -> Ticket {
            let turn = self.1.fetch_add(1, Ordering::Relaxed);
            self.0[turn % 2].submit(request)
        }

        fn copies(&self) -> usize {
            2
        }

        fn submit_copy(&self, copy: usize, addr: BlockAddr, count: usize) -> Ticket {
            self.0[copy].submit(DiskRequest::Read { addr, count })
        }

        fn repair_copy(
            &self,
            copy: usize,
            addr: BlockAddr,
            _bad: &[u8],
            good: BlockSlice,
        ) -> Result<Repair, DiskError> {
            self.0[copy].write(addr, good, gabion_base::disk::Durability::Fua)?;
            Ok(Repair::Repaired)
        }
    }

    fn image(marks: [u8; 3]) -> Vec<u8> {
        marks.iter().flat_map(|mark| [*mark; BLOCK_SIZE]).collect()
    }

    /// Accepts blocks that begin with 1 and 2.
    fn decode(blocks: &BlockSlice) -> Result<u8, DiskError> {
        match (blocks.bytes()[0], blocks.bytes()[BLOCK_SIZE]) {
            (1, 2) => Ok(7),
            _ => Err(DiskError::Fenced {
                device: "pair".into(),
                operation: "read",
                reason: "wrong".into(),
            }),
        }
    }

    #[test]
    fn a_wrong_copy_is_written_again_from_the_right_one() {
        let disks = [image([0, 1, 9]), image([0, 1, 2])].map(MemDisk::from_image);
        let pair = Pair(disks, AtomicUsize::new(0));
        assert_eq!(read_right(&pair, BlockAddr(1), 2, decode).unwrap(), 7);
        assert_eq!(pair.0[0].image(), image([0, 1, 2]));
        assert_eq!(pair.0[1].image(), image([0, 1, 2]));
    }

    #[test]
    fn without_a_right_copy_nothing_is_changed() {
        let disks = [image([0, 1, 9]), image([0, 3, 2])].map(MemDisk::from_image);
        let pair = Pair(disks, AtomicUsize::new(0));
        read_right(&pair, BlockAddr(1), 2, decode).unwrap_err();
        assert_eq!(pair.0[0].image(), image([0, 1, 9]));
        assert_eq!(pair.0[1].image(), image([0, 3, 2]));
    }
}
