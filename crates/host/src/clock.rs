//! The system's clocks, read where the world meets the engine and passed on as values.
//!
//! - [`now`] is exact and for events that people compare across machines.
//! - [`coarse_now`] is the time of the last timer tick (1 to 10 ms old), costs a few nanoseconds
//!   and is what the kernel's own filesystems stamp their files with.
//! - [`monotonic`] never goes backward and is for durations and deadlines; it stands still while
//!   the machine sleeps.
//! - [`boottime`] is the same, but does not stand still then.

use std::time::Duration;

use gabion_base::time::Timestamp;

/// Real time.
pub fn now() -> Timestamp {
    let time = read(libc::CLOCK_REALTIME);
    Timestamp::new(time.tv_sec, time.tv_nsec as u32)
}

/// Real time as of the last timer tick: never later than [`now`], and cheaper.
pub fn coarse_now() -> Timestamp {
    let time = read(libc::CLOCK_REALTIME_COARSE);
    Timestamp::new(time.tv_sec, time.tv_nsec as u32)
}

/// Time since an arbitrary point in the past that is the same for the whole machine.
pub fn monotonic() -> Duration {
    let time = read(libc::CLOCK_MONOTONIC);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The same, but it goes on while the machine sleeps: for what others wait for meanwhile.
pub fn boottime() -> Duration {
    let time = read(libc::CLOCK_BOOTTIME);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0, "every Linux has clock {clock}");
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_time_is_not_ahead_and_not_far_behind() {
        let coarse = coarse_now();
        let exact = now();
        assert!(coarse <= exact, "{coarse:?} after {exact:?}");
        assert!(exact.seconds - coarse.seconds <= 60);
        assert!(exact.nanos < 1_000_000_000 && exact.seconds > 1_600_000_000);
    }

    #[test]
    fn monotonic_time_does_not_go_back() {
        let first = monotonic();
        assert!(monotonic() >= first);
    }
}
