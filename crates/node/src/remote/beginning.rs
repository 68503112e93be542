//! How it goes on with a server that does not know the session, or what was said in it.
//!
//! ```text
//!   another session    the kernel hands over | leases go, and who was told something has made use
//!                      of it | what was under way is lost | what is open is told
//!   the same session,  the kernel hands over | leases go, and who was told something has made use
//!   another server     of it | what may be lost is said again, and what was asked
//! ```
//!
//! First of all the leases go. So nothing that was decided or told in the session before gets into
//! what is said or kept in the next one.

use std::collections::BTreeMap;

use gabion_base::ids::SubvolId;
use gabion_link::message::{ToServer, Welcome};

use super::pending::Extent;
use super::{RemoteFs, eras_of};

/// Calls of others that one message tells of.
const WITNESSED_AT_ONCE: usize = 1024;

impl RemoteFs {
    /// A new session has begun in place of one that the server does not know any more. Calls that
    /// can be repeated are; those that may have had an effect fail. If the server itself has
    /// started again, what was written and not synced may be lost, which the next fsync tells.
    pub fn begin_again(&self, welcome: &Welcome) {
        let is_another = {
            let mut life = self.life.lock();
            let before = std::mem::replace(&mut life.start, welcome.start);
            life.losses += u64::from(before != welcome.start);
            before != welcome.start
        };
        // What was stored in mapped pages is lost as what was written, not part of what comes.
        let _forgetting = self.forget_mapped();
        let locked = self.paths_of_locks();
        self.forget_everything();
        self.lose_locks(&locked);
        // What was told meanwhile the new session shall not hear.
        self.calls.begin_again();
        if is_another {
            self.unsynced.lose();
        }
        self.acquiring.lock().forget_unanswered();
        let extent = if is_another { Extent::Kept } else { Extent::UnderWay };
        self.lose_pending(extent, "the session has ended");
        self.meet(welcome);
        *self.identities.lock() = welcome.identities;
        self.freezing.thaw_all();
        self.renumber(welcome);
        self.revocations.clear();
        self.tell_opens_again();
    }

    /// What the kernel knows of subvolumes that were rolled back since the last session is nothing
    /// that is there now.
    fn renumber(&self, welcome: &Welcome) {
        if welcome.eras.is_empty() {
            return;
        }
        let now: BTreeMap<SubvolId, SubvolId> = eras_of(welcome);
        let before = std::mem::replace(&mut *self.eras.lock(), now.clone());
        let Some(kernel) = self.kernel.lock().clone() else { return };
        for (subvol, _) in now.iter().filter(|(subvol, chain)| before.get(subvol) != Some(chain)) {
            kernel.renumber(*subvol);
        }
    }

    /// The session goes on with a server that has started again. It is said again what that one may
    /// have lost, so that nothing is. Nothing is leased any more.
    pub fn recover(&self, welcome: &Welcome) {
        self.life.lock().start = welcome.start;
        self.meet(welcome);
        *self.identities.lock() = welcome.identities;
        self.freezing.thaw_all();
        self.forget_everything();
        self.revocations.clear();
        self.acquiring.lock().forget_unanswered();
        // Nothing is made meanwhile.
        let _order = self.order.lock();
        let (changes, calls) = self.pending.all_again();
        let changes = changes.into_iter().map(ToServer::Change);
        let calls = calls.into_iter().map(|(id, change)| ToServer::Done { id, change });
        let (_locking, locks) = self.locks_again();
        let witnessed = self.pending.all_witnessed();
        let witnessed = witnessed.chunks(WITNESSED_AT_ONCE);
        let witnessed = witnessed.map(|part| ToServer::Witnessed(part.to_vec()));
        self.say_again(changes.chain(calls).chain(locks).chain(witnessed).collect());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use gabion_base::ids::{Ino, Uuid};
    use gabion_base::time::Timestamp;
    use gabion_link::identities::Identities;
    use gabion_link::message::SessionId;

    use super::super::{RemoteSettings, Wire};
    use super::*;
    use crate::clock::Clock;

    const SUBVOL: SubvolId = SubvolId(1);

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp::new(1, 0)
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    impl Wire for Still {
        fn send(&self, _: ToServer) {}

        fn begin_again(&self) {}
    }

    fn welcome(session: u64) -> Welcome {
        Welcome {
            session: SessionId(session),
            secret: 0,
            received: 0,
            patience_ms: 1000,
            filesystem: Uuid([1; 16]),
            subvol: SUBVOL,
            seed: 1,
            read_only: false,
            start: 1,
            now: Timestamp::new(1, 0),
            credit: 1 << 20,
            identities: Identities::TRUSTED,
            root: Ino(1),
            eras: Vec::new(),
        }
    }

    #[test]
    fn numbers_of_the_session_before_are_not_used_in_the_next_one() {
        let settings = RemoteSettings::default();
        let fs = RemoteFs::new(&welcome(1), settings, Arc::new(Still), Arc::new(Still));
        // Somebody was answered and has not made use of it when the session is found to be over.
        let pass = fs.gate.enter();
        thread::scope(|scope| {
            scope.spawn(|| fs.begin_again(&welcome(2)));
            while fs.gate.barriers() == 0 {
                thread::yield_now();
            }
            fs.pending.give_numbers(SUBVOL, 100..200);
            fs.gate.give_back(pass);
        });
        assert_eq!(fs.pending.number(SUBVOL), None);
    }
}
