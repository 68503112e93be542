//! `gabion snapshot`: makes, shows, compares and removes snapshots. The daemon does it for what is
//! mounted; what nobody has in use is opened here.

pub mod schedule;

use std::io;
use std::path::Path;
use std::time::Duration;

use gabion_map::OpenMode;
use rustix::io::Errno;

use super::consent;
use super::status::{Subject, User, json};
use crate::args::snapshots::{Snapshot, SnapshotCommand};
use crate::control::wire::{Difference, Reply, Request, SnapshotAction, Snapshots};
use crate::failure::{Failure, Result};
use crate::locations::{self, Location};
use crate::mounts;
use crate::print;
use crate::snapshots;
use crate::volumes::Place;

/// How long a daemon may take: as long as a commit with all that waits to be written.
const PATIENCE: Duration = Duration::from_secs(600);

/// What whoever is asked says of a snapshot that is not there.
const ABSENT: &str = "there is no snapshot";

/// Runs the command.
pub fn run(args: &Snapshot) -> Result<()> {
    let (subject, action, as_json) = asked(&args.command)?;
    if let SnapshotCommand::Delete { names, yes, .. } = &args.command {
        let named: Vec<_> = names.iter().map(|name| print::printable(name)).collect();
        let (of, named) = (print::path(subject), named.join(", "));
        let would = match names.len() {
            1 => format!("the snapshot {named} of {of} would be removed"),
            _ => format!("these snapshots of {of} would be removed: {named}"),
        };
        consent::require(*yes, &would)?;
    }
    let Location { filesystem, path } = Location::of(subject)?;
    let folder = match path.trim_matches('/') {
        "" => ".snapshots".to_owned(),
        path => format!("{path}/.snapshots"),
    };
    let replies = match filesystem {
        Subject::InUse(user) => of_user(&user, path, &action)?,
        Subject::Target(place) => of_target(&place, &path, &action)?,
    };
    let mut listed = Vec::new();
    let mut changes = Vec::new();
    for reply in replies {
        match reply {
            Reply::Snapshots(snapshots) => listed.push(snapshots),
            Reply::Differences(differences) => changes.extend(differences.changes),
            Reply::Schedule(schedule) => return schedule::print(&schedule, as_json),
            other => return Err(Failure::new(format!("the daemon answered {other:?}"))),
        }
    }
    match (listed.pop(), as_json) {
        (None, true) => print::line(json(&changes)),
        (None, false) => changes.iter().try_for_each(print_change),
        (Some(snapshots), true) => print::line(json(&snapshots)),
        (Some(snapshots), false) => print_snapshots(&action, &snapshots, &folder),
    }
}

fn asked(command: &SnapshotCommand) -> Result<(&Path, SnapshotAction, bool)> {
    let name = |name: &String| name.clone();
    Ok(match command {
        SnapshotCommand::Create { subject, name: of } => {
            (subject, SnapshotAction::Create { name: name(of) }, false)
        }
        SnapshotCommand::List { subject, json } => (subject, SnapshotAction::List, *json),
        SnapshotCommand::Delete { subject, names, .. } => {
            (subject, SnapshotAction::Delete { names: names.clone() }, false)
        }
        SnapshotCommand::Diff { subject, from, to, json } => {
            (subject, SnapshotAction::Diff { from: name(from), to: name(to) }, *json)
        }
        SnapshotCommand::Rollback { subject, name: of } => {
            (subject, SnapshotAction::Rollback { name: name(of) }, false)
        }
        SnapshotCommand::Hold { subject, name: of } => {
            (subject, SnapshotAction::Hold { name: name(of) }, false)
        }
        SnapshotCommand::Release { subject, name: of } => {
            (subject, SnapshotAction::Release { name: name(of) }, false)
        }
        SnapshotCommand::Schedule { subject, keep, json } => {
            (subject, SnapshotAction::Schedule { set: schedule::wanted(keep)? }, *json)
        }
    })
}

fn of_user(user: &User, path: String, action: &SnapshotAction) -> Result<Vec<Reply>> {
    let mut connection = user.connect().map_err(|error| user.unreachable(&error))?;
    let keeps = matches!(action, SnapshotAction::Create { .. } | SnapshotAction::Rollback { .. });
    if let (User::Mount(mount), true) = (user, keeps) {
        // The daemon answers, so this does not wait for nobody: what programs have written and the
        // kernel still keeps belongs into the snapshot.
        match (mounts::hand_over(&mount.mountpoint), action) {
            (Ok(()), _) => {}
            // What an earlier rollback took from programs may be told as this, too.
            (Err(error), SnapshotAction::Rollback { .. })
                if Errno::from_io_error(&error) == Some(Errno::IO) => {}
            (Err(error), _) => {
                let what = format!("{}: not all that programs wrote is there", user.name());
                return Err(Failure::of(what, &error)
                    .next("They are told, too. Say it again to go on with what there is."));
            }
        }
    }
    let ask = move || -> io::Result<Vec<Reply>> {
        connection
            .ask(Request::Snapshots { path: Some(path), action: action.clone() }, PATIENCE)?;
        let mut replies = Vec::new();
        loop {
            let reply = connection.reply()?;
            let goes_on = matches!(&reply, Reply::Differences(part) if part.more);
            replies.push(reply);
            if !goes_on {
                return Ok(replies);
            }
        }
    };
    let replies = ask().map_err(|error| user.unreachable(&error))?;
    match replies.last() {
        Some(Reply::Error { message }) => {
            let failure = Failure::new(format!("{}: {message}", user.name()));
            Err(match message.contains(ABSENT) {
                true => failure.next("To see those that are there: gabion snapshot list"),
                false => failure,
            })
        }
        _ => Ok(replies),
    }
}

fn of_target(place: &Place, path: &str, action: &SnapshotAction) -> Result<Vec<Reply>> {
    let changes = !matches!(
        action,
        SnapshotAction::List | SnapshotAction::Diff { .. } | SnapshotAction::Schedule { set: None }
    );
    let mode = if changes { OpenMode::ReadWrite } else { OpenMode::ReadOnly };
    locations::act_on_unused(place, "gabion snapshot", mode, |fs, name| {
        let of = snapshots::find_subvolume(fs, path)?;
        let replies = snapshots::act(fs.map(), name, of, action)?;
        match action {
            SnapshotAction::Delete { .. } => locations::free_removed(fs)?,
            SnapshotAction::Rollback { .. } => locations::end_sessions(fs)?,
            _ => {}
        }
        Ok(replies)
    })
}

fn print_snapshots(action: &SnapshotAction, snapshots: &Snapshots, folder: &str) -> Result<()> {
    let (target, folder) = (&snapshots.target, print::printable(folder));
    for snapshot in &snapshots.snapshots {
        let name = print::printable(&snapshot.name);
        let target = print::printable(target);
        print::line(match action {
            SnapshotAction::List => {
                let held = if snapshot.held { "  held" } else { "" };
                format!("{}  {name}{held}", snapshot.created)
            }
            SnapshotAction::Create { .. } => {
                format!("{target}: made the snapshot {name}; it is at {folder}/{name}")
            }
            SnapshotAction::Delete { .. } => format!("{target}: removed the snapshot {name}"),
            SnapshotAction::Hold { .. } => format!("{target}: the snapshot {name} is held"),
            SnapshotAction::Release { .. } => format!("{target}: the snapshot {name} is released"),
            SnapshotAction::Rollback { name: to } => {
                let to = print::printable(to);
                format!("{target}: rolled back to {to}; what it was is the snapshot {name}")
            }
            SnapshotAction::Diff { .. }
            | SnapshotAction::Delta { .. }
            | SnapshotAction::Supersede { .. }
            | SnapshotAction::Schedule { .. } => continue,
        })?;
    }
    Ok(())
}

fn print_change(change: &Difference) -> Result<()> {
    let path = print::path(&change.place());
    print::line(match (change.what.as_str(), change.former_place()) {
        ("renamed", Some(from)) => format!("R {} -> {path}", print::path(&from)),
        ("added", _) => format!("+ {path}"),
        ("removed", _) => format!("- {path}"),
        _ => format!("M {path}"),
    })
}
