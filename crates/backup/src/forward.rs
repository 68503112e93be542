//! Reads streams that come one after the other and cannot be gone back in, as from a pipe.
//!
//! 1. The header; then segments in the order of their numbers, each compared with its checksum.
//! 2. Pieces of files are told of after the bytes that they are. Those of the last `KEPT` are
//!    kept until then and compared with the digests. A writer tells of a piece soon, and later only
//!    of the very same once more, so what was compared is remembered and not the bytes.
//! 3. INDEX segments, the END segment and the tail must say what has passed.
//!
//! So what passes is as good as what [`Stream::verify`](crate::Stream::verify) has read. Offsets
//! that are told count from the header of the stream.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};

use crate::error::{Error, Result};
use crate::format::header::{Header, PREFIX};
use crate::format::index::{self, End, Entry, TAIL, Totals};
use crate::format::record::{Piece, Record};
use crate::format::segment::{Kind, RAW_MAX};
use crate::pieces::{Digest, Hash};
use crate::reader::{Opening, ReadAt, records_of};
use crate::seal::Secret;

/// So many bytes of DATA segments are kept until they are told of: four times as much as a writer
/// lets gather.
const KEPT: usize = 64 << 20;

/// A stream that has passed, all of it.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Its header.
    pub header: Header,
    /// What it has in all.
    pub totals: Totals,
    /// How long it is, in bytes.
    pub length: u64,
}

/// A stream whose header has come.
pub struct Coming<'i, R> {
    input: Input<'i, R>,
    opening: Opening,
}

/// The next stream of `input`. Nothing: that was at its end.
pub fn next<'i, R: Read>(
    input: &'i mut R,
    secret: Option<&Secret>,
) -> Result<Option<Coming<'i, R>>> {
    let input = Input { of: RefCell::new(input), at: Cell::new(0) };
    let opening = open(&input, secret)?;
    Ok(opening.map(|opening| Coming { input, opening }))
}

impl<R: Read> Coming<'_, R> {
    /// Its header.
    pub fn header(&self) -> &Header {
        &self.opening.header
    }

    /// Lets the rest of it pass. Gives its records to `take`, and tells `watch` how many bytes have
    /// passed since it was told last.
    pub fn pass(
        self,
        mut take: impl FnMut(Record) -> Result<()>,
        mut watch: impl FnMut(u64),
    ) -> Result<Passed> {
        let Self { input, opening } = self;
        watch(opening.start);
        let mut passing = Passing { hash: opening.header.hash, ..Passing::default() };
        loop {
            let (at, number) = (input.at.get(), passing.next);
            let next = opening.next(&input, at, number);
            let (entry, raw) = next.map_err(|error| input.ended_by(error))?;
            passing.next += 1;
            match entry.kind {
                Kind::Data => passing.data(entry, raw)?,
                Kind::Records => passing.records(entry, &raw, &mut take)?,
                Kind::Index => passing.index(entry, &raw)?,
                Kind::End => passing.end(entry, &raw)?,
            }
            watch(opening.length_of(&entry));
            if entry.kind == Kind::End {
                tail(&input, at, &opening.header)?;
                watch(TAIL as u64);
                let (totals, length) = (passing.totals, input.at.get());
                return Ok(Passed { header: opening.header, totals, length });
            }
        }
    }
}

/// Lets the tail pass, which must point at `end`.
fn tail<R: Read>(input: &Input<'_, R>, end: u64, header: &Header) -> Result<()> {
    let mut tail = [0; TAIL];
    let at = input.at.get();
    let read = input.read_at(at, &mut tail);
    read.map_err(|source| input.ended_by(Error::Io { offset: at, source }))?;
    match index::decode_tail(&tail).ok_or(Error::Unfinished(at))? == (end, header.stream) {
        true => Ok(()),
        false => Err(Error::damaged(at, None, "the tail says something else than what has passed")),
    }
}

/// The header of the next stream; nothing at the end of the input.
fn open<R: Read>(input: &Input<'_, R>, secret: Option<&Secret>) -> Result<Option<Opening>> {
    let failed = |source| input.ended_by(Error::Io { offset: 0, source });
    let mut prefix = [0; PREFIX];
    let mut filled = 0;
    while filled < PREFIX {
        let count = input.read(&mut prefix[filled..]).map_err(failed)?;
        match (count, filled) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(Error::NotABackup),
            _ => filled += count,
        }
    }
    let mut bytes = prefix.to_vec();
    bytes.resize(Header::length(&prefix)?, 0);
    input.read_at(PREFIX as u64, &mut bytes[PREFIX..]).map_err(failed)?;
    Opening::of(&bytes, u64::MAX, secret).map(Some)
}

/// What comes, as something that is read at offsets, each of which is where the last one ended.
struct Input<'i, R> {
    of: RefCell<&'i mut R>,
    at: Cell<u64>,
}

impl<R: Read> Input<'_, R> {
    fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.of.borrow_mut().read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    self.at.set(self.at.get() + count as u64);
                    return Ok(count);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The same error, or that the stream has ended too early if that is what it says.
    fn ended_by(&self, error: Error) -> Error {
        match error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => {
                Error::Unfinished(self.at.get())
            }
            error => error,
        }
    }
}

impl<R: Read> ReadAt for Input<'_, R> {
    fn length(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        assert_eq!(offset, self.at.get(), "what comes is not gone back in");
        let mut filled = 0;
        while filled < into.len() {
            match self.read(&mut into[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }
}

/// A stream of which a part has passed.
#[derive(Default)]
struct Passing {
    hash: Hash,
    /// The number of the segment that is due.
    next: u32,
    entries: Vec<Entry>,
    /// DATA segments that were last, by their numbers, and how many bytes they are.
    recent: VecDeque<(u32, Vec<u8>)>,
    kept: usize,
    /// The digests of pieces that were compared, by segment, place and length.
    compared: HashMap<(u32, u32, u32), [u8; 16]>,
    /// Where the INDEX segments are, and what they say.
    index: Vec<u64>,
    told: usize,
    totals: Totals,
}

impl Passing {
    fn data(&mut self, entry: Entry, raw: Vec<u8>) -> Result<()> {
        self.add(entry)?;
        self.kept += raw.len();
        self.recent.push_back((self.next - 1, raw));
        while self.kept > KEPT.max(RAW_MAX) {
            let Some((_, gone)) = self.recent.pop_front() else { break };
            self.kept -= gone.len();
        }
        Ok(())
    }

    fn records(
        &mut self,
        entry: Entry,
        raw: &[u8],
        take: &mut impl FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        self.add(entry)?;
        let number = self.next - 1;
        let (recent, compared) = (&self.recent, &mut self.compared);
        records_of(raw, entry.offset, number, &self.entries, &mut |record| {
            if let Record::Pieces { pieces, .. } = &record {
                for piece in pieces {
                    let found = compare(self.hash, piece, recent, compared);
                    found.map_err(|what| Error::damaged(entry.offset, Some(number), what))?;
                }
            }
            take(record)
        })
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        if !self.index.is_empty() {
            let what = "it stands behind the index";
            return Err(Error::damaged(entry.offset, Some(self.next - 1), what));
        }
        self.entries.push(entry);
        Ok(())
    }

    fn index(&mut self, entry: Entry, raw: &[u8]) -> Result<()> {
        let (offset, number) = (entry.offset, Some(self.next - 1));
        let told = index::decode_entries(raw);
        let told = told.map_err(|error| Error::undecodable(offset, number, error))?;
        let passed = self.entries.get(self.told..self.told + told.len());
        if told.is_empty() || passed != Some(&told[..]) {
            let what = "the index says other things than what has passed";
            return Err(Error::damaged(offset, number, what));
        }
        self.told += told.len();
        self.index.push(offset);
        Ok(())
    }

    fn end(&mut self, entry: Entry, raw: &[u8]) -> Result<()> {
        let (offset, number) = (entry.offset, Some(self.next - 1));
        let end = End::decode(raw).map_err(|error| Error::undecodable(offset, number, error))?;
        let is_whole = self.told == self.entries.len() && end.index == self.index;
        if !is_whole || end.segments as usize != self.entries.len() {
            let what = "the end says other things than what has passed";
            return Err(Error::damaged(offset, number, what));
        }
        self.totals = end.totals;
        Ok(())
    }
}

/// Compares the bytes of a piece with its digest, unless that was done.
fn compare(
    hash: Hash,
    piece: &Piece,
    recent: &VecDeque<(u32, Vec<u8>)>,
    compared: &mut HashMap<(u32, u32, u32), [u8; 16]>,
) -> std::result::Result<(), &'static str> {
    const WRONG: &str = "a piece of a file is not what the records say";
    let key = (piece.segment, piece.at, piece.length);
    if let Some(known) = compared.get(&key) {
        return if *known == piece.digest { Ok(()) } else { Err(WRONG) };
    }
    let found = recent.binary_search_by_key(&piece.segment, |(number, _)| *number);
    let Ok(found) = found else {
        return Err("a piece of a file is told of too late to compare it; read it from a file");
    };
    let (from, length) = (piece.at as usize, piece.length as usize);
    let bytes = recent[found].1.get(from..from + length).ok_or(WRONG)?;
    if hash.digest(bytes) != Digest(piece.digest) {
        return Err(WRONG);
    }
    compared.insert(key, piece.digest);
    Ok(())
}
