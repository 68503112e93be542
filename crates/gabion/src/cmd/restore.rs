//! `gabion restore`: makes a tree of files of a backup.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use gabion_backup::Tree;
use rustix::fs::Mode;

use crate::args::backup::Restore;
use crate::backup::chain::{self, Chain};
use crate::backup::losses::Losses;
use crate::backup::piped;
use crate::backup::place::{Part, Place};
use crate::backup::progress::Progress;
use crate::backup::rebuild::Rebuilding;
use crate::backup::secrets;
use crate::backup::streams::{Streams, Unknown};
use crate::cmd::status::{Subject, User};
use crate::failure::{Failure, Result};
use crate::locations::Location;
use crate::own_mount::{self, OwnMount};
use crate::print;
use crate::size::Size;

/// Runs the command.
pub fn run(args: &Restore) -> Result<()> {
    let to = Destination::of(&args.path)?;
    let restored = restore(args, &to.path()).map_err(Failure::without_damage);
    let (text, ended) = match to {
        Destination::Path(_) => (restored?, Ok(())),
        Destination::Stored { mount, target, .. } => {
            let (inside, name) = (mount.path().display().to_string(), format!("{target}:/"));
            let folder = format!("{inside}/");
            let called = |failure: Failure| failure.called(&folder, &name).called(&inside, &name);
            let ended = mount.end();
            let text = restored.map_err(called)?;
            (text.replace(&folder, &name).replace(&inside, &name), ended)
        }
    };
    ended?;
    print::line(text)
}

/// Where the files are to go.
enum Destination {
    /// A path of this machine.
    Path(PathBuf),
    /// A path in what nobody has in use, which is mounted for this command.
    Stored { mount: OwnMount, target: String, path: String },
}

impl Destination {
    fn of(path: &Path) -> Result<Self> {
        let Some(Location { filesystem, path: within }) = Location::within_target(path)? else {
            return Ok(Self::Path(path.to_owned()));
        };
        match filesystem {
            // Not one that may be gone any moment.
            Subject::InUse(User::Mount(mount)) if own_mount::maker(&mount.mountpoint).is_some() => {
                own_mount::await_end(&mount.mountpoint, &target_of(path))?;
                Self::of(path)
            }
            Subject::InUse(User::Mount(mount)) => Ok(Self::Path(mount.mountpoint.join(within))),
            Subject::InUse(User::Server { name, .. }) => {
                Err(Failure::new(format!("{name} is served and not mounted here"))
                    .next("Mount it, and name a path below the mountpoint."))
            }
            Subject::Target(place) => {
                let (mount, target) = (OwnMount::start(&place)?, place.name());
                Ok(Self::Stored { mount, target, path: within })
            }
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Stored { mount, path, .. } if path.is_empty() => mount.path().to_owned(),
            Self::Stored { mount, path, .. } => mount.path().join(path),
        }
    }
}

/// The target that TARGET:/PATH names.
fn target_of(path: &Path) -> String {
    let path = path.display().to_string();
    path.rsplit_once(":/").map_or(path.clone(), |(target, _)| target.to_owned())
}

/// Makes the files at `path`. Gives what is to be said about it.
fn restore(args: &Restore, path: &Path) -> Result<String> {
    let secret = secrets::of(&args.secrets)?;
    let Streams { shelf, found, named, unknown } = match piped::is_meant(&args.from) {
        true => {
            // Much may come before it is known what it is.
            Place::check_path(path, args.to_directory)?;
            let mut progress = Progress::new(0, None);
            let kept = piped::keep(path, secret.as_ref(), &mut progress)?;
            progress.end();
            kept
        }
        false => Streams::of(&args.from)?,
    };
    if unknown != Unknown::default() && named.is_none() && args.at.is_none() {
        let what = "what cannot be read there may be the newest backup";
        return Err(Failure::new(what)
            .next("Choose one with --at; to see those that are whole: gabion backups FROM"));
    }
    let last = chain::choose(&found, named, args.at.as_deref())?;
    let chain = Chain::open(&*shelf, &found, &last, secret.as_ref())?;
    let (tree, ..) = chain.tree()?;
    let ino = match &args.only {
        Some(path) => find(&tree, chain.root(), path)?,
        None => chain.root(),
    };
    let (objects, bytes) = tree.size(ino).map_err(|error| Failure::new(error.to_string()))?;
    let root = tree.object(ino).map_err(|error| Failure::new(error.to_string()))?;
    let part = if ino == chain.root() { Part::Whole } else { Part::Below(ino) };
    let place = Place::of(path, last.header.stream, part, args.to_directory)?;
    let site = place.begin(root, |name| tree.lookup(ino, name.as_bytes()).is_some())?;
    let progress = Progress::new(bytes, None);
    // Objects are made with the permissions that they are to have.
    rustix::process::umask(Mode::empty());
    let mut losses = match site.is_made {
        true => Losses::default(),
        false => Rebuilding::new(&chain, &tree, &progress, &site).run(ino)?,
    };
    let leftovers = site.leftovers();
    losses += site.finish(root)?;
    let time = progress.end();
    if losses != Losses::default() {
        let shown = print::path(path);
        print::notice(format!("{shown}: what the filesystem there does not take: {losses}"));
    }
    for left in leftovers {
        let shown = print::path(&left);
        print::notice(format!("{shown} is of another one; remove it if nobody goes on with it"));
    }
    Ok(format!(
        "{}: restored {objects} objects, {} of files, from {}, in {:.1} s",
        print::path(path),
        Size(bytes),
        chain.name(),
        time.as_secs_f64()
    ))
}

fn find(tree: &Tree, root: u64, path: &Path) -> Result<u64> {
    let mut at = root;
    for name in path.as_os_str().as_bytes().split(|byte| *byte == b'/') {
        if !matches!(name, b"" | b".") {
            at = tree.lookup(at, name).ok_or_else(|| {
                Failure::new(format!("the backup has no {}", path.display()))
                    .next("Name it from the root of what was saved, without symbolic links.")
            })?;
        }
    }
    Ok(at)
}
