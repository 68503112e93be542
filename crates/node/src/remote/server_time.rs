//! What time it is at the server, by this machine's steady clock.
//!
//! What the server says of its time was true a moment before it arrives here. So the greatest
//! difference to our clock that was seen is the nearest to the truth and never ahead of it. As the
//! two clocks do not go equally fast, only what was seen lately counts.

use std::time::Duration;

use gabion_base::sync::Mutex;
use gabion_base::time::Timestamp;

/// After this time what was seen counts as old; after twice of it, no more.
const WINDOW: Duration = Duration::from_secs(10);
/// Times are recorded in steps of this many nanoseconds: a series of writes then has one time.
const STEP: i128 = 1_000_000;
const SECOND: i128 = 1_000_000_000;

#[derive(Default)]
struct State {
    /// Nanoseconds that the server's time is ahead of our clock: in this window, and before.
    now: Option<i128>,
    before: Option<i128>,
    began: Duration,
    /// Nothing that is known here is later.
    floor: Timestamp,
}

/// The server's time.
#[derive(Default)]
pub(super) struct ServerTime {
    state: Mutex<State>,
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.seconds) * SECOND + i128::from(time.nanos)
}

fn timestamp(nanos: i128) -> Timestamp {
    let seconds = nanos.div_euclid(SECOND);
    Timestamp::new(seconds as i64, nanos.rem_euclid(SECOND) as u32)
}

impl ServerTime {
    /// The server has said that it is `time`, which has arrived at `now`.
    pub(super) fn told(&self, time: Timestamp, now: Duration) {
        let mut state = self.state.lock();
        let ahead = nanos(time) - now.as_nanos() as i128;
        if now.saturating_sub(state.began) >= WINDOW {
            state.before = state.now.take();
            state.began = now;
        }
        state.now = Some(state.now.map_or(ahead, |known| known.max(ahead)));
        state.floor = match nanos(state.floor) - nanos(time) > SECOND {
            // Its clock was set back.
            true => time,
            false => state.floor.max(time),
        };
    }

    /// The time to be recorded for what is done at `now`.
    pub(super) fn at(&self, now: Duration) -> Timestamp {
        let mut state = self.state.lock();
        let ahead = state.now.max(state.before).unwrap_or(0);
        let time = now.as_nanos() as i128 + ahead;
        let time = timestamp(time - time.rem_euclid(STEP));
        state.floor = state.floor.max(time);
        state.floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_never_ahead_of_the_servers_and_never_behind_what_it_said() {
        let time = ServerTime::default();
        let at = Duration::from_secs;
        time.told(Timestamp::new(1000, 0), at(10));
        // This one was faster.
        time.told(Timestamp::new(1001, 500_000_000), at(11));
        assert_eq!(time.at(at(12)), Timestamp::new(1002, 500_000_000));
        time.told(Timestamp::new(1003, 700_000_123), at(13));
        assert_eq!(time.at(at(13)), Timestamp::new(1003, 700_000_123));
        assert_eq!(time.at(at(14)), Timestamp::new(1004, 700_000_000));
    }

    #[test]
    fn a_clock_that_was_set_back_is_followed() {
        let time = ServerTime::default();
        for second in 0..40 {
            let ahead = if second < 10 { 5000 } else { 1000 };
            time.told(Timestamp::new(ahead + second, 0), Duration::from_secs(second as u64));
        }
        assert_eq!(time.at(Duration::from_secs(40)), Timestamp::new(1040, 0));
    }
}
