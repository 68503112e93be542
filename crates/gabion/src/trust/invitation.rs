//! The line that a machine is invited with: where, whom to trust, and the right to join, once.
//!
//! ```text
//!   gabion-invitation:ADDRESS[,ADDRESS]...:FINGERPRINT:SECRET:EXPIRES
//!                     HOST/PORT            64 digits   32     seconds since 1970
//! ```
//!
//! It has no character that a shell would take for its own: so the port stands behind a slash, and
//! IPv6 addresses without brackets have their colons replaced by `_`.

use std::fmt::{self, Display};
use std::str::FromStr;

use gabion_tls::secret::{Digest, Secret};

/// What an invitation begins with.
const SCHEME: &str = "gabion-invitation";
/// Addresses in one.
pub const ADDRESSES_MAX: usize = 8;

/// An invitation.
pub struct Invitation {
    /// Where the server may be, HOST:PORT each.
    pub addresses: Vec<String>,
    /// Its authority's fingerprint.
    pub authority: Digest,
    /// What proves that one was invited.
    pub secret: Secret,
    /// When it ends, in seconds since 1970.
    pub expires: i64,
}

impl Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.addresses.iter().map(|address| written(address)).collect();
        let Self { authority, secret, expires, .. } = self;
        write!(f, "{SCHEME}:{}:{authority}:{}:{expires}", addresses.join(","), secret.reveal())
    }
}

/// `[fe80::1]:7` as `fe80__1/7`, and `host:7` as `host/7`.
fn written(address: &str) -> String {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let host = host.trim_start_matches('[').trim_end_matches(']').replace(':', "_");
    format!("{host}/{port}")
}

/// The other way round. No name of a host has an underscore before its end that is none of an
/// address.
fn read(text: &str) -> Option<String> {
    let (host, port) = text.split_once('/')?;
    port.parse::<u16>().ok()?;
    let numbers = host.replace('_', ":");
    let host = match numbers.parse::<std::net::Ipv6Addr>() {
        Ok(_) => format!("[{numbers}]"),
        Err(_) => host.to_owned(),
    };
    let is_name = !host.is_empty() && !host.contains(|letter: char| letter.is_control());
    is_name.then(|| format!("{host}:{port}"))
}

/// A line is no invitation, or only a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoInvitation;

impl FromStr for Invitation {
    type Err = NoInvitation;

    fn from_str(text: &str) -> Result<Self, NoInvitation> {
        let fields: Vec<_> = text.trim().split(':').collect();
        let [SCHEME, addresses, authority, secret, expires] = *fields else {
            return Err(NoInvitation);
        };
        let addresses: Option<Vec<String>> = addresses.split(',').map(read).collect();
        Ok(Self {
            addresses: addresses.filter(|all| all.len() <= ADDRESSES_MAX).ok_or(NoInvitation)?,
            authority: authority.parse().map_err(|_| NoInvitation)?,
            secret: secret.parse().map_err(|_| NoInvitation)?,
            expires: expires.parse().map_err(|_| NoInvitation)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let addresses = ["10.0.0.1:7777", "host1.example.org:80", "[fe80::1]:7777"];
        let invitation = Invitation {
            addresses: addresses.map(str::to_owned).into(),
            authority: Digest::of(b"authority"),
            secret: Secret::draw(),
            expires: 1_800_000_000,
        };
        let line = invitation.to_string();
        assert!(line.starts_with("gabion-invitation:10.0.0.1/7777,host1.example.org/80,fe80__1/"));
        let quiet = |letter: char| letter.is_ascii_alphanumeric() || "-.:/,_".contains(letter);
        assert!(line.chars().all(quiet), "{line}");
        let again: Invitation = format!(" {line}\n").parse().ok().unwrap();
        assert_eq!(again.addresses, addresses);
        assert_eq!(again.to_string(), line);
    }

    #[test]
    fn a_part_of_a_line_is_none() {
        let invitation = Invitation {
            addresses: vec!["host:1".to_owned()],
            authority: Digest::of(b""),
            secret: Secret::draw(),
            expires: 7,
        };
        let line = invitation.to_string();
        for end in 0..line.len() {
            assert!(line[..end].parse::<Invitation>().is_err(), "{}", &line[..end]);
        }
        for wrong in ["host/x", "/1", "host", "", "host/70000"] {
            let line = line.replace("host/1", wrong);
            assert!(line.parse::<Invitation>().is_err(), "{line}");
        }
    }
}
