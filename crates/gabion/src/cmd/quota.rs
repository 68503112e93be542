//! `gabion quota`: limits how much a subvolume may refer to, and shows what they do. The daemon
//! does it for what is mounted or served; what nobody has in use is opened here.

use std::io;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_map::OpenMode;

use super::status::{Subject, User, json};
use crate::args::keeping::{self, QuotaCommand};
use crate::control::wire::{Quota, QuotaAction, Quotas, Reply, Request};
use crate::failure::{Failure, Result};
use crate::locations::{self, Location};
use crate::mounts;
use crate::print;
use crate::quotas;
use crate::size::Size;
use crate::volumes::Place;

/// How long a daemon may take to count all that there is.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What a quota is counted in, in bytes.
const BLOCK: u64 = BLOCK_SIZE as u64;

/// A size, or that there is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<Size>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let size: Size = text.parse()?;
        match size.0 {
            // It is counted in blocks, and would be none.
            1..BLOCK => Err(format!("{text:?} is less than 4 KiB, which one file takes at least")),
            _ => Ok(Self(Some(size))),
        }
    }
}

/// Runs the command.
pub fn run(args: &keeping::Quota) -> Result<()> {
    match &args.command {
        QuotaCommand::Set { subject, limit: Limit(limit), objects } => {
            let (bytes, objects) = (limit.map(|size| size.0), *objects);
            let done = one(subject, &QuotaAction::Set { bytes, objects })?;
            done.quotas.iter().try_for_each(|quota| {
                let path = place_of(&done.target, quota);
                match (quota.limit_bytes, quota.limit_objects) {
                    (None, None) => print::line(format_args!("{path}: no quota")),
                    _ => print::line(format_args!("{path}: {}", text(quota))),
                }
            })?;
            match done.collects_writes && limit.is_some() {
                true => print_when_told(&done),
                false => Ok(()),
            }
        }
        QuotaCommand::List { subject, json: as_json } => {
            let lists = match subject {
                Some(subject) => vec![one(subject, &QuotaAction::List)?],
                None => all()?,
            };
            match (as_json, &lists[..]) {
                (true, [list]) if subject.is_some() => print::line(json(list)),
                (true, lists) => print::line(json(&lists)),
                (false, lists) => lists.iter().try_for_each(print_list),
            }
        }
    }
}

/// Says when programs are told that the quota is used up, where write(2) does not tell yet.
fn print_when_told(done: &Quotas) -> Result<()> {
    print::line("Programs hear at close(2) or fsync(2) when it is used up.")?;
    match &done.renewed_after {
        Some(users) => {
            let users = if users.is_empty() { "somebody".to_owned() } else { users.join(", ") };
            print::line(format_args!("The mount is in use by {users}."))?;
            print::line("Once nobody uses it for a moment, write(2) tells them.")
        }
        None => print::line("Once it is mounted again, write(2) tells them."),
    }
}

fn print_list(list: &Quotas) -> Result<()> {
    if list.quotas.is_empty() {
        return print::line(format_args!("{}: no quotas", list.target));
    }
    list.quotas.iter().try_for_each(|quota| {
        print::line(format_args!("{}: {}", place_of(&list.target, quota), text(quota)))
    })
}

fn place_of(target: &str, quota: &Quota) -> String {
    let path = quota.path.as_deref().unwrap_or("(without a name)");
    format!("{target}: {}", print::printable(path))
}

/// What is used of what there may be.
fn text(quota: &Quota) -> String {
    let bytes = quota.limit_bytes.map(|limit| {
        let used = quota.used_bytes.map_or("?".to_owned(), |used| Size(used).to_string());
        format!("{used} of {}", Size(limit))
    });
    let objects = quota.limit_objects.map(|limit| {
        let used = quota.used_objects.map_or("?".to_owned(), |used| used.to_string());
        format!("{used} of {limit} objects")
    });
    bytes.into_iter().chain(objects).collect::<Vec<_>>().join(", ")
}

/// Of every mount.
fn all() -> Result<Vec<Quotas>> {
    let mut lists = Vec::new();
    for mount in mounts::all()? {
        match of_user(&User::Mount(mount), None, &QuotaAction::List) {
            Ok(list) => lists.push(list),
            // Only a folder is mounted, or a server is away: others are told all the same.
            Err(failure) => eprintln!("gabion: {failure}"),
        }
    }
    Ok(lists)
}

fn one(subject: &Path, action: &QuotaAction) -> Result<Quotas> {
    let Location { filesystem, path } = Location::of(subject)?;
    match filesystem {
        Subject::InUse(user) => of_user(&user, Some(path), action),
        Subject::Target(place) => of_target(&place, &path, action),
    }
}

fn of_user(user: &User, path: Option<String>, action: &QuotaAction) -> Result<Quotas> {
    let ask = || -> io::Result<Reply> {
        let mut connection = user.connect()?;
        if let User::Mount(mount) = user {
            // The daemon answers, so this does not wait for nobody: what programs have written and
            // the kernel still keeps counts, too, but for what could not be written.
            let _ = mounts::hand_over(&mount.mountpoint);
        }
        connection.ask(Request::Quotas { path, action: action.clone() }, PATIENCE)?;
        connection.reply()
    };
    match ask() {
        Ok(Reply::Quotas(quotas)) => Ok(quotas),
        Ok(Reply::Error { message }) => Err(Failure::new(format!("{}: {message}", user.name()))),
        Ok(other) => Err(Failure::new(format!("the daemon answered {other:?}"))),
        Err(error) => Err(user.unreachable(&error)),
    }
}

fn of_target(place: &Place, path: &str, action: &QuotaAction) -> Result<Quotas> {
    let mode = match action {
        QuotaAction::Set { .. } => OpenMode::ReadWrite,
        QuotaAction::List => OpenMode::ReadOnly,
    };
    locations::act_on_unused(place, "gabion quota", mode, |fs, name| {
        quotas::act(fs, name, Some(path), action)
    })
}
