//! What the daemon of a local mount answers to commands.

use std::process;
use std::sync::Arc;
use std::time::Instant;

use gabion_fuse::mount::Source;
use gabion_fuse::{ByteRange, Notifier};
use gabion_host::memory;
use gabion_map::FileId;
use gabion_map::format::superblock::Superblock;
use gabion_node::LocalFs;

use super::renewal::{Outcome, Renewal};
use super::{Plan, Storage};
use crate::check;
use crate::control::server::Subject;
use crate::control::wire::{
    Allocation, Grown, MountStatus, Progress, QuotaAction, Quotas, Reply, Report, SnapshotAction,
    Status, SubvolumeAction, Subvolumes,
};
use crate::failure::chain;
use crate::growth;
use crate::mount::{Mounted, Rollbacks, WritePolicy};
use crate::quotas;
use crate::snapshots;
use crate::state;

/// What the control socket tells about.
pub(super) struct Service {
    plan: Plan,
    fs: Arc<LocalFs>,
    storage: Storage,
    source: Source,
    /// As of the start.
    superblock: Superblock,
    notifier: Notifier,
    rollbacks: Rollbacks,
    /// If the kernel collects writes before the filesystem hears of them, and nobody has asked for
    /// that: how it ends.
    renewal: Option<Arc<Renewal>>,
    collects_writes: bool,
    started: Instant,
}

impl Service {
    /// Of `fs`, which is on `storage` and mounted with this source.
    pub(super) fn new(
        plan: &Plan,
        fs: &Arc<LocalFs>,
        storage: &Storage,
        (mounted, source): (&Mounted, Source),
        renewal: Option<Arc<Renewal>>,
    ) -> Self {
        Self {
            plan: plan.clone(),
            fs: Arc::clone(fs),
            storage: storage.clone(),
            source,
            superblock: fs.map().superblock(),
            notifier: mounted.notifier(),
            rollbacks: mounted.rollbacks(),
            renewal,
            collects_writes: mounted.writes() == WritePolicy::Back,
            started: Instant::now(),
        }
    }

    /// Has the kernel forget what it keeps of a directory; it may not have any of it.
    fn listing_changed(&self, directory: FileId) {
        let node = self.rollbacks.node(directory);
        let _ = self.notifier.inval_inode(node, ByteRange::All);
    }
}

impl Subject for Service {
    fn status(&self) -> Status {
        let activity = self.fs.map().activity();
        let (kind, source) = match &self.source {
            Source::BlockDevice { path, .. } => ("fuseblk", path.display().to_string()),
            Source::Name(name) => ("fuse", name.clone()),
        };
        let access = if self.fs.is_read_only() { "ro" } else { "rw" };
        let mount = MountStatus {
            mountpoint: self.plan.mountpoint.display().to_string(),
            access: access.to_owned(),
            source,
            kind: kind.to_owned(),
            sync_reaches_daemon: kind == "fuseblk",
            pid: process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            cache_bytes: self.plan.settings.cache.0,
            resident_bytes: memory::resident_bytes().unwrap_or(0),
            unwritten_bytes: activity.dirty_bytes,
            uncommitted_bytes: activity.item_bytes,
            disk: self.storage.describe(),
        };
        let target = self.plan.target.name();
        state::of_fs(&self.fs, &self.superblock, &target, Some(mount))
    }

    fn scrub(
        &self,
        watch: &mut dyn FnMut(&Progress) -> std::ops::ControlFlow<()>,
    ) -> std::result::Result<Report, String> {
        check::scrub_in_use(&self.fs, &self.plan.target.name(), watch)
    }

    fn audit(&self) -> std::result::Result<Allocation, String> {
        check::audit_in_use(&self.fs, &self.plan.target.name())
    }

    fn snapshots(
        &self,
        path: Option<&str>,
        action: &SnapshotAction,
    ) -> std::result::Result<Vec<Reply>, String> {
        let path = path.unwrap_or_default();
        let of = snapshots::find_subvolume(&self.fs, path)?;
        let name = self.plan.target.name();
        let done = match action {
            SnapshotAction::Rollback { name: to } => {
                snapshots::roll_back(&self.fs, &self.rollbacks, &name, (of, path), to)
            }
            SnapshotAction::Create { .. } => {
                // What is written before need not be while everybody waits.
                self.fs.syncfs().map_err(|error| chain(&error))?;
                let create = || snapshots::act(self.fs.map(), &name, of, action);
                self.rollbacks.at_rest(create)
            }
            action => snapshots::act(self.fs.map(), &name, of, action),
        };
        self.listing_changed(self.fs.snapshots_directory(of));
        if matches!(action, SnapshotAction::Schedule { set: Some(_) }) {
            self.fs.schedule_changed();
        }
        done
    }

    fn subvolumes(&self, action: &SubvolumeAction) -> std::result::Result<Subvolumes, String> {
        let name = self.plan.target.name();
        let (subvolumes, changed) = snapshots::act_on_subvolumes(&self.fs, &name, action)?;
        for (parent, name) in changed {
            let _ = self.notifier.inval_entry(self.rollbacks.node(parent), name.as_bytes());
            self.listing_changed(parent);
        }
        Ok(subvolumes)
    }

    fn quotas(
        &self,
        path: Option<&str>,
        action: &QuotaAction,
    ) -> std::result::Result<Quotas, String> {
        let mut told = quotas::act(&self.fs, &self.plan.target.name(), path, action)?;
        told.collects_writes = self.collects_writes;
        if let (true, Some(renewal)) = (self.fs.map().has_quotas(), &self.renewal)
            && matches!(action, QuotaAction::Set { .. })
        {
            match renewal.ask() {
                Outcome::Done => told.collects_writes = false,
                Outcome::InUse(users) => told.renewed_after = Some(users),
                Outcome::Impossible => {}
            }
        }
        Ok(told)
    }

    fn grow(&self, to_bytes: Option<u64>) -> std::result::Result<Grown, String> {
        growth::grow(self.fs.map(), self.storage.file(), &self.plan.target.name(), to_bytes)
    }
}
