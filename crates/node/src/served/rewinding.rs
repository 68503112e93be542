//! Rolling back what is served: a subvolume becomes what a snapshot of it is.
//!
//! 1. The gate is shut: what clients ask waits, and all leases come back, behind all that was
//!    changed under them (`freezing`). So nobody has anything cached, here or in a kernel, that
//!    could become untrue, and all that anybody was told is done.
//! 2. The rollback is made, by one commit.
//! 3. What clients are asking they know from before: it is refused. All sessions end, as what they
//!    have open and locked is nothing that is there now; and what was noted of them goes.
//! 4. Clients begin new sessions, and are told which subvolumes were rolled back ([`Era`]): what
//!    their kernels know of those they refuse from then on.
//!
//! A crash between the steps leaves the rollback made or not. If it is made, the snapshot's notes
//! of sessions are told from later ones, and no client goes on from them ([`super::ledger`]).
//! Whoever has asked for the rollback asks once more in the new session: it is done if this server
//! remembers that, or there is the snapshot that was to be kept. Somebody may have removed that
//! since; what was changed since must not be undone by a second rollback.

use gabion_base::ids::SubvolId;
use gabion_fs::{Error, Result};
use gabion_link::errand::{Errand, Report};
use gabion_link::message::Era;
use gabion_link::wire::failure;

use crate::rollback::left_without_name;

use super::{Outcome, Served};

/// Subvolumes whose rollbacks a client is told of: those that were rolled back last.
const ERAS_MAX: usize = 2048;
/// Rollbacks that are remembered for who asks for one again: one waits for the other, and so many
/// take longer than anybody does to ask.
const ROLLBACKS_MAX: usize = 64;

impl Served {
    /// Makes the subvolume `of` what its snapshot `name` is, and ends all sessions.
    pub(super) fn roll_back(
        &self,
        of: SubvolId,
        name: &[u8],
        keep_as: &[u8],
        created: i64,
    ) -> Result<Report> {
        if let Some(kept) = self.fs.map().find_snapshot(of, keep_as)
            && self.created(kept) == Some(created)
        {
            return self.told(kept);
        }
        let to = self.find_snapshot(of, name)?;
        let shown = String::from_utf8_lossy(name);
        if let Some(reason) = left_without_name(self.fs.map(), of, to, &shown)? {
            return Err(failure(reason));
        }
        // What is written before need not be while nobody may do anything.
        self.settle_round()?;
        let _shut = self.shut()?;
        // Those that begin from now on are noted after what was noted before is taken away.
        let _entering = self.entering.write();
        let kept = self.fs.roll_back(of, to, keep_as, created)?.kept;
        for work in self.freezing.refuse_calls() {
            self.answer(&work, Outcome::plain(Err(Error::Stale)));
        }
        for session in self.all_sessions() {
            self.end(&session);
            session.peer.cut();
        }
        self.fs.forget_sessions()?;
        self.told(kept)
    }

    /// What was told of a rollback that a client asks for once more, if it was made.
    pub(super) fn rolled_back(&self, errand: &Errand) -> Option<Report> {
        let rollbacks = self.errands.rollbacks.lock();
        let made = rollbacks.iter().find(|(made, _)| made == errand);
        made.map(|(_, report)| report.clone())
    }

    pub(super) fn remember_rollback(&self, errand: &Errand, report: &Report) {
        let mut rollbacks = self.errands.rollbacks.lock();
        if rollbacks.len() == ROLLBACKS_MAX {
            rollbacks.pop_front();
        }
        rollbacks.push_back((errand.clone(), report.clone()));
    }

    /// Subvolumes that were rolled back.
    pub fn eras(&self) -> Vec<Era> {
        let map = self.fs.map();
        let era = |subvol| {
            let chain = map.subvolume(subvol)?.extended.chain;
            (chain != SubvolId(0)).then_some(Era { subvol, chain })
        };
        let mut eras: Vec<Era> = map.writable_subvolumes().into_iter().filter_map(era).collect();
        eras.sort_by_key(|era| std::cmp::Reverse(era.chain));
        eras.truncate(ERAS_MAX);
        eras
    }
}
