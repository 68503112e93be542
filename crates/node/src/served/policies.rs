//! Quotas of subvolumes of a filesystem that is served, and schedules of their snapshots.
//!
//! Both are set to what is asked for, so that it does no harm to do it again.

use gabion_base::ids::SubvolId;
use gabion_fs::Result;
use gabion_link::errand::{QuotaRow, Report};
use gabion_link::wire::failure;
use gabion_map::MapError;
use gabion_map::format::subvolume::{Most, Quota, Schedule};
use gabion_map::subvolumes::Refusal;

use super::Served;
use super::errands::{names, part, told_path};

impl Served {
    /// The subvolumes with a quota behind `after`, as many as one report tells.
    pub(super) fn quotas(&self, after: SubvolId) -> Result<Report> {
        let mut found = self.fs.quotas()?;
        found.retain(|row| row.id > after);
        let row = |row: QuotaRow| QuotaRow { path: told_path(row.path), ..row };
        let rows = found.into_iter().map(row).collect();
        let (rows, more) = part(rows, |row| row.path.as_ref().map_or(0, Vec::len));
        Ok(Report::Quotas { rows, more })
    }

    pub(super) fn set_quota(&self, path: &[u8], most: Most) -> Result<Report> {
        let id = self.changeable_at(path)?;
        // What clients have answered was promised room within other limits.
        let unpledged = self.unpledge()?;
        self.fs.map().set_quota(id, most)?;
        drop(unpledged);
        self.renew_credits();
        let none = Quota { most: Most::default(), count: None };
        let quota = self.fs.map().quota(id).unwrap_or(none);
        let path = [b"/", &names(path).collect::<Vec<_>>().join(&b'/')[..]].concat();
        let path = told_path(Some(path));
        Ok(Report::Quotas { rows: vec![QuotaRow { id, path, quota }], more: false })
    }

    pub(super) fn schedule(&self, path: &[u8]) -> Result<Report> {
        self.kept(self.changeable_at(path)?)
    }

    pub(super) fn set_schedule(&self, path: &[u8], keep: Schedule) -> Result<Report> {
        let of = self.changeable_at(path)?;
        self.fs.map().set_schedule(of, Some(keep))?;
        self.fs.schedule_changed();
        self.kept(of)
    }

    fn kept(&self, of: SubvolId) -> Result<Report> {
        let record = self.fs.map().subvolume(of).ok_or(MapError::from(Refusal::Absent))?;
        Ok(Report::Schedule { keep: record.extended.schedule.unwrap_or_default() })
    }

    /// The subvolume at `path`, which must not be a snapshot.
    fn changeable_at(&self, path: &[u8]) -> Result<SubvolId> {
        let of = self.subvolume_at(path)?;
        match self.fs.map().writable_subvolumes().contains(&of) {
            true => Ok(of),
            false => {
                let path = String::from_utf8_lossy(path);
                Err(failure(format!("/{path} is a snapshot, which never changes")))
            }
        }
    }
}
