//! What programs asked for, what they were answered, and when.
//!
//! Moments are counted, not measured: as one thread runs at a time, the order in which calls began
//! and ended is known.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are told apart: all bytes of one are equal.
pub const GRAIN: usize = 512;

/// A directory and a name in it, by number.
pub type Place = (u8, u8);

/// The number of a file.
pub type Number = u64;

/// The number of a snapshot.
pub type SnapshotNumber = u32;

/// What must have been there for an extended attribute to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnlyIf {
    /// Anything.
    Always,
    /// No such attribute.
    Absent,
    /// An attribute of that name.
    Present,
}

/// Which call a lock is of, and so who has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// fcntl(2) of a process.
    Process,
    /// fcntl(2) of an open file.
    OpenFile,
    /// flock(2).
    Flock,
}

/// The first byte and the last one.
pub type Span = (u64, u64);

/// What a program asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are system calls")]
pub enum Op {
    Lookup {
        at: Place,
    },
    Create {
        at: Place,
        is_exclusive: bool,
    },
    Link {
        file: Number,
        at: Place,
    },
    Unlink {
        at: Place,
    },
    Rename {
        from: Place,
        to: Place,
        replaces: bool,
    },
    List {
        dir: u8,
    },
    Stat {
        file: Number,
    },
    Write {
        file: Number,
        grain: u32,
        count: u32,
        stamp: u32,
    },
    Append {
        file: Number,
        count: u32,
        stamp: u32,
    },
    Read {
        file: Number,
        grain: u32,
        count: u32,
    },
    Resize {
        file: Number,
        grains: u32,
    },
    /// Space is set aside, of pages, without bytes that could be told apart.
    Reserve {
        file: Number,
        grain: u32,
        count: u32,
    },
    Chmod {
        file: Number,
        mode: u32,
    },
    SetXattr {
        file: Number,
        name: u8,
        stamp: u32,
        only_if: OnlyIf,
    },
    RemoveXattr {
        file: Number,
        name: u8,
    },
    Xattr {
        file: Number,
        name: u8,
    },
    Xattrs {
        file: Number,
    },
    Lock {
        file: Number,
        kind: LockKind,
        owner: u32,
        span: Span,
        is_exclusive: bool,
        /// For how many milliseconds it waits, if it does.
        patience: Option<u64>,
    },
    Unlock {
        file: Number,
        kind: LockKind,
        owner: u32,
        span: Span,
    },
    Fsync {
        file: Number,
    },
    SyncAll,
    /// What all files are now is kept.
    Snapshot {
        snapshot: SnapshotNumber,
    },
    RemoveSnapshot {
        snapshot: SnapshotNumber,
    },
    /// A call that only reads, of what a snapshot has kept.
    InSnapshot {
        snapshot: SnapshotNumber,
        op: Box<Op>,
    },
    /// All files are what a snapshot has kept, and what they were is kept in another one.
    Rollback {
        to: SnapshotNumber,
        keep: SnapshotNumber,
    },
    /// No call: the session is about to end, and what its client has changed by itself and not yet
    /// handed over is lost with it; also what was not durable, if the server has crashed since.
    Lost {
        session: u64,
        by_crash: bool,
    },
    /// No call: the server has crashed, and started for the `life`-th time. Nobody says again what
    /// was not durable of the sessions that were lost before.
    Crash {
        life: u64,
        lost: Vec<u64>,
    },
}

impl Op {
    /// Whether nothing is different after it.
    pub fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::Lookup { .. }
                | Self::List { .. }
                | Self::Stat { .. }
                | Self::Read { .. }
                | Self::Xattr { .. }
                | Self::Xattrs { .. }
                | Self::InSnapshot { .. }
        )
    }

    /// The file that is meant, if it is one.
    pub fn file(&self) -> Option<Number> {
        match self {
            Self::Link { file, .. }
            | Self::Stat { file }
            | Self::Write { file, .. }
            | Self::Append { file, .. }
            | Self::Read { file, .. }
            | Self::Resize { file, .. }
            | Self::Reserve { file, .. }
            | Self::Chmod { file, .. }
            | Self::SetXattr { file, .. }
            | Self::RemoveXattr { file, .. }
            | Self::Xattr { file, .. }
            | Self::Xattrs { file }
            | Self::Lock { file, .. }
            | Self::Unlock { file, .. }
            | Self::Fsync { file } => Some(*file),
            Self::InSnapshot { op, .. } => op.file(),
            _ => None,
        }
    }
}

/// What a program was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// There is no such name, no such file or no such attribute.
    Absent,
    /// The name is taken, or there is such an attribute.
    Exists,
    /// The file has no name any more, and is gone.
    Gone,
    /// There is no such snapshot.
    NoSnapshot,
    /// A file.
    Found(Number),
    /// A file that was made, or was there.
    Made(Number, bool),
    /// The names of a directory.
    Names(Vec<(u8, Number)>),
    /// Size in grains, permissions, number of names.
    Status {
        /// In grains.
        size: u32,
        /// Permissions.
        mode: u32,
        /// Names.
        nlink: u32,
    },
    /// Where bytes were appended, in grains.
    At(u32),
    /// The stamp of each grain.
    Grains(Vec<u32>),
    /// The stamp that an attribute has.
    Value(u32),
    /// The attributes that a file has.
    Attributes(Vec<u8>),
    /// Somebody else has the lock.
    Blocked,
    /// To wait for the lock would close a circle.
    Circle,
    /// Whether it was done is not known.
    Unknown,
    /// It was not done.
    Refused,
    /// It was not done, as there was no room.
    Full,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Event {
    /// Which client.
    pub client: usize,
    /// What.
    pub op: Op,
    /// The answer; [`Outcome::Unknown`] as long as there is none.
    pub outcome: Outcome,
    /// When it began.
    pub invoked: u64,
    /// When it ended with an answer, if it did.
    pub responded: Option<u64>,
    /// When it ended, if it did.
    pub ended: Option<u64>,
    /// The start of the server that the client knew of when it began.
    pub life: u64,
    /// The client's session when it began.
    pub session: u64,
    /// The session when it ended; the greatest of all if it did not.
    pub last_session: u64,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    moment: u64,
}

/// All calls.
#[derive(Default)]
pub struct History {
    state: Mutex<State>,
}

impl History {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins. The answer names it.
    pub fn invoke(&self, client: usize, life: u64, session: u64, op: Op) -> usize {
        let mut state = self.state();
        state.moment += 1;
        let invoked = state.moment;
        state.events.push(Event {
            client,
            op,
            outcome: Outcome::Unknown,
            invoked,
            responded: None,
            ended: None,
            life,
            session,
            last_session: u64::MAX,
        });
        state.events.len() - 1
    }

    /// A call ends.
    pub fn respond(&self, call: usize, session: u64, outcome: Outcome) {
        let mut state = self.state();
        state.moment += 1;
        let moment = state.moment;
        let event = &mut state.events[call];
        event.ended = Some(moment);
        event.last_session = session;
        event.responded = (outcome != Outcome::Unknown).then_some(moment);
        event.outcome = outcome;
    }

    /// A session is about to end. When what is lost by that is seen to be lost is not known.
    pub fn lost(&self, session: u64, by_crash: bool) {
        self.invoke(usize::MAX, u64::MAX, session, Op::Lost { session, by_crash });
    }

    fn lost_so_far(&self) -> Vec<u64> {
        let lost = |event: &Event| match event.op {
            Op::Lost { session, .. } => Some(session),
            _ => None,
        };
        self.state().events.iter().filter_map(lost).collect()
    }

    /// The server has crashed, and is going to start for the `life`-th time.
    pub fn crash(&self, life: u64) {
        let lost = self.lost_so_far();
        let call = self.invoke(usize::MAX, u64::MAX, u64::MAX, Op::Crash { life, lost });
        self.respond(call, u64::MAX, Outcome::Done);
    }

    /// Whether a session was lost since a crash, which may have taken with it what others built on.
    pub fn has_lost_by_crash(&self) -> bool {
        let is_it = |event: &Event| match &event.op {
            Op::Lost { by_crash, .. } => *by_crash,
            Op::Crash { lost, .. } => !lost.is_empty(),
            _ => false,
        };
        self.state().events.iter().any(is_it)
    }

    /// Everything so far.
    pub fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }
}
