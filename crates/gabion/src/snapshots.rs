//! Snapshots of an open filesystem, in the words of the control protocol.

use std::error::Error;
use std::path::{Path, PathBuf};

use gabion_base::ids::SubvolId;
use gabion_host::clock;
use gabion_map::format::item::{Access, SubvolRecord};
use gabion_map::format::subvolume::{Hold, Schedule};
use gabion_map::{FileId, LocalMap};
use gabion_node::{Change, LocalFs, SNAPSHOTS_NAME, differences, kept_name, left_without_name};
use rustix::io::Errno;

use crate::backup;
use crate::control::wire::{
    self, Difference, Differences, Kept, Reply, Snapshot, SnapshotAction, Snapshots, Subvolume,
    SubvolumeAction, Subvolumes,
};
use crate::date;
use crate::failure::chain;
use crate::mount::Rollbacks;

/// Does what is asked with the snapshots of the subvolume `of` of the filesystem `map`, which
/// people call `target`. What is answered may come in several parts. To roll back is for what
/// nobody has in use.
pub fn act(
    map: &LocalMap,
    target: &str,
    of: SubvolId,
    action: &SnapshotAction,
) -> Result<Vec<Reply>, String> {
    let acting = Acting { map, target, of };
    if map.access(of) == Some(Access::ReadOnly) {
        return Err("that is a snapshot, which has none itself".to_owned());
    }
    let replies = match action {
        SnapshotAction::List => vec![acting.list()],
        SnapshotAction::Create { name } => vec![acting.create(name)?],
        SnapshotAction::Delete { names } => vec![acting.delete(names)?],
        SnapshotAction::Hold { name } => vec![acting.hold(name, Hold::Held)?],
        SnapshotAction::Release { name } => vec![acting.hold(name, Hold::Released)?],
        SnapshotAction::Supersede { name, olds } => vec![acting.supersede(name, olds)?],
        SnapshotAction::Diff { from, to } => acting.diff(from, to)?,
        SnapshotAction::Delta { from, to } => acting.delta(from, to)?,
        SnapshotAction::Schedule { set } => vec![acting.schedule(set.as_ref())?],
        SnapshotAction::Rollback { name } => vec![acting.roll_back(name)?],
    };
    Ok(replies)
}

/// The subvolume whose root is at `path`, or the snapshot.
pub fn find_subvolume(fs: &LocalFs, path: &str) -> Result<SubvolId, String> {
    fs.subvolume_of(path.as_bytes()).map_err(|error| match error {
        gabion_fs::Error::InvalidArgument => {
            format!("/{path} is not the root of a subvolume; gabion subvolume list shows which are")
        }
        error => format!("/{path}: {}", chain(&error)),
    })
}

/// Rolls the subvolume `of`, which is at `path`, of a filesystem back that is mounted here.
pub fn roll_back(
    fs: &LocalFs,
    rollbacks: &Rollbacks,
    target: &str,
    (of, path): (SubvolId, &str),
    name: &str,
) -> Result<Vec<Reply>, String> {
    let acting = Acting { map: fs.map(), target, of };
    let Rollback { to, keep_as, now } = acting.rollback(name)?;
    let place = match of == fs.root().subvol {
        true => None,
        false => Some(fs.resolve(path.as_bytes()).map_err(text)?),
    };
    let from_root = match place {
        Some(_) => Path::new("/").join(path.trim_matches('/')),
        None => PathBuf::from("/"),
    };
    rollbacks.check(&from_root)?;
    let roll_back = || {
        let done = fs.roll_back(of, to, keep_as.as_bytes(), now)?;
        Ok::<_, gabion_fs::Error>((done.kept, done.known))
    };
    let kept = rollbacks.run(of, place, roll_back).map_err(text)?;
    Ok(vec![acting.tell(kept)?])
}

/// A rollback that is to be made: to which snapshot, and what is kept of what there is.
struct Rollback {
    to: SubvolId,
    keep_as: String,
    now: i64,
}

struct Acting<'a> {
    map: &'a LocalMap,
    target: &'a str,
    /// The subvolume whose snapshots are meant.
    of: SubvolId,
}

impl Acting<'_> {
    fn list(&self) -> Reply {
        self.told(&self.map.snapshots(self.of))
    }

    fn create(&self, name: &str) -> Result<Reply, String> {
        let created = clock::coarse_now().seconds;
        let made = self.map.create_snapshot(self.of, name.as_bytes(), created);
        self.tell(made.map_err(text)?)
    }

    fn delete(&self, names: &[String]) -> Result<Reply, String> {
        let mut ids = Vec::new();
        for name in names {
            ids.push(self.find(name)?);
        }
        let found = ids.iter().filter_map(|id| Some((*id, self.map.subvolume(*id)?)));
        let found: Vec<_> = found.collect();
        self.map.remove(&ids).map_err(text)?;
        Ok(self.told(&found))
    }

    fn hold(&self, name: &str, hold: Hold) -> Result<Reply, String> {
        let id = self.find(name)?;
        self.map.set_hold(id, hold).map_err(text)?;
        self.tell(id)
    }

    /// Tells of those that stay.
    fn supersede(&self, name: &str, olds: &[String]) -> Result<Reply, String> {
        let by = self.find(name)?;
        let olds: Vec<_> = olds.iter().filter_map(|old| self.find(old).ok()).collect();
        let stay = self.map.supersede(by, &olds).map_err(text)?;
        let found = stay.iter().filter_map(|(id, _)| Some((*id, self.map.subvolume(*id)?)));
        Ok(self.told(&found.collect::<Vec<_>>()))
    }

    fn schedule(&self, set: Option<&Kept>) -> Result<Reply, String> {
        if let Some(kept) = set {
            self.map.set_schedule(self.of, Some(Schedule::from(*kept))).map_err(text)?;
        }
        let record = self.map.subvolume(self.of).ok_or("it has just been removed")?;
        let keep = Kept::from(record.extended.schedule.unwrap_or_default());
        Ok(Reply::Schedule(wire::Schedule { target: self.target.to_owned(), keep }))
    }

    fn diff(&self, from: &str, to: &str) -> Result<Vec<Reply>, String> {
        let (old, new) = (self.find(from)?, self.find(to)?);
        let changes = differences(self.map, old, new).map_err(text)?;
        let changes = changes.iter().map(difference).collect();
        let parts = Differences::parts(self.target, from, to, changes);
        Ok(parts.into_iter().map(Reply::Differences).collect())
    }

    fn delta(&self, from: &str, to: &str) -> Result<Vec<Reply>, String> {
        let (old, new) = (self.find(from)?, self.find(to)?);
        let found = gabion_node::delta(self.map, old, new).map_err(text)?;
        Ok(backup::delta::parts(&found).into_iter().map(Reply::Delta).collect())
    }

    fn roll_back(&self, name: &str) -> Result<Reply, String> {
        let Rollback { to, keep_as, now } = self.rollback(name)?;
        let kept = self.map.rollback(self.of, to, keep_as.as_bytes(), now).map_err(text)?;
        // It may be from before there was a quota.
        self.map.count_usages().map_err(text)?;
        self.tell(kept)
    }

    /// What is to be done to roll back.
    fn rollback(&self, name: &str) -> Result<Rollback, String> {
        let to = self.find(name)?;
        if let Some(reason) = left_without_name(self.map, self.of, to, name).map_err(text)? {
            return Err(reason);
        }
        let now = clock::coarse_now().seconds;
        let is_taken = |name: &[u8]| self.map.find_snapshot(self.of, name).is_some();
        let keep_as = kept_name(&date::seconds(now), is_taken);
        Ok(Rollback { to, keep_as, now })
    }

    fn find(&self, name: &str) -> Result<SubvolId, String> {
        let found = self.map.find_snapshot(self.of, name.as_bytes());
        found.ok_or_else(|| format!("there is no snapshot {name:?}"))
    }

    fn tell(&self, id: SubvolId) -> Result<Reply, String> {
        let record = self.map.subvolume(id).ok_or("it has just been removed")?;
        Ok(self.told(&[(id, record)]))
    }

    fn told(&self, snapshots: &[(SubvolId, SubvolRecord)]) -> Reply {
        let snapshots = snapshots.iter().map(|(id, record)| Snapshot {
            name: String::from_utf8_lossy(&record.extended.name).into_owned(),
            created: date::seconds(record.extended.created),
            held: record.extended.hold == Hold::Held,
            id: id.0,
        });
        Reply::Snapshots(Snapshots {
            target: self.target.to_owned(),
            snapshots: snapshots.collect(),
        })
    }
}

/// Does what is asked with the subvolumes of a filesystem in use. Gives the directories and names
/// that the kernel has to look at again.
pub fn act_on_subvolumes(
    fs: &LocalFs,
    target: &str,
    action: &SubvolumeAction,
) -> Result<(Subvolumes, Vec<(FileId, String)>), String> {
    let row = |id: SubvolId, path: Option<String>| Subvolume { id: id.0, path };
    let named = |parent: FileId, path: &str| {
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        (parent, name.to_owned())
    };
    let (rows, changed) = match action {
        SubvolumeAction::List => {
            let path = |path: Vec<u8>| String::from_utf8_lossy(&path).into_owned();
            let found = fs.subvolumes().map_err(text)?;
            (found.into_iter().map(|(id, at)| row(id, at.map(path))).collect(), Vec::new())
        }
        SubvolumeAction::Create { path } => {
            let made = fs.create_subvolume(path.as_bytes());
            let made = made.map_err(|error| format!("/{path}: {}", at_path(path, error)))?;
            (vec![row(made.subvol, Some(path.clone()))], vec![named(made.parent, path)])
        }
        SubvolumeAction::Clone { from, path } => {
            let of = find_subvolume(fs, from)?;
            let made = fs.clone_snapshot(of, path.as_bytes());
            let failed = |error| format!("/{from} to /{path}: {}", at_path(path, error));
            let made = made.map_err(failed)?;
            (vec![row(made.subvol, Some(path.clone()))], vec![named(made.parent, path)])
        }
        SubvolumeAction::Rename { from, to } => {
            find_subvolume(fs, from)?;
            let moved = fs.rename_subvolume(from.as_bytes(), to.as_bytes());
            let moved = moved.map_err(|error| format!("/{from} to /{to}: {}", text(error)));
            let (was, is) = moved?;
            let changed = vec![named(was.parent, from), named(is.parent, to)];
            (vec![row(is.subvol, Some(to.clone()))], changed)
        }
        SubvolumeAction::Delete { path } => {
            find_subvolume(fs, path)?;
            let gone = fs.delete_subvolume(path.as_bytes());
            let gone = gone.map_err(|error| format!("/{path}: {}", text(error)))?;
            (vec![row(gone.subvol, Some(path.clone()))], vec![named(gone.parent, path)])
        }
    };
    Ok((Subvolumes { target: target.to_owned(), subvolumes: rows }, changed))
}

/// Why something could not be made at `path`.
fn at_path(path: &str, error: gabion_fs::Error) -> String {
    let is_in_snapshot = path.split('/').any(|name| name.as_bytes() == SNAPSHOTS_NAME);
    match is_in_snapshot && gabion_fs::errno(&error) == Errno::ROFS.raw_os_error() {
        true => "nothing can be made in a snapshot, or beside those that are there".to_owned(),
        false => text(error),
    }
}

fn text(error: impl Error) -> String {
    chain(&error)
}

fn difference(change: &Change) -> Difference {
    match change {
        Change::Added(path) => Difference::new("added", path, None),
        Change::Removed(path) => Difference::new("removed", path, None),
        Change::Changed(path) => Difference::new("changed", path, None),
        Change::Renamed { from, to } => Difference::new("renamed", to, Some(from)),
    }
}
