//! `gabion snapshot schedule`: what is asked for, and what is shown.

use std::str::FromStr;

use super::json;
use crate::control::wire::{Kept, Schedule};
use crate::failure::{Exit, Failure, Result};
use crate::print;

/// How many snapshots of a class are kept, or that none are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// No class at all.
    None,
    /// One an hour.
    Hourly(u16),
    /// One a day.
    Daily(u16),
    /// One a week.
    Weekly(u16),
    /// One a month.
    Monthly(u16),
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is neither none nor as in hourly=24, of hourly, daily, weekly, monthly"
            )
        };
        if text == "none" {
            return Ok(Self::None);
        }
        let (class, count) = text.split_once('=').ok_or_else(wrong)?;
        let count = count.parse().map_err(|_| wrong())?;
        match class {
            "hourly" => Ok(Self::Hourly(count)),
            "daily" => Ok(Self::Daily(count)),
            "weekly" => Ok(Self::Weekly(count)),
            "monthly" => Ok(Self::Monthly(count)),
            _ => Err(wrong()),
        }
    }
}

/// The schedule that is asked for; `None`: it is only to be shown.
pub fn wanted(keep: &[Keep]) -> Result<Option<Kept>> {
    if keep.len() > 1 && keep.contains(&Keep::None) {
        return Err(Failure::new("none goes with no other class").exit(Exit::Usage));
    }
    let mut wanted = Kept::default();
    for part in keep {
        match part {
            Keep::None => {}
            Keep::Hourly(count) => wanted.hourly = *count,
            Keep::Daily(count) => wanted.daily = *count,
            Keep::Weekly(count) => wanted.weekly = *count,
            Keep::Monthly(count) => wanted.monthly = *count,
        }
    }
    Ok((!keep.is_empty()).then_some(wanted))
}

/// Shows which snapshots are made by themselves.
pub fn print(schedule: &Schedule, as_json: bool) -> Result<()> {
    if as_json {
        return print::line(json(schedule));
    }
    print::line(format_args!("{}: {}", schedule.target, text(&schedule.keep)))
}

fn text(keep: &Kept) -> String {
    let Kept { hourly, daily, weekly, monthly } = *keep;
    let classes = [("hourly", hourly), ("daily", daily), ("weekly", weekly), ("monthly", monthly)];
    let kept = classes.iter().filter(|(_, count)| *count > 0);
    let kept: Vec<_> = kept.map(|(class, count)| format!("{class}={count}")).collect();
    match kept.is_empty() {
        true => "no snapshots are made by themselves".to_owned(),
        false => format!("snapshots are made by themselves and kept: {}", kept.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> std::result::Result<Option<Kept>, String> {
        let keep: std::result::Result<Vec<Keep>, String> =
            words.iter().map(|word| word.parse()).collect();
        wanted(&keep?).map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_is_kept_is_told_as_it_is_asked_for() {
        let kept = parsed(&["hourly=24", "weekly=4"]).unwrap().unwrap();
        assert_eq!(kept, Kept { hourly: 24, weekly: 4, ..Kept::default() });
        assert!(text(&kept).ends_with("hourly=24 weekly=4"), "{}", text(&kept));
        assert_eq!(parsed(&["none"]), Ok(Some(Kept::default())));
        assert_eq!(parsed(&[]), Ok(None));
        for wrong in ["yearly=1", "hourly", "hourly=-1", "hourly=99999", "=3"] {
            assert!(parsed(&[wrong]).is_err(), "{wrong}");
        }
        assert!(parsed(&["none", "daily=1"]).is_err());
    }
}
