//! The machine of a mirror with time and threads: what they share, and what each does.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gabion_base::batch;
use gabion_base::disk::{Completion, Disk, DiskError, DiskRequest, DiskResult, Repair};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::{Condvar, Mutex, MutexGuard, Queue, now, spawn};
use gabion_block::mirror::{Input, Mirror, Notice, Output, RequestId, Sent};
use gabion_block::record::CopyState;

use super::attacher;
use super::{Owner, Recorded};
use crate::gate::{Gate, not_connected};

/// Requests of the owner in flight; more wait.
const REQUESTS_MAX: usize = 512;
/// How long settling may take before the rest is left for the next opening.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// All that the threads of a mirror have in common.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) uuid: Uuid,
    /// Blocks that can be used.
    blocks: AtomicU64,
    pub(super) owner: Arc<dyn Owner>,
    pub(super) state: Mutex<State>,
    start: Duration,
    /// A request has ended.
    room: Condvar,
    /// There may be something to wait for.
    clock: Condvar,
    /// `None` ends the thread; so in the next. What is in the queues follows from requests, whose
    /// number is bounded, and from what the machine has under way.
    sends: Queue<Option<Outgoing>>,
    words: Queue<Option<Word>>,
    pub(super) attaches: Queue<attacher::Job>,
}

/// What is behind the lock.
pub(super) struct State {
    pub(super) mirror: Mirror,
    /// Those of connected copies.
    pub(super) gates: Vec<Option<Arc<Gate>>>,
    pub(super) requests: BTreeMap<RequestId, Completion>,
    pub(super) repairs: BTreeMap<RequestId, Arc<Queue<Result<Repair, DiskError>>>>,
    next_request: u64,
    /// Whether the clock's thread waits without an end, as there was nothing to wait for.
    clock_rests: bool,
    pub(super) closed: bool,
}

/// Something to be sent, to a copy that is connected or not.
struct Outgoing {
    gate: Option<Arc<Gate>>,
    sent: Sent,
    request: DiskRequest,
}

/// Something to be told, in this order, to somebody who may take some seconds.
enum Word {
    Record(Vec<CopyState>),
    Length(u64),
    Notice(Notice),
}

/// On whose thread something follows from something else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Thread {
    /// One that may wait for copies.
    Own,
    /// One that a copy needs for its own work.
    Copys,
}

impl Shared {
    /// What a mirror of `copies` needs to run, those in sync.
    pub(super) fn new(
        name: Arc<str>,
        uuid: Uuid,
        mirror: Mirror,
        copies: Vec<Option<Arc<dyn Disk>>>,
        owner: Arc<dyn Owner>,
    ) -> Arc<Self> {
        let gate = |copy: Option<Arc<dyn Disk>>| copy.map(|disk| Arc::new(Gate::new(disk)));
        let blocks = AtomicU64::new(mirror.blocks());
        let state = State {
            mirror,
            gates: copies.into_iter().map(gate).collect(),
            requests: BTreeMap::new(),
            repairs: BTreeMap::new(),
            next_request: 0,
            clock_rests: false,
            closed: false,
        };
        let shared = Self {
            name,
            uuid,
            blocks,
            owner,
            state: Mutex::new(state),
            start: now(),
            room: Condvar::new(),
            clock: Condvar::new(),
            sends: Queue::default(),
            words: Queue::default(),
            attaches: Queue::default(),
        };
        Arc::new(shared)
    }

    /// Blocks that can be used.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// Starts the threads.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<()> {
        let start = |name: &str, run: fn(&Arc<Self>)| {
            let shared = Arc::clone(self);
            spawn(name, move || run(&shared))
        };
        start("mirror sender", Self::run_sender)?;
        start("mirror recorder", Self::run_recorder)?;
        start("mirror attacher", attacher::run)?;
        start("mirror clock", Self::run_clock)?;
        self.feed(Input::Tick, Thread::Own);
        Ok(())
    }

    /// Enters a request when there is room for it, and tells the machine. Each that is in the way
    /// ends by its deadline.
    pub(super) fn request<T>(
        self: &Arc<Self>,
        enter: impl FnOnce(&mut State, RequestId) -> (Input, T),
    ) -> T {
        let mut state = self.state.lock();
        if state.requests.len() >= REQUESTS_MAX {
            MutexGuard::unlocked(&mut state, batch::settle);
        }
        while state.requests.len() >= REQUESTS_MAX {
            self.room.wait(&mut state);
        }
        let id = RequestId(state.next_request);
        state.next_request += 1;
        let (input, ticket) = enter(&mut state, id);
        self.feed_locked(state, input, Thread::Own);
        ticket
    }

    /// Waits until nothing is under way and nothing is left to be noted on the copies.
    pub(super) fn settle(&self) {
        let deadline = now() + SETTLE_PATIENCE;
        let mut state = self.state.lock();
        state.mirror.settle_soon();
        self.clock.notify_all();
        while !state.mirror.is_settled() && now() < deadline {
            self.room.wait_for(&mut state, Duration::from_millis(20));
        }
    }

    /// Ends the threads, closes the copies, and fails what is left.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        // Here, and not on the thread of some copy, which would wait for itself.
        let gates = std::mem::take(&mut state.gates);
        let requests = std::mem::take(&mut state.requests);
        let repairs = std::mem::take(&mut state.repairs);
        drop(state);
        self.clock.notify_all();
        self.sends.put(None);
        self.words.put(None);
        self.attaches.put(attacher::Job::End);
        for gate in gates.iter().flatten() {
            gate.close();
        }
        repairs.values().for_each(|waiter| waiter.put(Ok(Repair::Changed)));
        for (_, completion) in requests {
            let error = not_connected(Arc::clone(&self.name), "request", BlockAddr(0));
            completion.complete(Err(error));
        }
        drop(gates);
    }

    pub(super) fn feed(self: &Arc<Self>, input: Input, thread: Thread) {
        self.feed_locked(self.state.lock(), input, thread);
    }

    /// Tells the machine something, and does what it says.
    pub(super) fn feed_locked(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        input: Input,
        thread: Thread,
    ) {
        if state.closed {
            return;
        }
        state.mirror.handle(now() - self.start, input);
        self.blocks.store(state.mirror.blocks(), Ordering::Release);
        let mut sends = Vec::new();
        let mut completed: Vec<(Completion, DiskResult)> = Vec::new();
        while let Some(output) = state.mirror.poll_output() {
            match output {
                Output::Send { copy, sent, request } => {
                    let gate = state.gates.get(copy.at()).cloned().flatten();
                    sends.push(Outgoing { gate, sent, request });
                }
                Output::Complete { id, result } => {
                    completed.extend(state.requests.remove(&id).map(|waiter| (waiter, result)));
                }
                Output::Repaired { id, result } => {
                    if let Some(waiter) = state.repairs.remove(&id) {
                        waiter.put(result);
                    }
                }
                Output::Record(states) => self.words.put(Some(Word::Record(states))),
                Output::RecordLength(blocks) => self.words.put(Some(Word::Length(blocks))),
                Output::Notice(notice) => self.words.put(Some(Word::Notice(notice))),
                Output::Attach(copy) => self.attaches.put(attacher::Job::Attach(copy)),
                Output::Detach(copy) => {
                    let gate = state.gates.get_mut(copy.at()).and_then(Option::take);
                    self.attaches.put(attacher::Job::Detach(copy, gate));
                }
            }
        }
        // Not for each request: a clock that goes on ticking needs nobody to wake it.
        if state.clock_rests && state.mirror.poll_timeout().is_some() {
            state.clock_rests = false;
            self.clock.notify_all();
        }
        drop(state);
        if !completed.is_empty() {
            self.room.notify_all();
        }
        for (completion, result) in completed {
            completion.complete(result);
        }
        for send in sends {
            match thread {
                Thread::Own => self.send(send),
                Thread::Copys => self.sends.put(Some(send)),
            }
        }
    }

    fn send(self: &Arc<Self>, send: Outgoing) {
        let Outgoing { gate, sent, request } = send;
        match gate {
            Some(gate) => {
                let shared = Arc::clone(self);
                gate.send(request, move |result| {
                    shared.feed(Input::Done { sent, result }, Thread::Copys);
                });
            }
            None => {
                let (operation, addr) = (request.operation(), request.extent().0);
                let result = Err(not_connected(Arc::clone(&self.name), operation, addr));
                self.feed(Input::Done { sent, result }, Thread::Copys);
            }
        }
    }

    fn run_sender(self: &Arc<Self>) {
        while let Some(send) = self.sends.take() {
            self.send(send);
        }
    }

    fn run_clock(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while !state.closed {
            match state.mirror.poll_timeout() {
                None => {
                    state.clock_rests = true;
                    self.clock.wait(&mut state);
                }
                Some(timeout) => {
                    self.clock.wait_for(&mut state, timeout);
                    self.feed_locked(state, Input::Tick, Thread::Copys);
                    state = self.state.lock();
                }
            }
        }
    }

    fn run_recorder(self: &Arc<Self>) {
        while let Some(word) = self.words.take() {
            let (recorded, done, unknown) = match word {
                Word::Record(states) => {
                    let recorded = self.owner.record(self.uuid, &states);
                    (recorded, Input::Recorded, Input::NotRecorded)
                }
                Word::Length(blocks) => {
                    let recorded = self.owner.lengthen(self.uuid, blocks);
                    (recorded, Input::LengthRecorded, Input::LengthNotRecorded)
                }
                Word::Notice(notice) => {
                    self.owner.notice(self.uuid, notice);
                    continue;
                }
            };
            let input = match recorded {
                Recorded::Done => done,
                Recorded::Unknown => unknown,
                Recorded::Fenced(reason) => Input::Fenced { reason: reason.into() },
            };
            self.feed(input, Thread::Own);
        }
    }
}
