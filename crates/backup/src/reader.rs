//! Reads a stream that is complete: from its tail to its END segment, from there to the index, and
//! by that any segment in any order.

use std::io;

use gabion_base::codec::Reader;

use crate::error::{Error, Result};
use crate::format::header::{Header, PREFIX};
use crate::format::index::{self, End, Entry, TAIL, Totals};
use crate::format::record::Record;
use crate::format::segment::{FRAME, Frame, Kind, Packing};
use crate::seal::{self, Key, Secret, sha256};

/// What a stream is kept in.
pub trait ReadAt {
    /// Its length, in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Fills `into` with the bytes at `offset`.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let found =
            usize::try_from(offset).ok().and_then(|from| self.get(from..)?.get(..into.len()));
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        self[..].length()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self[..].read_at(offset, into)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for Box<R> {
    fn length(&self) -> io::Result<u64> {
        (**self).length()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, into)
    }
}

/// The head of a stream, and the key to the rest.
pub(crate) struct Opening {
    pub(crate) header: Header,
    /// Where the first segment begins.
    pub(crate) start: u64,
    pub(crate) digest: [u8; 32],
    pub(crate) key: Option<Key>,
    length: u64,
}

/// Reads only a stream's header, for which no secret is needed.
pub fn header<R: ReadAt + ?Sized>(source: &R) -> Result<Header> {
    header_bytes(source, length(source)?).map(|(header, _)| header)
}

/// Whether a stream with this header has its tail: then it was written to its end.
pub fn has_tail<R: ReadAt + ?Sized>(source: &R, header: &Header) -> Result<bool> {
    let Some(at) = length(source)?.checked_sub(TAIL as u64) else { return Ok(false) };
    let mut tail = [0; TAIL];
    source.read_at(at, &mut tail).map_err(|source| Error::Io { offset: at, source })?;
    Ok(index::decode_tail(&tail).is_some_and(|(_, stream)| stream == header.stream))
}

fn header_bytes<R: ReadAt + ?Sized>(source: &R, length: u64) -> Result<(Header, Vec<u8>)> {
    let failed = |source| Error::Io { offset: 0, source };
    let mut prefix = [0; PREFIX];
    if length < PREFIX as u64 {
        return Err(Error::NotABackup);
    }
    source.read_at(0, &mut prefix).map_err(failed)?;
    let whole = Header::length(&prefix)?;
    if length < whole as u64 {
        return Err(Error::Unfinished(length));
    }
    let mut bytes = vec![0; whole];
    source.read_at(0, &mut bytes).map_err(failed)?;
    Ok((Header::decode(&bytes)?, bytes))
}

fn length<R: ReadAt + ?Sized>(source: &R) -> Result<u64> {
    source.length().map_err(|source| Error::Io { offset: 0, source })
}

impl Opening {
    pub(crate) fn open<R: ReadAt + ?Sized>(source: &R, secret: Option<&Secret>) -> Result<Self> {
        let length = length(source)?;
        let (_, bytes) = header_bytes(source, length)?;
        Self::of(&bytes, length, secret)
    }

    /// The same of a header's bytes, and the length of the stream.
    pub(crate) fn of(header_bytes: &[u8], length: u64, secret: Option<&Secret>) -> Result<Self> {
        let header = Header::decode(header_bytes)?;
        let key = seal::unlock(&header.lock, secret)?;
        let (start, digest) = (header_bytes.len() as u64, sha256(header_bytes));
        Ok(Self { header, start, digest, key, length })
    }

    /// The length of a segment with its frame.
    pub(crate) fn length_of(&self, entry: &Entry) -> u64 {
        FRAME as u64 + u64::from(entry.stored)
    }

    /// The segment that begins at `at` and must have this number: what it is, and its bytes.
    pub(crate) fn next<R: ReadAt + ?Sized>(
        &self,
        source: &R,
        at: u64,
        number: u32,
    ) -> Result<(Entry, Vec<u8>)> {
        let damaged = |what| Error::damaged(at, Some(number), what);
        let failed = |source| Error::Io { offset: at, source };
        let within = |length: u64| at.checked_add(length).is_some_and(|end| end <= self.length);
        if !within(FRAME as u64) {
            return Err(damaged("it ends before the segment does"));
        }
        let mut head = [0; FRAME];
        source.read_at(at, &mut head).map_err(failed)?;
        let decoded = Frame::decode(&head);
        let (frame, checksum) =
            decoded.map_err(|error| Error::undecodable(at, Some(number), error))?;
        if !within(FRAME as u64 + u64::from(frame.stored)) {
            return Err(damaged("it ends before the segment does"));
        }
        let mut bytes = vec![0; frame.stored as usize];
        source.read_at(at + FRAME as u64, &mut bytes).map_err(failed)?;
        if !Frame::has_checksum(&head, &bytes, checksum) {
            return Err(damaged("the segment has another checksum"));
        }
        if frame.number != number {
            return Err(damaged("the segment has another number"));
        }
        let raw = self.unpack(&frame, bytes).map_err(damaged)?;
        let Frame { kind, raw: length, stored, .. } = frame;
        Ok((Entry { offset: at, kind, raw: length, stored }, raw))
    }

    fn unpack(
        &self,
        frame: &Frame,
        mut bytes: Vec<u8>,
    ) -> std::result::Result<Vec<u8>, &'static str> {
        let bytes = match &self.key {
            Some(key) => {
                let opened = key.open(&[&self.digest, &frame.identity()], &mut bytes);
                opened.ok_or("the segment is not what was encrypted")?
            }
            None => &bytes,
        };
        let raw = match frame.packing {
            Packing::Plain => bytes.to_vec(),
            Packing::Zstd => zstd::bulk::decompress(bytes, frame.raw as usize)
                .map_err(|_| "the segment cannot be unpacked")?,
        };
        match raw.len() == frame.raw as usize {
            true => Ok(raw),
            false => Err("the segment has another length than it says"),
        }
    }
}

/// A stream that is complete.
pub struct Stream<R> {
    source: R,
    opening: Opening,
    entries: Vec<Entry>,
    totals: Totals,
}

impl<R: ReadAt> Stream<R> {
    /// Opens a stream: reads its header, its tail and its index. `Unfinished`: it has no tail.
    pub fn open(source: R, secret: Option<&Secret>) -> Result<Self> {
        let opening = Opening::open(&source, secret)?;
        let length = opening.length;
        let at = length.checked_sub(TAIL as u64).filter(|at| *at >= opening.start);
        let at = at.ok_or(Error::Unfinished(length))?;
        let mut tail = [0; TAIL];
        source.read_at(at, &mut tail).map_err(|source| Error::Io { offset: at, source })?;
        let (end_at, stream) = index::decode_tail(&tail).ok_or(Error::Unfinished(length))?;
        if stream != opening.header.stream {
            return Err(Error::damaged(at, None, "the tail is that of another stream"));
        }
        let (entries, totals) = read_index(&source, &opening, end_at, at)?;
        Ok(Self { source, opening, entries, totals })
    }

    /// Its header.
    pub fn header(&self) -> &Header {
        &self.opening.header
    }

    /// What it has in all.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How long it is, in bytes.
    pub fn length(&self) -> u64 {
        self.opening.length
    }

    /// Its segments of bytes and of records.
    pub fn segments(&self) -> &[Entry] {
        &self.entries
    }

    /// The bytes of a segment.
    pub fn segment(&self, number: u32) -> Result<Vec<u8>> {
        let entry = self.entries.get(number as usize).copied();
        let entry = entry.ok_or(Error::damaged(0, Some(number), "there is no such segment"))?;
        let (found, raw) = self.opening.next(&self.source, entry.offset, number)?;
        match found == entry {
            true => Ok(raw),
            false => {
                Err(Error::damaged(entry.offset, Some(number), "the index says other things of it"))
            }
        }
    }

    /// Gives all records to `take`, in their order.
    pub fn records(&self, mut take: impl FnMut(Record) -> Result<()>) -> Result<()> {
        for (number, entry) in self.entries.iter().enumerate() {
            if entry.kind == Kind::Records {
                let raw = self.segment(number as u32)?;
                records_of(&raw, entry.offset, number as u32, &self.entries, &mut take)?;
            }
        }
        Ok(())
    }

    /// Reads everything and compares it with its checksums, and the bytes of files with what the
    /// records say of them. Tells `watch` how many bytes of the stream were read since it was told
    /// last.
    pub fn verify(&self, mut watch: impl FnMut(u64)) -> Result<()> {
        let hash = self.opening.header.hash;
        let mut claims = Vec::new();
        self.records(|record| {
            if let Record::Pieces { pieces, .. } = record {
                let claim = |piece: crate::format::record::Piece| {
                    (piece.segment, piece.at, piece.length, piece.digest)
                };
                claims.extend(pieces.into_iter().map(claim));
            }
            Ok(())
        })?;
        claims.sort_unstable();
        claims.dedup();
        let mut claims = claims.into_iter().peekable();
        for (number, entry) in self.entries.iter().enumerate() {
            let number = number as u32;
            let raw = self.segment(number)?;
            while let Some((_, at, length, digest)) = claims.next_if(|claim| claim.0 == number) {
                let (from, to) = (at as usize, at as usize + length as usize);
                if hash.digest(&raw[from..to]).0 != digest {
                    let what = "a piece of a file is not what the records say";
                    return Err(Error::damaged(entry.offset, Some(number), what));
                }
            }
            watch(self.opening.length_of(entry));
        }
        Ok(())
    }
}

/// The index, from the END segment at `end_at`; the tail is at `tail`.
fn read_index<R: ReadAt>(
    source: &R,
    opening: &Opening,
    end_at: u64,
    tail: u64,
) -> Result<(Vec<Entry>, Totals)> {
    // The END segment's number follows from what it says itself, which its frame must agree with.
    let number = frame_number(source, opening, end_at)?;
    let (entry, raw) = opening.next(source, end_at, number)?;
    let damaged = |what| Error::damaged(end_at, Some(number), what);
    if entry.kind != Kind::End || end_at + opening.length_of(&entry) != tail {
        return Err(damaged("the tail points at something else than the end"));
    }
    let end = End::decode(&raw).map_err(|error| Error::undecodable(end_at, Some(number), error))?;
    if end.segments.checked_add(end.index.len() as u32) != Some(number) {
        return Err(damaged("the end says other numbers of segments"));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for (offset, number) in end.index.into_iter().zip(end.segments..) {
        let (entry, raw) = opening.next(source, offset, number)?;
        if entry.kind != Kind::Index {
            return Err(Error::damaged(offset, Some(number), "it should be a part of the index"));
        }
        let more = index::decode_entries(&raw);
        entries.extend(more.map_err(|error| Error::undecodable(offset, Some(number), error))?);
    }
    if entries.len() != end.segments as usize {
        return Err(damaged("the index has another length than the end says"));
    }
    let mut at = opening.start;
    for (number, entry) in entries.iter().enumerate() {
        if entry.offset != at {
            return Err(Error::damaged(at, Some(number as u32), "the index has a gap"));
        }
        at += opening.length_of(entry);
    }
    Ok((entries, end.totals))
}

/// What number the segment at `at` says that it has.
fn frame_number<R: ReadAt>(source: &R, opening: &Opening, at: u64) -> Result<u32> {
    let damaged = || Error::damaged(at, None, "the tail points outside of the stream");
    let end = at.checked_add(FRAME as u64).ok_or_else(damaged)?;
    if at < opening.start || end > opening.length {
        return Err(damaged());
    }
    let mut head = [0; FRAME];
    source.read_at(at, &mut head).map_err(|source| Error::Io { offset: at, source })?;
    let (frame, _) = Frame::decode(&head).map_err(|error| Error::undecodable(at, None, error))?;
    Ok(frame.number)
}

/// Decodes a RECORDS segment; pieces must lie in DATA segments before it.
pub(crate) fn records_of(
    raw: &[u8],
    offset: u64,
    number: u32,
    entries: &[Entry],
    take: &mut impl FnMut(Record) -> Result<()>,
) -> Result<()> {
    let mut reader = Reader::new(raw);
    while reader.remaining() > 0 {
        let record = Record::decode(&mut reader);
        let record = record.map_err(|error| Error::undecodable(offset, Some(number), error))?;
        if let Record::Pieces { pieces, .. } = &record {
            let lies = |piece: &crate::format::record::Piece| {
                let entry = entries.get(piece.segment as usize);
                let entry = entry.filter(|entry| entry.kind == Kind::Data);
                let end = piece.at.checked_add(piece.length);
                piece.segment >= number || end.is_none() || entry.is_none_or(|e| end > Some(e.raw))
            };
            if pieces.iter().any(lies) {
                let what = "a piece of a file lies where no bytes are";
                return Err(Error::damaged(offset, Some(number), what));
            }
        }
        take(record)?;
    }
    Ok(())
}
