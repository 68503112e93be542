//! Requests in flight in an io_uring.
//!
//! ```text
//!   any thread:   wait for a free slot -> put the flight there -> push its entry -> enter
//!   the reaper:   wait for completions -> find the flight by its slot
//!                    short        -> push the rest, same slot
//!                    interrupted  -> push it again, same slot
//!                    else         -> free the slot, complete the ticket
//! ```
//!
//! - There are [`DEPTH`] slots, as many as the ring has entries, so that pushing never fails;
//!   whoever finds none free waits.
//! - A [`Flight`] owns the memory that the kernel reads or writes, and leaves its slot only after
//!   the kernel has completed it. A waiter that is gone changes nothing.
//! - The kernel cancels what a thread has handed in when that thread ends. The reaper outlives all
//!   flights and hands such a request in again: the engine never writes a block twice at a time, so
//!   a repeated write changes nothing.
//! - The table's lock also orders the submission side of the ring; the completion side belongs to
//!   the reaper alone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Completion, DiskRequest, DiskResult, Durability, Ticket};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::{Condvar, Mutex};
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

use super::AbortOnPanic;
use super::backing::{Backing, is_unsupported};
use super::transfer::{Progress, ReadCursor, WriteCursor};

/// Requests in flight. A disk gets no faster beyond this, and more would only wait in the kernel.
const DEPTH: usize = 128;
/// The mark of the entry that ends the reaper.
const STOP: u64 = u64::MAX;
/// `IORING_ENTER_GETEVENTS`: wait for completions.
const ENTER_GETEVENTS: u32 = 1;

/// One ring with the thread that reaps its completions.
pub(super) struct Ring {
    shared: Arc<Shared>,
    reaper: Option<JoinHandle<()>>,
}

struct Shared {
    ring: IoUring,
    backing: Arc<Backing>,
    table: Mutex<Table>,
    room: Condvar,
}

struct Table {
    flights: Vec<Option<Box<Flight>>>,
    free: Vec<usize>,
}

/// A request that the kernel works on.
struct Flight {
    work: Work,
    completion: Completion,
}

enum Work {
    Read {
        addr: BlockAddr,
        blocks: Blocks,
        cursor: ReadCursor,
    },
    Write {
        addr: BlockAddr,
        /// The memory that the cursor has the addresses of.
        parts: Vec<BlockSlice>,
        durability: Durability,
        cursor: WriteCursor,
    },
    Flush,
}

impl Ring {
    /// Fails if the kernel offers no ring (or forbids it), or no thread.
    pub(super) fn start(backing: &Arc<Backing>) -> io::Result<Self> {
        let ring = IoUring::new(DEPTH as u32)?;
        let table =
            Table { flights: (0..DEPTH).map(|_| None).collect(), free: (0..DEPTH).rev().collect() };
        let shared = Arc::new(Shared {
            ring,
            backing: Arc::clone(backing),
            table: Mutex::new(table),
            room: Condvar::new(),
        });
        let reaped = Arc::clone(&shared);
        let reaper = thread::Builder::new().name("disk ring".into());
        let reaper = Some(reaper.spawn(move || reaped.reap())?);
        Ok(Self { shared, reaper })
    }

    /// Starts a checked, non-empty read, write or flush. Waits for a free slot.
    pub(super) fn submit(&self, request: DiskRequest) -> Ticket {
        let work = match request {
            DiskRequest::Read { addr, count } => {
                let blocks = Blocks::zeroed(count);
                Work::Read { addr, blocks, cursor: ReadCursor::new(addr) }
            }
            DiskRequest::Write { addr, parts, durability } => {
                let cursor = WriteCursor::new(addr, &parts);
                Work::Write { addr, parts, durability, cursor }
            }
            DiskRequest::Flush => Work::Flush,
            other => unreachable!("a ring has no operation for {}", other.operation()),
        };
        let (ticket, completion) = Ticket::pair();
        let mut table = self.shared.table.lock();
        let slot = loop {
            match table.free.pop() {
                Some(slot) => break slot,
                None => self.shared.room.wait(&mut table),
            }
        };
        table.flights[slot] = Some(Box::new(Flight { work, completion }));
        self.shared.push(&mut table, slot);
        ticket
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut table = self.shared.table.lock();
        while table.free.len() < DEPTH {
            self.shared.room.wait(&mut table);
        }
        // SAFETY: the table is locked, and the entry refers to no memory.
        unsafe { self.shared.enter(&opcode::Nop::new().build().user_data(STOP)) };
        drop(table);
        if let Some(reaper) = self.reaper.take() {
            // It ends by this entry, or the process has ended before.
            let _ = reaper.join();
        }
    }
}

impl Shared {
    /// Hands the flight in `slot`, or what is left of it, to the kernel.
    fn push(&self, table: &mut Table, slot: usize) {
        let flight = table.flights[slot].as_mut().expect("a flight is pushed from its slot");
        let entry = flight.work.entry(&self.backing).user_data(slot as u64);
        // SAFETY: the table is locked. The entry's memory is the flight's, which stays where it is
        // until this entry has completed.
        unsafe { self.enter(&entry) };
    }

    /// Puts an entry into the ring and makes the kernel take it.
    ///
    /// # Safety
    ///
    /// The table must be locked, and the entry's memory must stay until the entry has completed.
    unsafe fn enter(&self, entry: &Entry) {
        // SAFETY: the lock makes this the only submission queue in use.
        let mut queue = unsafe { self.ring.submission_shared() };
        // SAFETY: by this function's own condition.
        let pushed = unsafe { queue.push(entry) };
        assert!(pushed.is_ok(), "the ring has room for as many entries as there are slots");
        loop {
            queue.sync();
            if queue.is_empty() {
                return;
            }
            match self.ring.submit() {
                Ok(_) => {}
                // Busy or short of memory: the entry is still in the queue.
                Err(error) if is_transient(&error) => thread::yield_now(),
                Err(error) => panic!("the kernel refuses its own ring: {error}"),
            }
        }
    }

    /// The reaper's life.
    fn reap(&self) {
        let _abort = AbortOnPanic;
        loop {
            // SAFETY: no argument is passed, so none has to be valid.
            let entered = unsafe { self.ring.submitter().enter::<()>(0, 1, ENTER_GETEVENTS, None) };
            match entered {
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(error) => panic!("the kernel refuses its own ring: {error}"),
            }
            // SAFETY: only this thread uses the completion queue.
            let completions = unsafe { self.ring.completion_shared() };
            for entry in completions {
                if entry.user_data() == STOP {
                    return;
                }
                self.landed(entry.user_data() as usize, entry.result());
            }
        }
    }

    /// The kernel has completed the flight in `slot`.
    fn landed(&self, slot: usize, result: i32) {
        let mut table = self.table.lock();
        let flight = table.flights[slot].as_mut().expect("what has completed was in its slot");
        let progress = flight.work.advance(&self.backing, result);
        if matches!(progress, Ok(Progress::More)) {
            return self.push(&mut table, slot);
        }
        let flight = table.flights[slot].take().expect("it was there just now");
        table.free.push(slot);
        // A submitter and a drop may both be waiting.
        self.room.notify_all();
        drop(table);
        let Flight { work, completion } = *flight;
        completion.complete(work.outcome(&self.backing, progress));
    }
}

impl Work {
    /// What the kernel is to do next.
    fn entry(&mut self, backing: &Backing) -> Entry {
        let fd = types::Fd(backing.fd());
        match self {
            Self::Read { blocks, cursor, .. } => {
                let rest = cursor.rest(blocks.bytes_mut());
                opcode::Read::new(fd, rest.as_mut_ptr(), rest.len() as u32)
                    .offset(cursor.offset())
                    .build()
            }
            Self::Write { cursor, durability, .. } => {
                let flags = match durability {
                    Durability::Cached => 0,
                    Durability::Fua => libc::RWF_DSYNC,
                };
                let parts = cursor.rest();
                opcode::Writev::new(fd, parts.as_ptr(), parts.len() as u32)
                    .offset(cursor.offset())
                    .rw_flags(flags as _)
                    .build()
            }
            Self::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    fn advance(&mut self, backing: &Backing, result: i32) -> io::Result<Progress> {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            return if is_interrupted(&error) { Ok(Progress::More) } else { Err(error) };
        }
        match self {
            Self::Read { blocks, cursor, .. } => {
                cursor.advance(blocks.bytes_mut(), result as usize, |at| backing.is_end(at))
            }
            Self::Write { cursor, .. } => cursor.advance(result as usize),
            Self::Flush => Ok(Progress::Done),
        }
    }

    /// What the waiter gets.
    fn outcome(self, backing: &Backing, progress: io::Result<Progress>) -> DiskResult {
        match (self, progress) {
            (Self::Read { blocks, .. }, Ok(_)) => Ok(Some(blocks)),
            (Self::Read { addr, .. }, Err(error)) => Err(backing.failure("read", addr, error)),
            (Self::Write { addr, parts, durability: Durability::Fua, .. }, Err(error))
                if is_unsupported(&error) =>
            {
                backing.dsync_refused.store(true, Ordering::Relaxed);
                backing.execute(DiskRequest::Write { addr, parts, durability: Durability::Fua })
            }
            (Self::Write { addr, .. }, Err(error)) => Err(backing.failure("write", addr, error)),
            (Self::Flush, Err(error)) => Err(backing.failure("flush", BlockAddr(0), error)),
            (Self::Write { .. } | Self::Flush, Ok(_)) => Ok(None),
        }
    }
}

/// Whether a call into the ring is to be made again.
fn is_transient(error: &io::Error) -> bool {
    let errno = error.raw_os_error().unwrap_or(0);
    [libc::EINTR, libc::EAGAIN, libc::EBUSY].contains(&errno)
}

/// Whether a request was not done, for reasons that have nothing to do with the disk.
fn is_interrupted(error: &io::Error) -> bool {
    let errno = error.raw_os_error().unwrap_or(0);
    [libc::EINTR, libc::EAGAIN, libc::ECANCELED].contains(&errno)
}
