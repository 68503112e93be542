//! `gabion subvolume` and `gabion clone`. Whoever has the filesystem in use does it; what nobody
//! has in use is opened here.

use std::io;
use std::path::Path;
use std::time::Duration;

use gabion_map::OpenMode;
use gabion_node::SNAPSHOTS_NAME;

use super::consent;
use super::status::{Subject, User, json};
use crate::args::snapshots::{self as args, SubvolumeCommand};
use crate::control::wire::{Reply, Request, SubvolumeAction, Subvolumes};
use crate::failure::{Failure, Result};
use crate::locations::{self, Location};
use crate::print;
use crate::snapshots;
use crate::volumes::Place;

/// How long a daemon may take: as long as a commit with all that waits to be written.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs `gabion subvolume`.
pub fn run(args: &args::Subvolume) -> Result<()> {
    match &args.command {
        SubvolumeCommand::Create { path } => {
            let at = below_root(path)?;
            act(&at.filesystem, SubvolumeAction::Create { path: at.path })?;
            print::line(format_args!("{}: made a subvolume", print::path(path)))
        }
        SubvolumeCommand::List { path, json: as_json } => {
            let found = act(&Location::of(path)?.filesystem, SubvolumeAction::List)?;
            if *as_json {
                return print::line(json(&found));
            }
            found.subvolumes.iter().try_for_each(|subvolume| {
                let path = subvolume.path.as_deref().unwrap_or("(without a name)");
                print::line(format_args!("{:>6}  {}", subvolume.id, print::printable(path)))
            })
        }
        SubvolumeCommand::Rename { from, to } => {
            let (old, new) = (below_root(from)?, below_root(to)?);
            locations::check_beside((from, &old), (to, &new))?;
            act(&old.filesystem, SubvolumeAction::Rename { from: old.path, to: new.path })?;
            print::line(format_args!("{}: moved to {}", print::path(from), print::path(to)))
        }
        SubvolumeCommand::Delete { path, yes } => {
            let at = below_root(path)?;
            let named = print::path(path);
            let would =
                format!("{named} would be removed with all that is in it, and all its snapshots");
            consent::require(*yes, &would)?;
            let is_snapshot = is_in_snapshots(&at.path);
            let deleted = act(&at.filesystem, SubvolumeAction::Delete { path: at.path });
            deleted.map_err(|failure| match is_snapshot {
                true => Failure::new(format!("{named} is a snapshot, and no subvolume"))
                    .next("To remove it: gabion snapshot delete"),
                false => failure,
            })?;
            print::line(format_args!("{named}: removed the subvolume"))
        }
    }
}

/// Whether snapshots have paths like this.
fn is_in_snapshots(path: &str) -> bool {
    let above = Path::new(path).parent().and_then(Path::file_name);
    above.is_some_and(|name| name.as_encoded_bytes() == SNAPSHOTS_NAME)
}

/// Runs `gabion clone`.
pub fn clone(args: &args::Clone) -> Result<()> {
    let (from, to) = (Location::of(&args.snapshot)?, below_root(&args.path)?);
    locations::check_beside((&args.snapshot, &from), (&args.path, &to))?;
    act(&to.filesystem, SubvolumeAction::Clone { from: from.path, path: to.path })?;
    let (snapshot, path) = (print::path(&args.snapshot), print::path(&args.path));
    print::line(format_args!("{path}: made a clone of {snapshot}"))
}

fn below_root(text: &Path) -> Result<Location> {
    let location = Location::of(text)?;
    location.check_below_root(text)?;
    Ok(location)
}

fn act(filesystem: &Subject, action: SubvolumeAction) -> Result<Subvolumes> {
    match filesystem {
        Subject::InUse(user) => ask(user, action),
        Subject::Target(place) => act_here(place, &action),
    }
}

fn ask(user: &User, action: SubvolumeAction) -> Result<Subvolumes> {
    let asked = || -> io::Result<Reply> {
        let mut connection = user.connect()?;
        connection.ask(Request::Subvolumes { action }, PATIENCE)?;
        connection.reply()
    };
    match asked() {
        Ok(Reply::Subvolumes(subvolumes)) => Ok(subvolumes),
        Ok(Reply::Error { message }) => Err(Failure::new(format!("{}: {message}", user.name()))),
        Ok(other) => Err(Failure::new(format!("the daemon answered {other:?}"))),
        Err(error) => Err(user.unreachable(&error)),
    }
}

fn act_here(place: &Place, action: &SubvolumeAction) -> Result<Subvolumes> {
    let mode = match action {
        SubvolumeAction::List => OpenMode::ReadOnly,
        _ => OpenMode::ReadWrite,
    };
    locations::act_on_unused(place, "gabion subvolume", mode, |fs, name| {
        let (done, _) = snapshots::act_on_subvolumes(fs, name, action)?;
        if let SubvolumeAction::Delete { .. } = action {
            locations::end_sessions(fs)?;
            locations::free_removed(fs)?;
        }
        Ok(done)
    })
}
