//! The system's clocks as a filesystem in use wants them.

use std::time::Duration;

use gabion_base::time::Timestamp;
use gabion_host::clock;
use gabion_node::Clock;

/// The clocks of this machine. Real time is coarse, as that of the kernel's own filesystems.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        clock::coarse_now()
    }

    fn monotonic(&self) -> Duration {
        clock::monotonic()
    }
}
