//! The requests of one client, many at a time.
//!
//! Threads take turns at reading. Whoever has the turn reads one request with its data, passes the
//! turn on, does the request on its own stack, answers, and queues for the turn again:
//!
//! ```text
//!   turn (one thread at a time)       no turn                    writer (one at a time)
//!   read request, wait for room  ->   check, call the disk  ->   reply
//! ```
//!
//! No request is handed from thread to thread, so a lone request costs no more than a loop would.
//! A thread is added when the turn finds nobody else waiting for it, up to [`THREADS_MAX`].
//!
//! Where the disk is about as fast as a switch of threads ([`Paces`]), such as memory, that is for
//! nothing: small reads and writes are then done with the turn, one after the other, and answered
//! together as soon as the client has sent no more. How fast it is shows in what was done before;
//! a single request that takes long ends it.
//!
//! Where the disk is elsewhere ([`Export::pipelined`](super::Export::pipelined)), small requests
//! are submitted with the turn, all that have come in one batch, and answered as [`Pipeline`] says.
//!
//! Bounds: the [`Room`] for data, and for each client [`THREADS_MAX`] requests and those of the
//! pipeline; beyond them nothing more is read from it.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use gabion_base::batch::{self, Batch};
use gabion_base::event::TargetEvent;
use gabion_base::sync::Mutex;

use super::answer::Answer;
use super::execute::{Cause, Outcome, Refusal, admit, as_submitted, execute, outcome, span};
use super::handshake::Session;
use super::input::Input;
use super::pace::{Paces, Small};
use super::pipeline::{self, Done, Ending, Pipeline, Writing};
use super::pool::{Buffer, Pool};
use super::room::Room;
use crate::stream::Stream;
use crate::wire::PAYLOAD_SKIP_BYTES_MAX;
use crate::wire::error::ErrorCode;
use crate::wire::request::{Command, REQUEST_BYTES, Request};

/// Requests of one client that are done at the same time.
const THREADS_MAX: usize = 16;
/// Replies that are held back until there are no more requests to be read.
const HELD_BACK_BYTES: usize = 64 << 10;

/// What the threads of a connection share.
pub(super) struct Transmission<'a> {
    stream: &'a Stream,
    /// Whether requests are refused, because the server is about to end.
    closing: &'a AtomicBool,
    session: Session,
    turn: Mutex<Turn>,
    writer: Mutex<()>,
    crew: Mutex<Crew>,
    room: Room,
    pool: Arc<Pool>,
    paces: Paces,
    /// If there is a thread for its answers.
    pipeline: OnceLock<Arc<Pipeline>>,
    /// It was told that the client's epoch is not the newest any more.
    told_fence: AtomicBool,
}

struct Turn {
    input: Input,
    /// Replies that are held back; nothing while nobody has the turn.
    output: Vec<u8>,
    ended: bool,
}

struct Crew {
    threads: usize,
    /// Threads that wait for the turn.
    waiting: usize,
}

/// A request with its data, out of the stream.
struct Job {
    request: Request,
    verdict: Result<Command, Refusal>,
    data: Option<Buffer>,
    /// Bytes it has of the room.
    bytes: usize,
}

impl<'a> Transmission<'a> {
    /// What follows a handshake on `stream` that came to `session`.
    pub(super) fn new(stream: &'a Stream, closing: &'a AtomicBool, session: Session) -> Self {
        Self {
            stream,
            closing,
            session,
            turn: Mutex::new(Turn { input: Input::new(), output: Vec::new(), ended: false }),
            writer: Mutex::new(()),
            crew: Mutex::new(Crew { threads: 1, waiting: 0 }),
            room: Room::default(),
            pool: Arc::default(),
            paces: Paces::new(),
            pipeline: OnceLock::new(),
            told_fence: AtomicBool::new(false),
        }
    }

    /// Serves the client, on this thread and others, until it goes and all that was in flight is
    /// done.
    pub(super) fn run(&self) {
        // Ends when all threads have.
        thread::scope(|scope| {
            let export = &self.session.export;
            if export.is_pipelined && export.medium.is_none() {
                self.start_pipeline(scope);
            }
            // Also if this thread panics: else the one for the answers would wait for ever.
            let _end = self.pipeline.get().map(|pipeline| Ending(pipeline));
            self.work(scope);
        });
    }

    /// Without a thread for the answers, requests are done by a thread each.
    fn start_pipeline<'s>(&'s self, scope: &'s thread::Scope<'s, '_>) {
        let pipeline = Arc::new(Pipeline::default());
        let replied = Arc::clone(&pipeline);
        let thread = thread::Builder::new().name("nbd replies".into());
        let reply = move || replied.reply(|done| self.send_all(done));
        if thread.spawn_scoped(scope, reply).is_ok() {
            let _ = self.pipeline.set(pipeline);
        }
    }

    /// The life of each thread of a connection.
    fn work<'s>(&'s self, scope: &'s thread::Scope<'s, '_>) {
        loop {
            self.crew.lock().waiting += 1;
            let mut turn = self.turn.lock();
            self.crew.lock().waiting -= 1;
            if turn.ended {
                return;
            }
            let Some(job) = self.next(&mut turn) else {
                turn.ended = true;
                return;
            };
            let answered = self.work_off(&mut turn, job);
            drop(turn);
            let answered = answered.and_then(|left| {
                let Some(job) = left else { return Ok(()) };
                self.add_thread(scope);
                let bytes = job.bytes;
                let answered = self.send(&self.done(job));
                self.room.leave(bytes);
                answered
            });
            if answered.is_err() {
                // Nobody takes replies any more, so nothing more must be read.
                self.stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Does what is quick, up to the last request that has been read. Gives what is not.
    fn work_off(&self, turn: &mut Turn, mut job: Job) -> io::Result<Option<Job>> {
        if let Some(pipeline) = self.pipeline.get() {
            return Ok(self.submit_all(pipeline, turn, job));
        }
        while self.is_quick(&job) {
            let bytes = job.bytes;
            for part in self.done(job).parts() {
                turn.output.extend_from_slice(part);
            }
            self.room.leave(bytes);
            if turn.output.len() > HELD_BACK_BYTES || !turn.input.has_request() {
                return self.send_output(turn).map(|()| None);
            }
            job = match self.next(turn) {
                Some(job) => job,
                None => {
                    turn.ended = true;
                    return self.send_output(turn).map(|()| None);
                }
            };
        }
        self.send_output(turn).map(|()| Some(job))
    }

    /// Submits what is small. Gives what is not; nothing if the client has ended.
    fn submit_all(&self, pipeline: &Arc<Pipeline>, turn: &mut Turn, mut job: Job) -> Option<Job> {
        let _batch = Batch::begin();
        loop {
            if let Some(job) = self.submit(pipeline, job) {
                return Some(job);
            }
            if !turn.input.has_whole_request() {
                // The client may be silent for long.
                batch::settle();
            }
            let Some(next) = self.next(turn) else {
                turn.ended = true;
                return None;
            };
            job = next;
        }
    }

    /// Submits a request if it is small and can be submitted as it is, or gives it back.
    fn submit(&self, pipeline: &Arc<Pipeline>, mut job: Job) -> Option<Job> {
        let command = match (&job.verdict, job.small()) {
            (Ok(command), Some(_)) => *command,
            _ => return Some(job),
        };
        let export = &self.session.export;
        let mut writing = None;
        if command == Command::Write {
            writing = Writing::begin(export, &job.request);
            if writing.is_none() {
                return Some(job);
            }
        }
        let Some(submitted) = as_submitted(command, &job.request, &mut job.data) else {
            return Some(job);
        };
        pipeline.start(&*export.disk, submitted, (job.request, job.bytes, writing));
        None
    }

    /// Answers requests of the pipeline.
    fn send_all(&self, done: Vec<Done>) {
        let bytes = done.iter().map(|done| done.bytes).sum();
        let answers = done.into_iter().map(|Done { request, result, .. }| {
            let done = result.map(|blocks| outcome(blocks, &self.pool)).map_err(Refusal::from);
            self.answer(&request, done)
        });
        let answers: Vec<_> = answers.collect();
        let writer = self.writer.lock();
        let sent = pipeline::write_all(self.stream, &answers);
        drop((writer, answers));
        self.room.leave(bytes);
        if sent.is_err() {
            // Nobody takes replies any more, so nothing more must be read.
            self.stream.shutdown(Shutdown::Both);
        }
    }

    fn is_quick(&self, job: &Job) -> bool {
        job.small().is_some_and(|kind| self.paces.is_quick(kind))
    }

    fn send_output(&self, turn: &mut Turn) -> io::Result<()> {
        if turn.output.is_empty() {
            return Ok(());
        }
        let _writer = self.writer.lock();
        let sent = self.stream.write_parts(&mut [IoSlice::new(&turn.output)]);
        turn.output.clear();
        sent
    }

    /// Somebody must be reading while this thread works.
    fn add_thread<'s>(&'s self, scope: &'s thread::Scope<'s, '_>) {
        let mut crew = self.crew.lock();
        if crew.waiting == 0 && crew.threads < THREADS_MAX {
            let thread = thread::Builder::new().name("nbd client".into());
            // Without another thread this one does, a little slower.
            if thread.spawn_scoped(scope, || self.work(scope)).is_ok() {
                crew.threads += 1;
            }
        }
    }

    /// The next request; nothing if there will be none.
    fn next(&self, turn: &mut Turn) -> Option<Job> {
        let stream = self.stream;
        let mut head = [0; REQUEST_BYTES];
        if !turn.input.fill_or_end(stream, &mut head).ok()? {
            return None;
        }
        let request = Request::decode(&head).ok()?;
        let verdict = match self.closing.load(Ordering::Acquire) {
            false => admit(&request, &self.session),
            true => Err(Refusal::new(ErrorCode::Shutdown, "the server is about to end")),
        };
        let command = Command::of(request.command);
        if command == Some(Command::Disconnect) {
            return None;
        }
        let mut job = Job { request, verdict, data: None, bytes: 0 };
        match (command, &job.verdict) {
            (Some(Command::Write), Ok(_)) => {
                let (_, count, within) = span(&request);
                job.bytes = request.length as usize;
                self.room.take(job.bytes);
                let mut buffer = self.pool.take(count);
                let into = &mut buffer.bytes_mut()[within..within + request.length as usize];
                let filled = turn.input.fill(stream, into);
                job.data = Some(buffer);
                if filled.is_err() {
                    self.room.leave(job.bytes);
                    return None;
                }
            }
            (Some(Command::Write), Err(_)) if request.length <= PAYLOAD_SKIP_BYTES_MAX => {
                turn.input.skip(stream, request.length as usize).ok()?;
            }
            // Its data would have to be read, and is too much.
            (Some(Command::Write), Err(_)) => return None,
            (Some(Command::Read), Ok(_)) => {
                job.bytes = request.length as usize;
                self.room.take(job.bytes);
            }
            _ => {}
        }
        Some(job)
    }

    /// Does a request.
    fn done(&self, job: Job) -> Answer {
        let small = job.small();
        let Job { request, verdict, data, .. } = job;
        let start = Instant::now();
        let done =
            verdict.and_then(|command| execute(command, &request, data, &self.session, &self.pool));
        if let Some(kind) = small {
            self.paces.record(kind, start.elapsed());
        }
        self.answer(&request, done)
    }

    fn answer(&self, request: &Request, done: Result<Outcome, Refusal>) -> Answer {
        if let Err(refusal) = &done {
            self.tell(&refusal.cause);
        }
        Answer::new(request, done, self.session.replies)
    }

    /// Tells administrators why something was not done.
    fn tell(&self, cause: &Cause) {
        let Session { export, client, grant, .. } = &self.session;
        match cause {
            Cause::Client => {}
            Cause::Disk(error) => export.tell_failure(error),
            Cause::Fence if self.told_fence.swap(true, Ordering::Relaxed) => {}
            Cause::Fence => {
                let newest = export.medium.as_ref().map_or(0, |medium| medium.epoch().0);
                let (client, epoch) = (client.to_string(), grant.epoch());
                // A later connection of its own is none of an administrator's business.
                if epoch < newest {
                    export.tell(TargetEvent::ClientFenced { client, epoch, newest });
                }
            }
        }
    }

    fn send(&self, answer: &Answer) -> io::Result<()> {
        let mut slices = answer.parts().map(IoSlice::new);
        let _writer = self.writer.lock();
        self.stream.write_parts(&mut slices)
    }
}

impl Job {
    /// What kind of small request it is, if it is one.
    fn small(&self) -> Option<Small> {
        self.verdict.as_ref().ok().and_then(|command| Small::of(*command, &self.request))
    }
}
