//! Snapshots, clones and subvolumes of a filesystem that is served. Their quotas and schedules are
//! in `policies`.
//!
//! One thread does what clients ask for, one errand after the other: it waits for all clients,
//! which no worker may. The server's own administrators wait themselves ([`Served::run_errand`]).
//!
//! - A snapshot is made at one instant of all clients (`freezing`), by one commit.
//! - Clients know the directory of snapshots, and names of subvolumes, under leases like anything
//!   else; so those are revoked first. Of what is removed all is revoked before it is told.
//! - A rollback is in `rewinding`.
//! - What was said by a client before a server died is said again. Done is done then: a snapshot
//!   with the same name and time is the one that was asked for, what is gone was removed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::ids::SubvolId;
use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::{Caller, Error, ROOT, Result, subvolume};
use gabion_link::errand::{DifferenceRow, Errand, Report, SnapshotRow, SubvolumeRow};
use gabion_link::message::{Answer, Call};
use gabion_link::range::KeyRange;
use gabion_link::table::{ClientId, RequestId, Want};
use gabion_link::wire::{PATH_BYTES_MAX, failure};
use gabion_map::format::item::SubvolRecord;
use gabion_map::format::subvolume::Hold;
use gabion_map::subvolumes::Refusal;
use gabion_map::{FileId, LocalTxn, LockMode, MapError, Stop};

use crate::differences::{Change, differences};
use crate::schedules::{SnapshotMaker, Stage};
use crate::snapshots::{self, SNAPSHOTS_NAME};
use crate::subvolumes::PERMISSIONS;

use super::grants::Turn;
use super::guarded::{Grip, Guarded};
use super::{Outcome, Request, Served};

/// Who waits for leases and has none.
const NOBODY: ClientId = ClientId(u64::MAX);
/// How long clients may take to give up what stands in the way: longer than a session that does
/// not answer lasts.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often it is looked whether they have.
const GLANCE: Duration = Duration::from_millis(5);
/// How often somebody who waits looks whether the server ends.
const TURN: Duration = Duration::from_millis(250);
/// Rows of one report, and bytes of their paths.
pub(super) const ROWS_MAX: usize = 4096;
const ROWS_BYTES_MAX: usize = 1 << 20;

/// What clients have asked for.
#[derive(Default)]
pub(super) struct Errands {
    queue: Mutex<(VecDeque<Request>, bool)>,
    arrived: Condvar,
    /// One that changes something after the other.
    turn: Mutex<()>,
    /// Rollbacks that were made last.
    pub(super) rollbacks: Mutex<VecDeque<(Errand, Report)>>,
}

/// That something else than a subvolume is at `path`.
fn no_subvolume(path: &[u8]) -> Error {
    failure(format!("/{} is not the root of a subvolume", String::from_utf8_lossy(path)))
}

/// Where a subvolume stands or shall stand.
struct Place<'p> {
    parent: FileId,
    name: &'p [u8],
}

impl SnapshotMaker for Served {
    fn stage(&self) -> Stage {
        match (self.is_ending(), self.is_recovering()) {
            (true, _) => Stage::Ending,
            (false, true) => Stage::Beginning,
            (false, false) => Stage::Ready,
        }
    }

    fn make(&self, of: SubvolId, name: &[u8], created: i64) -> Result<()> {
        let _turn = self.errands.turn.lock();
        self.make_snapshot(of, name, created, false).map(drop)
    }

    fn remove(&self, of: SubvolId, old: &[(SubvolId, Vec<u8>)]) -> Result<()> {
        let names: Vec<_> = old.iter().map(|(_, name)| name.clone()).collect();
        let _turn = self.errands.turn.lock();
        self.remove_snapshots(of, &names, false).map(drop)
    }
}

impl Served {
    /// Does what clients ask for, until [`Served::end_errands`]. For a thread of its own.
    pub fn keep_errands(&self) {
        loop {
            let mut queue = self.errands.queue.lock();
            let request = loop {
                if queue.1 {
                    return;
                }
                match queue.0.pop_front() {
                    Some(request) => break request,
                    None => self.errands.arrived.wait(&mut queue),
                }
            };
            drop(queue);
            let Call::Run(errand) = &request.call else { continue };
            let is_again = request.session.said_again.lock().remove(&request.id);
            let permitted = self.permit_errand(&request.session, &request.caller, errand);
            let done = permitted.and_then(|()| match self.rolled_back(errand) {
                Some(report) => Ok(report),
                None => self.do_errand(errand, is_again),
            });
            self.answer(&request, Outcome::plain(done.map(Answer::Report)));
        }
    }

    /// Makes snapshots when they are due, until [`Served::end_errands`]. For a thread of its own.
    pub fn keep_scheduled(&self) {
        self.fs.keep_scheduled_by(self);
    }

    /// Lets [`Served::keep_errands`] and [`Served::keep_scheduled`] return soon.
    pub fn end_errands(&self) {
        self.errands.queue.lock().1 = true;
        self.errands.arrived.notify_all();
        self.fs.schedule_changed();
    }

    /// Does something for an administrator of this machine, and waits for that.
    pub fn run_errand(&self, errand: &Errand) -> Result<Report> {
        if self.is_recovering() {
            let text = "it waits for clients of its start before; try again in some seconds";
            return Err(failure(text.to_owned()));
        }
        self.do_errand(errand, false)
    }

    /// Whether nobody waits for anybody any more.
    pub(super) fn is_ending(&self) -> bool {
        self.errands.queue.lock().1
    }

    pub(super) fn queue_errand(&self, request: Request) {
        self.errands.queue.lock().0.push_back(request);
        self.errands.arrived.notify_all();
    }

    fn do_errand(&self, errand: &Errand, is_again: bool) -> Result<Report> {
        let _turn = errand.changes().then(|| self.errands.turn.lock());
        if errand.changes() && self.fs.is_read_only() {
            return Err(MapError::ReadOnly.into());
        }
        match errand {
            Errand::Snapshots { path, after } => {
                let of = self.subvolume_at(path)?;
                let mut found = self.fs.map().snapshots(of);
                found.retain(|(id, _)| id > after);
                let more = found.len() > ROWS_MAX;
                found.truncate(ROWS_MAX);
                Ok(Report::Snapshots { rows: found.iter().map(row).collect(), more })
            }
            Errand::Snapshot { path, name, created } => {
                let of = self.subvolume_at(path)?;
                self.make_snapshot(of, name, *created, is_again)
            }
            Errand::RemoveSnapshots { path, names } => {
                let of = self.subvolume_at(path)?;
                self.remove_snapshots(of, names, is_again)
            }
            Errand::Hold { path, name, is_held } => {
                let of = self.subvolume_at(path)?;
                let id = self.find_snapshot(of, name)?;
                let hold = if *is_held { Hold::Held } else { Hold::Released };
                self.fs.map().set_hold(id, hold)?;
                self.told(id)
            }
            Errand::Compare { path, from, to, skip } => {
                let of = self.subvolume_at(path)?;
                self.compare(of, from, to, *skip)
            }
            Errand::Delta { path, from, to, after } => {
                let of = self.subvolume_at(path)?;
                self.delta(self.find_snapshot(of, from)?, self.find_snapshot(of, to)?, *after)
            }
            Errand::Subvolumes { after } => {
                let mut found = self.fs.subvolumes()?;
                found.retain(|(id, _)| id > after);
                let row = |(id, path)| SubvolumeRow { id, path: told_path(path) };
                let rows = found.into_iter().map(row);
                let (rows, more) =
                    part(rows.collect(), |row| row.path.as_ref().map_or(0, Vec::len));
                Ok(Report::Subvolumes { rows, more })
            }
            Errand::Subvolume { path, of, created } => {
                self.make_subvolume(path, of.as_deref(), *created, is_again)
            }
            Errand::RemoveSubvolume { path } => self.remove_subvolume(path, is_again),
            Errand::RenameSubvolume { from, to } => self.rename_subvolume(from, to, is_again),
            Errand::Rollback { path, name, keep_as, created } => {
                let of = self.subvolume_at(path)?;
                let report = self.roll_back(of, name, keep_as, *created)?;
                self.remember_rollback(errand, &report);
                Ok(report)
            }
            Errand::Quotas { after } => self.quotas(*after),
            Errand::SetQuota { path, most } => self.set_quota(path, *most),
            Errand::Schedule { path } => self.schedule(path),
            Errand::SetSchedule { path, keep } => self.set_schedule(path, *keep),
        }
    }

    fn make_snapshot(
        &self,
        of: SubvolId,
        name: &[u8],
        created: i64,
        is_again: bool,
    ) -> Result<Report> {
        if let Some(id) = self.fs.map().find_snapshot(of, name).filter(|_| is_again)
            && self.created(id) == Some(created)
        {
            return self.told(id);
        }
        // What is written before need not be while nobody may change anything.
        self.settle_round()?;
        let list = KeyRange::everything(self.fs.snapshots_directory(of));
        let id = self.holding(&[(list, LockMode::Exclusive)], || {
            let _closed = self.freeze()?;
            Ok(self.fs.map().create_snapshot(of, name, created)?)
        })?;
        self.told(id)
    }

    fn remove_snapshots(&self, of: SubvolId, names: &[Vec<u8>], is_again: bool) -> Result<Report> {
        let mut found = Vec::new();
        for name in names {
            match self.find_snapshot(of, name) {
                Ok(id) => found.push(id),
                // It was removed, or the server before this one has refused it: then it is there.
                Err(_) if is_again => {}
                Err(error) => return Err(error),
            }
        }
        let record = |id: &SubvolId| Some((*id, self.fs.map().subvolume(*id)?));
        let rows = found.iter().filter_map(record).map(|found| row(&found)).collect();
        let list = KeyRange::everything(self.fs.snapshots_directory(of));
        if !found.is_empty() {
            self.holding(&[(list, LockMode::Exclusive)], || Ok(self.fs.map().remove(&found)?))?;
            self.forget_subvolumes(&found);
        }
        Ok(Report::Snapshots { rows, more: false })
    }

    fn compare(&self, of: SubvolId, from: &[u8], to: &[u8], skip: u64) -> Result<Report> {
        let (from, to) = (self.find_snapshot(of, from)?, self.find_snapshot(of, to)?);
        let found = differences(self.fs.map(), from, to)?.into_iter();
        let rows = found.skip(usize::try_from(skip).unwrap_or(usize::MAX)).map(difference);
        let length = |row: &DifferenceRow| match row {
            DifferenceRow::Added(path)
            | DifferenceRow::Removed(path)
            | DifferenceRow::Changed(path) => path.len(),
            DifferenceRow::Renamed { from, to } => from.len() + to.len(),
        };
        let rows: Vec<_> = rows.collect();
        if rows.iter().any(|row| length(row) > PATH_BYTES_MAX) {
            return Err(failure("a path is too long to be told".to_owned()));
        }
        let (rows, more) = part(rows, length);
        Ok(Report::Differences { rows, more })
    }

    fn make_subvolume(
        &self,
        path: &[u8],
        of: Option<&[u8]>,
        created: i64,
        is_again: bool,
    ) -> Result<Report> {
        let place = self.place(path)?;
        let source = of.map(|path| self.subvolume_at(path)).transpose()?;
        self.fs.check_name(place.parent, place.name)?;
        match self.find(place.parent, place.name) {
            Err(Error::NotFound) => {}
            Ok(found) if is_again && found.subvol != place.parent.subvol => {
                if self.created(found.subvol) == Some(created) {
                    return Ok(subvolume_report(found.subvol, path));
                }
                return Err(Error::Exists);
            }
            Ok(_) => return Err(Error::Exists),
            Err(error) => return Err(error),
        }
        let map = self.fs.map();
        let subvol = match source {
            Some(source) => map.clone_snapshot(source, place.parent.subvol, created)?,
            None => {
                let subvol = map.add_subvolume(place.parent.subvol, created)?;
                let ctx = self.context(&Caller::superuser());
                self.fs.run(|txn| gabion_fs::format_root(txn, &ctx, subvol, PERMISSIONS))?;
                subvol
            }
        };
        let ctx = self.context(&Caller::superuser());
        let attached =
            self.guarded(|txn| subvolume::attach(txn, &ctx, place.parent, place.name, subvol));
        if let Err(error) = attached {
            map.remove(&[subvol])?;
            return Err(error);
        }
        map.commit()?;
        // What had no name when the snapshot was made is not needed by anybody.
        self.fs.reaper.rescan();
        Ok(subvolume_report(subvol, path))
    }

    fn remove_subvolume(&self, path: &[u8], is_again: bool) -> Result<Report> {
        let place = self.place(path)?;
        self.fs.check_changeable(place.parent)?;
        let subvol = match self.find(place.parent, place.name) {
            Ok(found) if found.subvol != place.parent.subvol => found.subvol,
            Err(Error::NotFound) if is_again => {
                return Ok(Report::Subvolumes { rows: Vec::new(), more: false });
            }
            Ok(_) => return Err(no_subvolume(path)),
            Err(error) => return Err(error),
        };
        let ids = self.fs.removable(subvol)?;
        let ctx = self.context(&Caller::superuser());
        self.guarded(|txn| subvolume::detach(txn, &ctx, place.parent, place.name))?;
        self.fs.map().remove(&ids)?;
        self.forget_subvolumes(&ids);
        Ok(subvolume_report(subvol, path))
    }

    fn rename_subvolume(&self, from: &[u8], to: &[u8], is_again: bool) -> Result<Report> {
        let (source, target) = (self.place(from)?, self.place(to)?);
        self.fs.check_changeable(source.parent)?;
        self.fs.check_name(target.parent, target.name)?;
        let there = self.find(target.parent, target.name);
        let subvol = match self.find(source.parent, source.name) {
            Ok(found) if found.subvol != source.parent.subvol => found.subvol,
            Err(Error::NotFound) if is_again && there.is_ok() => {
                return Ok(subvolume_report(there?.subvol, to));
            }
            Ok(_) => return Err(no_subvolume(from)),
            Err(error) => return Err(error),
        };
        match there {
            Err(Error::NotFound) => {}
            Ok(_) => return Err(Error::Exists),
            Err(error) => return Err(error),
        }
        let ctx = self.context(&Caller::superuser());
        if source.parent.subvol == target.parent.subvol {
            self.guarded(|txn| {
                subvolume::detach(txn, &ctx, source.parent, source.name)?;
                subvolume::attach(txn, &ctx, target.parent, target.name, subvol)
            })?;
            self.fs.map().commit()?;
            return Ok(subvolume_report(subvol, to));
        }
        let attach =
            || self.guarded(|txn| subvolume::attach(txn, &ctx, target.parent, target.name, subvol));
        let detach = |place: &Place<'_>| match self
            .guarded(|txn| subvolume::detach(txn, &ctx, place.parent, place.name))
        {
            Ok(_) | Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        };
        attach()?;
        // From here on that name is the one that means something.
        if let Err(error) = self.fs.map().set_parent(subvol, target.parent.subvol) {
            detach(&target)?;
            return Err(error.into());
        }
        // Whoever was looking for it before may have taken it for one that means nothing.
        let root = FileId::new(subvol, ROOT);
        let is_there = || self.find(target.parent, target.name).is_ok_and(|found| found == root);
        match attach() {
            Err(Error::Exists) if is_there() => {}
            Ok(()) => {}
            Err(error) => {
                self.fs.map().set_parent(subvol, source.parent.subvol)?;
                return Err(error);
            }
        }
        detach(&source)?;
        self.fs.map().commit()?;
        Ok(subvolume_report(subvol, to))
    }

    pub(super) fn find_snapshot(&self, of: SubvolId, name: &[u8]) -> Result<SubvolId> {
        let found = self.fs.map().find_snapshot(of, name);
        let name = String::from_utf8_lossy(name);
        found.ok_or_else(|| failure(format!("there is no snapshot {name:?}")))
    }

    pub(super) fn created(&self, id: SubvolId) -> Option<i64> {
        self.fs.map().subvolume(id).map(|record| record.extended.created)
    }

    pub(super) fn told(&self, id: SubvolId) -> Result<Report> {
        let record = self.fs.map().subvolume(id).ok_or(MapError::from(Refusal::Absent))?;
        Ok(Report::Snapshots { rows: vec![row(&(id, record))], more: false })
    }

    /// The subvolume or snapshot whose root is at `path`.
    pub(super) fn subvolume_at(&self, path: &[u8]) -> Result<SubvolId> {
        let mut at = self.fs.root();
        for name in names(path) {
            at = self.find(at, name)?;
        }
        match at.ino == ROOT {
            true => Ok(at.subvol),
            false => {
                let path = String::from_utf8_lossy(path);
                let text = "is not the root of a subvolume; gabion subvolume create makes one";
                Err(failure(format!("/{path} {text}")))
            }
        }
    }

    /// Where the last name of `path` stands.
    fn place<'p>(&self, path: &'p [u8]) -> Result<Place<'p>> {
        let mut names: Vec<_> = names(path).collect();
        let name = names.pop().ok_or(Error::InvalidArgument)?;
        let mut parent = self.fs.root();
        for name in names {
            parent = self.find(parent, name)?;
        }
        Ok(Place { parent, name })
    }

    /// The object that a name stands for, which a client may have just made.
    fn find(&self, dir: FileId, name: &[u8]) -> Result<FileId> {
        if snapshots::is_snapshots(dir) {
            let id = self.fs.map().find_snapshot(dir.subvol, name);
            return id.map(|id| FileId::new(id, ROOT)).ok_or(Error::NotFound);
        }
        let ctx = self.context(&Caller::superuser());
        match self.guarded(|txn| gabion_fs::lookup(txn, &ctx, dir, name)) {
            Ok(found) => Ok(found.file),
            Err(Error::CrossSubvolume) => {
                let subvol = self.guarded(|txn| subvolume::named(txn, &ctx, dir, name))?;
                match self.fs.stands_in(subvol, dir.subvol) {
                    true => Ok(FileId::new(subvol, ROOT)),
                    false => Err(Error::NotFound),
                }
            }
            Err(Error::NotFound)
                if dir.ino == ROOT && name == SNAPSHOTS_NAME && !self.fs.is_frozen(dir) =>
            {
                Ok(self.fs.snapshots_directory(dir.subvol))
            }
            Err(error) => Err(error),
        }
    }

    /// Runs an operation as often as it takes until nobody has a lease on what it touches.
    fn guarded<T>(
        &self,
        mut operation: impl FnMut(&mut Guarded<'_, '_, LocalTxn<'_>>) -> Result<T>,
    ) -> Result<T> {
        let request = self.next_request();
        let mut grip = Grip::new(&self.grants, request, NOBODY);
        let outcome = loop {
            match self.fs.run(|txn| operation(&mut grip.on(txn))) {
                Err(Error::Stop(Stop::Lease)) => {
                    if let Err(error) = self.wait_for_leases(request, grip.denied()) {
                        break Err(error);
                    }
                }
                outcome => break outcome,
            }
        };
        self.settle(|grants| grants.table.finish(request, &[]));
        outcome
    }

    /// Does something while nobody has a lease that stands against `wants`.
    fn holding<T>(&self, wants: &[Want], run: impl FnOnce() -> Result<T>) -> Result<T> {
        let request = self.next_request();
        let is_free = {
            let mut grants = self.grants.lock();
            wants.iter().all(|want| grants.table.try_hold(request, NOBODY, *want))
        };
        let held = if is_free { Ok(()) } else { self.wait_for_leases(request, wants) };
        let outcome = held.and_then(|()| run());
        self.settle(|grants| grants.table.finish(request, &[]));
        outcome
    }

    /// Waits until the request holds `wants` and all that it has held.
    fn wait_for_leases(&self, request: RequestId, wants: &[Want]) -> Result<()> {
        let turn = Arc::new(Turn::default());
        let its = Arc::clone(&turn);
        self.settle(|grants| grants.park_errand(its, request, NOBODY, wants));
        let ends = self.fs.clock.monotonic() + PATIENCE;
        while self.fs.clock.monotonic() < ends && !self.is_ending() {
            if turn.wait(TURN) {
                return Ok(());
            }
        }
        self.settle(|grants| {
            grants.forget_parked(request);
            grants.table.withdraw(request)
        });
        Err(Error::Busy)
    }

    /// Has all clients forget what is in subvolumes. Whether they have.
    pub(super) fn forget_subvolumes(&self, ids: &[SubvolId]) -> bool {
        for id in ids {
            self.settle(|grants| grants.table.all_gone(*id));
        }
        let ends = self.fs.clock.monotonic() + PATIENCE;
        let is_owed = || {
            let grants = self.grants.lock();
            ids.iter().any(|id| grants.table.is_owed_of(*id))
        };
        // Who does not answer loses its session.
        let (never, pause) = (Mutex::new(()), Condvar::new());
        while is_owed() && self.fs.clock.monotonic() < ends && !self.is_ending() {
            pause.wait_for(&mut never.lock(), GLANCE);
        }
        !is_owed()
    }
}

/// As many as one report tells, and whether there are more.
pub(super) fn part<T>(mut rows: Vec<T>, length: impl Fn(&T) -> usize) -> (Vec<T>, bool) {
    let mut bytes = 0;
    let fits = |row: &&T| {
        bytes += length(row);
        bytes <= ROWS_BYTES_MAX
    };
    let count = rows.iter().take(ROWS_MAX).take_while(fits).count().max(1);
    let more = count < rows.len();
    rows.truncate(count);
    (rows, more)
}

/// Where a subvolume is, unless that is too long to be told.
pub(super) fn told_path(path: Option<Vec<u8>>) -> Option<Vec<u8>> {
    path.filter(|path| path.len() <= PATH_BYTES_MAX)
}

pub(super) fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let names = path.split(|byte| *byte == b'/');
    names.filter(|name| !name.is_empty() && *name != b".")
}

fn row((id, record): &(SubvolId, SubvolRecord)) -> SnapshotRow {
    SnapshotRow {
        id: *id,
        name: record.extended.name.to_vec(),
        created: record.extended.created,
        is_held: record.extended.hold == Hold::Held,
    }
}

fn subvolume_report(id: SubvolId, path: &[u8]) -> Report {
    let rows = vec![SubvolumeRow { id, path: Some(path.to_vec()) }];
    Report::Subvolumes { rows, more: false }
}

fn difference(change: Change) -> DifferenceRow {
    match change {
        Change::Added(path) => DifferenceRow::Added(path),
        Change::Removed(path) => DifferenceRow::Removed(path),
        Change::Changed(path) => DifferenceRow::Changed(path),
        Change::Renamed { from, to } => DifferenceRow::Renamed { from, to },
    }
}
