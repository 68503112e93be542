//! Time, as whoever runs the program provides it.

use std::time::Duration;

use gabion_base::time::Timestamp;

/// The clocks of a program.
pub trait Clock: Send + Sync {
    /// Real time, to be recorded in files. Coarse is better than exact: writes of one tick cost
    /// less.
    fn now(&self) -> Timestamp;

    /// Time since an arbitrary point that never goes back, to measure intervals.
    fn monotonic(&self) -> Duration;
}
