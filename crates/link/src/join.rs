//! How a machine comes to a certificate, as values. How they look as bytes is `wire`'s.
//!
//! ```text
//!   client, without a certificate               server
//!   Application       ----------------------->  is the secret that of an invitation?
//!                     <-----------------------  Admission | Refusal        end of the connection
//! ```
//!
//! This is said on an encrypted connection, after the client has found the server's authority to
//! be the one that its invitation names. So nobody else learns the secret.

/// What a machine says that was invited.
#[derive(Clone, PartialEq, Eq)]
pub struct Application {
    /// The secret of its invitation.
    pub secret: [u8; 16],
    /// The name that it would like to have in its certificate.
    pub name: String,
    /// A request for a certificate, in DER (PKCS #10), by the key that the certificate shall have.
    pub request: Vec<u8>,
}

/// Without the secret, which must not get into a log.
impl std::fmt::Debug for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { secret: _, name, request } = self;
        f.debug_struct("Application")
            .field("name", name)
            .field("request", request)
            .finish_non_exhaustive()
    }
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The certificate, in DER (X.509).
    pub certificate: Vec<u8>,
}
