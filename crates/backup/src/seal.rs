//! Encryption of segments.
//!
//! Each stream has a key of its own, drawn at random, and each segment is sealed by itself
//! (ChaCha20-Poly1305), so any can be opened without the others. Nonces are drawn at random, not
//! counted: a stream that is taken up again after it was cut off may write a segment of the same
//! number a second time. The key stands in the header, sealed with what the user's secret gives.
//!
//! What is authenticated beside a segment's bytes is the header and the segment's place, so that
//! segments can neither be exchanged nor come from another stream; that none is missing is said by
//! the END segment, which is sealed, too.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, hkdf};

use gabion_base::sync::Mutex;

use crate::error::{Error, Result};
use crate::format::header::{Lock, SEALED_KEY};

/// What a passphrase costs, in KiB: as much as RFC 9106 advises where memory is not plenty.
const MEMORY: u32 = 64 << 10;
/// And in passes over it.
const PASSES: u32 = 3;
/// And in lanes, which several processors share.
const LANES: u32 = 4;
const KEY: usize = 32;
const TAG: usize = 16;
/// The least that a key file may have, in bytes.
pub const KEY_FILE_MIN: usize = 32;

/// What opens an encrypted stream. It has no `Debug`, lest it should get into a log.
#[derive(Clone)]
pub enum Secret {
    /// What somebody remembers.
    Passphrase(Vec<u8>),
    /// The bytes of a key file.
    KeyFile(Vec<u8>),
}

/// Keys that this process has paid for, by the digest of what gave them: the streams of a chain
/// have one salt, so that a chain of a hundred costs as much as one.
static DEAR: Dear = Dear { paid: Mutex::new(Vec::new()) };

/// Keys that cost much.
struct Dear {
    paid: Mutex<Vec<([u8; 32], [u8; KEY])>>,
}

impl Dear {
    /// The most that is kept.
    const MOST: usize = 64;

    /// What `pay` gives. Who asks for the same meanwhile waits for that.
    fn get(
        &self,
        phrase: &[u8],
        salt: &[u8; 16],
        cost: [u32; 3],
        pay: impl FnOnce() -> Result<[u8; KEY]>,
    ) -> Result<[u8; KEY]> {
        let cost = cost.map(u32::to_le_bytes).concat();
        let of = sha256(&[&cost[..], salt, phrase].concat());
        let mut paid = self.paid.lock();
        if let Some((_, key)) = paid.iter().find(|(found, _)| *found == of) {
            return Ok(*key);
        }
        let key = pay()?;
        if paid.len() >= Self::MOST {
            paid.remove(0);
        }
        paid.push((of, key));
        Ok(key)
    }
}

/// The key of a stream.
pub(crate) struct Key(LessSafeKey);

/// Random bytes, of the kernel: the generator of the library for ciphers gathers entropy for 40 ms
/// before it gives the first.
pub(crate) fn draw<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::Cipher("no random bytes"))?;
    Ok(bytes)
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

/// A new key, and what a header says of it. A passphrase costs the same and has the same salt as
/// that in `like`, if there is one there that costs enough: who knows what opens the one stream has
/// not to pay for the other. What the passphrase gives seals nothing but keys of streams, each
/// under a nonce of its own.
pub(crate) fn lock(secret: &Secret, like: &Lock) -> Result<(Key, Lock)> {
    let (inner, salt) = (draw::<KEY>()?, draw()?);
    let empty = [0; SEALED_KEY];
    let mut lock = match (secret, like) {
        (Secret::Passphrase(_), &Lock::Passphrase { memory, passes, lanes, salt, .. })
            if memory >= MEMORY && passes >= PASSES && lanes >= LANES =>
        {
            Lock::Passphrase { memory, passes, lanes, salt, key: empty }
        }
        (Secret::Passphrase(_), _) => {
            Lock::Passphrase { memory: MEMORY, passes: PASSES, lanes: LANES, salt, key: empty }
        }
        (Secret::KeyFile(_), _) => Lock::KeyFile { salt, key: empty },
    };
    let sealed = outer(&lock, secret)?.seal(&[], &inner)?;
    let sealed = sealed.try_into().map_err(|_| Error::Cipher("a key of odd length"))?;
    match &mut lock {
        Lock::Passphrase { key, .. } | Lock::KeyFile { key, .. } => *key = sealed,
        Lock::Open => {}
    }
    Ok((Key::new(&inner)?, lock))
}

/// The key of a stream with this lock; none if it is not encrypted.
pub(crate) fn unlock(lock: &Lock, secret: Option<&Secret>) -> Result<Option<Key>> {
    let (what, sealed) = match lock {
        Lock::Open => return Ok(None),
        Lock::Passphrase { key, .. } => ("passphrase", key),
        Lock::KeyFile { key, .. } => ("key file", key),
    };
    let fits = matches!(
        (lock, secret),
        (Lock::Passphrase { .. }, Some(Secret::Passphrase(_)))
            | (Lock::KeyFile { .. }, Some(Secret::KeyFile(_)))
    );
    let Some(secret) = secret.filter(|_| fits) else { return Err(Error::Locked(what)) };
    let mut inner = sealed.to_vec();
    let opened = outer(lock, secret)?.open(&[], &mut inner);
    let inner = opened.ok_or(Error::WrongSecret(what))?;
    Ok(Some(Key::new(inner)?))
}

/// The key that seals a stream's key.
fn outer(lock: &Lock, secret: &Secret) -> Result<Key> {
    let mut key = [0; KEY];
    match (lock, secret) {
        (Lock::Passphrase { memory, passes, lanes, salt, .. }, Secret::Passphrase(phrase)) => {
            let cost = [*memory, *passes, *lanes];
            key = DEAR.get(phrase, salt, cost, || {
                let params = Params::new(*memory, *passes, *lanes, Some(KEY));
                let params = params.map_err(|_| Error::Cipher("the cost of the passphrase"))?;
                let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
                let mut key = [0; KEY];
                let hashed = argon.hash_password_into(phrase, salt, &mut key);
                hashed
                    .map_err(|_| Error::Cipher("the passphrase has no length that is allowed"))?;
                Ok(key)
            })?;
        }
        (Lock::KeyFile { salt, .. }, Secret::KeyFile(bytes)) => {
            let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(bytes);
            let okm = prk.expand(&[b"gabion backup"], hkdf::HKDF_SHA256);
            let filled = okm.and_then(|okm| okm.fill(&mut key));
            filled.map_err(|_| Error::Cipher("the key file gives no key"))?;
        }
        _ => return Err(Error::Cipher("the secret is of another kind")),
    }
    Key::new(&key)
}

impl Key {
    fn new(bytes: &[u8]) -> Result<Self> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes);
        Ok(Self(LessSafeKey::new(key.map_err(|_| Error::Cipher("a key of odd length"))?)))
    }

    /// A nonce, `plain` as ciphertext, and the tag.
    pub(crate) fn seal(&self, beside: &[&[u8]], plain: &[u8]) -> Result<Vec<u8>> {
        let nonce = draw::<NONCE_LEN>()?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + plain.len() + TAG);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let beside = Aad::from(beside.concat());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, beside, &mut sealed[NONCE_LEN..]);
        let tag = tag.map_err(|_| Error::Cipher("the library refuses"))?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// What was sealed; nothing if it was not, or not with this key and the same `beside`.
    pub(crate) fn open<'b>(&self, beside: &[&[u8]], sealed: &'b mut [u8]) -> Option<&'b [u8]> {
        if sealed.len() < NONCE_LEN + TAG {
            return None;
        }
        let (nonce, sealed) = sealed.split_at_mut(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let beside = Aad::from(beside.concat());
        self.0.open_in_place(nonce, beside, sealed).ok().map(|plain| &*plain)
    }
}
