//! The words by which a machine comes to a certificate: they begin like a hello.

use gabion_base::codec::{DecodeError, Reader};

use super::fields::{Certificate, Text};
use super::frame::WireError;
use super::hello::{introduce, understand};
use super::layout::{Layout, record};
use crate::join::{Admission, Application};

/// A secret, without its length.
struct Secret;

impl Layout for Secret {
    type Value = [u8; 16];
    const BYTES_MIN: usize = 16;

    fn put(value: &Self::Value, out: &mut Vec<u8>) {
        out.extend_from_slice(value);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self::Value, DecodeError> {
        reader.array()
    }
}

record!(Application { secret: Secret, name: Text, request: Certificate });

record!(Admission { certificate: Certificate });

impl Application {
    /// The payload of a frame. Panics if the request is longer than its limit.
    pub fn encode(&self) -> Vec<u8> {
        introduce::<Self>(self)
    }

    /// What a machine says that was invited.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        understand::<Self>(payload)
    }
}

impl Admission {
    /// The payload of a frame. Panics if the certificate is longer than its limit.
    pub fn encode(&self) -> Vec<u8> {
        introduce::<Self>(self)
    }

    /// What a server answers to an application.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        understand::<Self>(payload)
    }
}
