//! Pieces of one large file, read by several threads and given in order: for sources below which
//! nobody reads ahead.

use std::collections::VecDeque;
use std::ops::Range;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::source::{Bytes, Reading, Source};
use crate::failure::{Failure, Result};

/// Threads that read, beside the one that takes.
const THREADS: usize = 3;
/// Pieces that were begun and not taken.
const WINDOW: usize = 6;
/// Files of which so many bytes or more are to be read are worth the threads.
pub const LENGTH_MIN: u64 = 4 << 20;

/// A piece that is to be read, and where it goes.
type Task = (Range<u64>, Sender<Result<Vec<u8>>>);

/// Reads these pieces of a file, and gives them to `take` in their order.
pub fn read<S: Source, E: From<Failure>>(
    source: &S,
    node: &S::Node,
    mut pieces: impl Iterator<Item = Result<Range<u64>>>,
    mut take: impl FnMut(Range<u64>, Vec<u8>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let (tasks, taken) = bounded::<Task>(WINDOW);
    thread::scope(|scope| {
        // When this goes, so do the threads.
        let tasks = tasks;
        for _ in 0..THREADS {
            let taken = taken.clone();
            let started = thread::Builder::new().name("read".to_owned());
            let started = started.spawn_scoped(scope, move || serve(source, node, &taken));
            started.map_err(|error| Failure::of("cannot start a thread", &error))?;
        }
        let mut begun = VecDeque::new();
        loop {
            while begun.len() < WINDOW
                && let Some(range) = pieces.next().transpose()?
            {
                let (out, piece) = bounded(1);
                // They take tasks for as long as this is there.
                let _ = tasks.send((range.clone(), out));
                begun.push_back((range, piece));
            }
            let Some((range, piece)) = begun.pop_front() else { return Ok(()) };
            // If nothing comes the thread has panicked, and so will who waits for its end.
            let piece = piece.recv().unwrap_or_else(|_| Err(Failure::new("a reader is gone")));
            take(range, piece?)?;
        }
    })
}

fn serve<S: Source>(source: &S, node: &S::Node, tasks: &Receiver<Task>) {
    let opened = source.open(node, Reading::Whole);
    for (range, out) in tasks {
        let piece = match &opened {
            Ok(bytes) => read_piece(bytes.as_ref(), range),
            Err(failure) => Err(Failure::new(failure.to_string())),
        };
        // Nobody takes it any more if another one could not be read.
        let _ = out.send(piece);
    }
}

/// Reads one piece.
pub fn read_piece(bytes: &dyn Bytes, range: Range<u64>) -> Result<Vec<u8>> {
    bytes.read(range.start, (range.end - range.start) as usize)
}
