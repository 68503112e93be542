//! The daemon of a mount of a filesystem that another machine serves.
//!
//! ```text
//! start:  connection -> session -> mount -> control socket -> mount appears
//! run:    until somebody unmounts, or a signal has it unmounted here
//! end:    the server is told, those who wait are told, the process ends
//! ```

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::event::{ClientEvent, Event};
use gabion_base::time::Timestamp;
use gabion_fs::{AtimeRules, Caller};
use gabion_fuse::mount::Source;
use gabion_host::{clock, memory};
use gabion_link::errand::Errand;
use gabion_link::message::RefusalReason;
use gabion_link::wire::TARGET_BYTES_MAX;
use gabion_node::remote::{LockLossTeller, LossKeeper, RemoteFs, RemoteSettings};
use gabion_node::{Clock, Filesystem};

use crate::addresses;
use crate::control::server::Subject;
use crate::control::wire::{
    Grown, MountStatus, Progress, QuotaAction, Quotas, Reply, Report, SnapshotAction, Status,
    SubvolumeAction, Subvolumes,
};
use crate::errands::Asking;
use crate::failure::{Exit, Failure, Result, chain};
use crate::link::{ConnectError, Connected, NotifiedKernel, connect};
use crate::lost;
use crate::mount::{Coherence, MountRequest, Mounted, Users};
use crate::options::{Access, Settings};
use crate::places;
use crate::print::printable;
use crate::trust::identity::{Joined, Protection};
use crate::trust::invitation::ADDRESSES_MAX;
use crate::volumes;

/// What a target of `gabion mount`, or a place for backups, begins with if it is at a server.
pub const SCHEME: &str = "gabion://";

/// A filesystem at a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteTarget {
    /// Where it may be served, HOST:PORT each.
    addresses: Vec<String>,
    /// The folder there, without a slash at either end; empty for all.
    path: String,
}

impl RemoteTarget {
    /// What `text` means, if it means a filesystem at a server.
    pub fn of(text: &Path) -> Option<Result<Self>> {
        let rest = text.to_str()?.strip_prefix(SCHEME)?;
        Some(Self::parse(rest))
    }

    fn parse(rest: &str) -> Result<Self> {
        let wrong = |reason: &str| {
            Err(Failure::new(format!("{SCHEME}{rest} is not possible: {reason}")).next(
                "Say gabion://HOST/, gabion://HOST:PORT/, gabion://HOST,HOST/ or \
                       gabion://HOST/FOLDER",
            ))
        };
        let (server, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/').to_owned();
        if path.split('/').any(|name| name == "..") {
            return wrong("\"..\" leads out of it");
        }
        if path.len() > TARGET_BYTES_MAX {
            return wrong("the path is too long");
        }
        if server.split(',').any(str::is_empty) {
            return wrong("there is no host");
        }
        if !server.split(',').all(addresses::is_possible) {
            return wrong("that is no host, or no port");
        }
        let mut addresses: Vec<String> = Vec::new();
        for server in server.split(',') {
            let address = addresses::with_port(server, addresses::PORT);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.len() > ADDRESSES_MAX {
            return wrong(&format!("there are more than {ADDRESSES_MAX} hosts"));
        }
        Ok(Self { addresses, path })
    }

    /// The same server's folder at `path`.
    pub fn at(&self, path: &str) -> Self {
        Self { addresses: self.addresses.clone(), path: path.to_owned() }
    }

    /// The folder there, without a slash at either end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What people call it.
    pub fn name(&self) -> String {
        format!("{SCHEME}{}/{}", self.addresses.join(","), self.path)
    }
}

/// Memory for what is known of one object, and of how many at least.
const OBJECT_BYTES: u64 = 2048;
const OBJECTS_MIN: u64 = 1000;

/// Time that goes on while the machine sleeps: a session ends by it.
struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Timestamp {
        clock::coarse_now()
    }

    fn monotonic(&self) -> Duration {
        clock::boottime()
    }
}

/// Connects and mounts; see [`Mounted::prepare`].
pub fn start(
    target: &RemoteTarget,
    mountpoint: &Path,
    settings: &Settings,
) -> Result<(Connected, Mounted, Arc<dyn Subject>)> {
    let name = target.name();
    let cannot = |cause: &dyn std::error::Error| {
        Failure::of(format!("cannot mount {name} at {}", mountpoint.display()), cause)
    };
    let host = rustix::system::uname();
    let who = format!("{}:{}", host.nodename().to_string_lossy(), mountpoint.display());
    // What is known of an object takes a kilobyte or less, and the server has as much to remember.
    let objects_max = (settings.cache.0 / OBJECT_BYTES).max(OBJECTS_MIN) as usize;
    let (deadline, atime) = (settings.deadline, settings.atime());
    let remote = RemoteSettings { deadline, objects_max, atime, ..RemoteSettings::default() };
    let protection = protection(&target.addresses, settings)?;
    let is_encrypted = protection != Protection::None;
    if !is_encrypted && !is_this_machine(&target.addresses) {
        eprintln!("gabion: {name}: what is said is not encrypted, and the server is believed");
    }
    let (addresses, path) = (&target.addresses, &target.path);
    let connected = connect(addresses, protection, path, &who, remote, Arc::new(BootClock));
    let connected = connected.map_err(|error| with_advice(cannot(&error), &error, addresses))?;
    let fs = Arc::clone(connected.fs());
    if let Some(teller) = lock_loss_teller(&name, who.clone(), mountpoint) {
        fs.set_lock_loss_teller(teller);
    }
    fs.set_loss_keeper(loss_keeper(&name, who, mountpoint));
    let mut request = MountRequest::new(mountpoint.to_owned(), Source::Name(name.clone()));
    request.flags = settings.flags();
    request.users = settings.users;
    request.memory = settings.cache.0 / 2;
    request.coherence = Coherence::Shared;
    let mounted = Mounted::prepare(Arc::clone(&fs) as Arc<dyn Filesystem>, &request);
    let mut mounted = mounted.map_err(|error| cannot(&error))?;
    let names = mounted.note_names(fs.seed()).map_err(|error| cannot(&error))?;
    let (notifier, eras) = (mounted.notifier(), mounted.rollbacks().eras());
    fs.set_kernel(Arc::new(NotifiedKernel::new(notifier, names, fs.root(), eras)));
    let service = Service {
        target: target.clone(),
        mountpoint: mountpoint.to_owned(),
        settings: settings.clone(),
        fs,
        is_encrypted,
        started: Instant::now(),
    };
    Ok((connected, mounted, Arc::new(service)))
}

/// Connects without a mount, for what this program does itself. `purpose` is shown at the server.
pub fn session(target: &RemoteTarget, purpose: &str) -> Result<Connected> {
    let name = target.name();
    let settings = Settings::new(Users::Owner);
    let (deadline, atime) = (settings.deadline, AtimeRules::NONE);
    let remote = RemoteSettings { deadline, atime, ..RemoteSettings::default() };
    let protection = protection(&target.addresses, &settings)?;
    if protection == Protection::None && !is_this_machine(&target.addresses) {
        eprintln!("gabion: {name}: what is said is not encrypted, and the server is believed");
    }
    let host = rustix::system::uname();
    let who = format!("{}:{purpose}", host.nodename().to_string_lossy());
    let (addresses, path) = (&target.addresses, &target.path);
    let connected = connect(addresses, protection, path, &who, remote, Arc::new(BootClock));
    connected.map_err(|error| {
        with_advice(Failure::of(format!("cannot use {name}"), &error), &error, addresses)
    })
}

/// Keeps what is lost in the state folder, and tells of it.
fn loss_keeper(filesystem: &str, client: String, mountpoint: &Path) -> Option<LossKeeper> {
    let places = places::state().map_err(|error| chain(&error));
    let places = places.and_then(|state| match volumes::sink("gabion mount") {
        Ok(sink) => Ok((state, sink)),
        Err(failure) => Err(failure.to_string()),
    });
    let (state, sink) = match places {
        Ok(places) => places,
        Err(error) => {
            // Data that is there goes before data that may be lost.
            eprintln!("gabion: {filesystem}: nothing that is lost can be kept: {error}");
            return None;
        }
    };
    let mountpoint = mountpoint.display().to_string();
    let filesystem = filesystem.to_owned();
    let keeper = lost::Keeper { state, sink, filesystem, client, mountpoint };
    Some(Box::new(move |loss| keeper.keep(&loss)))
}

/// Tells of locks that are lost, if events can be written.
fn lock_loss_teller(filesystem: &str, client: String, mountpoint: &Path) -> Option<LockLossTeller> {
    let sink = volumes::sink("gabion mount").ok()?;
    let (filesystem, mount) = (filesystem.to_owned(), mountpoint.display().to_string());
    Some(Box::new(move |loss| {
        let event = ClientEvent::LockLost {
            mount: mount.clone(),
            file: printable(&loss.file),
            count: loss.count as u64,
            first: loss.range.start(),
            last: loss.range.end(),
            reason: loss.reason.clone(),
        };
        let (filesystem, client) = (filesystem.clone(), client.clone());
        let event = Event::Client { filesystem, client, event };
        eprintln!("gabion: {event}");
        sink.publish(event);
    }))
}

fn with_advice(failure: Failure, error: &ConnectError, addresses: &[String]) -> Failure {
    let port = addresses[0].rsplit(':').next().unwrap_or_default();
    failure.next(match error {
        ConnectError::Unencrypted { .. } => {
            "If it serves with --insecure: mount with -o insecure.".to_owned()
        }
        ConnectError::Impostor { .. } | ConnectError::Distrusted { .. } => {
            "If the filesystem is another one now: gabion invite there, and gabion join here."
                .to_owned()
        }
        ConnectError::Refused { refusal, .. } if refusal.text.contains("is not exported") => {
            "Look there whether it exists, and at the --export options of `gabion serve`."
                .to_owned()
        }
        ConnectError::Refused { refusal, .. } if refusal.text.contains("another subvolume") => {
            "Mount the subvolume that it is in, or all of it.".to_owned()
        }
        ConnectError::Refused { refusal, .. } if refusal.reason == RefusalReason::Unauthorized => {
            "On the server's machine: gabion invite TARGET. Here: gabion join LINE MOUNTPOINT"
                .to_owned()
        }
        _ => {
            format!(
                "Look whether `gabion serve` runs there and whether port {port} can be reached."
            )
        }
    })
}

/// How to talk to servers of a filesystem: as the options say, or else by what this machine has
/// joined. All of them have one authority.
fn protection(addresses: &[String], settings: &Settings) -> Result<Protection> {
    let tls = &settings.tls;
    match (&tls.certificate, &tls.key, &tls.authority) {
        (Some(certificate), Some(key), Some(authority)) => {
            return Ok(Protection::Files {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: authority.clone(),
            });
        }
        (None, None, None) => {}
        _ => {
            let text = "tls-cert, tls-key and tls-ca belong together";
            return Err(Failure::new(text).exit(Exit::Usage));
        }
    }
    if settings.insecure {
        return Ok(Protection::None);
    }
    let cannot = |error: &std::io::Error| Failure::of("cannot look what was joined", error);
    let joined = Joined::here().map_err(|error| cannot(&error))?;
    for address in addresses {
        if let Some(folder) = joined.find(address).map_err(|error| cannot(&error))? {
            return Ok(Protection::Joined(folder));
        }
    }
    // Who has once been told whom to trust is not to be talked out of it.
    if is_this_machine(addresses) || joined.is_empty().map_err(|error| cannot(&error))? {
        return Ok(Protection::None);
    }
    let meant = addresses.join(",");
    Err(Failure::new(format!("this machine has joined others, but not {meant}")).next(
        "On the server's machine: gabion invite TARGET. Here: gabion join LINE MOUNTPOINT\n        \
         To talk to it without encryption: -o insecure",
    ))
}

/// Whether each HOST:PORT is this machine, whoever listens there.
fn is_this_machine(addresses: &[String]) -> bool {
    addresses.iter().all(|address| {
        let found: Vec<_> = address.to_socket_addrs().into_iter().flatten().collect();
        !found.is_empty() && found.iter().all(|address| address.ip().is_loopback())
    })
}

struct Service {
    target: RemoteTarget,
    mountpoint: PathBuf,
    settings: Settings,
    fs: Arc<RemoteFs>,
    is_encrypted: bool,
    started: Instant,
}

impl Service {
    /// Asks the server, for the user whose daemon this is: root and that one can talk to it.
    fn asking<T>(&self, run: impl FnOnce(&Asking<'_>) -> T) -> T {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let caller = Caller { uid, gid, ..Caller::superuser() };
        let ask = |errand: Errand| self.fs.run_errand(&caller, errand);
        let (target, now) = (self.target.name(), self.fs.server_seconds());
        run(&Asking { ask: &ask, target: &target, now })
    }

    /// What cannot be done from here, and how it can be.
    fn where_served(&self, done: &str, command: &str) -> String {
        format!(
            "it is at {}, and can be {done} on that machine only: gabion {command} TARGET, with \
             what `gabion serve` was told to serve",
            self.target.name()
        )
    }
}

impl Subject for Service {
    fn status(&self) -> Status {
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_SIZE as u64);
        let space = self.fs.space(self.fs.root().subvol);
        // Nobody is told by the kernel here; without this, revocations would wait for it.
        self.fs.answered();
        let problem = match (&space, self.fs.is_alive()) {
            (Ok(_), true) => None,
            _ => Some(format!("{} does not answer", self.target.name())),
        };
        let (total, used, available) =
            space.map_or((0, 0, 0), |space| (space.total, space.used, space.available));
        let read_only = self.fs.is_read_only() || self.settings.access == Access::ReadOnly;
        let (leases, items) = self.fs.cached();
        let how = if self.is_encrypted { "encrypted" } else { "not encrypted" };
        let mount = MountStatus {
            mountpoint: self.mountpoint.display().to_string(),
            access: if read_only { "ro" } else { "rw" }.to_owned(),
            source: self.target.name(),
            kind: "fuse".to_owned(),
            sync_reaches_daemon: false,
            pid: process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            cache_bytes: self.settings.cache.0,
            resident_bytes: memory::resident_bytes().unwrap_or(0),
            unwritten_bytes: self.fs.under_way().1,
            uncommitted_bytes: 0,
            disk: format!("at the server, {how}; {leases} leases, {items} items kept here"),
        };
        Status {
            target: self.target.name(),
            uuid: self.fs.uuid().to_string(),
            label: String::new(),
            created: String::new(),
            total_bytes: bytes(total),
            used_bytes: bytes(used),
            available_bytes: bytes(available),
            txg: 0,
            subvolumes: 1,
            tried_again: problem.is_some(),
            problem,
            mount: Some(mount),
            served: None,
            standby: None,
        }
    }

    fn scrub(
        &self,
        _: &mut dyn FnMut(&Progress) -> std::ops::ControlFlow<()>,
    ) -> std::result::Result<Report, String> {
        Err(self.where_served("scrubbed", "scrub"))
    }

    fn grow(&self, _: Option<u64>) -> std::result::Result<Grown, String> {
        Err(self.where_served("grown", "grow"))
    }

    fn snapshots(
        &self,
        path: Option<&str>,
        action: &SnapshotAction,
    ) -> std::result::Result<Vec<Reply>, String> {
        self.asking(|asking| asking.snapshots(path, action))
    }

    fn subvolumes(&self, action: &SubvolumeAction) -> std::result::Result<Subvolumes, String> {
        self.asking(|asking| asking.subvolumes(action))
    }

    fn quotas(
        &self,
        path: Option<&str>,
        action: &QuotaAction,
    ) -> std::result::Result<Quotas, String> {
        self.asking(|asking| asking.quotas(path, action))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_with_or_without_its_port() {
        let address =
            |text: &str| RemoteTarget::of(Path::new(text)).unwrap().unwrap().addresses.join(" ");
        assert_eq!(address("gabion://host"), "host:7777");
        assert_eq!(address("gabion://host/"), "host:7777");
        assert_eq!(address("gabion://host:1/"), "host:1");
        assert_eq!(address("gabion://[::1]:80/"), "[::1]:80");
        assert_eq!(address("gabion://[::1]/"), "[::1]:7777");
        for wrong in ["gabion:///", "gabion://host:99999/", "gabion://host:/", "gabion://host:x/"] {
            assert!(RemoteTarget::of(Path::new(wrong)).unwrap().is_err(), "{wrong}");
        }
        let target = |text: &str| RemoteTarget::of(Path::new(text)).unwrap();
        assert_eq!(target("gabion://host//a/b/").unwrap().name(), "gabion://host:7777/a/b");
        assert!(target("gabion://host/a/../b").is_err());
        assert!(RemoteTarget::of(Path::new("/dev/sda")).is_none());
    }

    #[test]
    fn several_servers_stand_side_by_side() {
        let target = |text: &str| RemoteTarget::of(Path::new(text)).unwrap();
        let several = target("gabion://a,b:1,[::1],a:7777/home/ann").unwrap();
        assert_eq!(several.addresses, ["a:7777", "b:1", "[::1]:7777"]);
        assert_eq!(several.path(), "home/ann");
        assert_eq!(several.name(), "gabion://a:7777,b:1,[::1]:7777/home/ann");
        assert_eq!(target(&several.name()).unwrap(), several);
        for wrong in ["gabion://a,/", "gabion://,a/", "gabion://a,,b/", "gabion://,/"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
        assert!(target("gabion://1,2,3,4,5,6,7,8/").is_ok());
        assert!(target("gabion://1,2,3,4,5,6,7,8,9/").is_err());
    }
}
