//! Writes a stream, from its header to its tail.
//!
//! Bytes of files gather in one buffer, records in another; each becomes a segment when it is full.
//! Records come after the bytes that they speak of: before a RECORDS segment what has gathered of
//! bytes goes out. So a stream that is cut off is good up to its last RECORDS segment, and can be
//! taken up there ([`crate::scan`]).
//!
//! Segments are packed and sealed by other threads meanwhile, and written in order.

use std::io::Write;

use crate::error::{Error, Result};
use crate::format::header::{Header, Lock, StreamId};
use crate::format::index::{self, End, Entry, Totals};
use crate::format::record::{NAME_MAX, Object, PIECE_MAX, Piece, Record, SIZE_MAX, VALUE_MAX};
use crate::format::segment::Kind;
use crate::packing::{Packed, Packers};
use crate::pieces::{Digest, Hash, Pieces};
use crate::scan::Kept;
use crate::seal::{self, Secret, sha256};

/// A buffer of bytes becomes a segment at this size, in bytes.
const DATA_FULL: usize = 1 << 20;
/// A buffer of records does at this one.
const RECORDS_FULL: usize = 1 << 20;
/// So many bytes of files are followed by records at the latest: what is lost if the stream is
/// cut off has to be read once more.
const CHECKPOINT: u64 = 16 << 20;
/// Pieces that one record holds at most.
const PIECES_MAX: usize = 1024;

/// A new identity for a stream.
pub fn draw_id() -> Result<StreamId> {
    seal::draw().map(StreamId)
}

/// Writes a stream.
pub struct Writer<W> {
    out: W,
    /// Bytes of the stream that have been written.
    at: u64,
    stream: StreamId,
    hash: Hash,
    packers: Packers,
    /// Segments that have been written.
    entries: Vec<Entry>,
    /// Segments that have begun.
    begun: u32,
    totals: Totals,
    data: Vec<u8>,
    records: Vec<u8>,
    /// Pieces of one file that no record tells of yet.
    pieces: (u64, Vec<Piece>),
    known: Pieces,
    since_checkpoint: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a stream with this header, whose lock is made here if there is a secret: with the
    /// same salt as the lock that it has, if that can be.
    pub fn begin(mut out: W, mut header: Header, secret: Option<&Secret>) -> Result<Self> {
        let key = match secret {
            Some(secret) => {
                let (key, lock) = seal::lock(secret, &header.lock)?;
                header.lock = lock;
                Some(key)
            }
            None => {
                header.lock = Lock::Open;
                None
            }
        };
        let bytes = header.encode();
        out.write_all(&bytes).map_err(|source| Error::Io { offset: 0, source })?;
        let at = bytes.len() as u64;
        let packers = Packers::start(key, sha256(&bytes));
        let packers = packers.map_err(|source| Error::Io { offset: at, source })?;
        Ok(Self::new(out, at, &header, packers))
    }

    /// Goes on with a stream that was cut off; `out` ends where [`Kept::length`] says.
    pub fn resume(out: W, kept: Kept) -> Result<Self> {
        let packers = Packers::start(kept.key, kept.header_digest);
        let packers = packers.map_err(|source| Error::Io { offset: kept.length, source })?;
        let mut writer = Self::new(out, kept.length, &kept.header, packers);
        writer.begun = kept.entries.len() as u32;
        writer.entries = kept.entries;
        writer.totals = kept.totals;
        writer.known = kept.pieces;
        Ok(writer)
    }

    fn new(out: W, at: u64, header: &Header, packers: Packers) -> Self {
        Self {
            out,
            at,
            stream: header.stream,
            hash: header.hash,
            packers,
            entries: Vec::new(),
            begun: 0,
            totals: Totals::default(),
            data: Vec::new(),
            records: Vec::new(),
            pieces: (0, Vec::new()),
            known: Pieces::default(),
            since_checkpoint: 0,
        }
    }

    /// How long the stream is by now, in bytes, without what is under way.
    pub fn length(&self) -> u64 {
        self.at
    }

    /// What pieces are recognised by.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// What has been written by now.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Says something. `TooLarge`: the format has no room for it.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        check(record)?;
        self.tell_pieces();
        if let Record::Complete { .. } = record {
            self.totals.objects += 1;
        }
        record.encode(&mut self.records);
        if self.records.len() >= RECORDS_FULL { self.checkpoint() } else { Ok(()) }
    }

    /// Adds bytes of a file, at most [`PIECE_MAX`], and at least one.
    pub fn piece(&mut self, ino: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        self.digested(ino, offset, bytes, self.hash.digest(bytes))
    }

    /// The same where the digest of the bytes is known, by [`Writer::hash`].
    pub fn digested(&mut self, ino: u64, offset: u64, bytes: &[u8], digest: Digest) -> Result<()> {
        let digest = digest.0;
        let length = bytes.len() as u32;
        if bytes.is_empty() || bytes.len() > PIECE_MAX || offset > SIZE_MAX - u64::from(length) {
            return Err(Error::TooLarge { ino, what: "a piece has no length that is allowed" });
        }
        let (segment, at) = match self.known.find(&digest, length) {
            Some(place) => (place.segment, place.at),
            None => {
                if self.data.capacity() == 0 {
                    self.data.reserve(DATA_FULL + PIECE_MAX);
                }
                let at = self.data.len() as u32;
                self.data.extend_from_slice(bytes);
                (self.begun, at)
            }
        };
        let piece = Piece { offset, length, segment, at, digest };
        self.known.add(&piece);
        if self.pieces.0 != ino || self.pieces.1.len() >= PIECES_MAX {
            self.tell_pieces();
            self.pieces.0 = ino;
        }
        self.pieces.1.push(piece);
        self.totals.bytes += u64::from(length);
        self.since_checkpoint += u64::from(length);
        if self.since_checkpoint >= CHECKPOINT || self.records.len() >= RECORDS_FULL {
            return self.checkpoint();
        }
        if self.data.len() >= DATA_FULL { self.send_data() } else { Ok(()) }
    }

    /// Makes segments of what has gathered, so that the stream is good up to here once they are
    /// written.
    pub fn checkpoint(&mut self) -> Result<()> {
        self.tell_pieces();
        self.send_data()?;
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            self.segment(Kind::Records, records)?;
        }
        self.since_checkpoint = 0;
        Ok(())
    }

    /// Ends the stream. Gives back what it was written to, what it has in all, and its length in
    /// bytes.
    pub fn finish(mut self) -> Result<(W, Totals, u64)> {
        self.checkpoint()?;
        self.settle()?;
        let entries = std::mem::take(&mut self.entries);
        let mut index = Vec::new();
        for entries in entries.chunks(index::ENTRIES_MAX) {
            index.push(self.at);
            self.segment(Kind::Index, index::encode_entries(entries))?;
            self.settle()?;
        }
        let end = self.at;
        let totals = self.totals;
        let told = End { segments: entries.len() as u32, totals, index };
        self.segment(Kind::End, told.encode())?;
        self.settle()?;
        self.write(&index::encode_tail(end, self.stream))?;
        let at = self.at;
        self.out.flush().map_err(|source| Error::Io { offset: at, source })?;
        Ok((self.out, totals, at))
    }

    fn tell_pieces(&mut self) {
        let (ino, pieces) = &mut self.pieces;
        if !pieces.is_empty() {
            let record = Record::Pieces { ino: *ino, pieces: std::mem::take(pieces) };
            record.encode(&mut self.records);
        }
    }

    fn send_data(&mut self) -> Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.data);
        self.segment(Kind::Data, data)
    }

    fn segment(&mut self, kind: Kind, raw: Vec<u8>) -> Result<()> {
        while !self.packers.has_room() {
            self.write_oldest()?;
        }
        self.packers.begin(kind, self.begun, raw);
        self.begun += 1;
        Ok(())
    }

    /// Writes all segments that have begun.
    fn settle(&mut self) -> Result<()> {
        while self.write_oldest()? {}
        Ok(())
    }

    /// Writes the oldest segment that has begun, and says whether there was one. Where the stream
    /// is good up to its end, what it is written to is told so by a flush.
    fn write_oldest(&mut self) -> Result<bool> {
        let Some(packed) = self.packers.take() else { return Ok(false) };
        let Packed { kind, frame, bytes, raw } = packed?;
        let offset = self.at;
        self.write(&frame)?;
        self.write(&bytes)?;
        self.entries.push(Entry { offset, kind, raw, stored: bytes.len() as u32 });
        if kind == Kind::Records {
            self.out.flush().map_err(|source| Error::Io { offset: self.at, source })?;
        }
        Ok(true)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.out.write_all(bytes);
        written.map_err(|source| Error::Io { offset: self.at, source })?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

fn check(record: &Record) -> Result<()> {
    let name = |ino: u64, name: &[u8]| match name.len() {
        1..=NAME_MAX => Ok(()),
        _ => Err(Error::TooLarge { ino, what: "a name has no length that is allowed" }),
    };
    match record {
        Record::Object(object) => check_object(object),
        Record::Name { dir, name: of, .. } | Record::NoName { dir, name: of } => name(*dir, of),
        _ => Ok(()),
    }
}

fn check_object(object: &Object) -> Result<()> {
    let ino = object.ino;
    let fits = |(name, value): &(Vec<u8>, Vec<u8>)| {
        (1..=NAME_MAX).contains(&name.len()) && value.len() <= VALUE_MAX
    };
    let all: usize = object.xattrs.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
    if !object.xattrs.iter().all(fits) || all > 2 * VALUE_MAX {
        return Err(Error::TooLarge { ino, what: "its extended attributes are too large" });
    }
    if object.target.len() > VALUE_MAX || object.attributes.size > SIZE_MAX {
        return Err(Error::TooLarge { ino, what: "it is too large" });
    }
    Ok(())
}
