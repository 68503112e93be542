//! An authority of one's own: its certificate, and those that it makes for a server and clients.
//!
//! ```text
//!   authority  --- signs ---> server's certificate   may be a server, under one fixed name
//!       |                     its key is drawn at each start and never stored
//!       '--------- signs ---> clients' certificates  may be clients
//!                             by their requests: a client's key never leaves its machine
//! ```
//!
//! A client's certificate is no server's: no client can pass for the server. Nothing expires, so
//! that machines without a clock can talk; whose certificate is to be worth nothing is revoked.
//!
//! Absent: where all this is kept, and who may have a certificate.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::TlsError;
use crate::secret::{Digest, draw, hexadecimal};

/// The name under which servers have certificates by an authority of this kind. Which server it is
/// says the authority.
pub(crate) const SERVER_NAME: &str = "server.gabion";
/// The longest name in a certificate, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Whose certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The common name, or else the first name of a host.
    pub name: String,
    /// The serial number, in hexadecimal digits.
    pub serial: String,
}

impl Holder {
    /// Reads a certificate that was found to be valid.
    pub(crate) fn of(certificate: &[u8]) -> Result<Self, TlsError> {
        let parsed = X509Certificate::from_der(certificate);
        let (_, parsed) = parsed.map_err(|error| TlsError::Unusable(error.to_string()))?;
        let common = parsed.subject().iter_common_name().find_map(|name| name.as_str().ok());
        let hosts = parsed.subject_alternative_name().ok().flatten();
        let host = hosts.and_then(|names| {
            names.value.general_names.iter().find_map(|name| match name {
                GeneralName::DNSName(host) => Some(*host),
                _ => None,
            })
        });
        let name = common.or(host).unwrap_or("nameless").to_owned();
        Ok(Self { name, serial: hexadecimal(parsed.raw_serial()) })
    }
}

/// A certificate with its key.
pub(crate) struct Pair {
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// An authority.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn failed(error: rcgen::Error) -> TlsError {
    TlsError::Unusable(error.to_string())
}

/// A certificate that `name` shall have; for `use` if it is none of an authority.
fn wanted(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial());
    params
}

/// 126 bits that nobody else has, in a number that is positive and never shorter than its bytes.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = draw();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

impl Authority {
    /// A new one, called `name`.
    pub fn make(name: &str) -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = wanted(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?.der().clone();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// One that was made before, by [`Authority::certificate`] and [`Authority::key_pem`].
    pub fn load(certificate: Vec<u8>, key_pem: &str) -> Result<Self, TlsError> {
        let certificate = CertificateDer::from(certificate);
        let key = KeyPair::from_pem(key_pem).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(failed)?;
        Ok(Self { certificate, issuer })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its key, which nobody else may see.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// What it is known by, until its certificate is.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// A server's certificate, with the authority's own.
    pub(crate) fn server(&self) -> Result<Pair, TlsError> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = wanted(SERVER_NAME);
        let name = SERVER_NAME.try_into().map_err(failed)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let key = PrivateKeyDer::try_from(key.serialize_der());
        let key = key.map_err(|reason| TlsError::Unusable(reason.to_owned()))?;
        let certificates = vec![certificate.der().clone(), self.certificate.clone()];
        Ok(Pair { certificates, key })
    }

    /// Makes a client's certificate by its request, with a name that the authority chooses.
    pub fn certify(&self, request: &[u8], name: &str) -> Result<(Vec<u8>, Holder), TlsError> {
        let request = CertificateSigningRequestDer::from(request);
        // Whether it has the key, too. Nothing else that it says counts.
        let request = CertificateSigningRequestParams::from_der(&request).map_err(failed)?;
        let mut params = wanted(cut(name));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(failed)?;
        let holder = Holder::of(certificate.der())?;
        Ok((certificate.der().to_vec(), holder))
    }
}

/// As much of a name as a certificate takes.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// What a client asks an authority with.
pub struct Applicant {
    key: KeyPair,
}

impl Applicant {
    /// With a new key.
    pub fn new() -> Result<Self, TlsError> {
        Ok(Self { key: KeyPair::generate().map_err(failed)? })
    }

    /// The request for a certificate.
    pub fn request(&self) -> Result<Vec<u8>, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.key).map_err(failed)?.der().to_vec())
    }

    /// The key, which stays where it is.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_goes_on_from_what_was_kept_of_it() {
        let made = Authority::make("authority of a test").unwrap();
        let loaded = Authority::load(made.certificate().to_vec(), &made.key_pem()).unwrap();
        assert_eq!(made.fingerprint(), loaded.fingerprint());
        let request = Applicant::new().unwrap().request().unwrap();
        let (certificate, holder) = loaded.certify(&request, "host1").unwrap();
        assert_eq!(holder.name, "host1");
        assert_eq!(Holder::of(&certificate).unwrap(), holder);
        let (_, other) = made.certify(&request, "host1").unwrap();
        assert_ne!(holder.serial, other.serial);
        assert_eq!(holder.serial.len(), 32);
    }

    #[test]
    fn what_is_no_request_gets_no_certificate() {
        let authority = Authority::make("authority of a test").unwrap();
        let request = Applicant::new().unwrap().request().unwrap();
        for length in 0..request.len() {
            assert!(authority.certify(&request[..length], "x").is_err());
        }
        // Somebody else's key: the signature is not by it.
        let mut forged = request.clone();
        let middle = forged.len() / 2;
        forged[middle] ^= 1;
        assert!(authority.certify(&forged, "x").is_err());
        assert!(Holder::of(&request).is_err());
    }

    #[test]
    fn a_name_that_is_too_long_is_cut() {
        let authority = Authority::make("authority of a test").unwrap();
        let request = Applicant::new().unwrap().request().unwrap();
        let (_, holder) = authority.certify(&request, &"é".repeat(100)).unwrap();
        assert_eq!(holder.name, "é".repeat(32));
    }
}
