//! Where servers listen, and the URIs by which clients name an export.
//!
//! ```text
//! listen   HOST:PORT   [::]:10809   unix:PATH
//! URI      nbd://HOST[:PORT][/EXPORT]   nbd+unix:///[EXPORT]?socket=PATH
//!          nbds://...                   nbds+unix://...
//!          with   tls-certificates=DIR   tls-hostname=NAME
//! ```
//!
//! Names and paths in URIs are percent-encoded.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use crate::percent::{Encoded, decoded};
use crate::wire::{PORT, STRING_BYTES_MAX};

/// A place that a server can be reached at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host's name or number, and a port.
    Tcp {
        /// Without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

/// An export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// The server.
    pub address: Address,
    /// The export's name; empty for the server's default.
    pub export: String,
    /// How the connection is encrypted, if it must be.
    pub tls: Option<UriTls>,
}

/// What a URI says about encryption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UriTls {
    /// The folder of the certificates, without which a client cannot connect.
    pub certificates: Option<PathBuf>,
    /// The server's name in its certificate, if it is not that of the address.
    pub hostname: Option<String>,
}

/// Why text is no address or URI.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text} is not possible: {reason}")]
pub struct AddressError {
    text: String,
    reason: &'static str,
}

fn refused<T>(text: &str, reason: &'static str) -> Result<T, AddressError> {
    Err(AddressError { text: text.to_owned(), reason })
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => refused(text, "a path must follow unix:"),
                path => Ok(Self::Unix(path.into())),
            };
        }
        match host_and_port(text) {
            Some((host, port)) => Ok(Self::Tcp { host, port }),
            None => refused(text, "it must be HOST, HOST:PORT, [IPv6]:PORT or unix:PATH"),
        }
    }
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            match port {
                "" => (host, None),
                port => (host, Some(port.strip_prefix(':')?)),
            }
        }
        None => match text.split_once(':') {
            // More than one colon is a bare IPv6 address, of which the end is not clear.
            Some((_, port)) if port.contains(':') => return None,
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok()?,
        None => PORT,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Uri {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return refused(text, "a URI begins with nbd://, nbds://, nbd+unix:// or nbds+unix://");
        };
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let Some(export) = decoded(export).filter(|name| name.len() <= STRING_BYTES_MAX) else {
            return refused(text, "the export's name is not UTF-8 of at most 4096 bytes");
        };
        let parameter = |name: &str| {
            let mut parts = query.unwrap_or_default().split('&');
            let found = parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            found.and_then(decoded).filter(|value| !value.is_empty())
        };
        let tls = scheme.starts_with("nbds").then(|| UriTls {
            certificates: parameter("tls-certificates").map(PathBuf::from),
            hostname: parameter("tls-hostname"),
        });
        let address = match scheme {
            "nbd" | "nbds" => match host_and_port(authority) {
                Some((host, port)) => Address::Tcp { host, port },
                None => return refused(text, "HOST or HOST:PORT must follow nbd://"),
            },
            "nbd+unix" | "nbds+unix" => match parameter("socket") {
                Some(path) => Address::Unix(path.into()),
                None => return refused(text, "?socket=PATH must name the socket"),
            },
            _ => return refused(text, "the schemes are nbd, nbds, nbd+unix and nbds+unix"),
        };
        Ok(Self { address, export, tls })
    }
}

impl Uri {
    /// The name that the server's certificate must have.
    pub(crate) fn tls_name(&self) -> &str {
        match (&self.tls, &self.address) {
            (Some(UriTls { hostname: Some(name), .. }), _) => name,
            (_, Address::Tcp { host, .. }) => host,
            (_, Address::Unix(_)) => "localhost",
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = Encoded(self.export.as_bytes());
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        let mut parameters = Vec::new();
        match &self.address {
            Address::Unix(path) => {
                write!(f, "{scheme}+unix:///{export}")?;
                parameters.push(("socket", path_bytes(path)));
            }
            tcp => write!(f, "{scheme}://{tcp}/{export}")?,
        }
        if let Some(tls) = &self.tls {
            let folder = tls.certificates.iter().map(|path| ("tls-certificates", path_bytes(path)));
            parameters.extend(folder);
            parameters.extend(tls.hostname.iter().map(|name| ("tls-hostname", name.as_bytes())));
        }
        for (index, (name, value)) in parameters.into_iter().enumerate() {
            let before = if index == 0 { '?' } else { '&' };
            write!(f, "{before}{name}={}", Encoded(value))?;
        }
        Ok(())
    }
}

fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn addresses_and_uris_round_trip() {
        for text in ["127.0.0.1:0", "[::1]:10809", "disk.example:9", "unix:/run/x"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "nbd://host:7/tank",
            "nbd://[::1]:10809/",
            "nbd+unix:///a%20b?socket=/run/n%3Fx",
            "nbds://host:7/tank",
            "nbds+unix:///a?socket=/s&tls-certificates=/etc/a%20b",
            "nbds://host:7/tank?tls-certificates=/etc/x&tls-hostname=other",
        ] {
            assert_eq!(text.parse::<Uri>().unwrap().to_string(), text);
        }
        assert_eq!("host".parse(), Ok(tcp("host", PORT)));
        let uri: Uri = "nbd://host".parse().unwrap();
        assert_eq!(uri, Uri { address: tcp("host", PORT), export: String::new(), tls: None });
    }

    #[test]
    fn what_cannot_be_reached_is_refused_with_a_reason() {
        let reason = |text: &str| text.parse::<Uri>().unwrap_err().to_string();
        assert!(reason("host/tank").contains("begins with nbd://"));
        assert!(reason("http://host/tank").contains("schemes"));
        assert!(reason("nbd+unix:///tank").contains("socket=PATH"));
        assert!(reason("nbd://host:port/").contains("HOST:PORT"));
        assert!(reason("nbd://host/%f").contains("UTF-8"));
        assert!("::1".parse::<Address>().is_err() && "unix:".parse::<Address>().is_err());
        assert!(":10809".parse::<Address>().is_err());
    }
}
