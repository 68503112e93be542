//! Encryption, and certificates that say who the peers are: TLS 1.2 and 1.3, by rustls.
//!
//! - [`Session`] is an encrypted connection that threads share.
//! - [`mutual`] is TLS 1.3 between machines that share a filesystem.
//! - [`authority`] makes certificates for them.
//! - [`secret`] draws and compares what is shown once.
//!
//! What follows here is for disks, which other programs offer and use, too:
//!
//! - A server shows a certificate, and may want one of its clients, by an authority that it names.
//! - A client wants a certificate for the server's name by an authority that it names. There is no
//!   way to talk to a server that cannot show one.
//!
//! Files are in PEM format. A client's are in one folder, under the names that the standard of NBD
//! URIs gives them; they are read at each connection, so that they can be replaced.
//!
//! Deliberately absent: preshared keys, anonymous TLS, the system's list of authorities.

#![forbid(unsafe_code)]

pub mod authority;
pub mod mutual;
pub mod secret;
mod session;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use thiserror::Error;

pub use rustls::Connection;

pub use self::session::{Discord, Session};

/// The authority of the peers, in a client's folder.
pub const AUTHORITY: &str = "ca-cert.pem";
/// The client's certificate. A server that wants none does with a folder without it.
pub const CERTIFICATE: &str = "client-cert.pem";
/// The key of the client's certificate.
pub const KEY: &str = "client-key.pem";

/// Why there is no encryption.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} has no {what}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The files do not go together, or are of a kind that is not known.
    #[error("the certificates cannot be used: {0}")]
    Unusable(String),
}

/// What a server needs in order to encrypt.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<ServerConfig>);

/// The files of a server's certificates.
#[derive(Clone, Copy, Debug)]
pub struct ServerFiles<'a> {
    /// Its certificate, and those between it and the authority.
    pub certificate: &'a Path,
    /// The key of its certificate.
    pub key: &'a Path,
    /// The authority of the clients, who need no certificate if there is none.
    pub authority: Option<&'a Path>,
}

impl ServerTls {
    /// Reads the files and checks whether they go together.
    pub fn load(files: ServerFiles<'_>) -> Result<Self, TlsError> {
        let provider = provider();
        let verifier = match files.authority {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(path) => {
                let roots = Arc::new(authorities(path)?);
                WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
                    .build()
                    .map_err(|error| TlsError::Unusable(error.to_string()))?
            }
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(files.certificate)?, key(files.key)?)
            .map_err(unusable)?;
        Ok(Self(Arc::new(config)))
    }

    /// The server's end of a connection that does not exist yet.
    pub fn connection(&self) -> io::Result<rustls::Connection> {
        let connection = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        Ok(connection.into())
    }
}

/// A client's end of a connection to `host` that does not exist yet, by the files in `folder`.
pub fn client_connection(folder: &Path, host: &str) -> io::Result<rustls::Connection> {
    let connection = load_client(folder, host).map_err(io::Error::other)?;
    Ok(connection.into())
}

fn load_client(folder: &Path, host: &str) -> Result<ClientConnection, TlsError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| TlsError::Unusable(format!("{host} is no name of a server")))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(authorities(&folder.join(AUTHORITY))?);
    let certificate = folder.join(CERTIFICATE);
    let config = match certificate.exists() {
        true => {
            let key = key(&folder.join(KEY))?;
            config.with_client_auth_cert(certificates(&certificate)?, key).map_err(unusable)?
        }
        false => config.with_no_client_auth(),
    };
    ClientConnection::new(Arc::new(config), name).map_err(unusable)
}

/// A certificate as a text for a file.
pub fn to_pem(certificate: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", certificate))
}

/// The first certificate in a file.
pub fn read_certificate(path: &Path) -> Result<Vec<u8>, TlsError> {
    let found = certificates(path)?;
    Ok(found.first().expect("there is one, or an error").to_vec())
}

/// All certificates in a file.
pub fn pem_certificates(path: &Path) -> Result<Vec<Vec<u8>>, TlsError> {
    Ok(certificates(path)?.iter().map(|found| found.to_vec()).collect())
}

/// What does the arithmetic.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn unusable(error: rustls::Error) -> TlsError {
    TlsError::Unusable(error.to_string())
}

fn content(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

fn without(path: &Path, what: &'static str, reason: PemError) -> TlsError {
    TlsError::Content { path: path.to_owned(), what, reason: reason.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(without(path, "certificate", PemError::NoItemsFound)),
        Err(error) => Err(without(path, "certificate", error)),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&content(path)?).map_err(|error| without(path, "key", error))
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(unusable)?;
    }
    Ok(roots)
}
