//! The daemon of a mount: opens the disk, mounts, serves until the mount is gone, writes the rest.
//!
//! ```text
//! start:  disk (locked) -> map -> loop device -> mount -> control socket -> mount appears
//! run:    until somebody unmounts, or a signal has it unmounted here
//! end:    scrubs stop -> all is written -> those who wait are told -> the process ends
//!         (or, with the first quota, is started again: see `renewal.rs`)
//! ```
//!
//! - The kernel lets sync(2) through to a daemon only if the source is a block device. An image
//!   file gets a loop device for that name alone; the data does not pass through it. Where none can
//!   be had, the mount is an ordinary one, and `gabion status` says so.
//! - Root's mounts appear when all is ready. What `fusermount3` mounts appears at once, and
//!   commands that come too early wait for a moment.
//! - A busy mount is not torn from its users by Ctrl-C. A second one does that, after all was
//!   written; being terminated takes the mount out of the tree and waits for its users.
//! - Whatever happens, the process never touches its own mount, where it would wait for itself.

mod renewal;
mod service;
mod storage;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{process, thread};

use gabion_fuse::mount::{MountError, Source, Unmount, unmount};
use gabion_fuse::mountinfo;
use gabion_host::file_disk::{Claim, Kind};
use gabion_host::loop_device::{LoopAccess, LoopDevice};
use gabion_host::signals::{Signals, Wake, Waker};
use gabion_node::{Filesystem, LocalFs};

use self::renewal::Renewal;
use self::service::Service;
use self::storage::claim;
pub use self::storage::{Storage, open_fs};
use crate::control::folder;
use crate::control::server::{Server, Subject};
use crate::failure::{Failure, Result, chain};
use crate::link::Connected;
use crate::mount::{self, Curtain, End, MountRequest, Mounted, WritePolicy};
use crate::mounts;
use crate::options::{Access, Settings};
use crate::remote::{self, RemoteTarget};
use crate::volumes::{self, Place};
use crate::watching;

/// Block size that the kernel is told: that of the filesystem, in bytes.
const KERNEL_BLOCK: u32 = 4096;

/// What can be mounted.
#[derive(Clone, Debug)]
pub enum Target {
    /// Something of this machine.
    Here(Place),
    /// What another one serves.
    Remote(RemoteTarget),
}

impl Target {
    /// What people call it.
    pub fn name(&self) -> String {
        match self {
            Self::Here(place) => place.name(),
            Self::Remote(target) => target.name(),
        }
    }
}

/// What shall be mounted where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The image or device, absolute, or the volume, or where it is served.
    pub target: Target,
    /// The directory, absolute.
    pub mountpoint: PathBuf,
    /// How.
    pub settings: Settings,
}

/// A filesystem that is mounted and served by this process.
pub struct Daemon {
    plan: Plan,
    behind: Behind,
    mounted: Mounted,
    server: Server,
    /// Device number of the mount.
    device: (u32, u32),
    renewal: Option<Arc<Renewal>>,
}

/// A filesystem that is served, and not seen yet.
struct Started {
    behind: Behind,
    mounted: Mounted,
    subject: Arc<dyn Subject>,
    renewal: Option<Arc<Renewal>>,
}

/// How far a mount that was asked to end is.
struct Leaving {
    /// How often it was.
    asked: u32,
    /// Nobody used it here when it was unmounted for that.
    is_unmounted: bool,
}

/// What is behind a mount.
enum Behind {
    Disk(Storage, Arc<LocalFs>),
    Server(Connected),
}

impl Daemon {
    /// Opens, begins to serve and mounts.
    pub fn start(plan: Plan) -> Result<Self> {
        let started = match &plan.target {
            Target::Here(place) => {
                start_here(Storage::open(place, &plan.settings, "mount")?, place, &plan)?
            }
            Target::Remote(target) => {
                let started = remote::start(target, &plan.mountpoint, &plan.settings)?;
                let (connected, mounted, subject) = started;
                Started { behind: Behind::Server(connected), mounted, subject, renewal: None }
            }
        };
        let mut daemon = Self::listen(plan, started)?;
        daemon.mounted.attach().map_err(|error| cannot(&daemon.plan, &error))?;
        Ok(daemon)
    }

    fn listen(plan: Plan, started: Started) -> Result<Self> {
        let Started { behind, mounted, subject, renewal } = started;
        let device = mounted.device();
        let server = folder::own_socket(device).and_then(|socket| Server::start(&socket, subject));
        let server =
            server.map_err(|error| Failure::of("cannot listen for other commands", &error))?;
        Ok(Self { plan, behind, mounted, server, device, renewal })
    }

    /// Serves until the mount is gone, then writes what is left.
    pub fn run(mut self, signals: &Signals) -> Result<()> {
        loop {
            let (ended, leaving) = self.serve(signals)?;
            match self.renewal.as_ref().and_then(|renewal| renewal.take()) {
                Some(curtain) if ended.is_ok() && leaving.asked == 0 => {
                    let is_shown;
                    (self, is_shown) = self.renew(curtain)?;
                    if !is_shown {
                        let ended = self.mounted.wait();
                        return self.finish(ended);
                    }
                }
                _ => return self.finish(ended),
            }
        }
    }

    /// Serves until the mount is gone. Gives how that went, and whether somebody asked for it.
    fn serve(
        &self,
        signals: &Signals,
    ) -> Result<(std::result::Result<End, mount::Error>, Leaving)> {
        let waker = signals.waker();
        thread::scope(|scope| {
            let watcher = thread::Builder::new().name("watcher".to_owned());
            let watcher = watcher.spawn_scoped(scope, || self.watch(&waker));
            let watcher = watcher.map_err(|error| Failure::of("cannot start a thread", &error))?;
            let mut leaving = Leaving { asked: 0, is_unmounted: false };
            loop {
                match signals.wait() {
                    Ok(Wake::Woken) => break,
                    Ok(wake) => self.leave(wake, &mut leaving),
                    Err(error) => return Err(Failure::of("cannot wait for signals", &error)),
                }
            }
            let ended = watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((ended, leaving))
        })
    }

    /// Mounts the filesystem again, in the place that the curtain covers; not if somebody has
    /// unmounted that: then it ends as it does when a mount is unmounted.
    fn renew(self, curtain: Curtain) -> Result<(Self, bool)> {
        let Self { plan, behind, mounted, server, renewal, .. } = self;
        drop(mounted);
        let (Behind::Disk(storage, _), Target::Here(place)) = (&behind, &plan.target) else {
            unreachable!("only what is on a disk of this machine is mounted anew");
        };
        let started = start_here(storage.clone(), place, &plan);
        let mut daemon = match started.and_then(|started| Self::listen(plan, started)) {
            Ok(daemon) => daemon,
            Err(failure) => {
                server.end(Some(failure.to_string()));
                return Err(failure);
            }
        };
        server.hand_over(&daemon.server);
        let shown = daemon.mounted.attach_beneath();
        if let Err(error) = &shown {
            daemon.mounted.give_up();
            if curtain.is_there() {
                eprintln!("gabion: {}", cannot(&daemon.plan, error));
            }
        }
        drop(curtain);
        renewal.inspect(|renewal| match shown {
            Ok(()) => renewal.done(),
            Err(_) => renewal.over(),
        });
        Ok((daemon, shown.is_ok()))
    }

    /// Waits for the end of the mount, and has [`Daemon::run`] notice it.
    fn watch(&self, waker: &Waker) -> std::result::Result<End, mount::Error> {
        let ended = self.mounted.wait();
        self.server.prepare_end();
        if let Err(error) = waker.wake() {
            // Without this the process would stay for ever, with its locks.
            eprintln!("gabion: cannot end in order: {error}");
            process::exit(1);
        }
        ended
    }

    /// Takes the mount away because a signal asked for it.
    fn leave(&self, wake: Wake, leaving: &mut Leaving) {
        leaving.asked += 1;
        let mountpoint = &self.plan.mountpoint;
        let ours = |mount: &mountinfo::Mount| mount.device == self.device;
        if !mounts::at(mountpoint).is_ok_and(|mount| mount.as_ref().is_some_and(ours)) {
            // Out of the tree already, or covered by another mount.
            self.leave_unmounted(leaving);
            return;
        }
        let name = mountpoint.display();
        let busy = match unmount(mountpoint, Unmount::Plain) {
            Ok(()) => {
                leaving.is_unmounted = true;
                return;
            }
            Err(error) => chain(&error),
        };
        if leaving.asked > 1 {
            eprintln!("gabion: {busy}; its users get errors now, all that they wrote is kept");
            self.sync();
            let _ = unmount(mountpoint, Unmount::Force);
            return;
        }
        let users = mounts::users(mountpoint);
        let users = if users.is_empty() { "somebody".to_owned() } else { users.join(", ") };
        if wake == Wake::Interrupt {
            eprintln!("gabion: {name} is in use by {users}; Ctrl-C again unmounts it all the same");
        } else {
            eprintln!("gabion: {name} is in use by {users}; it ends when they do");
            self.sync();
            let _ = unmount(mountpoint, Unmount::Lazy);
        }
    }

    /// The same once it is not seen here any more: whoever asks again does not wait for the end.
    fn leave_unmounted(&self, leaving: &Leaving) {
        let users = match (leaving.asked, leaving.is_unmounted) {
            (..=1, _) => return,
            (_, false) => "somebody has files open".to_owned(),
            (_, true) => match mounts::user_of_device_elsewhere(self.device) {
                Some(user) => format!("{user} has it in a mount namespace of its own"),
                // Nobody uses it: what is left is written, which may take as long as its disk does.
                None if leaving.asked == 2 => {
                    eprintln!("gabion: it is unmounted, and ends when all of it is written");
                    return;
                }
                None => "it has not come to its end".to_owned(),
            },
        };
        self.sync();
        eprintln!("gabion: {users}; ended all the same, all that was written is kept");
        process::exit(1);
    }

    fn sync(&self) {
        // What a server has answered is not ours to write.
        let Behind::Disk(_, fs) = &self.behind else { return };
        if let Err(error) = fs.map().sync() {
            eprintln!("gabion: {}: {}", self.plan.mountpoint.display(), chain(&error));
        }
    }

    /// Tells those who wait how it went.
    fn finish(self, ended: std::result::Result<End, mount::Error>) -> Result<()> {
        if let Some(renewal) = self.renewal {
            renewal.over();
        }
        let problem = match ended {
            Ok(End::Failed(errno)) => {
                let error = std::io::Error::from_raw_os_error(errno);
                Some(format!("the connection to the kernel failed: {error}"))
            }
            Ok(End::Unmounted | End::Aborted | End::Shutdown) => None,
            Err(error) => Some(chain(&error)),
        };
        let problem = match (problem, self.behind) {
            (None, Behind::Disk(storage, _)) => storage.close().err().map(|error| chain(&error)),
            // Disks that have failed already would only be waited for once more.
            (problem, Behind::Disk(..)) => problem,
            (problem, Behind::Server(connected)) => {
                // The server is told before those who wait.
                drop(connected);
                problem
            }
        };
        self.server.end(problem.clone());
        match problem {
            None => Ok(()),
            Some(problem) => Err(Failure::new(format!(
                "not all of {} could be written: {problem}",
                self.plan.target.name()
            ))),
        }
    }
}

fn cannot(plan: &Plan, cause: &dyn std::error::Error) -> Failure {
    let (target, mountpoint) = (plan.target.name(), plan.mountpoint.display());
    Failure::of(format!("cannot mount {target} at {mountpoint}"), cause)
}

fn start_here(storage: Storage, place: &Place, plan: &Plan) -> Result<Started> {
    let fs = open_fs(storage.disk(), &plan.settings).map_err(|error| cannot(plan, &error))?;
    // Whoever had it from a server begins anew: from here it is changed without them.
    fs.forget_sessions().map_err(|error| cannot(plan, &error))?;
    let fs = Arc::new(fs);
    let (mounted, source) = attach(&fs, storage.kind(), place, plan)
        .map_err(|error| with_advice(cannot(plan, &error), &error))?;
    let by_default = mounted.writes() == WritePolicy::Back && plan.settings.policy.is_none();
    let renewal = by_default.then(|| Renewal::new(plan, mounted.device()));
    let service = Service::new(plan, &fs, &storage, (&mounted, source), renewal.clone());
    let sink = volumes::sink("gabion mount").ok();
    let kernel = watching::Kernel {
        place: (plan.mountpoint.clone(), mounted.device()),
        notifier: mounted.notifier(),
        rollbacks: mounted.rollbacks(),
    };
    watching::watch(&fs, plan.target.name(), Some(kernel), sink);
    let behind = Behind::Disk(storage, fs);
    Ok(Started { behind, mounted, subject: Arc::new(service), renewal })
}

/// Mounts with a block device as source, or without if there is none. Gives what became the source.
fn attach(
    fs: &Arc<LocalFs>,
    kind: Kind,
    place: &Place,
    plan: &Plan,
) -> std::result::Result<(Mounted, Source), mount::Error> {
    let mount = |source: Source| {
        let mut request = MountRequest::new(plan.mountpoint.clone(), source.clone());
        request.flags = plan.settings.flags();
        request.users = plan.settings.users;
        request.writes = plan.settings.policy.unwrap_or(match fs.map().has_quotas() {
            // Who goes over one shall hear it from write(2).
            true => WritePolicy::Through,
            false => request.writes,
        });
        request.memory = plan.settings.cache.0 / 2;
        Mounted::prepare(Arc::clone(fs) as Arc<dyn Filesystem>, &request)
            .map(|mounted| (mounted, source))
    };
    let by_name = || mount(Source::Name(plan.target.name()));
    let by_device = |path: &Path| {
        mount(Source::BlockDevice { path: path.to_owned(), block_size: KERNEL_BLOCK })
    };
    match kind {
        // No way round a refusal: it may mean that somebody else has the device mounted.
        Kind::Device if claim() == Claim::Shared => by_device(&place.path),
        Kind::Device => by_name(),
        Kind::Image => {
            let access = match plan.settings.access {
                Access::ReadWrite => LoopAccess::ReadWrite,
                Access::ReadOnly => LoopAccess::ReadOnly,
            };
            let refused = match LoopDevice::attach(&place.path, access) {
                // The guard keeps the device until the mount itself does.
                Ok(device) => match by_device(device.path()) {
                    Ok(mounted) => return Ok(mounted),
                    Err(error) => chain(&error),
                },
                Err(error) => error.to_string(),
            };
            // Ordinary users can never have one.
            if claim() == Claim::Shared {
                eprintln!("gabion: sync(2) will not reach the daemon: no loop device: {refused}");
            }
            by_name()
        }
    }
}

/// Adds what helps against the usual reasons why a machine cannot mount.
fn with_advice(failure: Failure, error: &mount::Error) -> Failure {
    match error {
        mount::Error::Mount(MountError::FusermountMissing(_)) => {
            failure.next("To let ordinary users mount: sudo apt-get install fuse3")
        }
        mount::Error::Mount(MountError::Device(error)) if error.kind() == ErrorKind::NotFound => {
            failure.next("The kernel has no FUSE, or it is not loaded: sudo modprobe fuse")
        }
        mount::Error::Mount(MountError::Fusermount(said)) if said.contains("allow_other") => {
            failure.next("Add the line user_allow_other to /etc/fuse.conf, or mount as root.")
        }
        _ => failure,
    }
}
