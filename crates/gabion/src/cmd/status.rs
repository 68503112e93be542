//! `gabion status`: asks the daemon of a mount, or looks at what is not mounted.

use std::io;
use std::path::Path;
use std::time::Duration;

use gabion_fuse::mountinfo::Mount;
use gabion_map::{Limits, LocalMap, OpenMode};

use crate::args;
use crate::control::client::Connection;
use crate::control::wire::{Reply, Request, Status};
use crate::failure::{Failure, Result};
use crate::mounts::{self, Life};
use crate::print;
use crate::state;
use crate::target::open_still;
use crate::volumes::Place;

/// How long a daemon may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Memory to look at what is not mounted, in bytes.
const MEMORY: u64 = 32 << 20;

/// What a command's argument stands for.
pub enum Subject {
    /// A mount of ours that has a daemon.
    Mounted(Mount),
    /// A device or image that is not mounted.
    Target,
}

/// Runs the command.
pub fn run(args: &args::Status) -> Result<()> {
    match &args.subject {
        Some(subject) => {
            let status = one(subject)?;
            print::line(if args.json { json(&status) } else { state::text(&status) })
        }
        None => all(args.json),
    }
}

/// Shows every mount that answers, and fails if one does not.
fn all(as_json: bool) -> Result<()> {
    let mut statuses = Vec::new();
    let mut failed = None;
    for mount in mounts::all()? {
        match of_mount(&mount) {
            Ok(status) => statuses.push(status),
            // Unmounted since.
            Err(_) if mounts::at(&mount.mountpoint)?.is_none_or(|now| now.id != mount.id) => {}
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
        print::line(statuses.iter().map(state::text).collect::<Vec<_>>().join("\n\n"))?;
    }
    failed.map_or(Ok(()), Err)
}

/// A value as JSON for people and programs.
pub fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("numbers and text can always be written")
}

fn one(path: &Path) -> Result<Status> {
    match subject(path)? {
        Subject::Mounted(mount) => of_mount(&mount),
        Subject::Target => {
            let map = open_map(path)?;
            Ok(state::of_map(&map, &map.superblock(), &path.display().to_string(), None))
        }
    }
}

/// Finds out what `path` stands for.
pub fn subject(path: &Path) -> Result<Subject> {
    if let Some(mount) = mounts::at(path)?.filter(mounts::is_gabion) {
        return Ok(Subject::Mounted(mount));
    }
    let name = path.display();
    if let Place { path, volume: Some(volume), .. } = Place::of(path)? {
        return mounts::of_target(&path)?.map(Subject::Mounted).ok_or_else(|| {
            Failure::new(format!("volume {volume} is not mounted on this machine"))
                .next(format!("To see it: gabion volume status {volume}"))
        });
    }
    let metadata = std::fs::metadata(path)
        .map_err(|error| Failure::of(format!("cannot look at {name}"), &error))?;
    if metadata.is_dir() {
        return Err(Failure::new(format!("no Gabion filesystem is mounted at {name}"))
            .next("To see what is mounted: gabion status"));
    }
    Ok(match mounts::of_target(path)? {
        Some(mount) => Subject::Mounted(mount),
        None => Subject::Target,
    })
}

/// Opens what is not mounted, to look at it.
pub fn open_map(target: &Path) -> Result<LocalMap> {
    let disk = open_still(target)?;
    LocalMap::open(disk, OpenMode::ReadOnly, Limits::within(MEMORY))
        .map_err(|error| Failure::of(format!("cannot read {}", target.display()), &error))
}

fn of_mount(mount: &Mount) -> Result<Status> {
    let ask = || -> io::Result<Reply> {
        let mut connection = Connection::open(mount)?;
        connection.ask(Request::Status, PATIENCE)?;
        connection.reply()
    };
    match ask() {
        Ok(Reply::Status(status)) => Ok(*status),
        Ok(Reply::Error { message }) => Err(Failure::new(message)),
        Ok(other) => Err(Failure::new(format!("the daemon answered {other:?}"))),
        Err(error) => Err(unreachable(mount, &error)),
    }
}

/// Why a daemon cannot be talked to.
pub fn unreachable(mount: &Mount, error: &io::Error) -> Failure {
    let mountpoint = mount.mountpoint.display();
    match mounts::life(mount) {
        Life::Dead => Failure::new(format!("the daemon of {mountpoint} is gone"))
            .next(format!("To clean up: gabion umount {mountpoint}")),
        Life::Serving => Failure::of(format!("cannot talk to the daemon of {mountpoint}"), error)
            .next("Only root and who mounted it can."),
    }
}
