//! The volume becomes longer: somebody wants that, in the record, and whoever has the volume sees
//! to it.
//!
//! Behind its first end all disks hold rubbish, which nobody must ever read.

use std::time::Duration;

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_block::format::header::MEMBER_DATA_START;
use gabion_block::geometry::{Geometry, METADATA_BLOCKS};
use gabion_block::mirror::{Input, Order};
use gabion_block::record::{Layout, Record};

use super::host::Life;
use super::{Event, Sabotage, World};

/// Blocks of each copy that are used, and that are wanted.
pub(super) fn lengths(record: &Record) -> (u64, u64) {
    record.layout.blocks_of_copies(super::MIRROR).expect("the volume is a mirror")
}

pub(super) fn geometry_of(record: &Record) -> Geometry {
    Geometry::of_copies(lengths(record).0).expect("some blocks")
}

/// What disks hold where nobody has written.
pub(super) fn rubbish() -> BlockSlice {
    BlockSlice::new(Blocks::from_bytes(&[0xee; gabion_base::BLOCK_SIZE]))
}

/// The block of a disk that holds block `addr` of the volume.
pub(super) fn on_disk(addr: u64) -> u64 {
    addr + METADATA_BLOCKS + MEMBER_DATA_START
}

impl World {
    /// Somebody wants the volume to be longer.
    pub(super) fn want_more(&mut self) {
        let Some(most) = self.later.last().map(|last| last + 3 + METADATA_BLOCKS) else { return };
        let (blocks, wanted) = lengths(&self.coordinator.record);
        if wanted >= most || wanted > blocks {
            return;
        }
        let more = 1 + self.rng.below(most - wanted);
        let wanted = if self.rng.chance(1, 2) { most } else { wanted + more };
        let mut record = self.coordinator.record.clone();
        if let Some(Layout::Mirror { grows_to, .. }) = record.layout.find_mirror(super::MIRROR) {
            *grows_to = wanted;
        }
        self.note(format!("the volume is to grow from {blocks} to {wanted}"));
        self.replace_now(self.coordinator.revision, record);
    }

    /// What follows from what the record wants, which whoever has the volume looks at now and then.
    pub(super) fn growth(&mut self, life: Life) -> Option<Order> {
        if self.sabotage == Sabotage::NeverGrown {
            return None;
        }
        let (record, revision) = self.read_record(life.host)?;
        let session = self.session(life)?;
        if session.epoch != record.epoch().0 {
            return None;
        }
        let (blocks, wanted) = lengths(&record);
        (session.record, session.revision) = (record, revision);
        (wanted > blocks).then_some(Order::Grow(wanted))
    }

    /// The host tells the record how long its mirror is.
    pub(super) fn record_length(&mut self, life: Life, length: u64) {
        if self.sabotage == Sabotage::ForgottenLength {
            return self.answer(life, Input::LengthRecorded);
        }
        let change = |record: &mut Record, _| {
            if let Some(Layout::Mirror { blocks, grows_to, .. }) =
                record.layout.find_mirror(super::MIRROR)
            {
                *blocks = length.max(*blocks);
                *grows_to = (*grows_to).max(*blocks);
            }
        };
        match self.change_record(life, change) {
            None => {}
            Some(Input::Recorded) => self.answer(life, Input::LengthRecorded),
            Some(Input::NotRecorded) => {
                let wait = self.delay(Duration::from_millis(400));
                self.schedule(wait, Event::LengthNotRecorded { life });
            }
            Some(input) => self.answer(life, input),
        }
    }

    /// Whether the volume is as long as somebody wants it.
    pub(super) fn is_grown(&mut self, owner: Life) -> bool {
        let (_, wanted) = lengths(&self.coordinator.record);
        let wanted = wanted - METADATA_BLOCKS;
        self.session(owner).is_some_and(|session| session.mirror.blocks() == wanted)
    }

    /// Nothing that could be used once may be gone.
    pub(super) fn check_length(&mut self, blocks: u64) {
        if blocks < self.longest {
            let longest = self.longest;
            self.violated(format!("the volume became shorter: {blocks} blocks, once {longest}"));
        }
        self.longest = blocks;
    }
}
