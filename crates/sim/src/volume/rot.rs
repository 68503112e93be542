//! Blocks that rot on one copy, and a host that finds out as a filesystem does.
//!
//! Nothing tells a mirror that a block is not what was written. Whoever reads it knows by its
//! checksum, reads the block from every copy, and writes a good one over the bad ones. A block
//! that has rotted everywhere is lost; that can only be one that was made to rot, on a copy from
//! which another one was filled.

use std::collections::BTreeMap;

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::DiskResult;
use gabion_base::ids::BlockAddr;
use gabion_block::copies::CopyIndex;
use gabion_block::mirror::{Input, Trust};

use super::growth::on_disk;
use super::host::Life;
use super::judge::{Seen, seen};
use super::{Sabotage, World};

/// Blocks that rot in a trial, at most.
const ROTTEN_MAX: usize = 3;

/// Blocks that a host looks at on every copy.
#[derive(Default)]
pub(super) struct Recoveries(BTreeMap<u64, Recovery>);

struct Recovery {
    /// When it began, for the judge.
    moment: u64,
    /// Copies that have not answered.
    left: usize,
    good: Option<BlockSlice>,
    bad: Vec<(CopyIndex, BlockSlice)>,
}

impl World {
    /// A block of a copy rots.
    pub(super) fn rot(&mut self, copy: CopyIndex) {
        let Some(owner) = self.owner() else { return };
        let copies = self.copies();
        let Some(session) = self.session(owner) else { return };
        let there = session.mirror.blocks();
        let all = copies.map(|copy| session.trust(copy)).all(|trust| trust == Trust::InSync);
        let addr = self.hot[self.rng.below(self.hot.len() as u64) as usize];
        // One that is bad on other copies already would be lost at once.
        if !all || self.rotten.len() >= ROTTEN_MAX || addr >= there {
            return;
        }
        if !self.rotten.contains(&addr) && self.members[copy.at()].rot(on_disk(addr)) {
            self.note(format!("block {addr} rots on {copy}"));
            self.rotten.insert(addr);
        }
    }

    /// Whether what was read has rotted, and the host finds that out.
    pub(super) fn is_rotten(&self, addr: u64, bytes: &[u8]) -> bool {
        let believed = self.sabotage == Sabotage::BelievedRot;
        !believed && self.rotten.contains(&addr) && seen(addr, bytes) == Seen::Strange
    }

    /// The host looks at a block on every copy.
    pub(super) fn recover(&mut self, life: Life, addr: u64) {
        let moment = self.judge.moment();
        let (now, copies) = (self.now, self.copies().collect::<Vec<_>>());
        let Some(session) = self.session(life) else { return };
        let left = copies.len();
        let recovery = Recovery { moment, left, good: None, bad: Vec::new() };
        if session.recoveries.0.contains_key(&addr) {
            return;
        }
        session.recoveries.0.insert(addr, recovery);
        for copy in copies {
            let Some(session) = self.session(life) else { return };
            let id = session.look(copy, addr, moment, now);
            self.answer(life, Input::ReadCopy { id, copy, addr: BlockAddr(addr), count: 1 });
        }
    }

    /// A copy has said what it has there.
    pub(super) fn looked(
        &mut self,
        session: &mut super::host::Session,
        (copy, addr): (CopyIndex, u64),
        result: DiskResult,
    ) -> Result<(), String> {
        let Some(recovery) = session.recoveries.0.get_mut(&addr) else { return Ok(()) };
        recovery.left -= 1;
        if let Ok(Some(blocks)) = result {
            let content = BlockSlice::new(blocks);
            match seen(addr, content.bytes()) {
                Seen::Strange => recovery.bad.push((copy, content)),
                _ => drop(recovery.good.get_or_insert(content)),
            }
        }
        if recovery.left > 0 {
            return Ok(());
        }
        let Some(Recovery { moment, good, bad, .. }) = session.recoveries.0.remove(&addr) else {
            return Ok(());
        };
        let Some(good) = good else {
            if !bad.is_empty() {
                self.note(format!("block {addr} is lost"));
                self.judge.lose(session.epoch, addr);
            }
            return Ok(());
        };
        if self.sabotage != Sabotage::Unrepaired {
            let life = session.life;
            for (copy, bad) in bad {
                let good = good.clone();
                let event = super::Event::PutRight { life, copy, addr, bad, good };
                self.schedule(std::time::Duration::ZERO, event);
            }
        }
        self.judge.read(session.epoch, moment, addr, good.bytes())
    }
}
