//! Names of exports with parameters: how a client of a [medium](crate::medium) says who it is, and
//! what it is told about it. Both are Gabion's own and stand in fields that are free text to
//! everybody else.
//!
//! ```text
//! name          NAME?epoch=NUMBER&holder=TEXT[&connection=NUMBER]     TEXT percent-encoded
//! description   gabion medium UUID epoch NUMBER[ held by TEXT]
//! ```

use std::fmt::{self, Display};

use gabion_base::ids::Uuid;

use super::STRING_BYTES_MAX;
use crate::medium::format::HOLDER_BYTES_MAX;
use crate::percent::{Encoded, decoded};

/// What a client claims in order to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The epoch, at least 1.
    pub epoch: u64,
    /// Who claims it, not empty.
    pub holder: String,
    /// Which connection of the holder this is; 0 if it does not tell them apart.
    pub connection: u64,
}

/// Cuts a name into the export's and its parameters.
pub fn split(name: &str) -> (&str, Option<&str>) {
    name.split_once('?').map_or((name, None), |(name, rest)| (name, Some(rest)))
}

impl Claim {
    /// What `parameters` claim, or what is wrong with them.
    pub fn decode(parameters: &str) -> Result<Self, &'static str> {
        let (mut epoch, mut holder, mut connection) = (None, None, None);
        for part in parameters.split('&') {
            let Some((key, value)) = part.split_once('=') else {
                return Err("a parameter of the name has no value");
            };
            let number = || value.parse::<u64>().map_err(|_| "a parameter is no number");
            let known = match key {
                "epoch" => epoch.replace(number()?).is_none(),
                "connection" => connection.replace(number()?).is_none(),
                "holder" => {
                    let text = decoded(value).ok_or("the holder is not UTF-8")?;
                    holder.replace(text).is_none()
                }
                _ => return Err("a parameter of the name is not known"),
            };
            if !known {
                return Err("a parameter is given twice");
            }
        }
        let epoch = epoch.filter(|epoch| *epoch > 0).ok_or("epochs begin with 1")?;
        let fits = |holder: &String| !holder.is_empty() && holder.len() <= HOLDER_BYTES_MAX;
        let holder = holder.filter(fits).ok_or("a holder of 1 to 1024 bytes must be named")?;
        Ok(Self { epoch, holder, connection: connection.unwrap_or(0) })
    }

    /// The name by which the holder asks for `export`.
    pub fn name(&self, export: &str) -> String {
        let Self { epoch, holder, connection } = self;
        let holder = Encoded(holder.as_bytes());
        format!("{export}?epoch={epoch}&holder={holder}&connection={connection}")
    }

    /// Whether the name that it gives for `export` is one of the protocol.
    pub fn is_possible(&self, export: &str) -> bool {
        let fits = !self.holder.is_empty() && self.holder.len() <= HOLDER_BYTES_MAX;
        self.epoch > 0 && fits && self.name(export).len() <= STRING_BYTES_MAX
    }
}

/// What a server tells about the medium of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Its identity.
    pub uuid: Uuid,
    /// The highest epoch that was taken; 0 if none was.
    pub epoch: u64,
    /// Who has taken it; empty if nobody has.
    pub holder: String,
}

const DESCRIPTION: &str = "gabion medium ";

impl Medium {
    /// What a description says, if it is one of a medium.
    pub fn of_description(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix(DESCRIPTION)?.splitn(4, ' ');
        let uuid = Uuid::parse(words.next()?)?;
        if words.next()? != "epoch" {
            return None;
        }
        let epoch = words.next()?.parse().ok()?;
        let holder = match words.next() {
            Some(rest) => rest.strip_prefix("held by ")?,
            None => "",
        };
        Some(Self { uuid, epoch, holder: holder.to_owned() })
    }
}

impl Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DESCRIPTION}{} epoch {}", self.uuid, self.epoch)?;
        match &*self.holder {
            "" => Ok(()),
            holder => write!(f, " held by {holder}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_a_claim_or_a_reason() {
        let claim = Claim { epoch: 7, holder: "a&b c".to_owned(), connection: 0 };
        assert_eq!(Claim::decode("epoch=7&holder=a%26b%20c"), Ok(claim));
        for (wrong, why) in [
            ("", "no value"),
            ("epoch=7", "holder"),
            ("epoch=7&holder=", "holder"),
            ("epoch=0&holder=a", "begin with 1"),
            ("holder=a", "begin with 1"),
            ("epoch=-1&holder=a", "no number"),
            ("epoch=1&epoch=2&holder=a", "twice"),
            ("epoch=1&holder=%ff", "UTF-8"),
            ("epoch=1&holder=a&more=1", "not known"),
        ] {
            let reason = Claim::decode(wrong).unwrap_err();
            assert!(reason.contains(why), "{wrong}: {reason}");
        }
        let long = Claim { epoch: 1, holder: "x".repeat(1025), connection: 0 };
        assert!(!long.is_possible("a"));
        assert!(Claim::decode(split(&long.name("a")).1.unwrap()).is_err());
    }

    #[test]
    fn a_description_of_something_else_is_nothing() {
        let uuid = Uuid([0x2f; 16]);
        let medium = Medium { uuid, epoch: 0, holder: String::new() };
        assert_eq!(
            medium.to_string(),
            "gabion medium 2f2f2f2f-2f2f-2f2f-2f2f-2f2f2f2f2f2f epoch 0"
        );
        for text in ["", "a disk", "gabion medium", "gabion medium 2f epoch 0"] {
            assert_eq!(Medium::of_description(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn claims_and_descriptions_survive_the_way(
            epoch in 1_u64.., holder in "\\PC{1,40}", connection: u64, bytes: [u8; 16]
        ) {
            let claim = Claim { epoch, holder: holder.clone(), connection };
            prop_assert!(claim.is_possible("tank.0"));
            let name = claim.name("tank.0");
            let (export, parameters) = split(&name);
            prop_assert_eq!(export, "tank.0");
            prop_assert_eq!(Claim::decode(parameters.unwrap()), Ok(claim));
            let medium = Medium { uuid: Uuid(bytes), epoch, holder };
            prop_assert_eq!(Medium::of_description(&medium.to_string()), Some(medium));
        }

        #[test]
        fn any_text_is_a_value_or_a_reason(text in "\\PC{0,60}") {
            let _ = Claim::decode(&text);
            let _ = Medium::of_description(&text);
        }
    }
}
