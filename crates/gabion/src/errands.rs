//! Snapshots, subvolumes and quotas of a filesystem that is served, in the words of the control
//! protocol: its server is asked, here or over the link.

use gabion_base::ids::SubvolId;
use gabion_fs::Error;
use gabion_link::errand::{
    DeltaPlace, DifferenceRow, Errand, QuotaRow, Report, SnapshotRow, SubvolumeRow,
};
use gabion_link::wire::said;
use gabion_map::format::subvolume::Schedule;
use gabion_node::Delta;
use gabion_node::kept_name;

use crate::backup::delta;
use crate::control::wire::{
    self, Difference, Differences, Kept, QuotaAction, Quotas, Reply, Snapshot, SnapshotAction,
    Snapshots, Subvolume, SubvolumeAction, Subvolumes,
};
use crate::date;
use crate::quotas;

/// An answer that does not fit the question.
const NONSENSE: &str = "the server answered something else than was asked";

/// Whoever has errands done, and what people call the filesystem.
pub struct Asking<'a> {
    /// Has one done.
    pub ask: &'a dyn Fn(Errand) -> gabion_fs::Result<Report>,
    /// What people call the filesystem.
    pub target: &'a str,
    /// The time of the server, in seconds since 1970.
    pub now: i64,
}

impl Asking<'_> {
    /// Does what is asked with the snapshots of the subvolume at `path`. What is answered may come
    /// in several parts.
    pub fn snapshots(
        &self,
        path: Option<&str>,
        action: &SnapshotAction,
    ) -> Result<Vec<Reply>, String> {
        let path = path.unwrap_or_default().as_bytes().to_vec();
        let bytes = |name: &String| name.as_bytes().to_vec();
        let errand = match action {
            SnapshotAction::List => return Ok(vec![self.told(self.list(&path)?)]),
            SnapshotAction::Diff { from, to } => return self.compare(&path, from, to),
            SnapshotAction::Rollback { name } => {
                let time = date::seconds(self.now);
                let taken: Vec<_> = self.list(&path)?.into_iter().map(|row| row.name).collect();
                let keep_as = kept_name(&time, |name| taken.iter().any(|it| it == name));
                let keep_as = keep_as.into_bytes();
                Errand::Rollback { path, name: bytes(name), keep_as, created: self.now }
            }
            SnapshotAction::Schedule { set } => return self.schedule(path, set.as_ref()),
            SnapshotAction::Delta { from, to } => {
                let found = self.delta(&path, from.as_bytes(), to.as_bytes())?;
                return Ok(delta::parts(&found).into_iter().map(Reply::Delta).collect());
            }
            SnapshotAction::Create { name } => {
                Errand::Snapshot { path, name: bytes(name), created: self.now }
            }
            SnapshotAction::Delete { names } => {
                Errand::RemoveSnapshots { path, names: names.iter().map(bytes).collect() }
            }
            SnapshotAction::Hold { name } => {
                Errand::Hold { path, name: bytes(name), is_held: true }
            }
            SnapshotAction::Release { name } => {
                Errand::Hold { path, name: bytes(name), is_held: false }
            }
            SnapshotAction::Supersede { name, olds } => return self.supersede(&path, name, olds),
        };
        match self.done(errand)? {
            Report::Snapshots { rows, .. } => Ok(vec![self.told(rows)]),
            _ => Err(NONSENSE.to_owned()),
        }
    }

    /// One thing after the other: a server is not asked for all of it at once.
    fn supersede(&self, path: &[u8], name: &str, olds: &[String]) -> Result<Vec<Reply>, String> {
        let hold = |name: &str, is_held| {
            self.done(Errand::Hold { path: path.to_vec(), name: name.into(), is_held })
        };
        hold(name, true)?;
        let mut stay = self.list(path)?;
        stay.retain(|row| olds.iter().any(|old| old.as_bytes() == row.name));
        let mut failed = Vec::new();
        for row in stay {
            let name = String::from_utf8_lossy(&row.name).into_owned();
            let names = vec![row.name.clone()];
            let remove = || self.done(Errand::RemoveSnapshots { path: path.to_vec(), names });
            if hold(&name, false).and_then(|_| remove()).is_err() {
                failed.push(row);
            }
        }
        Ok(vec![self.told(failed)])
    }

    /// Does what is asked with subvolumes.
    pub fn subvolumes(&self, action: &SubvolumeAction) -> Result<Subvolumes, String> {
        let created = self.now;
        let bytes = |path: &String| path.as_bytes().to_vec();
        let errand = match action {
            SubvolumeAction::List => return self.list_subvolumes(),
            SubvolumeAction::Create { path } => {
                Errand::Subvolume { path: bytes(path), of: None, created }
            }
            SubvolumeAction::Clone { from, path } => {
                Errand::Subvolume { path: bytes(path), of: Some(bytes(from)), created }
            }
            SubvolumeAction::Rename { from, to } => {
                Errand::RenameSubvolume { from: bytes(from), to: bytes(to) }
            }
            SubvolumeAction::Delete { path } => Errand::RemoveSubvolume { path: bytes(path) },
        };
        match self.done(errand)? {
            Report::Subvolumes { rows, .. } => Ok(self.told_subvolumes(rows)),
            _ => Err(NONSENSE.to_owned()),
        }
    }

    /// Does what is asked with the quota of the subvolume at `path`, or with all.
    pub fn quotas(&self, path: Option<&str>, action: &QuotaAction) -> Result<Quotas, String> {
        let rows = match action {
            QuotaAction::List => self.list_quotas()?,
            QuotaAction::Set { bytes, objects } => {
                let path = path.unwrap_or_default().as_bytes().to_vec();
                let most = quotas::most(*bytes, *objects);
                match self.done(Errand::SetQuota { path, most })? {
                    Report::Quotas { rows, .. } => rows,
                    _ => return Err(NONSENSE.to_owned()),
                }
            }
        };
        Ok(quotas::told(self.target, rows))
    }

    fn done(&self, errand: Errand) -> Result<Report, String> {
        (self.ask)(errand).map_err(|error: Error| said(&error))
    }

    /// All rows of an answer that comes in several parts: `errand` asks for those behind the ones
    /// that are there, and `part` takes them from a report, with whether there are more.
    fn all<R>(
        &self,
        errand: impl Fn(&[R]) -> Errand,
        part: impl Fn(Report) -> Option<(Vec<R>, bool)>,
    ) -> Result<Vec<R>, String> {
        let mut all = Vec::new();
        loop {
            let report = self.done(errand(&all))?;
            let (rows, more) = part(report).ok_or(NONSENSE)?;
            let is_last = !more || rows.is_empty();
            all.extend(rows);
            if is_last {
                return Ok(all);
            }
        }
    }

    fn list(&self, path: &[u8]) -> Result<Vec<SnapshotRow>, String> {
        let errand = |all: &[SnapshotRow]| {
            let after = all.last().map_or(SubvolId(0), |row| row.id);
            Errand::Snapshots { path: path.to_vec(), after }
        };
        self.all(errand, |report| match report {
            Report::Snapshots { rows, more } => Some((rows, more)),
            _ => None,
        })
    }

    fn list_subvolumes(&self) -> Result<Subvolumes, String> {
        let errand = |all: &[SubvolumeRow]| Errand::Subvolumes {
            after: all.last().map_or(SubvolId(0), |row| row.id),
        };
        let rows = self.all(errand, |report| match report {
            Report::Subvolumes { rows, more } => Some((rows, more)),
            _ => None,
        });
        Ok(self.told_subvolumes(rows?))
    }

    fn list_quotas(&self) -> Result<Vec<QuotaRow>, String> {
        let errand = |all: &[QuotaRow]| Errand::Quotas {
            after: all.last().map_or(SubvolId(0), |row| row.id),
        };
        self.all(errand, |report| match report {
            Report::Quotas { rows, more } => Some((rows, more)),
            _ => None,
        })
    }

    fn schedule(&self, path: Vec<u8>, set: Option<&Kept>) -> Result<Vec<Reply>, String> {
        let errand = match set {
            Some(kept) => Errand::SetSchedule { path, keep: Schedule::from(*kept) },
            None => Errand::Schedule { path },
        };
        let Report::Schedule { keep } = self.done(errand)? else {
            return Err(NONSENSE.to_owned());
        };
        let target = self.target.to_owned();
        Ok(vec![Reply::Schedule(wire::Schedule { target, keep: Kept::from(keep) })])
    }

    fn compare(&self, path: &[u8], from: &str, to: &str) -> Result<Vec<Reply>, String> {
        let errand = |all: &[Difference]| {
            let (old, new) = (from.as_bytes().to_vec(), to.as_bytes().to_vec());
            Errand::Compare { path: path.to_vec(), from: old, to: new, skip: all.len() as u64 }
        };
        let all = self.all(errand, |report| match report {
            Report::Differences { rows, more } => {
                Some((rows.into_iter().map(difference).collect(), more))
            }
            _ => None,
        })?;
        let parts = Differences::parts(self.target, from, to, all);
        Ok(parts.into_iter().map(Reply::Differences).collect())
    }

    fn delta(&self, path: &[u8], from: &[u8], to: &[u8]) -> Result<Delta, String> {
        let mut all = Vec::new();
        let mut after = DeltaPlace::default();
        loop {
            let (path, from, to) = (path.to_vec(), from.to_vec(), to.to_vec());
            let Report::Delta { rows, next } =
                self.done(Errand::Delta { path, from, to, after })?
            else {
                return Err(NONSENSE.to_owned());
            };
            all.extend(rows);
            let Some(next) = next else { break };
            if (next.ino, next.rows) <= (after.ino, after.rows) {
                return Err(NONSENSE.to_owned());
            }
            after = next;
        }
        delta::of_rows(all).ok_or_else(|| NONSENSE.to_owned())
    }

    fn told(&self, rows: Vec<SnapshotRow>) -> Reply {
        let snapshots = rows.into_iter().map(|row| Snapshot {
            name: text(&row.name),
            created: date::seconds(row.created),
            held: row.is_held,
            id: row.id.0,
        });
        Reply::Snapshots(Snapshots {
            target: self.target.to_owned(),
            snapshots: snapshots.collect(),
        })
    }

    fn told_subvolumes(&self, rows: Vec<SubvolumeRow>) -> Subvolumes {
        let row =
            |row: SubvolumeRow| Subvolume { id: row.id.0, path: row.path.map(|path| text(&path)) };
        Subvolumes {
            target: self.target.to_owned(),
            subvolumes: rows.into_iter().map(row).collect(),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn difference(row: DifferenceRow) -> Difference {
    match row {
        DifferenceRow::Added(path) => Difference::new("added", &path, None),
        DifferenceRow::Removed(path) => Difference::new("removed", &path, None),
        DifferenceRow::Changed(path) => Difference::new("changed", &path, None),
        DifferenceRow::Renamed { from, to } => Difference::new("renamed", &to, Some(&from)),
    }
}
