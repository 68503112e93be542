//! Points in time and durations as text.

use std::time::Duration;

use jiff::Timestamp;

/// Seconds since 1970 as `2026-11-22T13:45:01Z`, or as they are if there is no such date.
pub fn seconds(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{seconds} s after 1970"),
    }
}

/// A duration in its largest unit: `12 s`, `3 min`, `5 h`, `9 days`.
pub fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_seconds_has_a_text() {
        assert_eq!(seconds(0), "1970-01-01T00:00:00Z");
        assert_eq!(seconds(1_795_355_101), "2026-11-22T13:45:01Z");
        assert_eq!(seconds(i64::MAX), "9223372036854775807 s after 1970");
    }

    #[test]
    fn durations_are_told_in_their_largest_unit() {
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (200_000, "2 days")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
