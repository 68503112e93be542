//! The thread that connects to stale copies and closes what was given up.
//!
//! ```text
//!   wanted   attach -- done ---> installed: the machine is told
//!              |   `-- failed -> again, after twice as long as before
//!              `------ its gate still works on something -> a little later
//!   closing  closed gates, until they are quiet; only then is their copy attached again
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::now;
use gabion_block::copies::CopyIndex;
use gabion_block::mirror::{Input, Trust};

use super::Attachment;
use super::running::{Shared, Thread};
use crate::gate::{Closed, Gate};
use crate::member::MemberError;

/// The first wait between two attempts to attach a copy; each is twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two attempts.
const MAX: Duration = Duration::from_secs(3);

/// What the attacher is told.
pub(super) enum Job {
    /// That nothing is left to be done.
    End,
    /// Connect to a copy.
    Attach(CopyIndex),
    /// Do not attach it any more, and close what is left of it.
    Detach(CopyIndex, Option<Arc<Gate>>),
}

/// Does what it is told until that is the end.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut attacher = Attacher { shared, wanted: BTreeMap::new(), closing: Vec::new() };
    loop {
        match shared.attaches.take_within(attacher.patience()) {
            Some(Job::Attach(copy)) => attacher.want(copy),
            Some(Job::Detach(copy, gate)) => attacher.forget(copy, gate),
            None => {}
            Some(Job::End) => return,
        }
        attacher.go_on();
    }
}

/// What there is to do.
struct Attacher<'a> {
    shared: &'a Arc<Shared>,
    wanted: BTreeMap<CopyIndex, Attempts>,
    closing: Vec<(CopyIndex, Closed, Arc<Gate>)>,
}

struct Attempts {
    next: Duration,
    wait: Duration,
    /// Why the last one failed; the same reason is told once.
    reason: Option<MemberError>,
}

impl Attacher<'_> {
    fn patience(&self) -> Duration {
        let now = now();
        let next = self.wanted.values().map(|attempts| attempts.next).min();
        let next = next.map_or(MAX, |next| next.saturating_sub(now));
        if self.closing.is_empty() { next } else { next.min(FIRST) }
    }

    fn want(&mut self, copy: CopyIndex) {
        let attempts = Attempts { next: now(), wait: FIRST, reason: None };
        self.wanted.insert(copy, attempts);
    }

    fn forget(&mut self, copy: CopyIndex, gate: Option<Arc<Gate>>) {
        self.wanted.remove(&copy);
        self.closing.extend(gate.map(|gate| (copy, gate.close(), gate)));
    }

    fn go_on(&mut self) {
        self.closing.retain(|(_, closed, _)| !closed.is_quiet());
        let now = now();
        let due = self.wanted.iter().filter(|(_, attempts)| attempts.next <= now);
        let due: Vec<_> = due.map(|(copy, _)| *copy).collect();
        for copy in due {
            if self.closing.iter().any(|(closing, ..)| *closing == copy) {
                if let Some(attempts) = self.wanted.get_mut(&copy) {
                    attempts.next = now + FIRST;
                }
                continue;
            }
            match self.shared.owner.attach(self.shared.uuid, copy) {
                Ok(attachment) => {
                    self.wanted.remove(&copy);
                    self.install(copy, attachment);
                }
                Err(MemberError::Fenced(reason)) => {
                    self.shared.feed(Input::Fenced { reason: reason.into() }, Thread::Own);
                }
                Err(reason) => self.failed(copy, reason),
            }
        }
    }

    fn install(&self, copy: CopyIndex, attachment: Attachment) {
        let mut state = self.shared.state.lock();
        if state.closed || state.mirror.copies()[copy.at()].trust != Trust::Stale {
            return;
        }
        state.gates[copy.at()] = attachment.disk.map(|disk| Arc::new(Gate::new(disk)));
        let input = Input::Attached { copy, full: attachment.full };
        self.shared.feed_locked(state, input, Thread::Own);
    }

    fn failed(&mut self, copy: CopyIndex, reason: MemberError) {
        let Some(attempts) = self.wanted.get_mut(&copy) else { return };
        attempts.wait = (attempts.wait * 2).min(MAX);
        attempts.next = now() + attempts.wait;
        if attempts.reason.as_ref() != Some(&reason) {
            self.shared.owner.not_attached(self.shared.uuid, copy, &reason);
            attempts.reason = Some(reason);
        }
    }
}
