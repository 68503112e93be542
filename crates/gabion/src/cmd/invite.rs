//! `gabion invite`: lets another machine join what is served here.

use std::str::FromStr;

use crate::args::sharing;
use crate::clients::unexpected;
use crate::control::wire::{Reply, Request};
use crate::date;
use crate::failure::Result;
use crate::print;
use crate::servers::Server;

/// The longest time that an invitation may last, in seconds.
const SECONDS_MAX: u64 = 30 * 86_400;

/// How long an invitation lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    seconds: u64,
}

impl FromStr for Lifetime {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let wrong = "it must be a time from 1s to 30d, such as 90s, 15m, 1h or 7d";
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong)?;
        let unit = match unit {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(wrong),
        };
        match number.checked_mul(unit) {
            Some(seconds @ 1..=SECONDS_MAX) => Ok(Self { seconds }),
            _ => Err(wrong),
        }
    }
}

/// Runs the command.
pub fn run(args: &sharing::Invite) -> Result<()> {
    let (seconds, addresses) = (args.expires.seconds, args.address.clone());
    let server = Server::of(args.target.as_deref())?;
    match server.ask(Request::Invite { seconds, addresses })? {
        Reply::Invited(invited) => {
            print::line(&invited.line)?;
            eprintln!(
                "gabion: for one machine, until {}. There: gabion join LINE MOUNTPOINT",
                date::seconds(invited.expires)
            );
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_understood() {
        let seconds = |text: &str| text.parse::<Lifetime>().map(|lifetime| lifetime.seconds);
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("15m"), Ok(900));
        assert_eq!(seconds("1h"), Ok(3600));
        assert_eq!(seconds("30d"), Ok(SECONDS_MAX));
        for text in ["", "h", "0s", "31d", "1w", "-1h", "99999999999999999999d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
