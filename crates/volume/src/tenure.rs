//! Whether an open volume is its opener's still, for those who answer from memory what is on it.
//!
//! Writes need nobody to look: members refuse those of an older epoch. But what was read before,
//! and what is only in memory, is no longer true once somebody else writes.
//!
//! 1. As long as the claim is held for certain nobody else opens the volume: that begins with it.
//! 2. Without it, as while the coordinator is away, all members that count are asked, again and
//!    again, which epoch they know of. Whoever opens the volume tells one of them before anything
//!    else. So until they were asked nobody had, if all of them know of no later one.
//! 3. What was found out by asking is believed for [`BELIEF`]. Whoever takes over must leave that
//!    much time to those who were answered before.
//! 4. A later epoch that was seen, in the record or at a member, ends it for good.
//!
//! A member that answers no such question, as an NBD server that knows no epochs, or none at all,
//! leaves it open: then nothing is certain until the claim is back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gabion_base::sync::{self, Condvar, Mutex};
use gabion_block::epoch::Epoch;
use gabion_block::opening;
use gabion_host::clock::boottime;

use crate::keeper::Keeper;
use crate::member::Location;
use crate::surroundings::COPY_PATIENCE;
use crate::volume::SharedClaim;

/// How often it is looked whether members have to be asked.
const LOOK: Duration = Duration::from_millis(250);
/// How long it is believed what members have said, from the asking on.
pub const BELIEF: Duration = Duration::from_secs(1);

/// That somebody else has opened the volume, and who waits for that.
#[derive(Default)]
pub(crate) struct Taken {
    reason: Mutex<Option<Arc<str>>>,
    happened: Condvar,
}

impl Taken {
    pub(crate) fn note(&self, reason: &Arc<str>) {
        self.reason.lock().get_or_insert_with(|| Arc::clone(reason));
        self.happened.notify_all();
    }

    fn is_so(&self) -> bool {
        self.reason.lock().is_some()
    }

    fn wait(&self) -> Arc<str> {
        let mut reason = self.reason.lock();
        loop {
            if let Some(reason) = &*reason {
                return Arc::clone(reason);
            }
            self.happened.wait(&mut reason);
        }
    }
}

/// Whether a volume is its opener's. It may outlive the volume.
pub struct Tenure {
    keeper: Arc<Keeper>,
    claim: SharedClaim,
    /// Nobody uses the volume any more.
    is_closed: Arc<AtomicBool>,
    /// When members were asked last that all knew of no later opener, since the machine started.
    asked: Mutex<Option<Duration>>,
}

impl Tenure {
    /// Begins to ask members where that is needed, until the volume ends.
    pub(crate) fn watch(
        keeper: &Arc<Keeper>,
        claim: &SharedClaim,
        is_closed: &Arc<AtomicBool>,
    ) -> io::Result<Arc<Self>> {
        let tenure = Arc::new(Self {
            keeper: Arc::clone(keeper),
            claim: Arc::clone(claim),
            is_closed: Arc::clone(is_closed),
            asked: Mutex::default(),
        });
        let watching = Arc::clone(&tenure);
        sync::spawn("volume tenure", move || watching.keep())?;
        Ok(tenure)
    }

    /// Whether nobody else had the volume [`BELIEF`] ago, or has it now. Does not wait.
    pub fn is_certain(&self) -> bool {
        let is_believed =
            || self.asked.lock().is_some_and(|asked| boottime() < asked.saturating_add(BELIEF));
        !self.keeper.taken.is_so() && (self.is_claimed() || is_believed())
    }

    /// Whether a failure of the volume can be told: it is not because somebody else has it.
    pub fn explains_failures(&self) -> bool {
        !self.keeper.taken.is_so() && self.is_claimed()
    }

    /// Whether somebody else has the volume, as far as is known.
    pub fn is_over(&self) -> bool {
        self.keeper.taken.is_so()
    }

    /// Waits until somebody else has the volume, without an end, and says who.
    pub fn await_end(&self) -> Arc<str> {
        self.keeper.taken.wait()
    }

    fn is_claimed(&self) -> bool {
        self.claim.lock().as_ref().is_some_and(|claim| claim.is_held())
    }

    fn keep(&self) {
        while !self.is_closed.load(Ordering::Acquire) && !self.keeper.taken.is_so() {
            if !self.is_claimed() {
                self.ask_members();
            }
            sync::sleep(LOOK);
        }
    }

    fn ask_members(&self) {
        let now = boottime();
        let record = self.keeper.register.record();
        let own = self.keeper.register.epoch();
        let mut all_agree = true;
        for member in opening::in_use(&record.layout) {
            // What is on this machine is locked.
            if let Ok(Location::Path(_)) = member.url.parse() {
                continue;
            }
            let known = self.keeper.surroundings.connector.fence_of(&member.url, COPY_PATIENCE);
            let known = known.map(Epoch::of_fence);
            if let Ok(later) = &known
                && *later > own
            {
                let reason =
                    format!("{} knows of {later}, and the volume is open in {own}", member.url);
                // Who has closed it has left it to others.
                if !self.is_closed.load(Ordering::Acquire) {
                    self.keeper.was_taken(&reason.into());
                }
                return;
            }
            all_agree &= known == Ok(own);
        }
        if all_agree {
            *self.asked.lock() = Some(now);
        }
    }
}
