//! `gabion undelete`: brings back from a snapshot what is gone. It goes through the mount; what
//! nobody has in use is opened here.

use std::path::{Path, PathBuf};

use gabion_map::OpenMode;

use super::status::{Subject, User, json};
use crate::args::keeping;
use crate::date;
use crate::failure::{Failure, Result};
use crate::locations::{self, Location};
use crate::print;
use crate::size::Size;
use crate::undelete::{self, Files, Lost, Mounted, Stored, Version};
use crate::volumes::Place;

/// What is told to others who want what is opened here.
const PROGRAM: &str = "gabion undelete";

/// Runs the command.
pub fn run(args: &keeping::Undelete) -> Result<()> {
    let at = Location::within_target(&args.path)?;
    if let Some(at) = &at {
        at.check_below_root(&args.path)?;
        if let Subject::Target(place) = &at.filesystem {
            return run_here(args, at, place);
        }
    }
    let path = on_mount(&args.path, at)?;
    let to = match &args.to {
        Some(to) => {
            let to = on_mount(to, Location::within_target(to)?)?;
            Some(std::path::absolute(&to).unwrap_or(to))
        }
        None => None,
    };
    let done = act(&Mounted, args, &path, to.as_deref())?;
    done.iter().try_for_each(print::line)
}

/// Where it is on a mount, if what it names is a path in a target.
fn on_mount(text: &Path, named: Option<Location>) -> Result<PathBuf> {
    let Some(Location { filesystem, path }) = named else { return Ok(text.to_owned()) };
    match filesystem {
        Subject::InUse(User::Mount(mount)) => Ok(mount.mountpoint.join(path)),
        Subject::InUse(User::Server { name, .. }) => {
            Err(Failure::new(format!("{name} is served and not mounted here"))
                .next("Mount it, and say the path below the mountpoint."))
        }
        Subject::Target(place) => {
            Err(Failure::new(format!("{} is not mounted, and what is gone is", place.name()))
                .next("Mount it, too, or say another --to."))
        }
    }
}

/// Does it in what nobody has in use.
fn run_here(args: &keeping::Undelete, at: &Location, place: &Place) -> Result<()> {
    let path = Path::new("/").join(&at.path);
    let to = match &args.to {
        Some(text) => {
            let to = Location::of(text)?;
            locations::check_beside((&args.path, at), (text, &to))?;
            to.check_below_root(text)?;
            Some(Path::new("/").join(to.path))
        }
        None => None,
    };
    let mode = if args.list { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let done = locations::with_unused(place, PROGRAM, mode, |fs, name| {
        let files = Stored { fs, name };
        if args.list {
            return act(&files, args, &path, None);
        }
        undelete::changing(fs, name, || act(&files, args, &path, to.as_deref()))
    });
    done?.iter().try_for_each(print::line)
}

/// Lists or restores, and says the lines to print.
fn act(
    files: &dyn Files,
    args: &keeping::Undelete,
    path: &Path,
    to: Option<&Path>,
) -> Result<Vec<String>> {
    let lost = undelete::find(files, path)?;
    if args.list {
        return list(files, &lost, args.json);
    }
    let version = lost.version(args.from.as_deref())?;
    lost.restore(version, to.unwrap_or(&lost.path))?;
    let shown = args.to.as_deref().unwrap_or(&args.path);
    Ok(vec![format!(
        "{}: restored from the snapshot {}, {}",
        print::path(shown),
        print::printable(&version.snapshot),
        what(version)
    )])
}

fn list(files: &dyn Files, lost: &Lost<'_>, as_json: bool) -> Result<Vec<String>> {
    if as_json {
        let rows: Vec<_> = lost.versions.iter().map(|version| row(files, version)).collect();
        return Ok(vec![json(&rows)]);
    }
    // Says why there is none.
    lost.version(None)?;
    let line =
        |version: &Version| format!("{}  {}", print::printable(&version.snapshot), what(version));
    Ok(lost.versions.iter().map(line).collect())
}

fn row(files: &dyn Files, version: &Version) -> serde_json::Value {
    serde_json::json!({
        "snapshot": version.snapshot,
        "path": files.shown(&version.path),
        "kind": kind(version),
        "bytes": version.stat.size,
        "modified": modified(version),
    })
}

fn kind(version: &Version) -> &'static str {
    let attributes = &version.stat.attributes;
    match () {
        () if attributes.is_file() => "file",
        () if attributes.is_directory() => "folder",
        () if attributes.is_symlink() => "link",
        () => "special",
    }
}

fn modified(version: &Version) -> String {
    date::seconds(version.stat.attributes.written.seconds)
}

/// What a version is, for people.
fn what(version: &Version) -> String {
    let modified = modified(version);
    match kind(version) {
        "file" => format!("a file of {}, modified {modified}", Size(version.stat.size)),
        kind => format!("a {kind}, modified {modified}"),
    }
}
