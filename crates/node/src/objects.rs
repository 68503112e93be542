//! Operations on objects: attributes, permissions, extended attributes, opening.

use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Access, AtimePolicy, AtimeRules, Attributes, Caller, Changes, Error, OpenRequest, Result,
};
use gabion_map::FileId;

use crate::local::LocalFs;
use crate::references::Reference;
use crate::snapshots;

/// Reading that was recorded in memory counts for so long: a day, as in the relative policy.
const RECORDED_SECONDS: i64 = 24 * 60 * 60;

impl LocalFs {
    /// The attributes of an object. Counts no reference.
    pub fn stat(&self, file: FileId) -> Result<Attributes> {
        if snapshots::is_snapshots(file) {
            return self.stat_snapshots(file);
        }
        self.run(|txn| gabion_fs::stat(txn, file))
    }

    /// Changes attributes and answers with the new ones. Counts no reference.
    pub fn setattr(&self, caller: &Caller, file: FileId, changes: &Changes) -> Result<Attributes> {
        self.check_changeable(file)?;
        let ctx = self.context(caller);
        let attributes = self.run(|txn| gabion_fs::setattr(txn, &ctx, file, changes))?;
        self.references.set_read_recorded(file, None);
        Ok(attributes)
    }

    /// Whether the caller may use an object in these ways.
    pub fn access(&self, caller: &Caller, file: FileId, wanted: Access) -> Result<()> {
        let ctx = self.context(caller);
        self.run(|txn| gabion_fs::access(txn, &ctx, file, wanted))
    }

    /// Opens an object. Counts an opening.
    pub fn open_file(
        &self,
        caller: &Caller,
        file: FileId,
        request: &OpenRequest,
    ) -> Result<Attributes> {
        if request.truncate.is_some() || request.access.has(Access::WRITE) {
            self.check_changeable(file)?;
        }
        if snapshots::is_snapshots(file) {
            self.references.take(file, Reference::Open);
            return self.stat_snapshots(file);
        }
        let ctx = self.context(caller);
        let attributes = self.run_referring(
            &[Reference::Open],
            |txn| gabion_fs::open(txn, &ctx, file, request),
            |found| found,
        )?;
        if request.truncate.is_some() {
            self.references.set_read_recorded(file, None);
        }
        Ok(attributes)
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<Vec<u8>> {
        if snapshots::is_snapshots(file) {
            return Err(Error::NoAttribute);
        }
        let ctx = self.context(caller);
        let value = self.run(|txn| gabion_fs::xattr::value(txn, &ctx, file, name));
        self.unless_removed(file, value)
    }

    /// The names of the extended attributes, each ended by a NUL.
    pub fn xattr_names(&self, caller: &Caller, file: FileId) -> Result<Vec<u8>> {
        if snapshots::is_snapshots(file) {
            return Ok(Vec::new());
        }
        let ctx = self.context(caller);
        let names = self.run(|txn| gabion_fs::xattr::list(txn, &ctx, file));
        self.unless_removed(file, names)
    }

    /// Sets an extended attribute.
    pub fn set_xattr(
        &self,
        caller: &Caller,
        file: FileId,
        name: &[u8],
        value: &[u8],
        condition: SetCondition,
        set_group: SetGroupBit,
    ) -> Result<()> {
        self.check_changeable(file)?;
        let ctx = self.context(caller);
        self.run(|txn| gabion_fs::xattr::set(txn, &ctx, file, name, value, condition, set_group))
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<()> {
        self.check_changeable(file)?;
        let ctx = self.context(caller);
        self.run(|txn| gabion_fs::xattr::remove(txn, &ctx, file, name))
    }

    /// Records that an object was read, if the rules want that. Reading does not fail because
    /// this does. A file that is read all the time is looked at once a day, or after a change.
    pub fn record_reading(&self, file: FileId) {
        let rules = self.settings.atime;
        if rules == AtimeRules::NONE || self.is_read_only() || self.check_changeable(file).is_err()
        {
            return;
        }
        let now = self.clock.now();
        let is_recorded = self
            .references
            .read_recorded(file)
            .is_some_and(|second| now.seconds.saturating_sub(second) < RECORDED_SECONDS);
        if is_recorded {
            return;
        }
        let recorded = self.run(|txn| {
            let found = gabion_fs::stat(txn, file)?;
            let Attributes { mtime, ctime, .. } = found;
            let is_due = rules.are_due(&found, now);
            if is_due {
                gabion_fs::record_reading(txn, file, now)?;
            }
            let at = if is_due { now } else { found.atime };
            let is_relative = rules.of(found.file_type()) == AtimePolicy::Relative;
            Ok((is_relative && at > mtime && at > ctime).then_some(at.seconds))
        });
        if let Ok(Some(second)) = recorded {
            self.references.set_read_recorded(file, Some(second));
        }
    }
}
