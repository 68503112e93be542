//! The daemon's end of the control socket.
//!
//! One thread accepts, until the server is gone, and each connection has one more, up to a bound;
//! who comes when all are in use waits for a moment, and is told if that was not enough. None of
//! them is waited for when the daemon ends: whatever they still do is of interest only to a command
//! that can see the connection close.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::sync::{Condvar, Mutex};

use super::wire::{
    Allocation, Clients, Ended, Evicted, Grown, Invited, Leases, Locks, Progress, QuotaAction,
    Quotas, Reply, Report, Request, SnapshotAction, Status, SubvolumeAction, Subvolumes,
};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 32;
/// The longest request line, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 10;
/// How long one waits for another one to end, when there are so many.
const TURN: Duration = Duration::from_secs(10);
/// How long a connection may be silent, and how long it may leave a reply unread.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a daemon says that has no clients.
const NOT_SERVED: &str = "it is mounted here, and not served";
/// What one says that has not the disk, or has it for others.
const NOT_HERE: &str = "this is for what is mounted from a disk of this machine, or not in use";
/// Least time between two messages of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What a server tells about.
pub trait Subject: Send + Sync {
    /// How it is now.
    fn status(&self) -> Status;

    /// Verifies everything. `watch` is called often and may stop it.
    fn scrub(&self, watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Result<Report, String>;

    /// Makes the filesystem so many bytes long, or as long as its disk.
    fn grow(&self, to_bytes: Option<u64>) -> Result<Grown, String>;

    /// Compares the map of blocks in use with what is reachable.
    fn audit(&self) -> Result<Allocation, String> {
        Err(NOT_HERE.to_owned())
    }

    /// Does something with snapshots; what is answered may come in several parts.
    fn snapshots(
        &self,
        _path: Option<&str>,
        _action: &SnapshotAction,
    ) -> Result<Vec<Reply>, String> {
        Err(NOT_HERE.to_owned())
    }

    /// Does something with subvolumes.
    fn subvolumes(&self, _action: &SubvolumeAction) -> Result<Subvolumes, String> {
        Err(NOT_HERE.to_owned())
    }

    /// Does something with quotas.
    fn quotas(&self, _path: Option<&str>, _action: &QuotaAction) -> Result<Quotas, String> {
        Err(NOT_HERE.to_owned())
    }

    /// Who has mounted what is served.
    fn clients(&self) -> Result<Clients, String> {
        Err(NOT_SERVED.to_owned())
    }

    /// What those may cache, of one object or of all.
    fn leases(&self, _path: Option<String>) -> Result<Leases, String> {
        Err(NOT_SERVED.to_owned())
    }

    /// What they have locked, of one file or of all.
    fn locks(&self, _path: Option<String>) -> Result<Locks, String> {
        Err(NOT_SERVED.to_owned())
    }

    /// Ends the session of a client, which is named by its session, its name or its machine; and
    /// takes the right to come back from its machine if `revoke` says so.
    fn evict(&self, _client: &str, _revoke: bool) -> Result<Evicted, String> {
        Err(NOT_SERVED.to_owned())
    }

    /// Invites a machine for so many seconds.
    fn invite(&self, _seconds: u64, _addresses: &[String]) -> Result<Invited, String> {
        Err(NOT_SERVED.to_owned())
    }
}

/// A server, until it is dropped or [`Server::end`]ed.
pub struct Server {
    path: PathBuf,
    /// Device and inode of the socket: the mount's number, after which it is named, may be another
    /// mount's when this one ends.
    identity: Option<(u64, u64)>,
    listener: Arc<UnixListener>,
    shared: Arc<Shared>,
}

struct Shared {
    subject: Arc<dyn Subject>,
    connections: Mutex<usize>,
    /// One of them has ended.
    ended: Condvar,
    ending: AtomicBool,
    /// Connections that wait for the end.
    waiting: Mutex<Waiting>,
}

/// Those who wait for the end.
#[derive(Default)]
struct Waiting {
    streams: Vec<UnixStream>,
    /// Who tells them, and whoever comes later.
    told_by: Option<Arc<Shared>>,
}

impl Server {
    /// Listens at `path`, in place of whatever a dead daemon has left there.
    pub fn start(path: &Path, subject: Arc<dyn Subject>) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = Arc::new(UnixListener::bind(path)?);
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let shared = Arc::new(Shared {
            subject,
            connections: Mutex::new(0),
            ended: Condvar::new(),
            ending: AtomicBool::new(false),
            waiting: Mutex::default(),
        });
        let (path, identity) = (path.to_owned(), identity(path));
        let server =
            Self { path, identity, listener: Arc::clone(&listener), shared: Arc::clone(&shared) };
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &shared))?;
        Ok(server)
    }

    /// Stops running scrubs: the daemon is about to end.
    pub fn prepare_end(&self) {
        self.shared.ending.store(true, Ordering::Release);
    }

    /// Ends without a word to those that wait for the end, who are told by `next` from now on. So
    /// are those that only come to it: they may be connected with this one already.
    pub fn hand_over(self, next: &Self) {
        self.prepare_end();
        let mut waiting = self.shared.waiting.lock();
        next.shared.waiting.lock().streams.append(&mut waiting.streams);
        waiting.told_by = Some(Arc::clone(&next.shared));
    }

    /// Takes no more connections, and tells those that wait how it ended.
    pub fn end(self, problem: Option<String>) {
        self.prepare_end();
        let ended = Reply::Ended(Ended { problem });
        for mut stream in self.shared.waiting.lock().streams.drain(..) {
            // Whoever does not listen any more does not need to know.
            let _ = send(&mut stream, &ended);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
        // Its thread, which has the subject, sees the end.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(_) => continue,
        };
        if !shared.begin(TURN) {
            let message = format!("{CONNECTIONS_MAX} other commands are at it; try it again");
            let _ = stream.set_write_timeout(Some(PROGRESS_INTERVAL));
            let _ = send(&mut stream, &Reply::Error { message });
            continue;
        }
        let of_thread = Arc::clone(shared);
        let started = thread::Builder::new().name("control".to_owned()).spawn(move || {
            // An error means that the other side is gone or makes no sense: nobody to tell.
            let _ = converse(&of_thread, stream);
            of_thread.end();
        });
        if started.is_err() {
            shared.end();
        }
    }
}

impl Shared {
    /// Counts one more connection, if there is room for it within `patience`.
    fn begin(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut connections = self.connections.lock();
        while *connections >= CONNECTIONS_MAX {
            if self.ended.wait_until(&mut connections, deadline).timed_out() {
                return false;
            }
        }
        *connections += 1;
        true
    }

    fn end(&self) {
        *self.connections.lock() -= 1;
        self.ended.notify_one();
    }

    /// Notes who waits for the end.
    fn note(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut waiting = self.waiting.lock();
        if let Some(next) = waiting.told_by.clone() {
            drop(waiting);
            return next.note(stream);
        }
        // Those that gave up leave room for others.
        waiting.streams.retain(|stream| !is_closed(stream));
        if waiting.streams.len() < CONNECTIONS_MAX {
            // Whoever gets this is told of the end, however soon it comes.
            send(&mut stream, &Reply::Progress(Progress::default()))?;
            waiting.streams.push(stream);
        }
        Ok(())
    }
}

/// Answers one connection's requests until it closes.
fn converse(shared: &Shared, mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = Vec::new();
        (&mut lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        match serde_json::from_slice(&line) {
            Ok(Request::Status) => {
                send(&mut stream, &Reply::Status(Box::new(shared.subject.status())))?;
            }
            Ok(Request::Scrub) => scrub(shared, &mut stream)?,
            Ok(Request::Grow { to_bytes }) => {
                answer(&mut stream, shared.subject.grow(to_bytes).map(Reply::Grown))?;
            }
            Ok(Request::Audit) => {
                answer(&mut stream, shared.subject.audit().map(Reply::Allocation))?;
            }
            Ok(Request::Snapshots { path, action }) => {
                match shared.subject.snapshots(path.as_deref(), &action) {
                    Ok(replies) => {
                        replies.iter().try_for_each(|reply| send(&mut stream, reply))?;
                    }
                    Err(message) => send(&mut stream, &Reply::Error { message })?,
                }
            }
            Ok(Request::Subvolumes { action }) => {
                answer(&mut stream, shared.subject.subvolumes(&action).map(Reply::Subvolumes))?;
            }
            Ok(Request::Quotas { path, action }) => {
                let done = shared.subject.quotas(path.as_deref(), &action);
                answer(&mut stream, done.map(Reply::Quotas))?;
            }
            Ok(Request::Clients) => {
                answer(&mut stream, shared.subject.clients().map(Reply::Clients))?;
            }
            Ok(Request::Leases { path }) => {
                answer(&mut stream, shared.subject.leases(path).map(Reply::Leases))?;
            }
            Ok(Request::Locks { path }) => {
                answer(&mut stream, shared.subject.locks(path).map(Reply::Locks))?;
            }
            Ok(Request::Evict { client, revoke }) => {
                let evicted = shared.subject.evict(&client, revoke);
                answer(&mut stream, evicted.map(Reply::Evicted))?;
            }
            Ok(Request::Invite { seconds, addresses }) => {
                let invited = shared.subject.invite(seconds, &addresses);
                answer(&mut stream, invited.map(Reply::Invited))?;
            }
            Ok(Request::AwaitEnd) => return shared.note(stream),
            Err(error) => {
                return send(&mut stream, &Reply::Error { message: error.to_string() });
            }
        }
    }
}

fn answer(stream: &mut UnixStream, reply: Result<Reply, String>) -> io::Result<()> {
    send(stream, &reply.unwrap_or_else(|message| Reply::Error { message }))
}

fn is_closed(stream: &UnixStream) -> bool {
    let mut byte = [0];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(stream, &mut byte, flags), Ok((_, 0)))
}

fn scrub(shared: &Shared, stream: &mut UnixStream) -> io::Result<()> {
    let mut reported: Option<Instant> = None;
    let mut gone = None;
    let report = shared.subject.scrub(&mut |progress| {
        if shared.ending.load(Ordering::Acquire) {
            return ControlFlow::Break(());
        }
        if reported.is_some_and(|reported| reported.elapsed() < PROGRESS_INTERVAL) {
            return ControlFlow::Continue(());
        }
        reported = Some(Instant::now());
        match send(stream, &Reply::Progress(*progress)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                gone = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    match (gone, report) {
        (Some(error), _) => Err(error),
        (None, Ok(report)) => send(stream, &Reply::Report(report)),
        (None, Err(message)) => send(stream, &Reply::Error { message }),
    }
}

fn send(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}
