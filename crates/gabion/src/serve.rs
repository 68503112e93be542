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

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{process, thread};

use gabion_base::disk::{Disk, DiskError};
use gabion_fuse::mount::{MountError, Source, Unmount, unmount};
use gabion_fuse::mountinfo;
use gabion_host::file_disk::{Claim, FileDisk, Kind, OpenError, OpenMode, OpenOptions};
use gabion_host::loop_device::{LoopAccess, LoopDevice};
use gabion_host::signals::{Signals, Wake, Waker};
use gabion_map::Limits;
use gabion_node::{Filesystem, LocalFs};
use gabion_volume::volume::Volume;

use self::renewal::Renewal;
use self::service::Service;
use crate::clients;
use crate::control::folder;
use crate::control::server::{Server, Subject};
use crate::failure::{Failure, Result, chain};
use crate::link::Connected;
use crate::mount::{self, Curtain, End, MountRequest, Mounted, SystemClock, WritePolicy};
use crate::mounts;
use crate::options::{Access, Settings};
use crate::patience;
use crate::remote::{self, RemoteTarget};
use crate::target::not_opened;
use crate::volumes::{self, Place};
use crate::watching;

/// How long to wait for another daemon that is about to release the disk.
const DISK_PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait for that without saying so.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long a disk may be in use by somebody who cannot be seen, and how often that is looked at.
const UNSEEN_PATIENCE: Duration = Duration::from_secs(2);
const UNSEEN_GLANCE: Duration = Duration::from_millis(20);
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
                    self = self.renew(curtain)?
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

    /// Mounts the filesystem again, in the place that the curtain covers.
    fn renew(self, curtain: Curtain) -> Result<Self> {
        let Self { plan, behind, mounted, server, renewal, .. } = self;
        drop(mounted);
        let (Behind::Disk(storage, _), Target::Here(place)) = (&behind, &plan.target) else {
            unreachable!("only what is on a disk of this machine is mounted anew");
        };
        let started = start_here(storage.clone(), place, &plan)?;
        let mut daemon = Self::listen(plan, started)?;
        server.hand_over(&daemon.server);
        daemon.mounted.attach_beneath().map_err(|error| cannot(&daemon.plan, &error))?;
        drop(curtain);
        renewal.inspect(|renewal| renewal.done());
        Ok(daemon)
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

/// What a filesystem is on.
#[derive(Clone)]
pub enum Storage {
    /// An image file or a device.
    File(Arc<FileDisk>),
    /// A volume.
    Volume(Arc<Volume>),
}

impl Storage {
    /// Opens what is at `place`, to `act` with it: "mount", "serve".
    pub fn open(place: &Place, settings: &Settings, act: &str) -> Result<Self> {
        match &place.volume {
            None => Ok(Self::File(Arc::new(open_disk(&place.path, settings, act)?))),
            Some(name) => {
                let surroundings = volumes::surroundings(None, &format!("gabion {act}"))?;
                Self::of_volume(place, volumes::open(name, &surroundings)?)
            }
        }
    }

    /// A volume that is open, and is at `place`.
    pub fn of_volume(place: &Place, volume: Volume) -> Result<Self> {
        // It stands for the volume, also in what lsblk and df show.
        let stand_in = std::fs::File::options().write(true).open(&place.path);
        stand_in
            .and_then(|file| file.set_len(volumes::bytes(&volume)))
            .map_err(|error| Failure::of(format!("cannot use {}", volume.name()), &error))?;
        Ok(Self::Volume(Arc::new(volume)))
    }

    /// Its blocks.
    pub fn disk(&self) -> Arc<dyn Disk> {
        match self {
            Self::File(disk) => Arc::clone(disk) as Arc<dyn Disk>,
            Self::Volume(volume) => Arc::clone(volume) as Arc<dyn Disk>,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::File(disk) => disk.kind(),
            Self::Volume(_) => Kind::Image,
        }
    }

    /// The disk, if it is a file or a device.
    pub fn file(&self) -> Option<&FileDisk> {
        match self {
            Self::File(disk) => Some(disk),
            Self::Volume(_) => None,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::File(disk) => disk.describe(),
            Self::Volume(volume) => format!("volume {}", volume.name()),
        }
    }

    /// Nobody is going to write any more.
    pub fn close(&self) -> std::result::Result<(), DiskError> {
        match self {
            Self::File(_) => Ok(()),
            Self::Volume(volume) => volume.close(),
        }
    }
}

/// Opens the disk. If another of our daemons has just lost its mount, waits until it has ended. One
/// that was killed may hold the disk for a moment when it is not seen any more.
fn open_disk(target: &Path, settings: &Settings, act: &str) -> Result<FileDisk> {
    let mode = match settings.access {
        Access::ReadWrite => OpenMode::ReadWrite,
        Access::ReadOnly => OpenMode::ReadOnly,
    };
    let options = OpenOptions { claim: claim(), ..OpenOptions::new(mode) };
    let open = || FileDisk::open_with(target, options);
    let mut opened = match open() {
        Err(OpenError::InUse { holder: Some(holder), .. })
            if holder.name.as_deref() == Some("gabion")
                && mounts::of_target(target)?.is_none()
                && !is_served(target)
                && !mounts::is_target(holder.pid) =>
        {
            if let Some(end) = patience::End::of(holder.pid)
                && !end.within(AT_ONCE)
            {
                if let Some(user) = mounts::user_of_target_elsewhere(target) {
                    return Err(mounted_elsewhere(target, &user, holder.pid, act));
                }
                eprintln!("gabion: waiting for {holder} to release {}", target.display());
                end.within(DISK_PATIENCE);
            }
            open()
        }
        opened => opened,
    };
    let began = Instant::now();
    // Who has no name any more was seen at its very end.
    let is_unseen = |opened: &std::result::Result<FileDisk, OpenError>| match opened {
        Err(OpenError::InUse { holder, .. }) => {
            holder.as_ref().is_none_or(|holder| holder.name.is_none())
        }
        _ => false,
    };
    while is_unseen(&opened) && began.elapsed() < UNSEEN_PATIENCE {
        thread::sleep(UNSEEN_GLANCE);
        opened = open();
    }
    opened.map_err(|error| {
        let failure = not_opened(&format!("cannot {act}"), target, &error);
        match error {
            OpenError::Io { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem => {
                failure.next("It can be read only: gabion mount -o ro, or gabion serve --read-only")
            }
            _ => failure,
        }
    })
}

fn mounted_elsewhere(target: &Path, user: &str, daemon: u32, act: &str) -> Failure {
    let name = target.display();
    let text =
        format!("{name} is unmounted here, but {user} has it in a mount namespace of its own");
    Failure::new(format!("cannot {act}: {text}"))
        .next(format!("End that one, and process {daemon} will end, too."))
}

fn is_served(target: &Path) -> bool {
    clients::socket_if_served(&Place { path: target.to_owned(), volume: None }).is_some()
}

/// Opens the filesystem on `disk`.
pub fn open_fs(disk: Arc<dyn Disk>, settings: &Settings) -> gabion_fs::Result<LocalFs> {
    let mode = match settings.access {
        Access::ReadWrite => gabion_map::OpenMode::ReadWrite,
        Access::ReadOnly => gabion_map::OpenMode::ReadOnly,
    };
    let limits = Limits::within(settings.cache.0);
    let settings =
        gabion_node::Settings { atime: settings.atime(), commit_interval: settings.commit };
    LocalFs::open(disk, mode, limits, settings, Arc::new(SystemClock))
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

/// The kernel itself claims a device that it mounts; who cannot have it do that must claim it.
fn claim() -> Claim {
    if rustix::process::geteuid().is_root() { Claim::Shared } else { Claim::Exclusive }
}
