//! What a simulated disk does wrong, beyond losing its cache in a crash.
//!
//! | fault             | what the caller is told | what is on the disk                        |
//! |-------------------|-------------------------|--------------------------------------------|
//! | read error        | EIO                     | unchanged                                  |
//! | write error       | EIO                     | a seeded number of leading blocks          |
//! | flush error       | EIO                     | the cache stays as volatile as it was      |
//! | lost write        | success                 | unchanged                                  |
//! | misdirected write | success                 | the blocks are elsewhere                   |
//! | rotten read       | success, one bit wrong  | unchanged (a later read may be right)      |
//!
//! Everything is off by default. Lasting bit rot is set by [`crate::disk::SimDisk::rot`].

use std::collections::BTreeSet;

use gabion_base::ids::BlockAddr;
use gabion_base::rng::Rng;

/// How often something happens, in a million cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Odds(pub u32);

impl Odds {
    /// It never happens.
    pub const NEVER: Odds = Odds(0);
    /// It always happens.
    pub const ALWAYS: Odds = Odds(1_000_000);

    /// Whether it happens this time.
    pub fn happens(self, rng: &mut Rng) -> bool {
        self.0 > 0 && rng.chance(u64::from(self.0), 1_000_000)
    }
}

/// What goes wrong, and how often. `Faults::default()` is a healthy disk.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Starts the sequence of choices.
    pub seed: u64,
    /// Reads that fail.
    pub read_error: Odds,
    /// Blocks that can never be read.
    pub unreadable: BTreeSet<BlockAddr>,
    /// Reads of which one bit is wrong.
    pub rotten_read: Odds,
    /// Writes that fail.
    pub write_error: Odds,
    /// Writes that are acknowledged and do not happen.
    pub lost_write: Odds,
    /// Writes that are acknowledged and happen elsewhere.
    pub misdirected_write: Odds,
    /// Flushes that fail.
    pub flush_error: Odds,
}
