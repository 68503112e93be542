//! Times of reading that clients tell ([`crate::remote`] has what they do).
//!
//! A note changes nothing but the time, and nobody who has a lease on it is told. It is done in
//! the session's lane, as a change, though only syncs wait for it: whatever comes first, the time
//! is the same in the end.

use gabion_base::time::Timestamp;
use gabion_fs::Caller;
use gabion_map::FileId;

use super::{Served, Session};

impl Served {
    /// A client's program has read an object. Where that cannot be recorded nobody is told.
    pub(super) fn accessed(&self, session: &Session, caller: &Caller, file: FileId, at: Timestamp) {
        let caller = session.rights.identities.map(caller);
        if !self.is_known(session, file) || !self.may_have_read(session, &caller, file) {
            return;
        }
        // What is changed after this is changed later.
        self.times.saw(at);
        let at = at.min(self.times.now());
        let _ = self.fs.run(|txn| gabion_fs::record_reading(txn, file, at));
    }
}
