//! The clock of a machine, which may go too fast or too slowly.

use std::sync::Arc;
use std::time::Duration;

use gabion_base::time::Timestamp;
use gabion_node::Clock;

use super::baton::Baton;

/// What a clock shows at the beginning, in seconds since 1970.
const BEGINNING: i64 = 1_700_000_000;

/// A machine's clock.
pub struct MachineClock {
    baton: Arc<Baton>,
    /// How much it goes in a thousand units of the world's time.
    pace: u32,
    /// What it shows at the world's beginning.
    offset: Duration,
}

impl MachineClock {
    /// One that is right.
    pub fn exact(baton: Arc<Baton>) -> Self {
        Self { baton, pace: 1000, offset: Duration::ZERO }
    }

    /// One that goes `pace` units in a thousand, and shows `offset` at the beginning.
    pub fn new(baton: Arc<Baton>, pace: u32, offset: Duration) -> Self {
        Self { baton, pace, offset }
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Timestamp {
        let shown = self.monotonic();
        Timestamp::new(BEGINNING + shown.as_secs() as i64, shown.subsec_nanos())
    }

    fn monotonic(&self) -> Duration {
        self.offset + self.baton.now() * self.pace / 1000
    }
}

/// A clock for who needs none.
pub struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        Timestamp::new(BEGINNING, 0)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}
