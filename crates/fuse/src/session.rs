//! A session serves one connection: it negotiates, reads requests, runs the [`Handler`], sees to
//! deadlines and signals, and ends with the mount.
//!
//! ```text
//!   start:  INIT <-> Handler::init            resume: NOTIFY_RESEND, no INIT
//!   serve:  request -> Handler::handle -> Reply      FORGET -> Handler::forget
//!   end:    unmounted | aborted | shutdown | device failed
//!           -> waits are cancelled -> threads end -> Handler::destroy -> wait() returns
//! ```
//!
//! Nothing hangs: a request is answered within the deadline whatever its handler does; a caller
//! that was killed is released within half a second; a wait for a lock ends with its first signal.
//!
//! `shutdown` stops serving but leaves the mount. If somebody else holds the device open, requests
//! that have no answer yet wait for the session that resumes; if not, the kernel fails them.
//! Unmounting is what ends a mount, and its session.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use zerocopy::IntoBytes;

use crate::abi;
use crate::buffer::{MessageBuffer, PAYLOAD_MAX};
use crate::crew::Crew;
use crate::decode::{self, DecodeError, Message};
use crate::device::{Device, wait_readable};
use crate::features::{InitReply, KernelOffer};
use crate::flight::Core;
use crate::notify::{self, Notifier};
use crate::reply::Reply;
use crate::request::{NodeId, Request};

/// How long the kernel may take to send INIT, which it does while mounting.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A filesystem, as seen by the kernel. Called from several threads at once.
pub trait Handler: Send + Sync {
    /// The connection begins. Called once, before anything else; not when a session resumes.
    fn init(&self, offer: &KernelOffer) -> InitReply;

    /// Answers one request, now or later. The reply may go to another thread; one that waits for
    /// long should go there, for the thread that called is one of few that read from the kernel.
    fn handle(&self, request: Request<'_>, reply: Reply);

    /// The kernel gives back `lookups` of the references that lookups of `node` gave it. Must not
    /// block.
    fn forget(&self, node: NodeId, lookups: u64);

    /// The mount is gone or the session shut down. Called once, after all requests; on block
    /// devices unmount(2) waits for it.
    fn destroy(&self);
}

impl<H: Handler + ?Sized> Handler for Arc<H> {
    fn init(&self, offer: &KernelOffer) -> InitReply {
        (**self).init(offer)
    }

    fn handle(&self, request: Request<'_>, reply: Reply) {
        (**self).handle(request, reply);
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        (**self).forget(node, lookups);
    }

    fn destroy(&self) {
        (**self).destroy();
    }
}

/// How a session runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads that wait for requests, at least 2: one reads while another one handles. Each has
    /// one buffer of 1 MiB.
    pub readers: usize,
    /// Threads that stay once they were needed, with those that wait for requests.
    pub threads_idle: usize,
    /// Threads at most, with those that are started while others are stuck in the handler.
    pub threads_max: usize,
    /// Buffers of 1 MiB that are kept for writes to come when those that were in them are done.
    pub spare_buffers: usize,
    /// How long a request may go unanswered before it fails with ETIMEDOUT. Waits for locks have no
    /// deadline.
    pub deadline: Duration,
    /// What the threads' names begin with.
    pub name: String,
}

impl Default for Config {
    fn default() -> Self {
        let deadline = Duration::from_secs(60);
        let name = "fuse".to_owned();
        Self { readers: 2, threads_idle: 4, threads_max: 16, spare_buffers: 4, deadline, name }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The mount is gone (or, without ABORT_ERROR, the connection was aborted).
    Unmounted,
    /// The connection was aborted; the dead mount may still be there.
    Aborted,
    /// [`Session::shutdown`] was called.
    Shutdown,
    /// The device cannot be read, with this errno.
    Failed(i32),
}

impl End {
    /// `None` if reading should go on.
    pub(crate) fn from_read_error(error: &io::Error) -> Option<Self> {
        match error.raw_os_error().unwrap_or(libc::EIO) {
            // ENOENT: the request was given up between its announcement and the read.
            libc::EINTR | libc::EAGAIN | libc::ENOENT | libc::ENOMEM => None,
            libc::ENODEV => Some(Self::Unmounted),
            libc::ECONNABORTED => Some(Self::Aborted),
            errno => Some(Self::Failed(errno)),
        }
    }
}

/// Why a session could not start.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The device cannot be read or written.
    #[error("the FUSE device failed")]
    Device(#[source] io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The kernel sends nothing, most likely because nothing was mounted.
    #[error("no INIT from the kernel within {} seconds", INIT_TIMEOUT.as_secs())]
    NoInit,
    /// The first message is not INIT.
    #[error("the first message is not INIT: {0}")]
    NotInit(String),
    /// The kernel's protocol is too old.
    #[error("the kernel speaks FUSE {major}.{minor}, at least 7.{oldest} is needed")]
    Version {
        /// The kernel's major version.
        major: u32,
        /// The kernel's minor version.
        minor: u32,
        /// The oldest usable minor version.
        oldest: u32,
    },
}

impl From<DecodeError> for SessionError {
    fn from(error: DecodeError) -> Self {
        Self::NotInit(error.to_string())
    }
}

/// A running session. Dropped, it shuts down without waiting.
pub struct Session {
    crew: Arc<Crew>,
}

impl Session {
    /// Negotiates on a connection that was just mounted and begins to serve. Requests may reach the
    /// handler before this returns.
    pub fn start(
        device: Device,
        handler: impl Handler + 'static,
        config: Config,
    ) -> Result<Self, SessionError> {
        negotiate(&device, &handler)?;
        Self::serve(Arc::new(Core::new(device)), handler, config)
    }

    /// Takes over a connection that another process has served, and has the requests sent again
    /// that it left unanswered: see [`Request::is_resent`]. The kernel must offer HAS_RESEND.
    pub fn resume(
        device: Device,
        handler: impl Handler + 'static,
        config: Config,
    ) -> Result<Self, SessionError> {
        let core = Arc::new(Core::new(device));
        notify::resend(&core).map_err(SessionError::Device)?;
        Self::serve(core, handler, config)
    }

    fn serve(
        core: Arc<Core>,
        handler: impl Handler + 'static,
        mut config: Config,
    ) -> Result<Self, SessionError> {
        config.readers = config.readers.max(2);
        config.threads_idle = config.threads_idle.max(config.readers);
        config.threads_max = config.threads_max.max(config.readers);
        let session = Self { crew: Crew::new(core, Box::new(handler), config) };
        session.crew.start().map_err(SessionError::Thread)?;
        Ok(session)
    }

    /// Sends invalidations and the like.
    pub fn notifier(&self) -> Notifier {
        Notifier::new(&self.crew.core)
    }

    /// A second descriptor of the connection, to hand to whoever shall take over.
    pub fn device(&self) -> io::Result<Device> {
        self.crew.core.device.try_clone()
    }

    /// Stops serving. Requests in the handler are finished; the mount stays.
    pub fn shutdown(&self) {
        self.crew.stop(End::Shutdown);
    }

    /// Waits until the session has ended and its threads are gone.
    pub fn wait(&self) -> End {
        self.crew.wait(None).expect("without a timeout only the end ends the wait")
    }

    /// As [`wait`](Self::wait), but for so long at most.
    pub fn wait_for(&self, timeout: Duration) -> Option<End> {
        self.crew.wait(Some(timeout))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("end", &self.wait_for(Duration::ZERO)).finish()
    }
}

fn negotiate(device: &Device, handler: &impl Handler) -> Result<(), SessionError> {
    let mut buffer = MessageBuffer::new(PAYLOAD_MAX);
    loop {
        if !wait_readable(device.as_fd(), INIT_TIMEOUT).map_err(SessionError::Device)? {
            return Err(SessionError::NoInit);
        }
        device.read(&mut buffer).map_err(SessionError::Device)?;
        let unique = decode::header(buffer.bytes()).map_or(0, |header| header.unique);
        let Message::Init(init) = decode::decode(buffer.bytes())? else {
            return Err(SessionError::NotInit("it is another operation".to_owned()));
        };
        let out = match (init.major, init.minor) {
            (abi::MAJOR, minor) if minor >= abi::MINOR_OLDEST => {
                let offer = KernelOffer::from_wire(&init);
                handler.init(&offer).to_wire(&offer)
            }
            // A newer kernel is told our major version and asks again in it.
            (major, _) if major > abi::MAJOR => {
                abi::InitOut { major: abi::MAJOR, minor: abi::MINOR, ..Default::default() }
            }
            (major, minor) => {
                let _ = device.write(unique, -libc::EPROTO, &[]);
                let oldest = abi::MINOR_OLDEST;
                return Err(SessionError::Version { major, minor, oldest });
            }
        };
        device.write(unique, 0, &[IoSlice::new(out.as_bytes())]).map_err(SessionError::Device)?;
        if init.major == abi::MAJOR {
            return Ok(());
        }
    }
}
