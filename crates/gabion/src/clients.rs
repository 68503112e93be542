//! What a filesystem that is served tells other commands on its machine, and how they ask.
//!
//! The control socket of a server is called after the disk that it serves, and is in the same
//! folder as those of mounts:
//!
//! ```text
//!   served-<device>-<inode>.sock     an image, or the file that stands for a volume
//!   served-<number>.sock             a device, by the number that all nodes of it have
//! ```
//!
//! That of a standby has `standby` in place of `served`: both may be on one machine.
//!
//! A disk is served by one process at a time, as serving locks it. So whatever is found at its name
//! is of a server that was killed, and is replaced. Volumes of two coordinators may have one name:
//! who finds somebody alive there does not serve.

use std::fs::{self, Metadata};
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_fs::lock::{Lock, LockClass, Strength};
use gabion_host::clock;
use gabion_link::errand::Errand;
use gabion_link::message::SessionId;
use gabion_link::range::KeyRange;
use gabion_link::table::ClientId;
use gabion_map::format::superblock::Superblock;
use gabion_map::{FileId, Kind, LockMode};
use gabion_node::LocalFs;
use gabion_node::served::ClientStatus;

use crate::addresses;
use crate::check;
use crate::control::client::Connection;
use crate::control::folder;
use crate::control::server::{Server, Subject};
use crate::control::wire::{
    Client, Clients, Evicted, Grown, Invited, LeaseRow, Leases, LockRow, Locks, Progress,
    QuotaAction, Quotas, Reply, Report, ServedStatus, SnapshotAction, Status, SubvolumeAction,
    Subvolumes,
};
use crate::errands::Asking;
use crate::failure::{Failure, chain};
use crate::growth;
use crate::link::Sessions;
use crate::print::printable;
use crate::serve::Storage;
use crate::state;
use crate::trust::Trust;
use crate::trust::invitation::{ADDRESSES_MAX, Invitation};
use crate::volumes::Place;

/// So many leases are told, and so many that are waited for.
const ROWS_MAX: usize = 10_000;
/// How long a server that was killed may seem to live, and how often that is looked at.
const UNSEEN_PATIENCE: Duration = Duration::from_secs(2);
const UNSEEN_GLANCE: Duration = Duration::from_millis(20);
/// How long clients may take to tell which locks they have, and how often that is looked at.
const LOCKS_PATIENCE: Duration = Duration::from_secs(1);
const LOCKS_GLANCE: Duration = Duration::from_millis(5);

/// What has the socket.
#[derive(Clone, Copy)]
enum Role {
    Served,
    Standby,
}

fn socket_name(role: Role, metadata: &Metadata) -> String {
    let role = match role {
        Role::Served => "served",
        Role::Standby => "standby",
    };
    match metadata.file_type().is_block_device() {
        true => format!("{role}-{:x}.sock", metadata.rdev()),
        false => format!("{role}-{:x}-{:x}.sock", metadata.dev(), metadata.ino()),
    }
}

fn socket_of(role: Role, place: &Place) -> io::Result<PathBuf> {
    let metadata = fs::metadata(&place.path)?;
    Ok(folder::own()?.join(socket_name(role, &metadata)))
}

/// How a filesystem is served.
pub struct Served {
    /// To whom.
    pub sessions: Sessions,
    /// Where.
    pub address: SocketAddr,
}

/// Begins to answer other commands about a filesystem that this process has open and serves.
pub fn start(
    place: &Place,
    fs: &Arc<LocalFs>,
    storage: &Storage,
    served: Served,
) -> io::Result<Server> {
    let socket = socket_of(Role::Served, place)?;
    let began = Instant::now();
    while Connection::at(&socket).is_ok() {
        if began.elapsed() > UNSEEN_PATIENCE {
            return Err(io::Error::other("a volume of another coordinator has this name, too"));
        }
        thread::sleep(UNSEEN_GLANCE);
    }
    let superblock = fs.map().superblock();
    let (target, fs, storage) = (place.name(), Arc::clone(fs), storage.clone());
    let Served { sessions, address } = served;
    let service = Service { target, fs, storage, superblock, sessions, address };
    Server::start(&socket, Arc::new(service))
}

/// The control socket of whoever serves what is at `place` on this machine, if somebody does.
pub fn socket_if_served(place: &Place) -> Option<PathBuf> {
    socket_of(Role::Served, place).ok().filter(|socket| Connection::at(socket).is_ok())
}

/// Begins to tell other commands of a standby for what is at `place`.
pub fn stand_by(place: &Place, subject: Arc<dyn Subject>) -> io::Result<Server> {
    let socket = socket_of(Role::Standby, place)?;
    if Connection::at(&socket).is_ok() {
        return Err(io::Error::other("this machine has a standby for it already"));
    }
    Server::start(&socket, subject)
}

/// Connects to the standby of this machine for what is at `place`, if there is one.
pub fn standby(place: &Place) -> Option<Connection> {
    Connection::at(&socket_of(Role::Standby, place).ok()?).ok()
}

/// The control socket of whoever serves what is at `place` on this machine, if somebody does.
pub fn served_socket(place: &Place) -> io::Result<PathBuf> {
    socket_of(Role::Served, place)
}

/// Whether a control socket in this user's folder is one of a server, by its name.
pub fn is_served_socket(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("served-") && name.ends_with(".sock")
}

/// A failure for a reply that is not the one that was due.
pub fn unexpected(reply: &Reply) -> Failure {
    Failure::new(format!("the server answered {reply:?}"))
}

/// What was asked about: all of a filesystem, or one object in it.
pub fn what(target: &str, path: Option<&str>) -> String {
    match path {
        None => target.to_owned(),
        Some(path) => format!("{} in {target}", printable(path)),
    }
}

struct Service {
    target: String,
    fs: Arc<LocalFs>,
    storage: Storage,
    /// As of the start.
    superblock: Superblock,
    sessions: Sessions,
    address: SocketAddr,
}

impl Subject for Service {
    fn status(&self) -> Status {
        let served = ServedStatus {
            address: self.address.to_string(),
            pid: process::id(),
            clients: self.sessions.served().clients().len() as u64,
        };
        let status = state::of_fs(&self.fs, &self.superblock, &self.target, None);
        Status { served: Some(served), ..status }
    }

    fn scrub(
        &self,
        watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> std::result::Result<Report, String> {
        check::scrub_in_use(&self.fs, &self.target, watch)
    }

    fn grow(&self, to_bytes: Option<u64>) -> std::result::Result<Grown, String> {
        growth::grow(self.fs.map(), self.storage.file(), &self.target, to_bytes)
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

    fn clients(&self) -> std::result::Result<Clients, String> {
        let clients = self.sessions.served().clients().into_iter().map(|client| Client {
            session: client.session.text(),
            machine: self.sessions.holder(client.session).map(|holder| holder.name),
            name: client.name,
            leases: client.leases as u64,
            opens: client.opens as u64,
            owed: client.owed as u64,
            awaited: false,
        });
        let awaited = self.sessions.awaited().into_iter().map(|(session, machine)| Client {
            session: session.text(),
            machine,
            name: String::new(),
            leases: 0,
            opens: 0,
            owed: 0,
            awaited: true,
        });
        let clients = clients.chain(awaited);
        let (target, address) = (self.target.clone(), self.address.to_string());
        Ok(Clients { target, address, clients: clients.collect() })
    }

    fn leases(&self, path: Option<String>) -> std::result::Result<Leases, String> {
        let file = self.file_at(path.as_deref())?;
        let is_meant = |range: &KeyRange| file.is_none_or(|file| range.file() == file);
        let (leases, waiting) = self.sessions.served().leases();
        let held = leases.iter().filter(|lease| is_meant(&lease.range));
        let held = held.flat_map(|lease| rows(lease.client, &lease.range, lease.mode));
        let wanted = waiting.iter().flat_map(|(client, wants)| {
            let wants = wants.iter().filter(|(range, _)| is_meant(range));
            wants.flat_map(|(range, mode)| rows(*client, range, *mode))
        });
        let (leases, more_leases) = bounded(held);
        let (waiting, more_waiting) = bounded(wanted);
        let target = self.target.clone();
        Ok(Leases { target, path, leases, more_leases, waiting, more_waiting })
    }

    fn locks(&self, path: Option<String>) -> std::result::Result<Locks, String> {
        let file = self.file_at(path.as_deref())?;
        // Clients that do not answer soon keep their locks to themselves.
        let asked = Instant::now();
        while self.sessions.served().recall_locks(file) > 0 && asked.elapsed() < LOCKS_PATIENCE {
            thread::sleep(LOCKS_GLANCE);
        }
        let found = self.fs.locks().list(file, ROWS_MAX);
        let rows = |locks: &[Lock]| locks.iter().map(lock_row).collect();
        Ok(Locks {
            target: self.target.clone(),
            path,
            locks: rows(&found.held),
            more_locks: found.more_held as u64,
            waiting: rows(&found.waiting),
            more_waiting: found.more_waiting as u64,
        })
    }

    fn evict(&self, client: &str, revoke: bool) -> std::result::Result<Evicted, String> {
        let meant = self.meant(client);
        if revoke {
            return self.revoke(client, &meant);
        }
        let mut named: Vec<_> = meant.into_iter().map(|one| (one.session, one.name)).collect();
        let is_meant = |(session, machine): &(SessionId, Option<String>)| {
            session.text() == client || machine.as_deref() == Some(client)
        };
        let awaited = self.sessions.awaited().into_iter().filter(is_meant);
        named.extend(awaited.map(|(session, _)| (session, String::new())));
        match named.as_slice() {
            [(session, name)] if self.sessions.evict(*session) => Ok(evicted(*session, name, None)),
            [] | [_] => Err(self.no_client(client)),
            several => {
                Err(format!("{} clients are called {client}: name the session", several.len()))
            }
        }
    }

    fn invite(&self, seconds: u64, at: &[String]) -> std::result::Result<Invited, String> {
        let Trust::Members(membership) = self.sessions.trust() else {
            return Err(NOT_OURS.to_owned());
        };
        if let Some(address) = at.iter().find(|address| !addresses::is_possible(address)) {
            return Err(format!("{address:?} is no address: say HOST or HOST:PORT"));
        }
        let port = self.address.port();
        let mut addresses: Vec<_> =
            at.iter().map(|address| addresses::with_port(address, port)).collect();
        if addresses.is_empty() {
            addresses = addresses::of_listener(self.address).map_err(|error| error.to_string())?;
        }
        addresses.truncate(ADDRESSES_MAX);
        if addresses.is_empty() {
            return Err("this machine has no address: say one with --address".to_owned());
        }
        let now = clock::now().seconds;
        let expires = now.saturating_add_unsigned(seconds);
        let (authority, secret) = membership.invite(now, expires).map_err(|error| chain(&error))?;
        let line = Invitation { addresses, authority, secret, expires }.to_string();
        // What people type may be anything.
        match line.parse::<Invitation>() {
            Ok(_) => Ok(Invited { line, expires }),
            Err(_) => Err("an address makes no sense: say HOST or HOST:PORT".to_owned()),
        }
    }
}

/// What is said where certificates are made by somebody else.
const NOT_OURS: &str = "it is served with certificates of another authority (--tls-ca), which \
                        decides who may come";

impl Service {
    /// Asks its own server.
    fn asking<T>(&self, run: impl FnOnce(&Asking<'_>) -> T) -> T {
        let ask = |errand: Errand| self.sessions.served().run_errand(&errand);
        let now = self.sessions.served().now().seconds;
        run(&Asking { ask: &ask, target: &self.target, now })
    }

    fn no_client(&self, client: &str) -> String {
        format!("{} has no client {client}", self.target)
    }

    /// Clients of this session, name or machine.
    fn meant(&self, client: &str) -> Vec<ClientStatus> {
        let mut meant = self.sessions.served().clients();
        meant.retain(|status| {
            let machine = || self.sessions.holder(status.session).map(|holder| holder.name);
            status.session.text() == client
                || status.name == client
                || machine().as_deref() == Some(client)
        });
        meant
    }

    /// Takes a machine's certificate back, and ends its sessions.
    fn revoke(&self, client: &str, meant: &[ClientStatus]) -> std::result::Result<Evicted, String> {
        let Trust::Members(membership) = self.sessions.trust() else {
            return Err(NOT_OURS.to_owned());
        };
        let mut serials: Vec<String> = meant
            .iter()
            .filter_map(|status| Some(self.sessions.holder(status.session)?.serial))
            .collect();
        serials.sort();
        serials.dedup();
        let name = match (serials.as_slice(), meant) {
            ([one], _) => one,
            // One that is not here now.
            ([], []) => client,
            ([], _) => return Err(format!("{client} has no certificate")),
            _ => return Err(format!("{client} may be several machines: name the session")),
        };
        let revoked = membership.revoke(name).map_err(|error| chain(&error))?;
        let member = revoked.ok_or_else(|| self.no_client(client))?;
        let mut ended = evicted(SessionId(0), "", Some(member.name.clone()));
        ended.session.clear();
        for status in self.sessions.served().clients() {
            let holder = self.sessions.holder(status.session);
            if holder.is_some_and(|holder| holder.serial == member.serial)
                && self.sessions.evict(status.session)
            {
                ended = evicted(status.session, &status.name, Some(member.name.clone()));
            }
        }
        Ok(ended)
    }
}

fn evicted(session: SessionId, name: &str, revoked: Option<String>) -> Evicted {
    Evicted { session: session.text(), name: name.to_owned(), revoked }
}

impl Service {
    /// The object at a path in the filesystem, if one is named.
    fn file_at(&self, path: Option<&str>) -> std::result::Result<Option<FileId>, String> {
        let Some(path) = path else { return Ok(None) };
        match self.fs.at(path.as_bytes()) {
            Ok(found) => Ok(Some(found.file)),
            Err(error) => Err(format!("cannot find {path} in {}: {error}", self.target)),
        }
    }
}

fn lock_row(lock: &Lock) -> LockRow {
    LockRow {
        client: SessionId(lock.owner.client).text(),
        inode: lock.file.ino.0,
        kind: match lock.class {
            LockClass::Posix => "fcntl",
            LockClass::OpenFile => "ofd",
            LockClass::Flock => "flock",
        }
        .to_owned(),
        mode: match lock.strength {
            Strength::Shared => "shared",
            Strength::Exclusive => "exclusive",
        }
        .to_owned(),
        from: lock.range.start(),
        // The kernel says so if a lock has no end.
        to: lock.range.end().checked_add(1).filter(|end| *end < 1 << 63),
        pid: lock.pid,
    }
}

fn bounded(mut rows: impl Iterator<Item = LeaseRow>) -> (Vec<LeaseRow>, u64) {
    let first = rows.by_ref().take(ROWS_MAX).collect();
    (first, rows.count() as u64)
}

/// A range as it is told: a row for each kind of thing in it.
fn rows(client: ClientId, range: &KeyRange, mode: LockMode) -> Vec<LeaseRow> {
    let file = range.file();
    let parts = [
        ("attributes", KeyRange::attributes(file)),
        ("names", KeyRange::names(file)),
        ("bytes", KeyRange::bytes_from(file, 0)),
        ("locks", KeyRange::locks(file)),
    ];
    let row = |(what, all): (&str, KeyRange)| {
        let part = range.intersection(&all)?;
        let (first, last) = (part.first(), part.last());
        let has_places = first.kind > Kind::XATTR;
        Some(LeaseRow {
            client: SessionId(client.0).text(),
            inode: file.ino.0,
            what: what.to_owned(),
            from: has_places.then_some(first.at),
            to: if has_places { last.at.checked_add(1) } else { None },
            mode: match mode {
                LockMode::Shared => "shared",
                LockMode::Exclusive => "exclusive",
            }
            .to_owned(),
        })
    };
    parts.into_iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};

    use super::*;

    #[test]
    fn a_range_is_told_by_the_things_in_it() {
        let file = FileId { subvol: SubvolId(1), ino: Ino(7) };
        let told = |range: KeyRange| -> Vec<_> {
            let rows = rows(ClientId(1), &range, LockMode::Shared);
            rows.into_iter().map(|row| (row.what, row.from, row.to)).collect()
        };
        let row = |what: &str, from, to| (what.to_owned(), from, to);
        assert_eq!(told(KeyRange::attributes(file)), [row("attributes", None, None)]);
        assert_eq!(told(KeyRange::bytes(file, 4096, 8192)), [row("bytes", Some(4096), Some(8192))]);
        assert_eq!(told(KeyRange::bytes_from(file, 1)), [row("bytes", Some(1), None)]);
        let (attributes, names) = (KeyRange::attributes(file), KeyRange::names(file));
        let both = KeyRange::new(attributes.first(), names.last()).unwrap();
        assert_eq!(told(both), [row("attributes", None, None), row("names", Some(0), None)]);
    }

    #[test]
    fn what_is_not_told_is_counted() {
        let file = FileId { subvol: SubvolId(1), ino: Ino(7) };
        let row = rows(ClientId(1), &KeyRange::names(file), LockMode::Exclusive).remove(0);
        let (told, more) = bounded(std::iter::repeat_n(row, ROWS_MAX + 3));
        assert_eq!((told.len(), more), (ROWS_MAX, 3));
    }
}
