//! Pages of files that the kernel fills, and pages that it is to drop.
//!
//! The kernel locks a page while it waits for its bytes, and dropping a page waits for that lock.
//! The server may let a READ wait for somebody who waits for us to drop other pages, so nobody
//! here may wait for a READ that waits for the server:
//!
//! ```text
//!   a READ    begins: in flight, if no page of it is being dropped; else it waits
//!             in flight: asks the server, which answers at once with bytes or that somebody is in
//!                        the way; with bytes it ends when the kernel has them, else it waits
//!             waiting:   until its pages are not being dropped any more, then for its turn
//!   dropping  1. READs that begin from now on wait
//!             2. those in flight come to their end, soon
//!             3. the kernel drops all pages but those that READs wait for: they hold nothing yet
//! ```
//!
//! When the session has ended, 3 comes alone: what is in flight may get no answer for long.
//!
//! A READ that the kernel has begun without our knowledge may stop 3. It gets here, waits, and 3 is
//! tried again without its pages; the attempt that hangs ends by itself when the READ is through.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::sync::{Condvar, Mutex, spawn};
use gabion_map::FileId;

/// How long an attempt may take before it is looked whether a READ stops it.
const GLANCE: Duration = Duration::from_millis(2);

/// Bytes `from..to`, whole pages.
type Range = (u64, u64);

#[derive(Default)]
struct File {
    flying: BTreeMap<u64, Range>,
    waiting: BTreeMap<u64, Range>,
    dropped: BTreeMap<u64, Range>,
}

impl File {
    fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.waiting.is_empty() && self.dropped.is_empty()
    }
}

fn overlaps(ranges: &BTreeMap<u64, Range>, range: Range) -> bool {
    ranges.values().any(|other| other.0 < range.1 && range.0 < other.1)
}

#[derive(Default)]
struct State {
    files: BTreeMap<FileId, File>,
    next: u64,
}

/// The pages of one mount.
#[derive(Default)]
pub(super) struct Pages {
    state: Mutex<State>,
    changed: Condvar,
}

thread_local! {
    /// The READ that this thread handles.
    static OWN: Cell<Option<(FileId, u64)>> = const { Cell::new(None) };
}

/// How a READ goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Ask the server; it must not wait.
    Flying,
    /// Its turn comes later.
    Waiting,
}

/// The pages around `length` bytes at `offset`.
pub(super) fn pages(offset: u64, length: u64) -> Range {
    const BLOCK: u64 = BLOCK_SIZE as u64;
    let end = offset.saturating_add(length).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
    (offset - offset % BLOCK, end)
}

impl Pages {
    /// This thread begins a READ.
    pub(super) fn begin(&self, file: FileId, range: Range) -> Course {
        self.end_own();
        let mut state = self.state.lock();
        state.next += 1;
        let id = state.next;
        let entry = state.files.entry(file).or_default();
        let course = if overlaps(&entry.dropped, range) {
            entry.waiting.insert(id, range);
            Course::Waiting
        } else {
            entry.flying.insert(id, range);
            Course::Flying
        };
        drop(state);
        self.changed.notify_all();
        OWN.set(Some((file, id)));
        course
    }

    /// Somebody is in the way of this thread's READ.
    pub(super) fn is_in_the_way(&self) {
        let Some((file, id)) = OWN.get() else { return };
        let mut state = self.state.lock();
        let entry = state.files.get_mut(&file).expect("it has a READ");
        if let Some(range) = entry.flying.remove(&id) {
            entry.waiting.insert(id, range);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until the pages of this thread's READ are not being dropped, for `patience` at most.
    pub(super) fn wait_for_turn(&self, patience: Duration) -> bool {
        let Some((file, id)) = OWN.get() else { return true };
        let mut state = self.state.lock();
        loop {
            let entry = state.files.get(&file).expect("it has a READ");
            let range = entry.waiting.get(&id).copied();
            if !range.is_some_and(|range| overlaps(&entry.dropped, range)) {
                return true;
            }
            if self.changed.wait_for(&mut state, patience).timed_out() {
                return false;
            }
        }
    }

    /// This thread's READ, if there is one, is through: the kernel has its answer.
    pub(super) fn end_own(&self) {
        let Some((file, id)) = OWN.take() else { return };
        let mut state = self.state.lock();
        if let Some(entry) = state.files.get_mut(&file) {
            entry.flying.remove(&id);
            entry.waiting.remove(&id);
            if entry.is_idle() {
                state.files.remove(&file);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// READs of `range` that begin from now on wait, until [`Pages::dropped`]. Returns when those
    /// in flight are through.
    pub(super) fn begin_dropping(&self, file: FileId, range: Range) -> u64 {
        let mut state = self.state.lock();
        state.next += 1;
        let id = state.next;
        state.files.entry(file).or_default().dropped.insert(id, range);
        while overlaps(&state.files[&file].flying, range) {
            self.changed.wait(&mut state);
        }
        id
    }

    /// Has the kernel drop `range` with `drop_pages`, which may hang.
    pub(super) fn drop_pages(
        self: &Arc<Self>,
        file: FileId,
        range: Range,
        drop_pages: &Arc<dyn Fn(FileId, Range) + Send + Sync>,
    ) {
        let is_done = Arc::new(Mutex::new(false));
        loop {
            let pieces = self.without_reads(file, range);
            let (this, done) = (Arc::clone(self), Arc::clone(&is_done));
            let (drop_pages, attempt) = (Arc::clone(drop_pages), pieces.clone());
            let run = move || {
                attempt.into_iter().for_each(|piece| drop_pages(file, piece));
                *done.lock() = true;
                // Whoever looks does so with this lock held.
                drop(this.state.lock());
                this.changed.notify_all();
            };
            if spawn("drop-pages", run).is_err() {
                // Out of threads: try again when some have ended.
                let mut state = self.state.lock();
                self.changed.wait_for(&mut state, GLANCE);
                continue;
            }
            let mut state = self.state.lock();
            loop {
                if *is_done.lock() {
                    return;
                }
                let timed_out = self.changed.wait_for(&mut state, GLANCE).timed_out();
                if timed_out && !*is_done.lock() && without_reads(&state, file, range) != pieces {
                    break;
                }
            }
        }
    }

    /// READs of the pages go on.
    pub(super) fn dropped(&self, file: FileId, id: u64) {
        let mut state = self.state.lock();
        if let Some(entry) = state.files.get_mut(&file) {
            entry.dropped.remove(&id);
            if entry.is_idle() {
                state.files.remove(&file);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn without_reads(&self, file: FileId, range: Range) -> Vec<Range> {
        without_reads(&self.state.lock(), file, range)
    }
}

/// The parts of `range` that no READ waits for.
fn without_reads(state: &State, file: FileId, range: Range) -> Vec<Range> {
    let mut holes: Vec<Range> = match state.files.get(&file) {
        None => Vec::new(),
        Some(entry) => entry.waiting.values().chain(entry.flying.values()).copied().collect(),
    };
    holes.sort_unstable();
    let mut pieces = Vec::new();
    let mut from = range.0;
    for hole in holes {
        if hole.0 > from {
            pieces.push((from, hole.0.min(range.1)));
        }
        from = from.max(hole.1);
        if from >= range.1 {
            break;
        }
    }
    if from < range.1 {
        pieces.push((from, range.1));
    }
    pieces.retain(|piece| piece.0 < piece.1);
    pieces
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use gabion_base::ids::{Ino, SubvolId};

    use super::*;

    const FILE: FileId = FileId::new(SubvolId(1), Ino(1));

    #[test]
    fn pages_that_reads_wait_for_are_left_out() {
        let pages = Pages::default();
        let reads = [(4096, 8192), (16384, 20480)];
        for (id, range) in (1..).zip(reads) {
            pages.state.lock().files.entry(FILE).or_default().waiting.insert(id, range);
        }
        let pieces = pages.without_reads(FILE, (0, 32768));
        assert_eq!(pieces, [(0, 4096), (8192, 16384), (20480, 32768)]);
        assert_eq!(pages.without_reads(FILE, (4096, 8192)), []);
        assert_eq!(pages.without_reads(FILE, (8192, 12288)), [(8192, 12288)]);
    }

    #[test]
    fn a_read_that_nobody_answers_does_not_stop_the_end_of_a_session() {
        let pages = Arc::new(Pages::default());
        assert_eq!(pages.begin(FILE, (4096, 8192)), Course::Flying);
        let (tell, dropped) = mpsc::channel();
        let drop_pages: Arc<dyn Fn(FileId, Range) + Send + Sync> =
            Arc::new(move |_, piece| tell.send(piece).unwrap());
        pages.drop_pages(FILE, (0, u64::MAX), &drop_pages);
        drop(drop_pages);
        pages.end_own();
        assert_eq!(dropped.iter().collect::<Vec<_>>(), [(0, 4096), (8192, u64::MAX)]);
    }

    #[test]
    fn a_read_that_the_kernel_has_begun_does_not_stop_the_dropping() {
        let pages = Arc::new(Pages::default());
        let range = (0, 8192);
        let id = pages.begin_dropping(FILE, range);
        // The kernel holds the first page: whoever drops it hangs until the READ is through.
        let (unlock, locked) = mpsc::channel::<()>();
        let locked = Mutex::new(locked);
        let (tell, dropped) = mpsc::channel();
        let drop_pages: Arc<dyn Fn(FileId, Range) + Send + Sync> = Arc::new(move |_, piece| {
            if piece.0 == 0 {
                let _ = locked.lock().recv();
            }
            let _ = tell.send(piece);
        });
        let reader = Arc::clone(&pages);
        let read = thread::spawn(move || {
            assert_eq!(reader.begin(FILE, (0, 4096)), Course::Waiting);
            let has_come = reader.wait_for_turn(Duration::from_secs(60));
            reader.end_own();
            has_come
        });
        pages.drop_pages(FILE, range, &drop_pages);
        assert_eq!(dropped.recv(), Ok((4096, 8192)));
        pages.dropped(FILE, id);
        assert!(read.join().unwrap());
        drop(unlock);
    }
}
