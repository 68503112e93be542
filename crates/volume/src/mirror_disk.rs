//! A mirror that is running: the machine of [`gabion_block::mirror`] with disks, time and threads.
//!
//! ```text
//!   any caller      request -> machine -> sends to the copies
//!   copies' threads answer  -> machine -> completes requests; what is to be sent goes to...
//!   sender          sends that follow from answers: a copy's thread must not wait for its copy
//!   clock           ticks
//!   recorder        tells the record, as writes may wait for that
//!   attacher        connects to stale copies, and closes what was given up
//! ```
//!
//! The machine is behind one lock, which is never held while anything is sent or completed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Completion, Disk, DiskError, DiskRequest, DiskResult, Repair, Ticket};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::{Condvar, Mutex, MutexGuard};
use gabion_block::copies::{COPIES_MAX, CopyIndex};
use gabion_block::mirror::{
    Compared, CopyStatus, Input, Mirror, Notice, Order, Output, RequestId, Sent, Trust,
};
use gabion_block::record::CopyState;

use crate::gate::{Closed, Gate, not_connected};
use crate::member::MemberError;

/// Requests of the owner in flight; more wait.
const REQUESTS_MAX: usize = 512;
/// The first wait between two attempts to attach a copy; each is twice as long.
const ATTACH_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two attempts.
const ATTACH_MAX: Duration = Duration::from_secs(3);
/// How long closing may take before what is unsettled is left for the next opening.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// What a running mirror wants from the volume that it is part of. Calls may take some seconds.
pub trait Owner: Send + Sync {
    /// Makes the record say this of the copies.
    fn record(&self, mirror: Uuid, states: &[CopyState]) -> Recorded;

    /// Connects to a stale copy.
    fn attach(&self, mirror: Uuid, copy: CopyIndex) -> Result<Attachment, MemberError>;

    /// A copy cannot be connected; told once for each reason.
    fn not_attached(&self, mirror: Uuid, copy: CopyIndex, reason: &MemberError);

    /// A block of a copy was wrong and is right again.
    fn repaired(&self, mirror: Uuid, copy: CopyIndex, addr: BlockAddr);

    /// Somebody should know.
    fn notice(&self, mirror: Uuid, notice: Notice);
}

/// What became of the wish to change the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It says so.
    Done,
    /// That is not known.
    Unknown,
    /// Somebody else has opened the volume.
    Fenced(String),
}

/// A copy that has been connected.
pub struct Attachment {
    /// The copy; nothing if it may lack anything and the record does not say so yet. Then it is to
    /// be attached again when the record does.
    pub disk: Option<Arc<dyn Disk>>,
    /// Whether it may lack anything.
    pub full: bool,
}

/// A mirror in use.
pub struct MirrorDisk {
    shared: Arc<Shared>,
    /// Until the threads are started.
    waiting: Mutex<Option<Queues>>,
}

struct Queues {
    sends: Receiver<Option<Job>>,
    records: Receiver<Option<Vec<CopyState>>>,
    attaches: Receiver<AttachJob>,
}

struct Shared {
    name: Arc<str>,
    uuid: Uuid,
    blocks: u64,
    start: Instant,
    owner: Arc<dyn Owner>,
    state: Mutex<State>,
    /// A request has ended, or the mirror is being closed.
    room: Condvar,
    /// There may be something to wait for.
    clock: Condvar,
    /// `None` ends the thread; so in the others.
    sends: Sender<Option<Job>>,
    records: Sender<Option<Vec<CopyState>>>,
    attaches: Sender<AttachJob>,
}

struct State {
    mirror: Mirror,
    gates: Vec<Option<Arc<Gate>>>,
    requests: BTreeMap<RequestId, Completion>,
    repairs: BTreeMap<RequestId, Sender<Result<Repair, DiskError>>>,
    next_request: u64,
    closed: bool,
}

/// Something to be sent, to a copy that is connected or not.
struct Job {
    gate: Option<Arc<Gate>>,
    sent: Sent,
    request: DiskRequest,
}

enum AttachJob {
    End,
    Attach(CopyIndex),
    /// Do not attach it any more, and close what is left of it.
    Detach(CopyIndex, Option<Arc<Gate>>),
}

/// On whose thread something follows from something else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// One that may wait for copies.
    Own,
    /// One that a copy needs for its own work.
    Copys,
}

impl MirrorDisk {
    /// A mirror of `copies`, those in sync. It works only half before [`MirrorDisk::start`].
    pub fn new(
        name: Arc<str>,
        uuid: Uuid,
        mirror: Mirror,
        copies: Vec<Option<Arc<dyn Disk>>>,
        owner: Arc<dyn Owner>,
    ) -> Self {
        let (sends, sends_receiver) = mpsc::channel();
        let (records, records_receiver) = mpsc::channel();
        let (attaches, attaches_receiver) = mpsc::channel();
        let gate = |copy: Option<Arc<dyn Disk>>| copy.map(|disk| Arc::new(Gate::new(disk)));
        let blocks = mirror.blocks();
        let state = State {
            mirror,
            gates: copies.into_iter().map(gate).collect(),
            requests: BTreeMap::new(),
            repairs: BTreeMap::new(),
            next_request: 0,
            closed: false,
        };
        let shared = Arc::new(Shared {
            name,
            uuid,
            blocks,
            start: Instant::now(),
            owner,
            state: Mutex::new(state),
            room: Condvar::new(),
            clock: Condvar::new(),
            sends,
            records,
            attaches,
        });
        let queues = Queues {
            sends: sends_receiver,
            records: records_receiver,
            attaches: attaches_receiver,
        };
        Self { shared, waiting: Mutex::new(Some(queues)) }
    }

    /// Starts the threads. They end when the mirror is dropped.
    pub fn start(&self) -> std::io::Result<()> {
        let Some(queues) = self.waiting.lock().take() else { return Ok(()) };
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(run).map(drop)
        };
        let shared = || Arc::clone(&self.shared);
        let own = shared();
        start("mirror sender", Box::new(move || own.run_sender(&queues.sends)))?;
        let own = shared();
        start("mirror recorder", Box::new(move || own.run_recorder(&queues.records)))?;
        let own = shared();
        start("mirror attacher", Box::new(move || own.run_attacher(&queues.attaches)))?;
        let own = shared();
        start("mirror clock", Box::new(move || own.run_clock()))?;
        self.shared.feed(Input::Tick, Thread::Own);
        Ok(())
    }

    /// Names the mirror in the record.
    pub fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    /// How each copy is.
    pub fn status(&self) -> Vec<CopyStatus> {
        self.shared.state.lock().mirror.copies()
    }

    /// How far comparing is, while it is under way.
    pub fn compared(&self) -> Option<Compared> {
        self.shared.state.lock().mirror.compared()
    }

    /// The administrator wants something.
    pub fn order(&self, order: Order) {
        if let Order::PutIn(copy) = order {
            let mut state = self.shared.state.lock();
            while state.gates.len() <= copy.at() {
                state.gates.push(None);
            }
        }
        self.shared.feed(Input::Order(order), Thread::Own);
    }

    /// Somebody else has the volume.
    pub fn fence(&self, reason: &Arc<str>) {
        self.shared.feed(Input::Fenced { reason: Arc::clone(reason) }, Thread::Own);
    }

    /// Has everything written to all copies, so that the next opening finds nothing to be done.
    pub fn settle(&self) -> Result<(), DiskError> {
        self.flush()?;
        let deadline = Instant::now() + CLOSE_PATIENCE;
        let mut state = self.shared.state.lock();
        state.mirror.settle_soon();
        self.shared.clock.notify_all();
        while !state.mirror.is_settled() && Instant::now() < deadline {
            self.shared.room.wait_for(&mut state, Duration::from_millis(20));
        }
        Ok(())
    }

    fn request<T>(&self, enter: impl FnOnce(&mut State, RequestId) -> (Input, T)) -> T {
        let mut state = self.shared.state.lock();
        while state.requests.len() >= REQUESTS_MAX {
            self.shared.room.wait(&mut state);
        }
        let id = RequestId(state.next_request);
        state.next_request += 1;
        let (input, ticket) = enter(&mut state, id);
        self.shared.feed_locked(state, input, Thread::Own);
        ticket
    }
}

impl Drop for MirrorDisk {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        // Here, and not on the thread of some copy, which would wait for itself.
        let gates = std::mem::take(&mut state.gates);
        let requests = std::mem::take(&mut state.requests);
        drop(state);
        self.shared.clock.notify_all();
        self.shared.room.notify_all();
        // Threads that were never started do not listen.
        let _ = self.shared.sends.send(None);
        let _ = self.shared.records.send(None);
        let _ = self.shared.attaches.send(AttachJob::End);
        for gate in gates.iter().flatten() {
            gate.close();
        }
        for (_, completion) in requests {
            let error = not_connected(Arc::clone(&self.shared.name), "request", BlockAddr(0));
            completion.complete(Err(error));
        }
        drop(gates);
    }
}

impl Disk for MirrorDisk {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.shared.name)
    }

    fn blocks(&self) -> u64 {
        self.shared.blocks
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.shared.name, self.shared.blocks) {
            return Ticket::ready(Err(error));
        }
        if !matches!(request, DiskRequest::Flush) && request.extent().1 == 0 {
            return Ticket::ready(Ok(None));
        }
        self.request(|state, id| {
            let (ticket, completion) = Ticket::pair();
            state.requests.insert(id, completion);
            (Input::Request { id, request }, ticket)
        })
    }

    fn copies(&self) -> usize {
        self.shared.state.lock().gates.len()
    }

    fn read_copy(&self, copy: usize, addr: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
        assert!(copy < COPIES_MAX && into.len() == BLOCK_SIZE, "copy {copy}, {} B", into.len());
        let ticket = self.request(|state, id| {
            let (ticket, completion) = Ticket::pair();
            state.requests.insert(id, completion);
            (Input::ReadCopy { id, copy: CopyIndex(copy as u8), addr }, ticket)
        });
        let blocks = ticket.wait()?.expect("a read completes with blocks");
        into.copy_from_slice(blocks.bytes());
        Ok(())
    }

    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        assert!(copy < COPIES_MAX && bad.len() == BLOCK_SIZE, "copy {copy}, {} B", bad.len());
        let bad = BlockSlice::new(Blocks::from_bytes(bad));
        let outcome = self.request(|state, id| {
            let (sender, receiver) = mpsc::channel();
            state.repairs.insert(id, sender);
            let copy = CopyIndex(copy as u8);
            (Input::RepairCopy { id, copy, addr, bad, good }, receiver)
        });
        // If the mirror is closed meanwhile nobody is going to answer.
        let outcome = outcome.recv().unwrap_or(Ok(Repair::Changed));
        if let Ok(Repair::Repaired) = outcome {
            self.shared.owner.repaired(self.shared.uuid, CopyIndex(copy as u8), addr);
        }
        outcome
    }
}

impl Shared {
    fn feed(self: &Arc<Self>, input: Input, thread: Thread) {
        self.feed_locked(self.state.lock(), input, thread);
    }

    /// Tells the machine something, and does what it says.
    fn feed_locked(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        input: Input,
        thread: Thread,
    ) {
        if state.closed {
            return;
        }
        let was_resting = state.mirror.poll_timeout().is_none();
        state.mirror.handle(self.start.elapsed(), input);
        let mut jobs = Vec::new();
        let mut completed: Vec<(Completion, DiskResult)> = Vec::new();
        let mut notices = Vec::new();
        while let Some(output) = state.mirror.poll_output() {
            match output {
                Output::Send { copy, sent, request } => {
                    let gate = state.gates.get(copy.at()).cloned().flatten();
                    jobs.push(Job { gate, sent, request });
                }
                Output::Complete { id, result } => {
                    completed.extend(state.requests.remove(&id).map(|waiter| (waiter, result)));
                }
                Output::Repaired { id, result } => {
                    if let Some(waiter) = state.repairs.remove(&id) {
                        // Whoever asked may be gone.
                        let _ = waiter.send(result);
                    }
                }
                // The threads end before their queues do.
                Output::Record(states) => drop(self.records.send(Some(states))),
                Output::Attach(copy) => drop(self.attaches.send(AttachJob::Attach(copy))),
                Output::Detach(copy) => {
                    let gate = state.gates.get_mut(copy.at()).and_then(Option::take);
                    drop(self.attaches.send(AttachJob::Detach(copy, gate)));
                }
                Output::Notice(notice) => notices.push(notice),
            }
        }
        if was_resting && state.mirror.poll_timeout().is_some() {
            self.clock.notify_all();
        }
        drop(state);
        for notice in notices {
            self.owner.notice(self.uuid, notice);
        }
        if !completed.is_empty() {
            self.room.notify_all();
        }
        for (completion, result) in completed {
            completion.complete(result);
        }
        for job in jobs {
            match thread {
                Thread::Own => self.send(job),
                Thread::Copys => drop(self.sends.send(Some(job))),
            }
        }
    }

    fn send(self: &Arc<Self>, job: Job) {
        let Job { gate, sent, request } = job;
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

    fn run_sender(self: &Arc<Self>, jobs: &Receiver<Option<Job>>) {
        while let Ok(Some(job)) = jobs.recv() {
            self.send(job);
        }
    }

    fn run_clock(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while !state.closed {
            match state.mirror.poll_timeout() {
                None => self.clock.wait(&mut state),
                Some(timeout) => {
                    self.clock.wait_for(&mut state, timeout);
                    self.feed_locked(state, Input::Tick, Thread::Copys);
                    state = self.state.lock();
                }
            }
        }
    }

    fn run_recorder(self: &Arc<Self>, changes: &Receiver<Option<Vec<CopyState>>>) {
        while let Ok(Some(states)) = changes.recv() {
            let input = match self.owner.record(self.uuid, &states) {
                Recorded::Done => Input::Recorded,
                Recorded::Unknown => Input::NotRecorded,
                Recorded::Fenced(reason) => Input::Fenced { reason: reason.into() },
            };
            self.feed(input, Thread::Own);
        }
    }

    fn run_attacher(self: &Arc<Self>, jobs: &Receiver<AttachJob>) {
        let mut attacher = Attacher { shared: self, wanted: BTreeMap::new(), closing: Vec::new() };
        loop {
            match jobs.recv_timeout(attacher.patience()) {
                Ok(AttachJob::Attach(copy)) => attacher.want(copy),
                Ok(AttachJob::Detach(copy, gate)) => attacher.forget(copy, gate),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(AttachJob::End) | Err(RecvTimeoutError::Disconnected) => return,
            }
            attacher.go_on();
        }
    }
}

/// What the attacher has to do.
struct Attacher<'a> {
    shared: &'a Arc<Shared>,
    wanted: BTreeMap<CopyIndex, Attempts>,
    closing: Vec<(CopyIndex, Closed, Arc<Gate>)>,
}

struct Attempts {
    next: Instant,
    wait: Duration,
    /// Why the last one failed; the same reason is told once.
    reason: Option<MemberError>,
}

impl Attacher<'_> {
    fn patience(&self) -> Duration {
        let now = Instant::now();
        let next = self.wanted.values().map(|attempts| attempts.next).min();
        let next = next.map_or(ATTACH_MAX, |next| next.saturating_duration_since(now));
        if self.closing.is_empty() { next } else { next.min(ATTACH_FIRST) }
    }

    fn want(&mut self, copy: CopyIndex) {
        let attempts = Attempts { next: Instant::now(), wait: ATTACH_FIRST, reason: None };
        self.wanted.insert(copy, attempts);
    }

    fn forget(&mut self, copy: CopyIndex, gate: Option<Arc<Gate>>) {
        self.wanted.remove(&copy);
        self.closing.extend(gate.map(|gate| (copy, gate.close(), gate)));
    }

    fn go_on(&mut self) {
        self.closing.retain(|(_, closed, _)| !closed.is_quiet());
        let now = Instant::now();
        let due = self.wanted.iter().filter(|(_, attempts)| attempts.next <= now);
        let due: Vec<_> = due.map(|(copy, _)| *copy).collect();
        for copy in due {
            if self.closing.iter().any(|(closing, ..)| *closing == copy) {
                if let Some(attempts) = self.wanted.get_mut(&copy) {
                    attempts.next = now + ATTACH_FIRST;
                }
                continue;
            }
            match self.shared.owner.attach(self.shared.uuid, copy) {
                Ok(attachment) => {
                    self.wanted.remove(&copy);
                    self.install(copy, attachment);
                }
                Err(MemberError::Fenced(reason)) => {
                    self.shared.feed(Input::Fenced { reason: reason.into() }, Thread::Own);
                }
                Err(reason) => self.failed(copy, reason),
            }
        }
    }

    fn install(&self, copy: CopyIndex, attachment: Attachment) {
        let mut state = self.shared.state.lock();
        if state.closed || state.mirror.copies()[copy.at()].trust != Trust::Stale {
            return;
        }
        state.gates[copy.at()] = attachment.disk.map(|disk| Arc::new(Gate::new(disk)));
        let input = Input::Attached { copy, full: attachment.full };
        self.shared.feed_locked(state, input, Thread::Own);
    }

    fn failed(&mut self, copy: CopyIndex, reason: MemberError) {
        let Some(attempts) = self.wanted.get_mut(&copy) else { return };
        attempts.wait = (attempts.wait * 2).min(ATTACH_MAX);
        attempts.next = Instant::now() + attempts.wait;
        if attempts.reason.as_ref() != Some(&reason) {
            self.shared.owner.not_attached(self.shared.uuid, copy, &reason);
            attempts.reason = Some(reason);
        }
    }
}
