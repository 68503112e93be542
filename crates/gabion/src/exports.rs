//! What is exported to whom: the `--export` options of `gabion serve`.
//!
//! ```text
//!   PATH[:OPTION[,OPTION]...]
//!     /            all of the filesystem
//!     /home        a folder in it
//!     ro, rw       whether its clients may change anything
//!     root_squash, no_root_squash, all_squash, anonuid=N, anongid=N, trusted
//!     clients=CLIENT[+CLIENT]...    10.0.0.7, 10.0.0.0/8, fd00::/8, or the name in a certificate
//! ```
//!
//! A client that asks for a folder gets what the export says that is nearest above it, of those
//! that it may use. So an export of all is one of every folder, too.
//!
//! Absent: whose certificate a client has shown. Who knows that says it in [`Peer`].

use std::net::IpAddr;

use gabion_fs::Trust;
use gabion_link::identities::{Identities, NOBODY, Squash};
use gabion_node::served::{Changing, Rights};

use crate::failure::{Exit, Failure, Result};

/// Who has connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where from.
    pub address: IpAddr,
    /// The name in its certificate, if it has shown one that is trusted.
    pub certificate: Option<String>,
}

/// Who may use an export.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Client {
    /// Whose address begins with so many bits of this one.
    Network(IpAddr, u32),
    /// Whose certificate has this name.
    Named(String),
}

/// A folder that clients may mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its names, from the root on.
    path: Vec<String>,
    changing: Changing,
    identities: Identities,
    /// Who may; everybody if it is empty.
    clients: Vec<Client>,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exports(Vec<Export>);

impl Exports {
    /// What the command line says; all of the filesystem for all if it says nothing.
    pub fn of(arguments: &[String]) -> Result<Self> {
        let exports = arguments.iter().map(|text| {
            Export::parse(text).map_err(|reason| {
                let text = format!("--export {text} is not possible: {reason}");
                Failure::new(text).exit(Exit::Usage).next("Say PATH or PATH:OPTION,OPTION...")
            })
        });
        let exports: Vec<Export> = exports.collect::<Result<_>>()?;
        match exports.is_empty() {
            true => Ok(Self(vec![Export::parse("/").expect("it is in order")])),
            false => Ok(Self(exports)),
        }
    }

    /// The folders that are exported, as paths.
    pub fn paths(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|export| format!("/{}", export.path.join("/")))
    }

    /// What a session of this peer about the folder at `path` may do, but for its root.
    pub fn rights(&self, path: &[u8], peer: &Peer) -> Option<Rights> {
        let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        let names: Vec<&[u8]> = names.collect();
        if names.contains(&&b".."[..]) {
            return None;
        }
        let is_above = |export: &&Export| {
            let own = export.path.iter().map(String::as_bytes);
            export.path.len() <= names.len() && own.zip(&names).all(|(own, name)| own == *name)
        };
        let usable = self.0.iter().filter(is_above).filter(|export| export.admits(peer));
        // Of several the first one.
        let nearest = usable.rev().max_by_key(|export| export.path.len())?;
        let Export { changing, identities, .. } = *nearest;
        Some(Rights { changing, identities, ..Rights::CHECKED })
    }
}

impl Export {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        if !path.starts_with('/') {
            return Err("the path does not begin with a slash".to_owned());
        }
        let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
        let path: Vec<String> = names.map(str::to_owned).collect();
        if path.iter().any(|name| name == "..") {
            return Err("\"..\" is not possible in the path".to_owned());
        }
        let (changing, identities) = (Changing::Allowed, Identities::CHECKED);
        let mut export = Self { path, changing, identities, clients: Vec::new() };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            export.apply(option)?;
        }
        let Identities { trust, squash, .. } = export.identities;
        match trust == Trust::CheckedByKernel && squash != Squash::Nobody {
            true => Err("who is squashed was checked by nobody: not with trusted".to_owned()),
            false => Ok(export),
        }
    }

    fn apply(&mut self, option: &str) -> std::result::Result<(), String> {
        let Identities { trust, squash, uid, gid } = &mut self.identities;
        match option.split_once('=') {
            None => match option {
                "ro" => self.changing = Changing::Refused,
                "rw" => self.changing = Changing::Allowed,
                "root_squash" => *squash = Squash::Root,
                "no_root_squash" => *squash = Squash::Nobody,
                "all_squash" => *squash = Squash::All,
                "trusted" => *trust = Trust::CheckedByKernel,
                _ => return Err(format!("there is no option {option}")),
            },
            Some(("anonuid", value)) => *uid = number(option, value)?,
            Some(("anongid", value)) => *gid = number(option, value)?,
            Some(("clients", value)) => {
                let clients = value.split('+').map(Client::parse);
                self.clients.extend(clients.collect::<std::result::Result<Vec<_>, _>>()?);
            }
            Some(_) => return Err(format!("there is no option {option}")),
        }
        Ok(())
    }

    fn admits(&self, peer: &Peer) -> bool {
        self.clients.is_empty() || self.clients.iter().any(|client| client.is(peer))
    }
}

fn number(option: &str, value: &str) -> std::result::Result<u32, String> {
    // The kernel's number for no user.
    let number = value.parse().ok().filter(|number| *number != u32::MAX);
    number.ok_or_else(|| format!("{option} needs a number, such as {NOBODY}"))
}

impl Client {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{text:?} is no client: say an address, ADDRESS/BITS or a name");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let Ok(address) = address.parse::<IpAddr>() else {
            let is_name = !text.is_empty() && bits.is_none() && !text.contains(char::is_whitespace);
            return if is_name { Ok(Self::Named(text.to_owned())) } else { Err(wrong()) };
        };
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(all), str::parse::<u32>).ok().filter(|bits| *bits <= all);
        Ok(Self::Network(address, bits.ok_or_else(wrong)?))
    }

    fn is(&self, peer: &Peer) -> bool {
        match self {
            Self::Named(name) => peer.certificate.as_ref() == Some(name),
            Self::Network(network, bits) => match (network, peer.address.to_canonical()) {
                (IpAddr::V4(network), IpAddr::V4(address)) => {
                    let differing = network.to_bits() ^ address.to_bits();
                    differing.checked_shr(32 - bits).unwrap_or(0) == 0
                }
                (IpAddr::V6(network), IpAddr::V6(address)) => {
                    let differing = network.to_bits() ^ address.to_bits();
                    differing.checked_shr(128 - bits).unwrap_or(0) == 0
                }
                _ => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exports(texts: &[&str]) -> Exports {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Exports::of(&texts).unwrap()
    }

    fn peer(address: &str) -> Peer {
        Peer { address: address.parse().unwrap(), certificate: None }
    }

    #[test]
    fn without_a_word_everybody_may_use_everything_as_checked_by_the_server() {
        let all = exports(&[]);
        assert_eq!(all.rights(b"", &peer("10.0.0.1")), Some(Rights::CHECKED));
        assert_eq!(all.rights(b"/a/b", &peer("::1")), Some(Rights::CHECKED));
        assert_eq!(all.paths().collect::<Vec<_>>(), ["/"]);
    }

    #[test]
    fn the_nearest_export_counts_of_those_that_the_client_may_use() {
        let all = exports(&["/:ro", "/home:clients=10.0.0.0/8+fd00::/8", "/home/ann:all_squash"]);
        let rights = |path: &str, from: &str| all.rights(path.as_bytes(), &peer(from)).unwrap();
        let can_change = |path, from| rights(path, from).changing == Changing::Allowed;
        assert!(can_change("home", "10.1.2.3") && can_change("/home/bob/", "fd00::7"));
        assert!(can_change("home", "::ffff:10.1.2.3"));
        assert!(!can_change("home", "11.1.2.3") && !can_change("homes", "10.1.2.3"));
        assert!(!can_change("", "10.1.2.3"));
        assert_eq!(rights("home/ann/x", "11.0.0.1").identities.squash, Squash::All);
        let some = exports(&["/home"]);
        for path in ["", "hom", "home/..", "home/../x"] {
            assert_eq!(some.rights(path.as_bytes(), &peer("10.0.0.1")), None, "{path}");
        }
    }

    #[test]
    fn options_say_who_callers_are() {
        let identities = |options: &str| {
            let all = exports(&[&format!("/:{options}")]);
            all.rights(b"", &peer("10.0.0.1")).unwrap().identities
        };
        assert_eq!(identities("no_root_squash"), Identities::CHECKED);
        assert_eq!(identities("trusted"), Identities::TRUSTED);
        let all = Identities { squash: Squash::All, uid: 5, gid: 6, ..Identities::CHECKED };
        assert_eq!(identities("all_squash,anonuid=5,anongid=6"), all);
        assert_eq!(identities("root_squash").squash, Squash::Root);
    }

    #[test]
    fn a_name_is_that_of_a_certificate() {
        let all = exports(&["/:clients=ann.example+10.0.0.1/32"]);
        let of = |name: Option<&str>, address: &str| {
            let certificate = name.map(str::to_owned);
            all.rights(b"", &Peer { certificate, ..peer(address) }).is_some()
        };
        assert!(of(Some("ann.example"), "10.9.9.9") && of(None, "10.0.0.1"));
        assert!(!of(Some("bob.example"), "10.9.9.9") && !of(None, "10.0.0.2"));
        assert!(exports(&["/:clients=0.0.0.0/0"]).rights(b"", &peer("1.2.3.4")).is_some());
        assert!(exports(&["/:clients=0.0.0.0/0"]).rights(b"", &peer("::1")).is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "home",
            "",
            "/a/../b",
            "/:frobnicate",
            "/:anonuid=x",
            "/:anonuid=4294967295",
            "/:a=b",
            "/:clients=",
            "/:clients=10.0.0.0/33",
            "/:clients=a/b",
            "/:trusted,root_squash",
        ] {
            assert!(Exports::of(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
