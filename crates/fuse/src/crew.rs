//! The threads that read from the kernel and run the handler.
//!
//! ```text
//!            read                        admit                      done
//!  reading ---------> INTERRUPT, FORGET: served at once ----------------------> reading
//!     ^        \----> request --> others read, or one is started --> handling --+
//!     |                  \------> none can be started: to the backlog -> reading |
//!     +---------- enough read already: the thread rests, or ends <---------------+
//! ```
//!
//! The kernel wakes those that read in turn, the one that has waited longest first. So few of them
//! do: each of many would be woken where its stack has left the caches, and often on a processor
//! that sleeps, which took twice the time of a small request. The others rest, and the one that
//! did so last is called when nobody else would read.
//!
//! Invariants, while the session runs and threads can be started:
//! - `1 <= reading`, `reading + resting <= total <= threads_max`: INTERRUPT and FORGET are always
//!   read, even when every handler waits for a dead peer;
//! - a request is put into the backlog only while other threads are handling, and each of those
//!   takes from it before it reads again, so it drains;
//! - the backlog is bounded in requests and bytes; only when it is full does the last reader wait;
//! - a WRITE from the page cache is never put into the backlog: what the handlers wait for may be
//!   that somebody gets it. The last reader handles it itself.
//!
//! A request in the backlog is interruptible and has a deadline like any other.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::abi::opcode;
use crate::buffer::{Slot, Spares};
use crate::decode::{self, DecodeError, Message};
use crate::flight::Core;
use crate::reply::{Errno, Reply};
use crate::session::{Config, End, Handler};
use crate::wake::ThreadId;

/// Requests the backlog holds.
const BACKLOG_MAX: usize = 1024;
/// Bytes in the backlog from which on nothing is added.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
/// How often callers are checked for having been killed, at least.
const TICK_MAX: Duration = Duration::from_millis(250);

/// A session's threads and what they share.
pub(crate) struct Crew {
    pub(crate) core: Arc<Core>,
    spares: Arc<Spares>,
    handler: Box<dyn Handler>,
    config: Config,
    roster: Mutex<Roster>,
    /// There is room in the backlog again, or the session ends.
    room: Condvar,
    /// The last thread is gone.
    finished: Condvar,
}

#[derive(Default)]
struct Roster {
    total: usize,
    /// Threads that read or are about to.
    reading: usize,
    /// Those of them that have begun to run.
    readers: Vec<ThreadId>,
    /// Threads that wait until they are called to read, and what they are called by.
    resting: Vec<(ThreadId, Arc<Condvar>)>,
    started: usize,
    backlog: VecDeque<Deferred>,
    backlog_bytes: usize,
    end: Option<End>,
    destroyed: bool,
    closing: bool,
    finished: bool,
}

impl Roster {
    fn begin_reading(&mut self, thread: ThreadId) {
        self.reading += 1;
        self.readers.push(thread);
    }

    fn end_reading(&mut self, thread: ThreadId) {
        self.reading -= 1;
        self.readers.retain(|reader| *reader != thread);
    }

    /// Calls a thread that rests, if there is one. From now on it counts as reading.
    fn call(&mut self) -> bool {
        let Some((thread, bell)) = self.resting.pop() else { return false };
        self.begin_reading(thread);
        bell.notify_one();
        true
    }

    fn is_resting(&self, thread: ThreadId) -> bool {
        self.resting.iter().any(|(resting, _)| *resting == thread)
    }
}

/// A request that waits for a thread.
struct Deferred {
    message: Slot,
    reply: Reply,
}

enum Admission {
    Handle(Reply),
    /// The thread still counts as reading.
    HandleInPlace(Reply),
    Deferred,
}

enum Next {
    Handle(Deferred),
    Read,
    Leave,
}

impl Crew {
    pub(crate) fn new(core: Arc<Core>, handler: Box<dyn Handler>, config: Config) -> Arc<Self> {
        Arc::new(Self {
            core,
            spares: Spares::new(config.spare_buffers),
            handler,
            config,
            roster: Mutex::default(),
            room: Condvar::new(),
            finished: Condvar::new(),
        })
    }

    /// Starts as many threads as are to read, at least one.
    pub(crate) fn start(self: &Arc<Self>) -> io::Result<()> {
        let mut roster = self.roster.lock();
        for _ in 0..self.config.readers {
            let added = self.add_reader(&mut roster);
            if roster.total == 0 {
                return added;
            }
        }
        let crew = Arc::clone(self);
        let name = format!("{}-deadline", self.config.name);
        let watchdog = std::thread::Builder::new().name(name);
        watchdog.spawn(move || crew.watch_deadlines()).map(|_| ())
    }

    fn add_reader(self: &Arc<Self>, roster: &mut Roster) -> io::Result<()> {
        let crew = Arc::clone(self);
        let name = format!("{}-{}", self.config.name, roster.started);
        std::thread::Builder::new().name(name).spawn(move || crew.serve())?;
        roster.started += 1;
        roster.total += 1;
        roster.reading += 1;
        Ok(())
    }

    /// The life of one thread.
    fn serve(self: &Arc<Self>) {
        let me = ThreadId::wakeable();
        let mut slot = Slot::default();
        self.roster.lock().readers.push(me);
        loop {
            match self.core.device.read(slot.ready(&self.spares)) {
                Ok(()) => {
                    if let Next::Leave = self.receive(me, &mut slot) {
                        break;
                    }
                }
                Err(error) => {
                    if let Some(end) = End::from_read_error(&error) {
                        self.stop(end);
                    }
                }
            }
            let mut roster = self.roster.lock();
            if roster.end.is_some() {
                roster.end_reading(me);
                roster.total -= 1;
                break;
            }
        }
        self.after_leaving();
    }

    /// Deals with the message in `slot` and whatever waits behind it. The thread counts as reading
    /// before, and after unless it is to leave.
    fn receive(self: &Arc<Self>, me: ThreadId, slot: &mut Slot) -> Next {
        let Some(header) = decode::header(slot.bytes()) else { return Next::Read };
        if matches!(
            header.opcode,
            opcode::INTERRUPT | opcode::FORGET | opcode::BATCH_FORGET | opcode::NOTIFY_REPLY
        ) {
            // Nobody waits for an answer to these, so a malformed one is dropped.
            if let Ok(message) = decode::decode_slot(slot) {
                guarded(|| self.serve_at_once(header.unique, message));
            }
            return Next::Read;
        }
        let reply = Reply::new(Arc::clone(&self.core), &header);
        match self.admit(me, slot, reply) {
            Admission::Handle(reply) => self.handle(slot, reply),
            Admission::HandleInPlace(reply) => {
                self.handle(slot, reply);
                return Next::Read;
            }
            Admission::Deferred => return Next::Read,
        }
        loop {
            match self.next(me) {
                Next::Handle(mut deferred) => self.handle(&mut deferred.message, deferred.reply),
                next => return next,
            }
        }
    }

    /// Makes sure that somebody else reads while this thread handles its request, or puts the
    /// request into the backlog.
    fn admit(self: &Arc<Self>, me: ThreadId, slot: &mut Slot, reply: Reply) -> Admission {
        let is_urgent = decode::is_from_page_cache(slot.bytes());
        let mut roster = self.roster.lock();
        loop {
            let spare = roster.reading > 1
                || roster.call()
                || roster.total < self.config.threads_max && self.add_reader(&mut roster).is_ok();
            // A lone thread that can get no company does what it can.
            if spare || roster.total == 1 {
                roster.end_reading(me);
                return Admission::Handle(reply);
            }
            if is_urgent {
                return Admission::HandleInPlace(reply);
            }
            if roster.end.is_some() {
                drop(roster);
                drop(reply);
                return Admission::Deferred;
            }
            if roster.backlog.len() < BACKLOG_MAX && roster.backlog_bytes < BACKLOG_BYTES_MAX {
                roster.backlog_bytes += slot.bytes().len();
                roster.backlog.push_back(Deferred { message: slot.take(), reply });
                return Admission::Deferred;
            }
            self.room.wait(&mut roster);
        }
    }

    /// What a thread does that has handled a request.
    fn next(&self, me: ThreadId) -> Next {
        let mut roster = self.roster.lock();
        if roster.end.is_some() {
            roster.total -= 1;
            return Next::Leave;
        }
        if let Some(deferred) = roster.backlog.pop_front() {
            roster.backlog_bytes -= deferred.message.bytes().len();
            self.room.notify_one();
            return Next::Handle(deferred);
        }
        if roster.reading < self.config.readers {
            roster.begin_reading(me);
            return Next::Read;
        }
        if roster.reading + roster.resting.len() >= self.config.threads_idle {
            roster.total -= 1;
            return Next::Leave;
        }
        let bell = Arc::new(Condvar::new());
        roster.resting.push((me, Arc::clone(&bell)));
        while roster.is_resting(me) && roster.end.is_none() {
            bell.wait(&mut roster);
        }
        if roster.is_resting(me) {
            roster.resting.retain(|(resting, _)| *resting != me);
            roster.total -= 1;
            return Next::Leave;
        }
        Next::Read
    }

    /// Messages that want no thread of their own.
    fn serve_at_once(&self, unique: u64, message: Message<'_>) {
        match message {
            Message::Interrupt { unique: target } => match self.core.find(target) {
                Some(flight) => self.core.interrupt(&flight),
                None => {
                    // It overtook its request, which another thread is about to register. A write
                    // that fails means that the request is answered already.
                    std::thread::yield_now();
                    let _ = self.core.device.write(unique, -libc::EAGAIN, &[]);
                }
            },
            Message::Forget(forgets) => {
                for (node, lookups) in forgets {
                    self.handler.forget(node, lookups);
                }
            }
            _ => {}
        }
    }

    /// Has the handler answer one request. Whatever is left unanswered, by a panic too, gets EIO.
    fn handle(&self, slot: &mut Slot, reply: Reply) {
        if reply.is_settled() {
            return;
        }
        match decode::decode_slot(slot) {
            Ok(Message::Request(request)) => guarded(|| self.handler.handle(request, reply)),
            Ok(Message::Destroy) => {
                guarded(|| self.destroy());
                reply.ok();
            }
            Ok(_) => drop(reply),
            Err(error) => {
                reply.error(errno_of(error));
            }
        }
    }

    fn destroy(&self) {
        if !std::mem::replace(&mut self.roster.lock().destroyed, true) {
            self.handler.destroy();
        }
    }

    /// Ends the session; the first reason counts.
    pub(crate) fn stop(&self, end: End) {
        {
            let mut roster = self.roster.lock();
            if roster.end.is_some() {
                return;
            }
            roster.end = Some(end);
            self.room.notify_all();
            roster.resting.iter().for_each(|(_, bell)| _ = bell.notify_one());
        }
        if end == End::Shutdown {
            self.core.hand_over();
            self.wake_readers();
        } else {
            self.core.end();
        }
    }

    /// What is left to do for a thread that was taken off the roster.
    fn after_leaving(&self) {
        let mut roster = self.roster.lock();
        if roster.end.is_none() {
            return;
        }
        let last = roster.total == 0 && !std::mem::replace(&mut roster.closing, true);
        let backlog = if last { std::mem::take(&mut roster.backlog) } else { VecDeque::new() };
        drop(roster);
        drop(backlog);
        if last {
            guarded(|| self.destroy());
            self.roster.lock().finished = true;
            self.finished.notify_all();
        }
    }

    /// Wakes all threads that read, so that they see the end.
    fn wake_readers(&self) {
        // A thread takes itself off the list before it ends, so all of these still run.
        for thread in &self.roster.lock().readers {
            thread.wake();
        }
    }

    /// Waits until all threads are gone; `None` if `timeout` passes first.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<End> {
        let mut roster = self.roster.lock();
        match timeout {
            None => self.finished.wait_while(&mut roster, |roster| !roster.finished),
            Some(timeout) => {
                let unfinished = |roster: &mut Roster| !roster.finished;
                let _ = self.finished.wait_while_for(&mut roster, unfinished, timeout);
            }
        }
        roster.end.filter(|_| roster.finished)
    }

    fn watch_deadlines(&self) {
        let tick = (self.config.deadline / 4).clamp(Duration::from_millis(5), TICK_MAX);
        while self.wait(Some(tick)).is_none() {
            self.core.expire(self.config.deadline);
            if self.roster.lock().end.is_some() {
                self.wake_readers();
            }
        }
    }
}

fn errno_of(error: DecodeError) -> Errno {
    match error {
        DecodeError::Opcode(_) => Errno::new(libc::ENOSYS),
        DecodeError::Value { .. } => Errno::new(libc::EINVAL),
        _ => Errno::new(libc::EIO),
    }
}

/// Runs a handler. A panic in it has been reported by the panic hook, which decides whether the
/// program goes on; if it does, so does the session.
fn guarded(run: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(run));
}
