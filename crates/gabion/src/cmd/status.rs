//! `gabion status`: asks the daemon of a mount, or looks at what is not mounted.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gabion_fuse::mountinfo::Mount;
use gabion_map::{Limits, LocalMap, OpenMode};
use serde::Serialize;

use crate::args;
use crate::clients;
use crate::control::client::Connection;
use crate::control::wire::{Reply, Request, Status};
use crate::failure::{Failure, Result};
use crate::mounts::{self, Life};
use crate::outside::Outside;
use crate::print;
use crate::state;
use crate::target::open_still;
use crate::volumes::{self, Place};

/// How long a daemon may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Memory to look at what is not mounted, in bytes.
const MEMORY: u64 = 32 << 20;

/// Who has a filesystem in use, and can be asked about it.
pub enum User {
    /// The daemon of a mount of ours.
    Mount(Mount),
    /// Who serves it on this machine.
    Server {
        /// What people call the filesystem.
        name: String,
        /// Where the server can be asked.
        socket: PathBuf,
    },
}

/// What a command's argument stands for.
pub enum Subject {
    /// What somebody has in use.
    InUse(User),
    /// A device, image or volume that nobody has in use on this machine.
    Target(Place),
}

impl User {
    /// Who serves what is at `place`, if somebody does on this machine.
    pub fn serving(place: &Place) -> Option<Self> {
        let socket = clients::socket_if_served(place)?;
        Some(Self::Server { name: place.name(), socket })
    }

    /// What people call the filesystem.
    pub fn name(&self) -> String {
        match self {
            Self::Mount(mount) => mount.mountpoint.display().to_string(),
            Self::Server { name, .. } => name.clone(),
        }
    }

    /// Connects to it.
    pub fn connect(&self) -> io::Result<Connection> {
        match self {
            Self::Mount(mount) => Connection::open(mount),
            Self::Server { socket, .. } => Connection::at(socket),
        }
    }

    /// Why it cannot be talked to.
    pub fn unreachable(&self, error: &io::Error) -> Failure {
        match self {
            Self::Mount(mount) => unreachable(mount, error),
            Self::Server { name, .. } => {
                let what = format!("cannot talk to the server of {name}");
                match error.kind() {
                    ErrorKind::WouldBlock => Failure::new(format!("{what}: it does not answer")),
                    _ => Failure::of(what, error),
                }
            }
        }
    }
}

/// Runs the command.
pub fn run(args: &args::Status) -> Result<()> {
    match &args.subject {
        Some(subject) => {
            let known = one(subject)?;
            print::line(if args.json { json(&known) } else { known.text() })
        }
        None => all(args.json),
    }
}

/// Shows every mount that answers, and fails if one does not.
fn all(as_json: bool) -> Result<()> {
    let mut statuses = Vec::new();
    let mut failed = None;
    for mount in mounts::all()? {
        let (id, mountpoint) = (mount.id, mount.mountpoint.clone());
        match of_user(&User::Mount(mount)) {
            Ok(status) => statuses.push(status),
            // Unmounted since.
            Err(_) if mounts::at(&mountpoint)?.is_none_or(|now| now.id != id) => {}
            Err(failure) => {
                if let Some(earlier) = failed.replace(failure) {
                    eprintln!("gabion: {earlier}");
                }
            }
        }
    }
    if as_json {
        print::line(json(&statuses))?;
    } else if statuses.is_empty() && failed.is_none() {
        print::line("no Gabion filesystem is mounted")?;
    } else if !statuses.is_empty() {
        print::line(statuses.iter().map(Known::text).collect::<Vec<_>>().join("\n\n"))?;
    }
    failed.map_or(Ok(()), Err)
}

/// A value as JSON for people and programs.
pub fn json<T: serde::Serialize>(value: &T) -> String {
    let text = serde_json::to_string_pretty(value).expect("numbers and text can always be written");
    escaped(text)
}

/// JSON as well, but without what JSON may have in it and terminals obey: DEL and the C1 codes.
fn escaped(json: String) -> String {
    let is_plain = |letter: char| letter == '\n' || !letter.is_control();
    if json.chars().all(is_plain) {
        return json;
    }
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        match is_plain(letter) {
            true => text.push(letter),
            false => text.push_str(&format!("\\u{:04x}", u32::from(letter))),
        }
    }
    text
}

/// What is known of a filesystem.
#[derive(Serialize)]
#[serde(untagged)]
enum Known {
    /// All that there is to tell.
    All(Box<Status>),
    /// What is told to everybody.
    Outside(Outside),
}

impl Known {
    fn text(&self) -> String {
        match self {
            Self::All(status) => state::text(status),
            Self::Outside(outside) => outside.text(),
        }
    }
}

fn one(path: &Path) -> Result<Known> {
    match subject(path)? {
        Subject::InUse(user) => of_user(&user),
        Subject::Target(place) => match clients::standby(&place) {
            Some(connection) => {
                let failed = |error| {
                    Failure::of(format!("cannot talk to the standby for {}", place.name()), &error)
                };
                Ok(Known::All(Box::new(ask(connection).map_err(failed)??)))
            }
            None => with_map(&place, "gabion status", |map| {
                let status = state::of_map(map, &map.superblock(), &place.name(), None);
                Ok(Known::All(Box::new(status)))
            }),
        },
    }
}

/// Finds out what `path` stands for.
pub fn subject(path: &Path) -> Result<Subject> {
    if let Some(mount) = mounts::at(path)?.filter(mounts::is_gabion) {
        return Ok(Subject::InUse(User::Mount(mount)));
    }
    let name = path.display();
    let place = Place::of(path)?;
    let metadata = std::fs::metadata(&place.path).map_err(|error| {
        volumes::or_volume(Failure::of(format!("cannot look at {name}"), &error), &place, &error)
    })?;
    if metadata.is_dir() {
        return Err(Failure::new(format!("no Gabion filesystem is mounted at {name}"))
            .next("To see what is mounted: gabion status"));
    }
    Ok(user(&place)?.map_or(Subject::Target(place), Subject::InUse))
}

/// Who has it in use on this machine.
pub fn user(place: &Place) -> Result<Option<User>> {
    let mount = mounts::of_target(&place.path)?.map(User::Mount);
    Ok(mount.or_else(|| User::serving(place)))
}

/// Looks at an image, a device or a volume that nobody has in use. A volume is taken for as long as
/// that lasts, and others who want it are told that `program` has it.
pub fn with_map<T>(
    place: &Place,
    program: &str,
    look: impl FnOnce(&LocalMap) -> Result<T>,
) -> Result<T> {
    let look = |disk| {
        let map = LocalMap::open(disk, OpenMode::ReadOnly, Limits::within(MEMORY));
        look(&map.map_err(|error| Failure::of(format!("cannot read {}", place.name()), &error))?)
    };
    match &place.volume {
        None => look(open_still(&place.path)?),
        Some(_) => volumes::with_disk(&place.path, place, program, OpenMode::ReadOnly, look),
    }
}

fn of_user(user: &User) -> Result<Known> {
    let error = match user.connect().and_then(ask) {
        Ok(status) => return Ok(Known::All(Box::new(status?))),
        Err(error) => error,
    };
    match user {
        User::Mount(mount) if error.kind() == ErrorKind::PermissionDenied => {
            Outside::of(mount).map(Known::Outside).ok_or_else(|| gone(mount))
        }
        _ => Err(user.unreachable(&error)),
    }
}

/// What somebody answers, or why nobody does.
fn ask(mut connection: Connection) -> io::Result<Result<Status>> {
    connection.ask(Request::Status, PATIENCE)?;
    Ok(match connection.reply()? {
        Reply::Status(status) => Ok(*status),
        Reply::Error { message } => Err(Failure::new(message)),
        other => Err(Failure::new(format!("the daemon answered {other:?}"))),
    })
}

fn gone(mount: &Mount) -> Failure {
    let mountpoint = mount.mountpoint.display();
    Failure::new(format!("the daemon of {mountpoint} is gone"))
        .next(format!("To clean up: gabion umount {mountpoint}"))
}

fn unreachable(mount: &Mount, error: &io::Error) -> Failure {
    let mountpoint = mount.mountpoint.display();
    match mounts::life(mount) {
        Life::Dead => gone(mount),
        Life::Serving => {
            let what = format!("cannot talk to the daemon of {mountpoint}");
            match error.kind() {
                ErrorKind::WouldBlock => Failure::new(format!("{what}: it does not answer")).next(
                    "It hangs, or was stopped; what its disk or its server does may say why.",
                ),
                ErrorKind::PermissionDenied => {
                    Failure::of(what, error).next("Only root and who mounted it can.")
                }
                _ => Failure::of(what, error),
            }
        }
    }
}
