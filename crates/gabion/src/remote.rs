//! The daemon of a mount of a filesystem that another machine serves.
//!
//! ```text
//! start:  connection -> session -> mount -> control socket
//! run:    until somebody unmounts, or a signal has it unmounted here
//! end:    the server is told, those who wait are told, the process ends
//! ```

use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::time::Timestamp;
use gabion_fuse::mount::Source;
use gabion_host::{clock, memory};
use gabion_link::wire::TARGET_BYTES_MAX;
use gabion_node::remote::{Kernel, RemoteFs, RemoteSettings};
use gabion_node::{Clock, Filesystem};

use crate::control::server::Subject;
use crate::control::wire::{Grown, MountStatus, Progress, Report, Status};
use crate::failure::{Failure, Result};
use crate::link::{ConnectError, Connected, NotifiedKernel, connect};
use crate::mount::{Coherence, MountRequest, Mounted};
use crate::options::{Access, Settings};

/// What a target of `gabion mount` begins with if it is at a server.
const SCHEME: &str = "gabion://";
/// The port of a server if none is said.
const PORT: u16 = 7777;

/// A filesystem at a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteTarget {
    /// HOST:PORT
    address: String,
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
            Err(Failure::new(format!("{SCHEME}{rest} is not possible: {reason}"))
                .next("Say gabion://HOST/, gabion://HOST:PORT/ or gabion://HOST/FOLDER"))
        };
        let (server, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/').to_owned();
        if path.split('/').any(|name| name == "..") {
            return wrong("\"..\" leads out of it");
        }
        if path.len() > TARGET_BYTES_MAX {
            return wrong("the path is too long");
        }
        if server.is_empty() {
            return wrong("there is no host");
        }
        let has_port = match server.rsplit_once(':') {
            Some((host, port)) => !host.ends_with(':') && port.parse::<u16>().is_ok(),
            None => false,
        };
        let is_bare_number = server.starts_with('[') && server.ends_with(']');
        let address = match has_port && !is_bare_number {
            true => server.to_owned(),
            false => format!("{server}:{PORT}"),
        };
        Ok(Self { address, path })
    }

    /// What people call it.
    pub fn name(&self) -> String {
        format!("{SCHEME}{}/{}", self.address, self.path)
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

/// Connects and mounts.
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
    let remote = RemoteSettings { deadline: settings.deadline, objects_max };
    let connected = connect(&target.address, &target.path, &who, remote, Arc::new(BootClock));
    let connected = connected.map_err(|error| {
        let port = target.address.rsplit(':').next().unwrap_or_default();
        cannot(&error).next(match error {
            ConnectError::Refused { .. } => {
                "Look at the --export options of `gabion serve` there.".to_owned()
            }
            _ => format!(
                "Look whether `gabion serve` runs there and whether port {port} can be reached."
            ),
        })
    })?;
    let fs = Arc::clone(connected.fs());
    let mut request = MountRequest::new(mountpoint.to_owned(), Source::Name(name.clone()));
    request.flags = settings.flags();
    request.users = settings.users;
    request.memory = settings.cache.0 / 2;
    request.coherence = Coherence::Shared;
    let mounted = Mounted::start(Arc::clone(&fs) as Arc<dyn Filesystem>, &request);
    let mounted = mounted.map_err(|error| cannot(&error))?;
    let kernel: Arc<dyn Kernel> = Arc::new(NotifiedKernel::new(mounted.notifier(), fs.root()));
    fs.set_kernel(kernel);
    let service = Service {
        target: target.clone(),
        mountpoint: mountpoint.to_owned(),
        settings: settings.clone(),
        fs,
        started: Instant::now(),
    };
    Ok((connected, mounted, Arc::new(service)))
}

struct Service {
    target: RemoteTarget,
    mountpoint: PathBuf,
    settings: Settings,
    fs: Arc<RemoteFs>,
    started: Instant,
}

impl Service {
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
        let space = self.fs.space();
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
            disk: format!("at the server; {leases} leases, {items} items kept here"),
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
            problem,
            mount: Some(mount),
            served: None,
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_with_or_without_its_port() {
        let address = |text: &str| RemoteTarget::of(Path::new(text)).unwrap().unwrap().address;
        assert_eq!(address("gabion://host"), "host:7777");
        assert_eq!(address("gabion://host/"), "host:7777");
        assert_eq!(address("gabion://host:1/"), "host:1");
        assert_eq!(address("gabion://[::1]:80/"), "[::1]:80");
        assert_eq!(address("gabion://[::1]/"), "[::1]:7777");
        assert!(RemoteTarget::of(Path::new("gabion:///")).unwrap().is_err());
        let target = |text: &str| RemoteTarget::of(Path::new(text)).unwrap();
        assert_eq!(target("gabion://host//a/b/").unwrap().name(), "gabion://host:7777/a/b");
        assert!(target("gabion://host/a/../b").is_err());
        assert!(RemoteTarget::of(Path::new("/dev/sda")).is_none());
    }
}
