//! Where an etcd is, and as whom it is asked.
//!
//! ```text
//!   etcd://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]]...[?OPTION=VALUE[&OPTION=VALUE]...]
//!   etcds://...                 the same, encrypted
//!
//!   tls-certificates=DIR        ca-cert.pem, client-cert.pem and client-key.pem, as for NBD
//!   password-file=FILE          whose first line is the password
//! ```
//!
//! User, password and values are percent-encoded. Files are read when a coordinator is opened.

use std::fs;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

/// The port that etcd serves clients at, if none is given.
const PORT: u16 = 2379;
/// Endpoints of one cluster.
const ENDPOINTS_MAX: usize = 16;

/// What leads to an etcd.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// How people know it: without the password.
    pub(super) name: String,
    /// `HOST:PORT` each.
    pub(super) endpoints: Vec<String>,
    pub(super) credentials: Option<Credentials>,
    /// The folder of certificates, if it is to be encrypted.
    pub(super) certificates: Option<PathBuf>,
}

/// As whom etcd is asked.
#[derive(PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.user)
    }
}

impl Address {
    /// Reads a text that begins with `etcd://` or `etcds://`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("it is no URL")?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (who, hosts) = match rest.rsplit_once('@') {
            Some((who, hosts)) => (Some(who), hosts),
            None => (None, rest),
        };
        let endpoints = hosts.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
        if endpoints.len() > ENDPOINTS_MAX {
            return Err(format!("more than {ENDPOINTS_MAX} endpoints"));
        }
        let (mut certificates, mut password_file) = (None, None);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let place = match name {
                "tls-certificates" => &mut certificates,
                "password-file" => &mut password_file,
                _ => return Err(format!("{name} is no option of etcd's")),
            };
            *place = Some(PathBuf::from(decoded(value)?));
        }
        match (scheme, &certificates) {
            ("etcds", None) => {
                let text = "?tls-certificates=DIR must name the folder of certificates";
                return Err(text.to_owned());
            }
            ("etcd", Some(_)) => return Err("etcds:// encrypts, etcd:// does not".to_owned()),
            _ => {}
        }
        let credentials = who.map(|who| credentials(who, password_file.as_deref())).transpose()?;
        if credentials.is_none() && password_file.is_some() {
            return Err("a password is of no use without USER@".to_owned());
        }
        let user = who.map_or("", |who| who.split(':').next().unwrap_or(who));
        let at = if who.is_some() { "@" } else { "" };
        let name = format!("{scheme}://{user}{at}{hosts}");
        Ok(Self { name, endpoints, credentials, certificates })
    }
}

fn credentials(who: &str, file: Option<&Path>) -> Result<Credentials, String> {
    let (user, given) = match who.split_once(':') {
        Some((user, given)) => (user, Some(decoded(given)?)),
        None => (who, None),
    };
    let password = match (given, file) {
        (Some(_), Some(_)) => return Err("there are two passwords".to_owned()),
        (Some(given), None) => given,
        (None, Some(file)) => {
            let text = fs::read_to_string(file);
            let text = text.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        (None, None) => return Err(format!("{user} needs a password, or ?password-file=FILE")),
    };
    match decoded(user)? {
        user if user.is_empty() => Err("the user has no name".to_owned()),
        user => Ok(Credentials { user, password }),
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let bytes = percent_decode_str(text).decode_utf8();
    bytes.map(|text| text.into_owned()).map_err(|_| format!("{text:?} is no text"))
}

/// `HOST:PORT` from a text whose port may be missing.
fn endpoint(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not HOST:PORT");
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if !text.bytes().all(allowed) {
        return Err(wrong());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (text, PORT),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    if host.is_empty() || (host.contains([':', '[', ']']) && !is_bracketed) {
        return Err(wrong());
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_host_and_may_have_a_port() {
        for (text, wanted) in [
            ("a", "a:2379"),
            ("a.example:1", "a.example:1"),
            ("[::1]", "[::1]:2379"),
            ("[::1]:7", "[::1]:7"),
            ("127.0.0.1:65535", "127.0.0.1:65535"),
        ] {
            assert_eq!(endpoint(text).as_deref(), Ok(wanted));
        }
        for wrong in ["", ":1", "a:", "a:65536", "::1", "a/b", "me@a", "a b", "[]:1", "[::1"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_says_who_asks_and_what_encrypts_and_its_name_no_password() {
        let text = "etcds://gabion:p%40ss@a,b:7?tls-certificates=/etc/pki%20x";
        let address = Address::parse(text).unwrap();
        assert_eq!(address.endpoints, ["a:2379", "b:7"]);
        assert_eq!(address.name, "etcds://gabion@a,b:7");
        assert_eq!(address.certificates.as_deref(), Some(Path::new("/etc/pki x")));
        let (user, password) = ("gabion".to_owned(), "p@ss".to_owned());
        assert_eq!(address.credentials, Some(Credentials { user, password }));
        assert!(!format!("{address:?}").contains("p@ss"));
        for (wrong, reason) in [
            ("etcds://a", "folder of certificates"),
            ("etcd://a?tls-certificates=x", "etcds"),
            ("etcd://gabion@a", "needs a password"),
            ("etcd://:x@a", "no name"),
            ("etcd://a?password-file=x", "without USER"),
            ("etcd://u:p@a?password-file=x", "two passwords"),
            ("etcd://u@a?password-file=/not/there", "/not/there"),
            ("etcd://a?password=x", "no option"),
        ] {
            let error = Address::parse(wrong).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }
}
