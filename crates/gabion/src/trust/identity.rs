//! What a machine has joined, and what it shows there.
//!
//! ```text
//!   joined/FINGERPRINT/    in the state folder; the first digits of the authority's
//!     authority.pem        the server's authority
//!     certificate.pem      this machine's certificate, by that
//!     key.pem              its key, which is nowhere else
//!     addresses            where the server is, HOST:PORT in each line
//! ```
//!
//! Which server is meant says its address: an identity is found by that, and its authority is the
//! only one that the server's certificate may be by.

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use gabion_tls::TlsError;
use gabion_tls::mutual::{Dialer, Files};
use gabion_tls::secret::Digest;
use gabion_tls::to_pem;

use super::files;
use crate::places;

/// Digits of a fingerprint that name a folder.
const DIGITS: usize = 16;

/// How a connection to a server is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Not at all.
    None,
    /// By the identity in this folder.
    Joined(PathBuf),
    /// By certificates of another authority.
    Files {
        /// This machine's certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// The authority of the server.
        authority: PathBuf,
    },
}

impl Protection {
    /// What to connect with to HOST:PORT. The files are read each time: they may be replaced.
    pub fn dialer(&self, address: &str) -> Result<Option<Dialer>, TlsError> {
        match self {
            Self::None => Ok(None),
            Self::Joined(folder) => {
                let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
                let authority = folder.join("authority.pem");
                let files = Files { certificate: &certificate, key: &key, authority: &authority };
                Dialer::joined(files).map(Some)
            }
            Self::Files { certificate, key, authority } => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                Dialer::named(Files { certificate, key, authority }, host).map(Some)
            }
        }
    }
}

/// What was joined.
pub struct Joined(PathBuf);

impl Joined {
    /// By this user on this machine.
    pub fn here() -> io::Result<Self> {
        Ok(Self(places::state()?.join("joined")))
    }

    /// All identities: their folders.
    fn all(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut folders = Vec::new();
        for entry in entries {
            let path = entry?.path();
            // Others were about to be made, or taken away.
            if path.extension().is_none() {
                folders.push(path);
            }
        }
        folders.sort();
        Ok(folders)
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.all()?.is_empty())
    }

    /// The identity for the server at HOST:PORT: of that address, or of one that it stands for.
    pub fn find(&self, address: &str) -> io::Result<Option<PathBuf>> {
        let mut known = Vec::new();
        for folder in self.all()? {
            let addresses = files::read_lines(&folder.join("addresses"))?;
            if addresses.iter().any(|known| known == address) {
                return Ok(Some(folder));
            }
            known.push((folder, addresses));
        }
        if known.is_empty() {
            return Ok(None);
        }
        let meant: Vec<SocketAddr> = address.to_socket_addrs().into_iter().flatten().collect();
        let is_meant = |known: &String| known.parse().is_ok_and(|known| meant.contains(&known));
        let found = known.into_iter().find(|(_, addresses)| addresses.iter().any(is_meant));
        Ok(found.map(|(folder, _)| folder))
    }

    /// Keeps a new identity, in place of others for the same authority or the same addresses.
    pub fn keep(
        &self,
        authority: &[u8],
        certificate: &[u8],
        key_pem: &str,
        addresses: &[String],
    ) -> io::Result<PathBuf> {
        let fingerprint = Digest::of(authority).to_string();
        let folder = self.0.join(&fingerprint[..DIGITS]);
        let new = files::beside(&folder);
        remove(&new)?;
        files::make_folder(&new)?;
        files::write(&new.join("authority.pem"), to_pem(authority).as_bytes())?;
        files::write(&new.join("certificate.pem"), to_pem(certificate).as_bytes())?;
        files::write(&new.join("key.pem"), key_pem.as_bytes())?;
        files::write_lines(&new.join("addresses"), addresses.iter().cloned())?;
        for other in self.all()?.into_iter().filter(|other| *other != folder) {
            let list = other.join("addresses");
            let (moved, left): (Vec<_>, Vec<_>) =
                files::read_lines(&list)?.into_iter().partition(|one| addresses.contains(one));
            if !moved.is_empty() {
                files::write_lines(&list, left.into_iter())?;
            }
        }
        let old = folder.with_extension("old");
        remove(&old)?;
        match fs::rename(&folder, &old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&new, &folder)?;
        files::sync_folder_of(&folder)?;
        remove(&old)?;
        Ok(folder)
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_identity_is_found_by_where_its_server_is() {
        let top = std::env::temp_dir().join(format!("gabion-joined-{}", std::process::id()));
        let joined = Joined(top.join("joined"));
        let keep = |authority: &[u8], addresses: &[&str]| {
            let addresses: Vec<_> = addresses.iter().map(|one| (*one).to_owned()).collect();
            joined.keep(authority, b"certificate", "key", &addresses).unwrap()
        };
        assert!(joined.is_empty().unwrap());
        let first = keep(b"first", &["10.0.0.1:1", "127.0.0.1:7"]);
        let second = keep(b"second", &["10.0.0.2:1"]);
        let find = |address: &str| joined.find(address).unwrap();
        assert_eq!(find("10.0.0.1:1").as_ref(), Some(&first));
        // A name that stands for an address.
        assert_eq!(find("localhost:7").as_ref(), Some(&first));
        assert_eq!(find("10.0.0.2:1").as_ref(), Some(&second));
        assert_eq!(find("10.0.0.1:2"), None);
        // Another server has come to the address of the first.
        let third = keep(b"third", &["10.0.0.1:1"]);
        assert_eq!(find("10.0.0.1:1").as_ref(), Some(&third));
        assert_eq!(find("127.0.0.1:7").as_ref(), Some(&first));
        assert_eq!(keep(b"third", &["10.0.0.3:1"]), third);
        assert_eq!(find("10.0.0.1:1"), None);
        let key = third.join("key.pem").metadata().unwrap();
        assert_eq!(key.mode() & 0o777, 0o600);
        assert_eq!(third.metadata().unwrap().mode() & 0o777, 0o700);
        fs::remove_dir_all(&top).unwrap();
    }
}
