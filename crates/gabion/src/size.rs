//! Sizes as people write and read them. Units are binary: 1K is 1024 bytes.

use std::fmt;
use std::str::FromStr;

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A number of bytes that was given as `64M`, `10G`, `1T` or plainly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a size such as 64M, 10G or 1T");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.to_ascii_uppercase();
        let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
        let shift = match unit {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            "P" => 50,
            _ => return Err(wrong()),
        };
        let too_large = || format!("{text} is more than 8E");
        let bytes = number.checked_mul(1 << shift).ok_or_else(too_large)?;
        if bytes > i64::MAX as u64 { Err(too_large()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Size {
    /// Three digits are enough for people: `1.50 GiB`, `64 GiB`, `512 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unit = 0;
        while unit + 1 < UNITS.len() && self.0 >> (10 * (unit + 1)) != 0 {
            unit += 1;
        }
        let value = self.0 as f64 / (1_u64 << (10 * unit)) as f64;
        let name = UNITS[unit];
        // What would be rounded to one digit more has one digit less behind the point.
        if value.fract() == 0.0 || value >= 99.95 {
            write!(f, "{value:.0} {name}")
        } else if value >= 9.995 {
            write!(f, "{value:.1} {name}")
        } else {
            write!(f, "{value:.2} {name}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_whatever_their_unit_is_called() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("10GiB", 10 << 30),
            ("10GB", 10 << 30),
            ("1T", 1 << 40),
            ("512B", 512),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1", "1.5G", "1X", "64 M", "1MM", "99999999999999999999", "9000P"] {
            let refused = text.parse::<Size>().unwrap_err();
            assert!(refused.contains(text), "{refused}");
        }
    }

    #[test]
    fn sizes_are_shown_in_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1536, "1.50 KiB"),
            (64 << 30, "64 GiB"),
            (19_922_944, "19 MiB"),
            (104_849_408, "100 MiB"),
            (10_485_000, "10.0 MiB"),
            (20_000_000, "19.1 MiB"),
            (200_000_000, "191 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
