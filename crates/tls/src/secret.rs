//! Secrets that are shown once: how they are drawn, kept and compared.
//!
//! A secret has 128 bits that nobody can guess, so what is kept of it is a plain SHA-256: who reads
//! that cannot find the secret. Comparing takes as long for a wrong one as for the right one.

use std::fmt::{self, Display};
use std::str::FromStr;

use aws_lc_rs::{constant_time, digest, rand};

/// A SHA-256.
#[derive(Clone, Copy, Debug)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// That of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, bytes);
        Self(digest.as_ref().try_into().expect("a SHA-256 has 32 bytes"))
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for Digest {}

impl Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hexadecimal(&self.0))
    }
}

impl FromStr for Digest {
    type Err = NotHexadecimal;

    fn from_str(text: &str) -> Result<Self, NotHexadecimal> {
        bytes_of(text).map(Self)
    }
}

/// What proves an invitation. It has no `Debug`, lest it should get into a log.
#[derive(Clone, Copy)]
pub struct Secret(pub [u8; 16]);

impl Secret {
    /// A new one.
    pub fn draw() -> Self {
        Self(draw())
    }

    /// What is kept of it.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// As it is written down for people.
    pub fn reveal(&self) -> String {
        hexadecimal(&self.0)
    }
}

impl FromStr for Secret {
    type Err = NotHexadecimal;

    fn from_str(text: &str) -> Result<Self, NotHexadecimal> {
        bytes_of(text).map(Self)
    }
}

/// A text is no such number of bytes in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHexadecimal;

/// Bytes that nobody can guess.
pub(crate) fn draw<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The system's generator cannot fail once it has been seeded.
    rand::fill(&mut bytes).expect("the generator of random numbers works");
    bytes
}

/// Two digits for each byte.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of<const N: usize>(text: &str) -> Result<[u8; N], NotHexadecimal> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(NotHexadecimal);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| NotHexadecimal)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| NotHexadecimal)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_again_by_its_digest_alone() {
        let secret = Secret::draw();
        let again: Secret = secret.reveal().parse().unwrap();
        assert_eq!(secret.digest(), again.digest());
        assert_ne!(secret.digest(), Secret::draw().digest());
        let digest = secret.digest();
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        for text in ["", "00", &"0".repeat(31), &"0".repeat(33), &"g".repeat(32), &"é".repeat(16)]
        {
            assert!(text.parse::<Secret>().is_err(), "{text}");
        }
    }
}
