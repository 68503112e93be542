//! Which pieces of files a stream has already.
//!
//! Two files that share blocks, or that are copies of each other, have equal pieces; those are kept
//! once. They are recognised by 16 bytes of a digest, which nobody can make two pieces have. What
//! this takes is memory: about fifty bytes for each piece, 200 MiB for a tebibyte of large files.

use std::collections::HashMap;

use crate::format::record::Piece;
use crate::seal::sha256;

/// Where a piece's bytes are.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) at: u32,
    length: u32,
}

/// The pieces of one stream.
#[derive(Default)]
pub(crate) struct Pieces {
    places: HashMap<[u8; 16], Place>,
}

/// What pieces are recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub(crate) [u8; 16]);

/// What makes the digests of a stream's pieces. A stream's version says which it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hash {
    /// The first half of the SHA-256, in streams of version 1.
    Sha256,
    /// The first half of the BLAKE3, in streams of version 2: of large pieces several times as
    /// fast.
    #[default]
    Blake3,
}

impl Hash {
    /// The digest of a piece.
    pub fn digest(self, bytes: &[u8]) -> Digest {
        let whole = match self {
            Self::Sha256 => sha256(bytes),
            Self::Blake3 => blake3::hash(bytes).into(),
        };
        Digest(*whole.first_chunk().expect("32 bytes have a first half"))
    }
}

impl Pieces {
    /// Where equal bytes are.
    pub(crate) fn find(&self, digest: &[u8; 16], length: u32) -> Option<Place> {
        self.places.get(digest).copied().filter(|place| place.length == length)
    }

    /// Remembers where a piece's bytes are.
    pub(crate) fn add(&mut self, piece: &Piece) {
        let place = Place { segment: piece.segment, at: piece.at, length: piece.length };
        self.places.entry(piece.digest).or_insert(place);
    }
}
