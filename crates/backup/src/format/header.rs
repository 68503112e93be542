//! The head of a stream: whose backup it is, what it builds upon, and how it is encrypted.
//!
//! ```text
//! magic      8   "GABIONBK"
//! version    2   1 or 2: what the digests of pieces are made by ([`Hash`])
//! zero       2
//! length     4   of the body, in bytes; at most 64 KiB
//! body           stream 16, base 16 (zeros: a full backup), filesystem 16,
//!                created (seconds i64, nanoseconds u32), root u64, snapshot (u16 and
//!                bytes), origin (u16 and bytes), lock u8, then
//!                  0 (not encrypted)  nothing
//!                  1 (passphrase)     memory in KiB u32, passes u32, lanes u32, salt 16, key 60
//!                  2 (key file)       salt 16, key 60
//! checksum   8   CRC-64/NVME of all before it
//! ```
//!
//! The key is the one that segments are sealed with, itself sealed with what the secret gives
//! ([`crate::seal`]): a nonce of 12 bytes, 32 bytes of ciphertext, a tag of 16.

use std::fmt::{self, Display};

use gabion_base::checksum::crc64;
use gabion_base::codec::{DecodeError, Put, Reader};

use crate::error::{Error, Result};
use crate::format::record::{Time, decode_time};
use crate::pieces::Hash;

const MAGIC: [u8; 8] = *b"GABIONBK";
/// Bytes before the body.
pub const PREFIX: usize = 16;
/// The longest body, in bytes.
pub const BODY_MAX: usize = 64 << 10;
/// Bytes of a sealed key.
pub const SEALED_KEY: usize = 60;
/// The most memory that opening a stream may take, in KiB: a hostile one could ask for any.
pub const MEMORY_MAX: u32 = 1 << 20;
/// The most passes over it.
pub const PASSES_MAX: u32 = 64;
/// The most lanes of it.
pub const LANES_MAX: u32 = 16;

/// What tells streams apart: drawn at random for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub [u8; 16]);

impl Display for StreamId {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How segments are sealed, and how the key to them is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lock {
    /// They are not.
    Open,
    /// By Argon2id of a passphrase.
    Passphrase {
        /// Memory that it takes, in KiB.
        memory: u32,
        /// Passes over the memory.
        passes: u32,
        /// Lanes of it.
        lanes: u32,
        /// What makes equal passphrases differ.
        salt: [u8; 16],
        /// The sealed key.
        key: [u8; SEALED_KEY],
    },
    /// By HKDF-SHA-256 of the bytes of a file.
    KeyFile {
        /// What makes equal files differ.
        salt: [u8; 16],
        /// The sealed key.
        key: [u8; SEALED_KEY],
    },
}

/// A stream's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The stream itself.
    pub stream: StreamId,
    /// The stream that this one is a difference from; none if it is full.
    pub base: Option<StreamId>,
    /// The identity of the filesystem that was saved.
    pub filesystem: [u8; 16],
    /// When the snapshot was made.
    pub created: Time,
    /// The inode number of the root directory.
    pub root: u64,
    /// The name of the snapshot that was saved.
    pub snapshot: Vec<u8>,
    /// What was saved, as the user called it.
    pub origin: Vec<u8>,
    /// How it is encrypted.
    pub lock: Lock,
    /// What pieces are recognised by.
    pub hash: Hash,
}

impl Header {
    /// The header's bytes. Names longer than 4,096 bytes are cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.stream.0);
        body.extend_from_slice(&self.base.map_or([0; 16], |base| base.0));
        body.extend_from_slice(&self.filesystem);
        body.put_u64(self.created.seconds as u64);
        body.put_u32(self.created.nanoseconds);
        body.put_u64(self.root);
        for text in [&self.snapshot, &self.origin] {
            let text = &text[..text.len().min(4096)];
            body.put_u16(text.len() as u16);
            body.extend_from_slice(text);
        }
        encode_lock(&self.lock, &mut body);
        let mut out = MAGIC.to_vec();
        out.put_u16(version(self.hash));
        out.put_zeros(2);
        out.put_u32(body.len() as u32);
        out.extend_from_slice(&body);
        out.put_u64(crc64(&out));
        out
    }

    /// How long the header is that begins with these bytes, all of it.
    pub fn length(prefix: &[u8; PREFIX]) -> Result<usize> {
        let mut reader = Reader::new(prefix);
        let bad = |error| Error::undecodable(0, None, error);
        if reader.array::<8>().map_err(bad)? != MAGIC {
            return Err(Error::NotABackup);
        }
        hash(reader.u16().map_err(bad)?)?;
        reader.zeros(2).map_err(bad)?;
        let body = reader.u32().map_err(bad)? as usize;
        if body > BODY_MAX {
            return Err(Error::damaged(12, None, "the header is too long"));
        }
        Ok(PREFIX + body + 8)
    }

    /// Decodes a whole header, of the length that [`Header::length`] gives.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let short = || Error::damaged(0, None, "the header is too short");
        let prefix = bytes.first_chunk().ok_or_else(short)?;
        if bytes.len() != Self::length(prefix)? {
            return Err(short());
        }
        let (head, checksum) = bytes.split_last_chunk().ok_or_else(short)?;
        if crc64(head) != u64::from_le_bytes(*checksum) {
            return Err(Error::damaged(0, None, "the header has another checksum"));
        }
        let hash = hash(u16::from_le_bytes([prefix[8], prefix[9]]))?;
        Self::decode_body(&head[PREFIX..], hash)
            .map_err(|error| Error::undecodable(PREFIX as u64, None, error))
    }

    fn decode_body(body: &[u8], hash: Hash) -> std::result::Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let stream = StreamId(reader.array()?);
        let base = Some(reader.array()?).filter(|base| *base != [0; 16]).map(StreamId);
        let filesystem = reader.array()?;
        let created = decode_time(&mut reader)?;
        let root = reader.u64()?;
        let mut text = || -> std::result::Result<Vec<u8>, DecodeError> {
            let length = reader.u16()?;
            Ok(reader.bytes(length.into())?.to_vec())
        };
        let (snapshot, origin) = (text()?, text()?);
        let lock = decode_lock(&mut reader)?;
        reader.finish()?;
        Ok(Self { stream, base, filesystem, created, root, snapshot, origin, lock, hash })
    }
}

/// The version of a stream with these digests.
fn version(hash: Hash) -> u16 {
    match hash {
        Hash::Sha256 => 1,
        Hash::Blake3 => 2,
    }
}

/// The digests of a stream of this version.
fn hash(version: u16) -> Result<Hash> {
    match version {
        1 => Ok(Hash::Sha256),
        2 => Ok(Hash::Blake3),
        other => Err(Error::Version(other)),
    }
}

fn encode_lock(lock: &Lock, out: &mut Vec<u8>) {
    match lock {
        Lock::Open => out.put_u8(0),
        Lock::Passphrase { memory, passes, lanes, salt, key } => {
            out.put_u8(1);
            out.put_u32(*memory);
            out.put_u32(*passes);
            out.put_u32(*lanes);
            out.extend_from_slice(salt);
            out.extend_from_slice(key);
        }
        Lock::KeyFile { salt, key } => {
            out.put_u8(2);
            out.extend_from_slice(salt);
            out.extend_from_slice(key);
        }
    }
}

fn decode_lock(reader: &mut Reader<'_>) -> std::result::Result<Lock, DecodeError> {
    Ok(match reader.u8()? {
        0 => Lock::Open,
        1 => {
            let (memory, passes, lanes) = (reader.u32()?, reader.u32()?, reader.u32()?);
            if memory > MEMORY_MAX || !(1..=PASSES_MAX).contains(&passes) {
                return Err(DecodeError::Invalid("the cost of its passphrase"));
            }
            if !(1..=LANES_MAX).contains(&lanes) || memory < 8 * lanes {
                return Err(DecodeError::Invalid("the number of lanes of its passphrase"));
            }
            let (salt, key) = (reader.array()?, reader.array()?);
            Lock::Passphrase { memory, passes, lanes, salt, key }
        }
        2 => Lock::KeyFile { salt: reader.array()?, key: reader.array()? },
        _ => return Err(DecodeError::Invalid("the kind of encryption")),
    })
}
