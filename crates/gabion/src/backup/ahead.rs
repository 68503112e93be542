//! Objects and their bytes, read by several threads ahead of who saves them, and given in order.
//!
//! ```text
//!   saver    begins readings, a window full of them      takes what they gave, oldest first
//!   readers  take the oldest that nobody has taken       send parts, and wait if nobody takes them
//! ```
//!
//! So many requests are on their way to the disk at once, whatever is read: small files, or pages
//! here and there in a large one. As readings are taken in order, the oldest is never one that no
//! thread has; so nobody waits for ever. When the saver ends early, readings that no thread has are
//! not done any more: each may take as long as a server that is gone is waited for.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use gabion_backup::format::record::PIECE_MAX;
use gabion_backup::{Digest, Hash, Object};
use gabion_node::Stretch;

use super::abreast::{self, read_piece};
use super::source::{Bytes, Reading, Source};
use crate::failure::{Failure, Result};

/// Threads that read.
const READERS: usize = 8;
/// Readings that have begun and were not taken. Each may have [`WAITING`] times [`PIECE_MAX`]
/// bytes.
pub const WINDOW: usize = 32;
/// What waits of one reading to be taken.
const WAITING: usize = 4;

/// What is wanted of an object.
pub enum Wanted {
    /// What it is, and if it is to be saved here all its bytes.
    All,
    /// What it is, and these stretches.
    First(Vec<Stretch>),
    /// These stretches.
    More(Vec<Stretch>),
}

/// What a reading gives.
pub enum Part {
    /// What the object is, and from which byte on it is to be saved here; nothing if it is not.
    Object(Object, Option<u64>),
    /// It belongs to another subvolume.
    Foreign,
    /// Bytes that are there, and their digest.
    Piece(u64, Vec<u8>, Digest),
    /// From here to there nothing is.
    Hole(Range<u64>),
}

/// Parts that go from thread to thread at once.
type Parts = Result<Vec<Part>>;

struct Task<N> {
    node: N,
    wanted: Wanted,
    out: Sender<Parts>,
}

/// Readings that have begun.
pub struct Ahead<'o, N, T> {
    tasks: Sender<Task<N>>,
    begun: VecDeque<(T, Receiver<Parts>)>,
    /// Whether nobody takes readings any more.
    is_over: &'o AtomicBool,
}

impl<N, T> Drop for Ahead<'_, N, T> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Lets `run` have objects read ahead. `wants` says of an object with so many names from which byte
/// on it is to be saved where it was found; `hash` makes the digests of pieces. `T` is what `run`
/// wants to remember of each reading.
pub fn reading<S: Source, T, R>(
    source: &S,
    hash: Hash,
    wants: impl Fn(&Object, u64) -> Option<u64> + Sync,
    run: impl FnOnce(&mut Ahead<'_, S::Node, T>) -> Result<R>,
) -> Result<R> {
    let reader = &Reader { source, hash, wants };
    let is_over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let (tasks, taken) = unbounded::<Task<S::Node>>();
        for _ in 0..READERS {
            let taken = taken.clone();
            let wanted = taken.into_iter().filter(|_| !is_over.load(Ordering::Relaxed));
            let read = move || wanted.for_each(|task| reader.serve(task));
            let started = thread::Builder::new().name("read".to_owned()).spawn_scoped(scope, read);
            started.map_err(|error| Failure::of("cannot start a thread", &error))?;
        }
        // When this goes, so do the threads.
        run(&mut Ahead { tasks, begun: VecDeque::new(), is_over })
    })
}

impl<N, T> Ahead<'_, N, T> {
    /// Begins to read. No more than [`WINDOW`] readings may have begun.
    pub fn begin(&mut self, node: N, wanted: Wanted, about: T) {
        let (out, parts) = bounded(WAITING);
        // They take tasks for as long as this is there.
        let _ = self.tasks.send(Task { node, wanted, out });
        self.begun.push_back((about, parts));
    }

    /// Whether another reading may begin.
    pub fn has_room(&self) -> bool {
        self.begun.len() < WINDOW
    }

    /// The oldest reading that was not taken.
    pub fn take(&mut self) -> Option<(T, Taken)> {
        let (about, parts) = self.begun.pop_front()?;
        Some((about, Taken { parts, rest: Vec::new().into_iter() }))
    }
}

/// A reading that is taken, part by part.
pub struct Taken {
    parts: Receiver<Parts>,
    rest: std::vec::IntoIter<Part>,
}

impl Iterator for Taken {
    type Item = Result<Part>;

    fn next(&mut self) -> Option<Result<Part>> {
        loop {
            if let Some(part) = self.rest.next() {
                return Some(Ok(part));
            }
            match self.parts.recv() {
                Ok(Ok(parts)) => self.rest = parts.into_iter(),
                Ok(Err(failure)) => return Some(Err(failure)),
                // The reader is done. If it has panicked, so will who waits for its end.
                Err(_) => return None,
            }
        }
    }
}

/// Why a reading ends early.
enum Stop {
    /// Nobody takes the rest.
    Unwanted,
    /// Something cannot be read.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

type Outcome = std::result::Result<(), Stop>;

/// Where a reader puts parts until they are worth a message.
struct Outbox<'t> {
    out: &'t Sender<Parts>,
    hash: Hash,
    parts: Vec<Part>,
    bytes: usize,
}

impl Outbox<'_> {
    fn put(&mut self, part: Part) -> Outcome {
        self.parts.push(part);
        if self.bytes >= PIECE_MAX { self.send() } else { Ok(()) }
    }

    fn put_piece(&mut self, at: u64, piece: Vec<u8>) -> Outcome {
        self.bytes += piece.len();
        let digest = self.hash.digest(&piece);
        self.put(Part::Piece(at, piece, digest))
    }

    fn send(&mut self) -> Outcome {
        self.bytes = 0;
        let parts = std::mem::take(&mut self.parts);
        self.out.send(Ok(parts)).map_err(|_| Stop::Unwanted)
    }
}

/// What a thread reads by.
struct Reader<'s, S, F> {
    source: &'s S,
    hash: Hash,
    wants: F,
}

impl<S: Source, F: Fn(&Object, u64) -> Option<u64>> Reader<'_, S, F> {
    fn serve(&self, task: Task<S::Node>) {
        let Task { node, wanted, out } = task;
        let mut outbox = Outbox { out: &out, hash: self.hash, parts: Vec::new(), bytes: 0 };
        let read = match wanted {
            Wanted::All => self.all(&node, &mut outbox),
            Wanted::First(stretches) => self.first(&node, &stretches, &mut outbox),
            Wanted::More(stretches) => self.stretches(&node, &stretches, &mut outbox),
        };
        // Who takes no more has a reason to say already.
        match read.and_then(|()| outbox.send()) {
            Ok(()) | Err(Stop::Unwanted) => {}
            Err(Stop::Failed(failure)) => _ = out.send(Err(failure)),
        }
    }

    fn all(&self, node: &S::Node, outbox: &mut Outbox<'_>) -> Outcome {
        let Some((object, links)) = self.source.object(node)? else {
            return outbox.put(Part::Foreign);
        };
        let from = (self.wants)(&object, links);
        let bytes = (object.ino, from.unwrap_or(u64::MAX)..object.attributes.size);
        let is_file = object.attributes.is_file();
        outbox.put(Part::Object(object, from))?;
        if is_file && !bytes.1.is_empty() { self.bytes(node, bytes, outbox) } else { Ok(()) }
    }

    fn first(&self, node: &S::Node, stretches: &[Stretch], outbox: &mut Outbox<'_>) -> Outcome {
        match self.source.object(node)? {
            Some((object, _)) => outbox.put(Part::Object(object, Some(0)))?,
            None => return outbox.put(Part::Foreign),
        }
        self.stretches(node, stretches, outbox)
    }

    fn stretches(&self, node: &S::Node, stretches: &[Stretch], outbox: &mut Outbox<'_>) -> Outcome {
        let mut opened = None;
        for stretch in stretches {
            if stretch.is_hole {
                outbox.put(Part::Hole(stretch.from..stretch.to))?;
                continue;
            }
            let bytes = match &opened {
                Some(bytes) => bytes,
                None => opened.insert(self.source.open(node, Reading::Parts)?),
            };
            let mut at = stretch.from;
            while at < stretch.to {
                let to = piece_end(at, stretch.to);
                let piece = read_piece(bytes.as_ref(), at..to)?;
                // The last block may end behind the file.
                let is_end = (piece.len() as u64) < to - at;
                if !piece.is_empty() {
                    outbox.put_piece(at, piece)?;
                }
                if is_end {
                    break;
                }
                at = to;
            }
        }
        Ok(())
    }

    /// Reads what is no hole.
    fn bytes(
        &self,
        node: &S::Node,
        (ino, range): (u64, Range<u64>),
        outbox: &mut Outbox<'_>,
    ) -> Outcome {
        let bytes = self.source.open(node, Reading::Whole)?;
        let is_long = range.end - range.start >= abreast::LENGTH_MIN;
        let mut pieces = pieces(bytes.as_ref(), range);
        let mut put = |range: Range<u64>, piece: Vec<u8>| {
            if (piece.len() as u64) < range.end - range.start {
                let text = format!("object {ino} has become shorter");
                return Err(Failure::new(text).into());
            }
            outbox.put_piece(range.start, piece)
        };
        if is_long && !self.source.reads_ahead() {
            return abreast::read(self.source, node, pieces, put);
        }
        pieces.try_for_each(|range| {
            let range = range?;
            put(range.clone(), read_piece(bytes.as_ref(), range)?)
        })
    }
}

/// The pieces of a range that are no holes.
fn pieces(bytes: &dyn Bytes, range: Range<u64>) -> impl Iterator<Item = Result<Range<u64>>> {
    let mut data = range.start..range.start;
    std::iter::from_fn(move || {
        if data.is_empty() {
            let next = match bytes.data(data.end) {
                Ok(next) => next?,
                Err(failure) => return Some(Err(failure)),
            };
            // It may tell of what was before, too.
            data = next.start.max(data.end)..next.end.min(range.end);
            if data.is_empty() {
                return None;
            }
        }
        let piece = data.start..piece_end(data.start, data.end);
        data.start = piece.end;
        Some(Ok(piece))
    })
}

/// Pieces end where they would in any other file: equal parts are found so.
fn piece_end(at: u64, end: u64) -> u64 {
    const PIECE: u64 = PIECE_MAX as u64;
    end.min((at / PIECE + 1) * PIECE)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Nothing of it can be read: of the first object that is told at once, of others when nobody
    /// wants to know any more.
    struct Gone {
        end: Receiver<()>,
        looks: AtomicUsize,
    }

    impl Source for Gone {
        type Node = usize;

        fn root(&self) -> Result<usize> {
            Ok(0)
        }

        fn at(&self, _: &[u8], _: u64) -> usize {
            0
        }

        fn entries(&self, _: &usize) -> Result<Vec<(Vec<u8>, usize)>> {
            Ok(Vec::new())
        }

        fn object(&self, node: &usize) -> Result<Option<(Object, u64)>> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            if *node > 0 {
                let _ = self.end.recv();
            }
            Err(Failure::new("gone"))
        }

        fn reads_ahead(&self) -> bool {
            false
        }

        fn open<'s>(&'s self, _: &usize, _: Reading) -> Result<Box<dyn Bytes + 's>> {
            Err(Failure::new("gone"))
        }
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_read() {
        let (wish, end) = unbounded::<()>();
        let source = Gone { end, looks: AtomicUsize::new(0) };
        let done = reading(
            &source,
            Hash::default(),
            |_, _| None,
            move |ahead| {
                for node in 0..WINDOW {
                    ahead.begin(node, Wanted::All, wish.clone());
                }
                drop(wish);
                let (_, mut first) = ahead.take().unwrap();
                first.next().unwrap().map(drop)
            },
        );
        assert!(done.is_err());
        // Each of the threads may have begun with one, and who failed at once with another one.
        let looks = source.looks.into_inner();
        assert!(looks <= READERS + 1, "{looks} looks");
    }
}
