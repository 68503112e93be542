//! Blocks that rot on one member, and users who find out as a filesystem does: whoever reads
//! something strange reads the block from every copy that the volume has of it, and has a good one
//! written over the bad ones.
//!
//! A block that no copy has any more is lost, which can happen: a copy is filled from one that has
//! rotted. But no member must have it then, however deep it lies within the others.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::Disk;
use gabion_base::ids::BlockAddr;

use super::super::Sabotage;
use super::super::judge::{Seen, seen};
use super::host::Session;
use super::{SLOT_BLOCKS, World};

/// How often a block is looked for that can rot at the end.
const ATTEMPTS_MAX: usize = 16;

/// What became of a block that was looked at on every copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recovered {
    /// All that is known of it is good, or it is lost for good.
    Yes,
    /// Some copy could not be asked.
    Unknown,
}

impl World {
    /// A block rots on one of the members that have it, if there are fewer than `most` that did.
    /// Says whether one has; `draw` gives numbers below another one.
    pub(super) fn rot(&self, most: usize, mut draw: impl FnMut(u64) -> u64) -> bool {
        let slots = self.all_slots();
        let slot = slots[draw(slots.len() as u64) as usize];
        let addr = slot + draw(SLOT_BLOCKS);
        let places = self.places(addr);
        let mut rotten = self.rotten();
        if places.is_empty() || rotten.len() >= most || rotten.contains(&addr) {
            return false;
        }
        let place = places[draw(places.len() as u64) as usize];
        let has_rotted = self.ether.member(place.member, |it, _| place.rot(it));
        if has_rotted {
            self.baton.note(|| format!("block {addr} rots: {place:?}"));
            rotten.insert(addr);
        }
        has_rotted
    }
}

impl Session {
    /// A block rots that nobody writes any more.
    pub(super) fn rot_at_the_end(&self) {
        let world = &self.world;
        let most = world.rotten().len() + 1;
        for _ in 0..ATTEMPTS_MAX {
            if world.rot(most, |below| world.baton.draw(below)) {
                return;
            }
        }
    }

    /// Whether what was read has rotted, and the user finds that out.
    pub(super) fn is_rotten(&self, addr: u64, bytes: &[u8]) -> bool {
        let believed = self.world.ether.sabotage() == Sabotage::BelievedRot;
        !believed && seen(addr, bytes) == Seen::Strange && self.world.rotten().contains(&addr)
    }

    /// Looks at a block on every copy, and puts the bad ones right.
    pub(super) fn recover(&self, addr: u64) -> Recovered {
        let (world, volume) = (&self.world, &self.volume);
        let asked = world.judge().moment();
        let had_it = world.good_places(addr);
        let (mut good, mut bad, mut silent) = (None, Vec::new(), false);
        for copy in 0..volume.copies() {
            let mut blocks = Blocks::zeroed(1);
            if volume.read_copy(copy, BlockAddr(addr), blocks.bytes_mut()).is_err() {
                silent = true;
                continue;
            }
            let content = BlockSlice::new(blocks);
            match seen(addr, content.bytes()) {
                Seen::Strange => bad.push((copy, content)),
                _ => drop(good.get_or_insert(content)),
            }
        }
        let Some(good) = good else {
            if silent || bad.is_empty() {
                return Recovered::Unknown;
            }
            return self.lose(addr, &had_it);
        };
        let verdict = world.judge().read(self.epoch, asked, addr, good.bytes());
        world.judged(verdict);
        if world.ether.sabotage() != Sabotage::Unrepaired {
            for (copy, bad) in bad {
                assert_eq!(bad.bytes().len(), BLOCK_SIZE, "one block was read");
                silent |=
                    volume.repair_copy(copy, BlockAddr(addr), bad.bytes(), good.clone()).is_err();
            }
        }
        if silent { Recovered::Unknown } else { Recovered::Yes }
    }

    /// No copy had it any more.
    fn lose(&self, addr: u64, had_it: &[super::places::Place]) -> Recovered {
        let world = &self.world;
        let still = world.good_places(addr);
        if let Some(place) = still.iter().find(|place| had_it.contains(place))
            && !self.is_fenced()
        {
            world.baton.fail(&format!("block {addr} is given up, which is there: {place:?}"));
        }
        world.baton.note(|| format!("block {addr} is lost"));
        world.judge().lose(self.epoch, addr);
        Recovered::Yes
    }
}
