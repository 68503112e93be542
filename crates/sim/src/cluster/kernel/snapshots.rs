//! Snapshots: what is asked of the server past the kernel, and how they are found by the kernel.

use gabion_base::ids::SubvolId;
use gabion_fs::Result;
use gabion_link::errand::Errand;

use super::{Mount, caller};
use crate::cluster::history::SnapshotNumber;

/// What a snapshot is called.
fn name(snapshot: SnapshotNumber) -> Vec<u8> {
    format!("s{snapshot}").into_bytes()
}

impl Mount {
    /// Makes a snapshot.
    pub fn make_snapshot(&self, snapshot: SnapshotNumber) -> Result<()> {
        let (path, created) = (Vec::new(), self.fs.server_seconds());
        self.errand(Errand::Snapshot { path, name: name(snapshot), created })
    }

    /// Removes it.
    pub fn remove_snapshot(&self, snapshot: SnapshotNumber) -> Result<()> {
        let (path, names) = (Vec::new(), vec![name(snapshot)]);
        self.errand(Errand::RemoveSnapshots { path, names })
    }

    /// Makes everything what it was then.
    pub fn roll_back(&self, to: SnapshotNumber, keep: SnapshotNumber) -> Result<()> {
        let (path, created) = (Vec::new(), self.fs.server_seconds());
        let keep_as = name(keep);
        self.errand(Errand::Rollback { path, name: name(to), keep_as, created })
    }

    fn errand(&self, errand: Errand) -> Result<()> {
        self.fs.run_errand(&caller(), errand).map(drop)
    }

    /// Where the snapshot is, if there is one.
    pub fn find_snapshot(&self, snapshot: SnapshotNumber) -> Result<Option<SubvolId>> {
        let Some(list) = self.lookup(self.fs.root(), b".snapshots")? else { return Ok(None) };
        let found = self.lookup(list, &name(snapshot))?;
        Ok(found.map(|root| root.subvol))
    }
}
