//! What programs do with advisory locks.
//!
//! A program has at most two, on files that it has open for that. It waits for some of them, and
//! loses its patience. It asks for what it has once more, shared or exclusive. Apart from that the
//! locks of its process do not overlap, as one would take the place of the other.

use std::time::Duration;

use gabion_fs::Result;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};

use super::Program;
use crate::cluster::history::{LockKind, Number, Op, Outcome, Span};

/// Locks of a program at most.
const LOCKS_MAX: usize = 2;
/// Bytes of a file that are locked.
const BYTES_MAX: u64 = 12;
/// How long a program waits for a lock at most, in milliseconds.
const PATIENCE_MAX: u64 = 3000;
/// Whoever waits when all is well waits until he is told.
const ENDLESS: u64 = 1_000_000_000;

/// A lock that a program has, or may have.
#[derive(Clone, Copy)]
struct Held {
    file: Number,
    kind: LockKind,
    owner: u32,
    span: Span,
}

/// Locks of a program.
pub(super) struct Locks {
    process: u32,
    held: Vec<Held>,
}

impl Locks {
    /// None yet, of this process.
    pub(super) fn of(process: u32) -> Self {
        Self { process, held: Vec::new() }
    }

    fn is_in_the_way(&self, wanted: &Held) -> bool {
        self.held.iter().any(|held| {
            (held.file, held.kind, held.owner) == (wanted.file, wanted.kind, wanted.owner)
                && held.span.0 <= wanted.span.1
                && wanted.span.0 <= held.span.1
        })
    }
}

fn class(kind: LockKind) -> LockClass {
    match kind {
        LockKind::Process => LockClass::Posix,
        LockKind::OpenFile => LockClass::OpenFile,
        LockKind::Flock => LockClass::Flock,
    }
}

fn owner(number: u32) -> LockOwner {
    LockOwner { client: 0, number: number.into() }
}

fn range((first, last): Span) -> LockRange {
    LockRange::new(first, last).expect("the first byte comes first")
}

impl Program {
    /// Locks something, or gives up a lock.
    pub(super) fn step_locks(&mut self) {
        let count = self.locks.held.len();
        if count > 0 && (count == LOCKS_MAX && self.rng.chance(2, 3) || self.rng.chance(1, 3)) {
            let held = self.locks.held.remove(self.rng.below(count as u64) as usize);
            return self.unlock(held);
        }
        if count > 0 && self.rng.chance(1, 3) {
            let held = self.locks.held[self.rng.below(count as u64) as usize];
            return self.ask_again(held);
        }
        if count == LOCKS_MAX {
            return;
        }
        let kinds = [LockKind::Process, LockKind::OpenFile, LockKind::Flock];
        let kind = kinds[self.rng.below(3) as usize];
        let first = self.rng.below(BYTES_MAX);
        let span = match kind {
            LockKind::Flock => (0, u64::MAX),
            _ if self.rng.chance(1, 6) => (first, u64::MAX),
            _ => (first, first + self.rng.below(BYTES_MAX)),
        };
        let owner = match kind {
            LockKind::Process => self.locks.process,
            LockKind::OpenFile | LockKind::Flock => self.world.new_owner(),
        };
        let wanted = Held { file: self.file(), kind, owner, span };
        let is_exclusive = self.rng.chance(1, 2);
        let patience = self.rng.chance(1, 2).then(|| self.rng.below(PATIENCE_MAX));
        if !self.locks.is_in_the_way(&wanted) {
            self.lock(wanted, is_exclusive, patience);
        }
    }

    /// Asks for a lock that it may have, or as another one.
    fn ask_again(&mut self, Held { file, kind, owner, span }: Held) {
        let is_exclusive = self.rng.chance(1, 2);
        let patience = self.rng.chance(1, 2).then(|| self.rng.below(PATIENCE_MAX));
        self.call(Op::Lock { file, kind, owner, span, is_exclusive, patience });
    }

    /// Locks a whole file and gives that up again, which has to succeed.
    pub(super) fn lock_once(&mut self, file: Number) {
        let owner = self.world.new_owner();
        let wanted = Held { file, kind: LockKind::OpenFile, owner, span: (0, u64::MAX) };
        let outcome = self.lock(wanted, true, Some(ENDLESS));
        if outcome != Some(Outcome::Done) {
            let number = self.client.number;
            let text = format!("after all was healed, on client {number}: a lock is {outcome:?}");
            self.world.baton.fail(&text);
        }
        self.unlock_all();
    }

    /// Gives up all locks.
    pub(super) fn unlock_all(&mut self) {
        while let Some(held) = self.locks.held.pop() {
            self.unlock(held);
        }
    }

    fn lock(&mut self, wanted: Held, is_exclusive: bool, patience: Option<u64>) -> Option<Outcome> {
        let Held { file, kind, owner, span } = wanted;
        if self.client.mount.open(self.id(file)).is_err() {
            return None;
        }
        let outcome = self.call(Op::Lock { file, kind, owner, span, is_exclusive, patience });
        match outcome {
            Outcome::Done | Outcome::Unknown => self.locks.held.push(wanted),
            _ => self.client.mount.close(self.id(file)),
        }
        Some(outcome)
    }

    fn unlock(&mut self, Held { file, kind, owner: number, span }: Held) {
        let outcome = self.call(Op::Unlock { file, kind, owner: number, span });
        let (mount, id) = (&self.client.mount, self.id(file));
        if outcome != Outcome::Done {
            // The kernel does so when the file is closed.
            mount.fs.unlock_soon(id, class(kind), owner(number), range(span));
        }
        mount.close(id);
    }

    pub(super) fn perform_lock(&self, op: &Op) -> Result<Outcome> {
        let mount = &self.client.mount;
        match *op {
            Op::Lock { file, kind, owner: number, span, is_exclusive, patience } => {
                let strength = if is_exclusive { Strength::Exclusive } else { Strength::Shared };
                let (class, owner, range) = (class(kind), owner(number), range(span));
                let lock = Lock { file: self.id(file), class, owner, pid: number, strength, range };
                let wait = if patience.is_some() { Wait::Yes } else { Wait::No };
                let patience = Duration::from_millis(patience.unwrap_or(ENDLESS));
                mount.lock(lock, wait, patience).map(|()| Outcome::Done)
            }
            Op::Unlock { file, kind, owner: number, span } => {
                let (class, owner, range) = (class(kind), owner(number), range(span));
                mount.unlock(self.id(file), class, owner, range).map(|()| Outcome::Done)
            }
            _ => unreachable!("{op:?} is none of the calls on locks"),
        }
    }
}
