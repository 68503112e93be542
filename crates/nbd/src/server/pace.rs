//! How fast a disk has been, to foretell whether a small request is worth a switch of threads.
//!
//! Small requests of one kind take about the same time each. A running mean says how long: each
//! request moves it an eighth of the way, so that a single one that takes long ends what was taken
//! for quick, and some dozens of quick ones begin it again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::wire::command_flag;
use crate::wire::request::{Command, Request};

/// Mean time of small requests below which they are quick: what it costs to wake a thread and to
/// have it take the turn, which was measured at 5 to 50 us.
const QUICK: Duration = Duration::from_micros(20);
/// Before anything is known a disk is slow.
const UNKNOWN: Duration = Duration::from_micros(320);
/// Data of a small request.
const SMALL_BYTES: u32 = 16 << 10;

/// Kinds of small requests, which take about the same time each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Small {
    /// It moves a few blocks.
    Moving = 0,
    /// It waits until something is on stable storage.
    Durable = 1,
}

impl Small {
    /// What kind of small request this is, if it is one.
    pub(super) fn of(command: Command, request: &Request) -> Option<Self> {
        let durable = request.flags & command_flag::FUA != 0;
        match command {
            Command::Flush => Some(Self::Durable),
            Command::Read | Command::Write if request.length > SMALL_BYTES => None,
            Command::Write if durable => Some(Self::Durable),
            Command::Read | Command::Write => Some(Self::Moving),
            _ => None,
        }
    }
}

/// Mean times of the requests of one connection.
pub(super) struct Paces {
    /// In nanoseconds, by kind.
    means: [AtomicU64; 2],
}

impl Paces {
    pub(super) fn new() -> Self {
        Self { means: [(); 2].map(|()| AtomicU64::new(UNKNOWN.as_nanos() as u64)) }
    }

    /// Whether the next request of this kind is going to be quick.
    pub(super) fn is_quick(&self, kind: Small) -> bool {
        self.means[kind as usize].load(Ordering::Relaxed) < QUICK.as_nanos() as u64
    }

    /// Takes note of how long a request took.
    pub(super) fn record(&self, kind: Small, took: Duration) {
        let mean = &self.means[kind as usize];
        let before = mean.load(Ordering::Relaxed);
        // Somebody else's measurement may be lost, which does not matter.
        mean.store(before - before / 8 + took.as_nanos() as u64 / 8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_is_what_was_quick_for_a_while_until_one_takes_long() {
        let paces = Paces::new();
        let quick = || paces.is_quick(Small::Moving);
        for _ in 0..16 {
            assert!(!quick());
            paces.record(Small::Moving, Duration::from_micros(2));
        }
        for _ in 0..32 {
            paces.record(Small::Moving, Duration::from_micros(2));
        }
        assert!(quick());
        assert!(!paces.is_quick(Small::Durable), "the other kind is another matter");
        paces.record(Small::Moving, Duration::from_millis(1));
        assert!(!quick());
    }

    #[test]
    fn what_is_durable_or_large_is_another_kind() {
        let kind = |command: Command, flags, length| {
            let request =
                Request { flags, command: command.number(), cookie: 1, offset: 0, length };
            Small::of(command, &request)
        };
        let fua = command_flag::FUA;
        assert_eq!(kind(Command::Write, 0, SMALL_BYTES), Some(Small::Moving));
        assert_eq!(kind(Command::Write, fua, SMALL_BYTES), Some(Small::Durable));
        assert_eq!(kind(Command::Read, fua, 512), Some(Small::Moving));
        assert_eq!(kind(Command::Read, 0, SMALL_BYTES + 1), None);
        assert_eq!(kind(Command::Flush, 0, 0), Some(Small::Durable));
        assert_eq!(kind(Command::Trim, 0, 512), None);
    }
}
