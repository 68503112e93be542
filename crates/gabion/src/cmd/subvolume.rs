//! `gabion subvolume` and `gabion clone`: subvolumes of a mounted filesystem. Its daemon does it.

use std::io;
use std::path::Path;
use std::time::Duration;

use gabion_fuse::mountinfo::Mount;

use super::status::{User, json};
use crate::args::snapshots::{self, SubvolumeCommand};
use crate::control::wire::{Reply, Request, SubvolumeAction, Subvolumes};
use crate::failure::{Exit, Failure, Result};
use crate::mounts;
use crate::print;

/// How long a daemon may take: as long as a commit with all that waits to be written.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs `gabion subvolume`.
pub fn run(args: &snapshots::Subvolume) -> Result<()> {
    match &args.command {
        SubvolumeCommand::Create { path } => {
            let (mount, within) = inside(path)?;
            ask(mount, SubvolumeAction::Create { path: within })?;
            print::line(format_args!("{}: made a subvolume", path.display()))
        }
        SubvolumeCommand::List { path, json: as_json } => {
            let (mount, _) = inside(path)?;
            let found = ask(mount, SubvolumeAction::List)?;
            if *as_json {
                return print::line(json(&found));
            }
            found.subvolumes.iter().try_for_each(|subvolume| {
                let path = subvolume.path.as_deref().unwrap_or("(without a name)");
                print::line(format_args!("{:>6}  {}", subvolume.id, print::printable(path)))
            })
        }
        SubvolumeCommand::Rename { from, to } => {
            let (mount, old) = inside(from)?;
            let (other, new) = inside(to)?;
            check_together((from, &mount), (to, &other))?;
            ask(mount, SubvolumeAction::Rename { from: old, to: new })?;
            print::line(format_args!("{}: moved to {}", from.display(), to.display()))
        }
        SubvolumeCommand::Delete { path, yes } => {
            let (mount, within) = inside(path)?;
            if !*yes {
                return Err(Failure::new(format!(
                    "{} would be removed with all that is in it, and all its snapshots",
                    path.display()
                ))
                .next("To do that, say --yes.")
                .exit(Exit::Usage));
            }
            ask(mount, SubvolumeAction::Delete { path: within })?;
            print::line(format_args!("{}: removed the subvolume", path.display()))
        }
    }
}

/// Runs `gabion clone`.
pub fn clone(args: &snapshots::Clone) -> Result<()> {
    let (of, from) = inside(&args.snapshot)?;
    let (mount, path) = inside(&args.path)?;
    check_together((&args.snapshot, &of), (&args.path, &mount))?;
    ask(mount, SubvolumeAction::Clone { from, path })?;
    let (snapshot, path) = (args.snapshot.display(), args.path.display());
    print::line(format_args!("{path}: made a clone of {snapshot}"))
}

/// Fails unless both paths are in one mount.
fn check_together(one: (&Path, &Mount), other: (&Path, &Mount)) -> Result<()> {
    match one.1.id == other.1.id {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "{} and {} are not in one mount",
            one.0.display(),
            other.0.display()
        ))),
    }
}

/// The mount that `path` is in, and its path from there.
fn inside(path: &Path) -> Result<(Mount, String)> {
    mounts::containing(path)?.ok_or_else(|| {
        Failure::new(format!("{} is not in a mounted Gabion filesystem", path.display()))
            .next("To see what is mounted: gabion status")
    })
}

fn ask(mount: Mount, action: SubvolumeAction) -> Result<Subvolumes> {
    let user = User::Mount(mount);
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
