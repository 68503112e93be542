//! A mount from its beginning to its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gabion_base::sync::Mutex;
use gabion_fuse::mount::{
    Attachment, MountError, MountFlags, MountOptions, Source, Unmount, prepare, unmount,
};
use gabion_fuse::{Config, Notifier, PAYLOAD_MAX, Session, SessionError};
use gabion_node::{BackgroundLoop, Filesystem};
use thiserror::Error;

use super::cached_names::{CachedNames, Watch};
use super::front::Front;
use super::kernel::lift_limits;
use super::rollbacks::Rollbacks;
use super::{Coherence, Locking, Users, WritePolicy};

/// The filesystem's type, after `fuse.` or `fuseblk.`.
pub(super) const SUBTYPE: &str = "gabion";
/// Threads that wait for requests.
const READERS: usize = 2;
/// Threads that stay for each processor, to be called when the others are busy.
const THREADS_IDLE: usize = 4;
/// Threads that may be started however little memory there is.
const THREADS_MIN: usize = 4;
/// Threads at most, with those that are started while others wait for the disk.
const THREADS_MAX: usize = 32;
/// Memory for requests if nothing else is said, in bytes.
const MEMORY_DEFAULT: u64 = 128 << 20;
/// What one thread may hold: a message as it came, and as much to answer with.
const THREAD_MEMORY: u64 = 2 * PAYLOAD_MAX as u64;
/// How long a request may take. Longer than syncing all memory to a slow disk.
const DEADLINE: Duration = Duration::from_secs(600);
/// How long ending the background threads waits before it wakes them again.
const WAKE_AGAIN: Duration = Duration::from_millis(2);

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// Where. An empty directory is best.
    pub mountpoint: PathBuf,
    /// What is mounted. With a block device, sync(2) reaches the filesystem and umount(2) waits
    /// until everything is committed.
    pub source: Source,
    /// Flags of the mount; `READ_ONLY` if the filesystem was opened so.
    pub flags: MountFlags,
    /// Who changes it.
    pub coherence: Coherence,
    /// Who may use it.
    pub users: Users,
    /// Who keeps bytes that were just written.
    pub writes: WritePolicy,
    /// Who keeps advisory locks.
    pub locking: Locking,
    /// Memory for requests under way at most, in bytes: messages, what is read for them, and the
    /// buffers that are kept for those to come.
    pub memory: u64,
}

impl MountRequest {
    /// The usual: changed by this kernel alone, for everybody, with writes collected by the kernel,
    /// which makes many small ones five times as fast (4 KiB at random places), and locks in the
    /// kernel.
    pub fn new(mountpoint: PathBuf, source: Source) -> Self {
        Self {
            mountpoint,
            source,
            flags: MountFlags::NONE,
            coherence: Coherence::Alone,
            users: Users::Everybody,
            writes: WritePolicy::Back,
            locking: Locking::Kernel,
            memory: MEMORY_DEFAULT,
        }
    }

    /// The session's share of the memory: half for threads, the rest for buffers.
    fn config(&self) -> Config {
        let processors = thread::available_parallelism().map_or(2, usize::from);
        let affordable = (self.memory / 2 / THREAD_MEMORY) as usize;
        let threads_max = affordable.clamp(THREADS_MIN, THREADS_MAX);
        Config {
            readers: READERS,
            threads_idle: (THREADS_IDLE * processors).min(threads_max),
            threads_max,
            spare_buffers: (self.memory / 2) as usize / PAYLOAD_MAX,
            deadline: DEADLINE,
            name: "gabion".to_owned(),
        }
    }

    fn options(&self) -> MountOptions {
        let mut options = MountOptions::new(self.source.clone(), SUBTYPE);
        options.flags = self.flags;
        options.allow_other = self.users == Users::Everybody;
        options
    }
}

/// Why a mount failed, at its beginning or at its end.
#[derive(Debug, Error)]
pub enum Error {
    /// Mounting or unmounting was refused.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel and we do not understand each other.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The kernel does not say what it has mounted.
    #[error("cannot find out the device number of the mount: {0}")]
    Number(#[source] std::io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// What was accepted could not all be made durable.
    #[error("the filesystem could not be closed: {0}")]
    Close(#[source] gabion_fs::Error),
}

/// How a mount ended.
pub use gabion_fuse::End;

/// A mounted filesystem. Dropped, it is unmounted, by force if it is in use.
pub struct Mounted {
    session: Session,
    fs: Arc<dyn Filesystem>,
    front: Arc<Front>,
    attachment: Attachment,
    device: (u32, u32),
    mountpoint: PathBuf,
    background: Mutex<Vec<JoinHandle<()>>>,
    watch: Option<Watch>,
}

impl Mounted {
    /// Mounts `fs` and begins to serve.
    pub fn start(fs: Arc<dyn Filesystem>, request: &MountRequest) -> Result<Self, Error> {
        let mut mounted = Self::prepare(fs, request)?;
        mounted.attach()?;
        Ok(mounted)
    }

    /// Begins to serve `fs`, which nobody sees before [`attach`](Self::attach) if root mounts it.
    pub fn prepare(fs: Arc<dyn Filesystem>, request: &MountRequest) -> Result<Self, Error> {
        let front = Arc::new(Front::new(&fs, request));
        let (device, attachment) = prepare(&request.mountpoint, &request.options())?;
        // Threads inherit what is said here.
        let _flusher = IoFlusher::begin();
        let session = match Session::start(device, Arc::clone(&front), request.config()) {
            Ok(session) => session,
            Err(error) => {
                if attachment.is_made() {
                    // Nobody serves it: its users shall not wait for answers.
                    let _ = unmount(&request.mountpoint, Unmount::Force);
                }
                return Err(error.into());
            }
        };
        front.tell(session.notifier());
        let number = attachment.device_number();
        let mut mounted = Self {
            session,
            fs,
            front,
            attachment,
            device: (0, 0),
            mountpoint: request.mountpoint.clone(),
            background: Mutex::default(),
            watch: None,
        };
        for (name, run) in Arc::clone(&mounted.fs).background() {
            mounted.start_background(name, run)?;
        }
        mounted.device = number.map_err(Error::Number)?;
        lift_limits(mounted.device, &request.source, request.coherence);
        Ok(mounted)
    }

    /// Shows it at its mountpoint.
    pub fn attach(&mut self) -> Result<(), Error> {
        Ok(self.attachment.make()?)
    }

    /// Puts it beneath what is mounted at its mountpoint.
    pub fn attach_beneath(&mut self) -> Result<(), Error> {
        Ok(self.attachment.make_beneath()?)
    }

    /// Ends it if it was not shown yet.
    pub fn give_up(&mut self) {
        self.attachment.give_up();
    }

    /// The device number of the filesystem, major and minor.
    pub fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Who keeps bytes that were just written.
    pub fn writes(&self) -> WritePolicy {
        self.front.writes()
    }

    fn start_background(&self, name: &str, run: BackgroundLoop) -> Result<(), Error> {
        let mountpoint = self.mountpoint.display().to_string();
        let last = Mutex::new(String::new());
        // What fails once mostly fails again, which nobody wants to read.
        let report = move |error: &gabion_fs::Error| {
            let text = error.to_string();
            let mut last = last.lock();
            if *last != text {
                eprintln!("gabion: {mountpoint}: {text}");
                *last = text;
            }
        };
        let thread = thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || run(&report));
        self.background.lock().push(thread.map_err(Error::Thread)?);
        Ok(())
    }

    /// Tells the kernel what it caches in vain.
    pub fn notifier(&self) -> Notifier {
        self.session.notifier()
    }

    /// Begins to note which names the kernel keeps, for whoever is going to tell it that they are
    /// no longer true. `seed` says where names are in directories.
    pub fn note_names(&mut self, seed: u64) -> Result<Arc<CachedNames>, Error> {
        let names = self.front.names();
        self.watch = Some(names.begin(self.notifier(), self.device, seed).map_err(Error::Thread)?);
        Ok(Arc::clone(names))
    }

    /// Sees to it that the kernel goes on from nothing that a rollback has made untrue.
    pub fn rollbacks(&self) -> Rollbacks {
        Rollbacks::new(&self.fs, &self.front, self.session.notifier(), self.device)
    }

    /// Unmounts. `Unmount::Plain` fails if it is in use; the others cannot wait for what the kernel
    /// has not handed over yet.
    pub fn unmount(&self, how: Unmount) -> Result<(), Error> {
        Ok(unmount(&self.mountpoint, how)?)
    }

    /// Waits until it is unmounted and everything is on disk.
    pub fn wait(&self) -> Result<End, Error> {
        let end = self.session.wait();
        self.end_background();
        match self.front.take_closed() {
            Some(Err(error)) => Err(Error::Close(error)),
            _ => Ok(end),
        }
    }

    /// As [`wait`](Self::wait), but for so long at most; `None` if it is still mounted then.
    pub fn wait_for(&self, timeout: Duration) -> Option<Result<End, Error>> {
        self.session.wait_for(timeout)?;
        Some(self.wait())
    }

    fn end_background(&self) {
        let threads = std::mem::take(&mut *self.background.lock());
        for thread in threads {
            // A thread that was about to wait may have missed it.
            while !thread.is_finished() {
                self.fs.end_background();
                thread::sleep(WAKE_AGAIN);
            }
            if thread.join().is_err() {
                eprintln!("gabion: a background thread of {} panicked", self.mountpoint.display());
            }
        }
    }
}

/// While it lives, the thread and those that it starts count as needed to write dirty pages: the
/// kernel does not make them wait until dirty pages are written, for which it needs them.
struct IoFlusher;

impl IoFlusher {
    /// Without the right to say so there is none, and a machine that is short of memory is slower.
    fn begin() -> Option<Self> {
        rustix::process::configure_io_flusher_behavior(true).ok().map(|()| Self)
    }
}

impl Drop for IoFlusher {
    fn drop(&mut self) {
        // What could be begun can be ended.
        let _ = rustix::process::configure_io_flusher_behavior(false);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is nowhere cannot be unmounted.
        if self.attach().is_err() {
            self.attachment.give_up();
        } else if self.session.wait_for(Duration::ZERO).is_none()
            && self.unmount(Unmount::Plain).is_err()
            && self.unmount(Unmount::Force).is_err()
        {
            // It is mounted elsewhere, or somebody else unmounts it now: stop serving it.
            self.session.shutdown();
        }
        if let Err(error) = self.wait() {
            eprintln!("gabion: {}: {error}", self.mountpoint.display());
        }
    }
}
