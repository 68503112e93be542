//! `gabion undelete`: brings back from a snapshot what is gone.

use super::status::json;
use crate::args::keeping;
use crate::date;
use crate::failure::Result;
use crate::print;
use crate::size::Size;
use crate::undelete::{self, Lost, Version};

/// Runs the command.
pub fn run(args: &keeping::Undelete) -> Result<()> {
    let lost = undelete::find(&args.path)?;
    if args.list {
        return list(&lost, args.json);
    }
    let version = lost.version(args.from.as_deref())?;
    let to = match &args.to {
        Some(to) => std::path::absolute(to).unwrap_or_else(|_| to.clone()),
        None => lost.path.clone(),
    };
    lost.restore(version, &to)?;
    let shown = args.to.as_deref().unwrap_or(&args.path);
    print::line(format_args!(
        "{}: restored from the snapshot {}, {}",
        shown.display(),
        print::printable(&version.snapshot),
        what(version)
    ))
}

fn list(lost: &Lost, as_json: bool) -> Result<()> {
    if as_json {
        let rows: Vec<_> = lost.versions.iter().map(row).collect();
        return print::line(json(&rows));
    }
    // Says why there is none.
    lost.version(None)?;
    lost.versions.iter().try_for_each(|version| {
        print::line(format_args!("{}  {}", print::printable(&version.snapshot), what(version)))
    })
}

fn row(version: &Version) -> serde_json::Value {
    serde_json::json!({
        "snapshot": version.snapshot,
        "path": version.path.display().to_string(),
        "kind": kind(version),
        "bytes": version.metadata.len(),
        "modified": modified(version),
    })
}

fn kind(version: &Version) -> &'static str {
    let kind = version.metadata.file_type();
    match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "folder",
        () if kind.is_symlink() => "link",
        () => "special",
    }
}

fn modified(version: &Version) -> String {
    date::seconds(std::os::unix::fs::MetadataExt::mtime(&version.metadata))
}

/// What a version is, for people.
fn what(version: &Version) -> String {
    let modified = modified(version);
    match kind(version) {
        "file" => format!("a file of {}, modified {modified}", Size(version.metadata.len())),
        kind => format!("a {kind}, modified {modified}"),
    }
}
