//! Times of reading: what programs here have read is told to the server, which asks nobody.
//!
//! 1. A program has read. Under the lease on the object's attributes it is known when it was read
//!    last, and whether this is to be recorded: mostly not.
//! 2. If so, the time is put into what is cached here, under whichever lease, and told as a note:
//!    with the next call, or soon. From then on reading is recorded here, and costs nothing.
//! 3. The server keeps the latest of what it is told, unless the object was changed since
//!    ([`gabion_fs::record_reading`]). It takes no lease from anybody.
//!
//! So others that have the attributes leased may show an earlier time of reading until they lose
//! the lease; and all but that is as if the attributes were leased exclusively. What was not told
//! when a session ends is not told any more.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use gabion_base::ids::SubvolId;
use gabion_base::sync::RwLock;
use gabion_base::time::Timestamp;
use gabion_fs::format::inode::Inode;
use gabion_fs::{AtimeRules, Caller};
use gabion_link::cache::{Cache, CacheTxn};
use gabion_link::message::ToServer;
use gabion_map::{FileId, Kind, Value};

use crate::snapshots;

use super::RemoteFs;

/// What is known of readings.
#[derive(Default)]
pub(super) struct Readings {
    /// Subvolumes besides that which is served that are known to be no snapshots.
    living: RwLock<BTreeSet<SubvolId>>,
    were_told: AtomicBool,
}

impl Readings {
    /// The subvolume is no snapshot.
    pub(super) fn is_living(&self, subvol: SubvolId) {
        if !self.living.read().contains(&subvol) {
            self.living.write().insert(subvol);
        }
    }

    /// Whether any were told since this was asked last.
    pub(super) fn were_told(&self) -> bool {
        self.were_told.swap(false, Ordering::Relaxed)
    }
}

impl RemoteFs {
    /// Records that an object was read, if the rules want that. Reading does not fail because this
    /// does.
    pub fn record_reading(&self, caller: &Caller, file: FileId) {
        let rules = self.settings.atime;
        if rules == AtimeRules::NONE || self.is_read_only() || !self.is_living(file) {
            return;
        }
        let at = self.server_time.at(self.clock.monotonic());
        if due(&self.cache.read(), rules, file, at).is_none() {
            return;
        }
        let _order = self.order.lock();
        // Who stands still for a snapshot changes nothing; the next reading is recorded.
        if !self.is_alive() || self.is_cut_off() || self.freezing.is_frozen() {
            return;
        }
        let mut cache = self.cache.write();
        let Some(inode) = due(&cache, rules, file, at) else { return };
        let read = Inode { atime: at, ..inode }.encode();
        cache.update([(file.key(Kind::INODE, 0), Some(Value::from(read)))]);
        let caller = self.told_of_change(caller);
        self.readings.were_told.store(true, Ordering::Relaxed);
        self.calls.note(ToServer::Accessed { file, caller, at });
    }

    /// Whether the object is known to be in no snapshot.
    fn is_living(&self, file: FileId) -> bool {
        let is_living = || self.readings.living.read().contains(&file.subvol);
        !snapshots::is_snapshots(file) && (self.is_home(file) || is_living())
    }
}

/// The object's inode, if it is known here and reading at `at` is to be recorded.
fn due(cache: &Cache, rules: AtimeRules, file: FileId, at: Timestamp) -> Option<Inode> {
    let found = gabion_fs::stat(&mut CacheTxn::new(cache), file).ok()?;
    let item = cache.item(file.key(Kind::INODE, 0))?;
    rules.are_due(&found, at).then(|| Inode::decode(item).ok()).flatten()
}
