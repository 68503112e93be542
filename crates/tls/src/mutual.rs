//! TLS 1.3 in which both sides show who they are.
//!
//! - A server with an authority of its own lets clients without a certificate through to where
//!   they can ask for one: whoever uses [`Acceptor`] has to look at [`Session::holder`].
//! - A client that has no certificate yet knows the authority by its fingerprint.
//! - Sessions of TLS are never resumed: each connection shows its certificates again.
//!
//! [`Session::holder`]: crate::Session::holder

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
};

use crate::authority::{Authority, Pair, SERVER_NAME};
use crate::secret::Digest;
use crate::{TlsError, authorities, certificates, key, provider, unusable};

/// The files of one side, in PEM format.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// Its certificate, and those between it and the authority.
    pub certificate: &'a Path,
    /// The key of its certificate.
    pub key: &'a Path,
    /// The authority of the other side.
    pub authority: &'a Path,
}

impl Files<'_> {
    fn pair(&self) -> Result<Pair, TlsError> {
        Ok(Pair { certificates: certificates(self.certificate)?, key: key(self.key)? })
    }
}

/// What a server needs.
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<ServerConfig>);

/// Whether a client may come without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strangers {
    Allowed,
    Refused,
}

impl Acceptor {
    /// With certificates by `authority`, for both sides.
    pub fn of(authority: &Authority) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().to_vec().into()).map_err(unusable)?;
        Self::new(authority.server()?, roots, Strangers::Allowed)
    }

    /// With certificates by somebody else. Clients without one are refused.
    pub fn load(files: Files<'_>) -> Result<Self, TlsError> {
        Self::new(files.pair()?, authorities(files.authority)?, Strangers::Refused)
    }

    fn new(own: Pair, roots: RootCertStore, strangers: Strangers) -> Result<Self, TlsError> {
        let provider = provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = match strangers {
            Strangers::Allowed => verifier.allow_unauthenticated().build(),
            Strangers::Refused => verifier.build(),
        };
        let verifier = verifier.map_err(|error| TlsError::Unusable(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(own.certificates, own.key)
            .map_err(unusable)?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self(Arc::new(config)))
    }

    /// The server's end of a connection that does not exist yet.
    pub fn connection(&self) -> io::Result<Connection> {
        let connection = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        Ok(connection.into())
    }
}

/// What a client needs.
#[derive(Clone, Debug)]
pub struct Dialer {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Dialer {
    /// With a certificate that the server's own authority has made.
    pub fn joined(files: Files<'_>) -> Result<Self, TlsError> {
        Self::named(files, SERVER_NAME)
    }

    /// With certificates by somebody else, who has made one for the server called `host`.
    pub fn named(files: Files<'_>, host: &str) -> Result<Self, TlsError> {
        let own = files.pair()?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_root_certificates(authorities(files.authority)?)
            .with_client_auth_cert(own.certificates, own.key)
            .map_err(unusable)?;
        Self::new(config, host)
    }

    /// Without a certificate, to a server whose authority has this fingerprint.
    pub fn stranger(authority: Digest) -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ByFingerprint(authority)))
            .with_no_client_auth();
        Self::new(config, SERVER_NAME)
    }

    fn new(mut config: ClientConfig, host: &str) -> Result<Self, TlsError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| TlsError::Unusable(format!("{host} is no name of a server")))?;
        config.resumption = rustls::client::Resumption::disabled();
        // Who listens to the network need not learn it.
        config.enable_sni = false;
        Ok(Self { config: Arc::new(config), name })
    }

    /// The client's end of a connection that does not exist yet.
    pub fn connection(&self) -> io::Result<Connection> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        Ok(connection.map_err(io::Error::other)?.into())
    }
}

/// Believes an authority that the server shows, if it has the right fingerprint; and the server by
/// that, as anybody would who has had the authority's certificate before.
#[derive(Debug)]
struct ByFingerprint(Digest);

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|shown| Digest::of(shown) == self.0);
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        let verifier = verifier.build().map_err(|_| CertificateError::BadEncoding)?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
