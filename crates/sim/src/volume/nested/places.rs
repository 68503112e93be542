//! Where the members have a block of the volume.
//!
//! The sums are done here a second time: a mirror's bitmaps lie before its data, stripes take
//! turns, and the parts of a line lie one behind the other, of which only the last can become
//! longer.

use gabion_base::buffer::BlockSlice;
use gabion_block::format::header::MEMBER_DATA_START;
use gabion_block::geometry::METADATA_BLOCKS;
use gabion_block::record::Layout;

use super::super::judge::{Seen, seen};
use super::super::member::Member;
use super::{World, record};

/// A block of a member, behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) member: usize,
    block: u64,
}

/// The number of the member that a letter names.
pub(super) fn number_of(url: &str) -> usize {
    usize::from(url.as_bytes()[0] - b'a')
}

/// All places of block `addr`.
pub(super) fn places(layout: &Layout, addr: u64) -> Vec<Place> {
    match layout {
        Layout::Member(member) => vec![Place { member: number_of(&member.url), block: addr }],
        Layout::Mirror { copies, .. } => {
            copies.iter().flat_map(|copy| places(&copy.on, addr + METADATA_BLOCKS)).collect()
        }
        Layout::Stripe { chunk_blocks, parts } => {
            let (turn, within) = (addr / chunk_blocks, addr % chunk_blocks);
            let (row, part) = (turn / parts.len() as u64, turn % parts.len() as u64);
            places(&parts[part as usize], row * chunk_blocks + within)
        }
        Layout::Linear(parts) => {
            let mut addr = addr;
            for (index, part) in parts.iter().enumerate() {
                let blocks = part.blocks().unwrap_or_default();
                if addr < blocks || index + 1 == parts.len() {
                    return places(part, addr);
                }
                addr -= blocks;
            }
            Vec::new()
        }
    }
}

impl Place {
    /// What the member has there, as it is read at this moment.
    fn seen(self, disk: &Member, addr: u64) -> Seen {
        disk.block(self.block).map_or(Seen::Whole(0), |block| seen(addr, block.bytes()))
    }

    /// The member's block rots; says whether there was one.
    pub(super) fn rot(self, disk: &mut Member) -> bool {
        disk.rot(self.block + MEMBER_DATA_START)
    }

    /// Whether the member had it before it became longer, from so many blocks on.
    pub(super) fn is_before(self, blocks: u64) -> bool {
        self.block + MEMBER_DATA_START < blocks
    }

    /// Has the member hold something there from the start.
    pub(super) fn put(self, disk: &mut Member, block: BlockSlice) {
        disk.put(self.block + MEMBER_DATA_START, block);
    }
}

impl World {
    /// Where the volume's blocks are, as the record has it.
    pub(super) fn places(&self, addr: u64) -> Vec<Place> {
        record(&self.coordinator).map_or_else(Vec::new, |record| places(&record.layout, addr))
    }

    /// The places of block `addr` at which it is not rotten.
    pub(super) fn good_places(&self, addr: u64) -> Vec<Place> {
        let mut places = self.places(addr);
        places.retain(|place| {
            self.ether.member(place.member, |it, _| place.seen(it, addr)) != Seen::Strange
        });
        places
    }
}
