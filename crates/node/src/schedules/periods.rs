//! Hours, days, weeks and months, in UTC, and what a snapshot of each is called.
//!
//! ```text
//!   hourly-2026-11-29T01:00Z     daily-2026-11-29T00:00Z
//!   weekly-2026-11-23T00:00Z     a week begins on a Monday
//!   monthly-2026-11-01T00:00Z
//! ```
//!
//! The name says which period it is of, so that there is one of each, whoever asks how often.

use gabion_map::format::subvolume::Schedule;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// How often a snapshot is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Hourly,
    Daily,
    Weekly,
    Monthly,
}

/// The classes with how many of each are kept.
pub(super) fn classes(schedule: &Schedule) -> [(Class, u16); 4] {
    let Schedule { hourly, daily, weekly, monthly } = *schedule;
    [
        (Class::Hourly, hourly),
        (Class::Daily, daily),
        (Class::Weekly, weekly),
        (Class::Monthly, monthly),
    ]
}

impl Class {
    fn prefix(self) -> &'static str {
        match self {
            Self::Hourly => "hourly-",
            Self::Daily => "daily-",
            Self::Weekly => "weekly-",
            Self::Monthly => "monthly-",
        }
    }

    /// When the period began that `now` is in; both in seconds since 1970.
    fn start(self, now: i64) -> i64 {
        let day = now.div_euclid(DAY);
        match self {
            Self::Hourly => now - now.rem_euclid(HOUR),
            Self::Daily => day * DAY,
            // The first day of 1970 was a Thursday.
            Self::Weekly => (day - (day + 3).rem_euclid(7)) * DAY,
            Self::Monthly => (day - (date(day).2 - 1)) * DAY,
        }
    }

    /// What the snapshot of the period is called that `now` is in.
    pub(super) fn name(self, now: i64) -> String {
        let start = self.start(now);
        let (year, month, day) = date(start.div_euclid(DAY));
        let hour = start.rem_euclid(DAY) / HOUR;
        format!("{}{year:04}-{month:02}-{day:02}T{hour:02}:00Z", self.prefix())
    }

    /// Whether a snapshot of this class could be called that.
    pub(super) fn has_named(self, name: &[u8]) -> bool {
        let form = b"0000-00-00T00:00Z";
        let Some(rest) = name.strip_prefix(self.prefix().as_bytes()) else { return false };
        let fits = |(byte, form): (&u8, &u8)| match form {
            b'0' => byte.is_ascii_digit(),
            other => byte == other,
        };
        rest.len() == form.len() && rest.iter().zip(form).all(fits)
    }
}

/// Seconds until the next hour begins, which is when the next period of any class can.
pub(super) fn until_next(now: i64) -> u64 {
    (HOUR - now.rem_euclid(HOUR)) as u64
}

/// The year, month and day that is so many days after the first of 1970.
fn date(days: i64) -> (i64, i64, i64) {
    // Years begin in March here, so that the day that is not always there is the last one.
    const DAYS_OF_400_YEARS: i64 = 146_097;
    let since = days + 719_468;
    let (age, day) = (since.div_euclid(DAYS_OF_400_YEARS), since.rem_euclid(DAYS_OF_400_YEARS));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (age * 400 + year + next, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_eight_centuries_follows_the_one_before() {
        let length = |year: i64, month: i64| match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        assert_eq!(date(0), (1970, 1, 1));
        let mut expected = (1600, 1, 1);
        let first = (-200_000..0).find(|day| date(*day) == expected).expect("it is there");
        for day in first..first + 800 * 365 {
            assert_eq!(date(day), expected);
            let (year, month, day) = expected;
            expected = match (month, day == length(year, month)) {
                (12, true) => (year + 1, 1, 1),
                (_, true) => (year, month + 1, 1),
                (_, false) => (year, month, day + 1),
            };
        }
    }

    #[test]
    fn names_say_which_period_it_is() {
        // A Sunday, 2026-11-29T01:19:05Z.
        let now = 1_795_915_145;
        let names = |now| {
            let every = Schedule { hourly: 1, daily: 1, weekly: 1, monthly: 1 };
            classes(&every).map(|(class, _)| class.name(now))
        };
        assert_eq!(
            names(now),
            [
                "hourly-2026-11-29T01:00Z",
                "daily-2026-11-29T00:00Z",
                "weekly-2026-11-23T00:00Z",
                "monthly-2026-11-01T00:00Z",
            ]
        );
        assert_eq!(until_next(now), 40 * 60 + 55);
        assert_eq!(names(now + DAY)[2], "weekly-2026-11-30T00:00Z");
        assert_eq!(names(-1)[0], "hourly-1969-12-31T23:00Z");
        assert_eq!(names(-1)[2], "weekly-1969-12-29T00:00Z");
    }

    #[test]
    fn what_people_call_theirs_is_not_taken_for_ours() {
        assert!(Class::Hourly.has_named(b"hourly-2026-11-29T01:00Z"));
        for name in ["hourly-", "hourly-x026-11-29T01:00Z", "daily-2026-11-29T00:00Z", "hourly"] {
            assert!(!Class::Hourly.has_named(name.as_bytes()), "{name}");
        }
        assert!(!Class::Hourly.has_named(b"hourly-2026-11-29T01:00Z-kept"));
    }
}
