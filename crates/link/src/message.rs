//! What client and server say to each other, as values. How they look as bytes is `wire`'s.
//!
//! ```text
//!   client                                     server
//!   Hello             ----------------------->
//!                     <-----------------------  Welcome | Refusal        no numbers yet
//!   ToServer::Call    ------- numbered ------>  an answer to each
//!   ToServer::Change  ------- numbered ------>  told when applied, with others
//!   all others        ------- numbered ------>
//!                     <------ numbered -------  ToClient::{Answer, Applied, Revoke}
//! ```
//!
//! Order is what coherence rests on: an answer tells the state of the map before everything that
//! is revoked after it. What a client has done under its exclusive leases it says before it gives
//! one of them back, and the server applies it before it takes that for given back.

use std::sync::Arc;

use gabion_base::ids::{Ino, SubvolId, Uuid};
use gabion_base::time::Timestamp;
use gabion_fs::create::Linkable;
use gabion_fs::lock::{Lock, LockClass, LockRange, Wait};
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Access, Attributes, Caller, Changes, Disposition, Error, FileType, IfExists, IfTaken, Leave,
    OpenRequest, Privileges, SpaceRequest, WriteAt,
};
use gabion_map::txn::{SeekTarget, Value};
use gabion_map::{FileId, Key, LockMode};

use crate::errand::{Errand, Report};
use crate::identities::Identities;
use crate::range::KeyRange;
use crate::table::{Keep, RevokeId, Want};

/// Names a session; the server chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl SessionId {
    /// How people write it.
    pub fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Names a call; the client gives each of a session its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Counts the changes that a client makes in a session by itself, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeNumber(pub u64);

/// A client's first words on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The session that goes on, with the server's secret of it; none to begin one.
    pub session: Option<(SessionId, u64)>,
    /// The start of the server that the client has talked to in that session; 0 if there is none.
    pub start: u64,
    /// Messages that have arrived in that session since that start.
    pub received: u64,
    /// The client's name for people: host and mountpoint.
    pub name: String,
    /// The folder that a new session is about, by its path in the filesystem.
    pub path: Vec<u8>,
}

/// The server's first words: the client is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The session.
    pub session: SessionId,
    /// Whoever knows it may go on with the session on another connection.
    pub secret: u64,
    /// Messages that have arrived in this session since the server started. 0 in a new one: then
    /// whatever the client knew from an earlier one no longer counts.
    pub received: u64,
    /// A session ends when nothing was heard for so long, in milliseconds.
    pub patience_ms: u32,
    /// The filesystem.
    pub filesystem: Uuid,
    /// Its subvolume that is served.
    pub subvol: SubvolId,
    /// Seed of its hashes of names.
    pub seed: u64,
    /// Whether nothing can be changed.
    pub read_only: bool,
    /// Drawn when the server started, and not 0. One with another start than before may not have
    /// what was not durable: if the session is the same, it waits to be told.
    pub start: u64,
    /// The server's clock.
    pub now: Timestamp,
    /// Bytes of changes that the client may have under way.
    pub credit: u64,
    /// Whom it takes the client's callers for.
    pub identities: Identities,
    /// The folder that the session is about. It knows of nothing that is not below.
    pub root: Ino,
    /// Subvolumes that were rolled back, and when.
    pub eras: Vec<Era>,
}

/// A subvolume that was rolled back: its objects are others than before, whatever their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Era {
    /// The subvolume.
    pub subvol: SubvolId,
    /// Another one after each rollback: the number of what it began then.
    pub chain: SubvolId,
}

/// The server's last words, instead of a [`Welcome`] or later: the client is not in any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for the client.
    pub reason: RefusalReason,
    /// Why, for people.
    pub text: String,
}

/// Why a server refuses a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// They do not speak the same version, or not with the same features.
    Version,
    /// The client may not.
    Unauthorized,
    /// The session has ended, or its secret is another one.
    Gone,
    /// Not now: the client may try again.
    Busy,
    /// What the text says.
    Other,
}

/// What a client says in a session.
#[derive(Clone, Debug)]
pub enum ToServer {
    /// A question, which is answered.
    Call {
        /// The question's name.
        id: CallId,
        /// Who asks for it.
        caller: Caller,
        /// The question.
        call: Call,
        /// What has to be applied before it is looked at; 0 for nothing.
        after: ChangeNumber,
    },
    /// It has made a change under its exclusive leases.
    Change(Change),
    /// The server before this one has done a call and answered it, and not said that it is durable.
    /// Only before [`ToServer::Recovered`].
    Done {
        /// The call's name.
        id: CallId,
        /// What was done. Its number is 0.
        change: Change,
    },
    /// The server before this one has told it of these calls of others.
    Witnessed(Vec<Witness>),
    /// It has said again all that the server before this one may have lost: what it has open, its
    /// changes, its calls.
    Recovered,
    /// It has heard that all of this round is durable, and will not say it again.
    Settled(u64),
    /// It still lives.
    Ping,
    /// It has the object open, or remembers it for another reason: it must not be removed.
    Opened {
        /// The object.
        file: FileId,
        /// Who has opened it.
        caller: Caller,
        /// To do what.
        access: Access,
    },
    /// It has not any more, as often as it says so: once for each
    /// [`ToServer::Opened`], [`Call::Create`] and [`Call::Tmpfile`].
    Closed(FileId),
    /// One of its programs has read bytes, names or a link's target of an object. That takes no
    /// lease from anybody: of what several say the latest counts, and nothing from before a change.
    Accessed {
        /// The object.
        file: FileId,
        /// Who has read.
        caller: Caller,
        /// When.
        at: Timestamp,
    },
    /// It has done what these said, and the kernel has.
    Released(Vec<RevokeId>),
    /// It gives up what it has exclusively of these ranges, without having been told.
    Yielded(Vec<KeyRange>),
    /// It would rather not have leases on these ranges any more. They end when it is told so.
    Unwanted(Vec<KeyRange>),
    /// Its processes hold these advisory locks, of which the server may not know: they were had
    /// under a lease, or of a server that has started again. Their owners' client is the session.
    Locked(Vec<Lock>),
    /// One of its processes has given up its advisory locks on a range, under a shared lease on the
    /// file's locks. See [`Call::Unlock`].
    #[allow(missing_docs, reason = "as of the call")]
    Unlocked { file: FileId, class: LockClass, owner: u64, range: LockRange },
    /// The call for a lock is given up, if it still waits.
    Cancel(CallId),
    /// It has said all that it has changed, and changes nothing by itself until it is thawed.
    Frozen(u64),
    /// The client ends the session.
    Goodbye,
}

/// A change that a client has made by itself: under its leases, the server comes to the same
/// result.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its place among the client's changes.
    pub number: ChangeNumber,
    /// Its place among the changes of all clients: what comes later by any chain of messages has a
    /// higher one. What has not to do with each other may have the same.
    pub order: u64,
    /// The time that it recorded.
    pub now: Timestamp,
    /// The number of the object that it made, if it made one: of those that the client was given.
    pub made: Option<Ino>,
    /// Who made it.
    pub caller: Caller,
    /// What was done.
    pub call: Call,
}

/// A call that was done and whose client may not have heard so: where it belongs if it has to be
/// done again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Whose call it is.
    pub session: SessionId,
    /// Which.
    pub call: CallId,
    /// Its place among changes.
    pub order: u64,
    /// The time that was recorded.
    pub now: Timestamp,
    /// The number of the object that it made, if it made one.
    pub made: Option<Ino>,
}

/// What a client asks for.
#[allow(missing_docs, reason = "the operations that are named tell what their arguments are")]
#[derive(Clone, Debug)]
pub enum Call {
    /// Leases, with what is there.
    Acquire {
        /// What is needed at least. Of one object each.
        needed: Vec<Want>,
        /// What would be welcome if nobody has to be asked.
        welcome: Vec<Want>,
        /// What else would be.
        prefetch: Prefetch,
    },
    /// Numbers for that many objects of a subvolume, which nobody else gets: the first of them.
    Numbers { of: SubvolId, count: u32 },
    /// Bytes.
    Read { file: FileId, offset: u64, length: u32, lease: ReadLease },
    /// To write bytes.
    Write { file: FileId, at: WriteAt, privileges: Privileges, bytes: Arc<Vec<u8>> },
    /// See [`gabion_fs::create()`].
    Create {
        parent: FileId,
        name: Vec<u8>,
        permissions: u32,
        if_exists: IfExists,
        request: OpenRequest,
    },
    /// See [`gabion_fs::tmpfile`].
    Tmpfile { parent: FileId, permissions: u32, linkable: Linkable },
    /// See [`gabion_fs::mknod`].
    Mknod { parent: FileId, name: Vec<u8>, file_type: FileType, permissions: u32, rdev: u32 },
    /// See [`gabion_fs::mkdir`].
    Mkdir { parent: FileId, name: Vec<u8>, permissions: u32 },
    /// See [`gabion_fs::symlink`].
    Symlink { parent: FileId, name: Vec<u8>, target: Vec<u8> },
    /// See [`gabion_fs::link()`].
    Link { file: FileId, parent: FileId, name: Vec<u8> },
    /// See [`gabion_fs::unlink`].
    Unlink { parent: FileId, name: Vec<u8> },
    /// See [`gabion_fs::rmdir`].
    Rmdir { parent: FileId, name: Vec<u8> },
    /// See [`gabion_fs::rename()`].
    Rename {
        source_parent: FileId,
        source_name: Vec<u8>,
        target_parent: FileId,
        target_name: Vec<u8>,
        if_taken: IfTaken,
        leave: Leave,
    },
    /// See [`gabion_fs::setattr()`].
    Setattr { file: FileId, changes: Changes },
    /// See [`gabion_fs::xattr::set`].
    SetXattr {
        file: FileId,
        name: Vec<u8>,
        value: Vec<u8>,
        condition: SetCondition,
        set_group: SetGroupBit,
    },
    /// See [`gabion_fs::xattr::remove`].
    RemoveXattr { file: FileId, name: Vec<u8> },
    /// See [`gabion_fs::fallocate`].
    Fallocate {
        file: FileId,
        request: SpaceRequest,
        offset: u64,
        length: u64,
        privileges: Privileges,
    },
    /// See [`gabion_fs::copy_range`].
    Copy {
        source: FileId,
        source_offset: u64,
        target: FileId,
        target_offset: u64,
        length: u64,
        privileges: Privileges,
    },
    /// See [`gabion_fs::seek`].
    Seek { file: FileId, offset: u64, target: SeekTarget },
    /// Everything that was answered before is to be durable.
    Sync { file: Option<FileId> },
    /// Space in numbers, as whoever adds to a subvolume finds it.
    Space {
        /// Which subvolume.
        of: SubvolId,
    },
    /// To have an advisory lock. Its owner's client is the session, whatever is said here.
    Lock { lock: Lock, wait: Wait },
    /// To give up an owner's advisory locks on a range.
    Unlock { file: FileId, class: LockClass, owner: u64, range: LockRange },
    /// Who stands in the way of an advisory lock.
    TestLock { lock: Lock },
    /// What administrators ask for.
    Run(Errand),
}

impl Call {
    /// Whether it may change what others have leases on, or what they have locked.
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Acquire { .. }
                | Self::Read { .. }
                | Self::Seek { .. }
                | Self::Sync { .. }
                | Self::Space { .. }
                | Self::Numbers { .. }
                | Self::TestLock { .. }
                | Self::Run(_)
        )
    }

    /// Whether it may give its client the right to change something.
    pub fn entitles(&self) -> bool {
        match self {
            Self::Acquire { needed, welcome, .. } => {
                needed.iter().chain(welcome).any(|(_, mode)| *mode == LockMode::Exclusive)
            }
            Self::Run(errand) => errand.changes(),
            call => call.changes(),
        }
    }

    /// The objects that it names.
    pub fn files(&self) -> Vec<FileId> {
        match self {
            Self::Acquire { needed, welcome, .. } => {
                needed.iter().chain(welcome).map(|(range, _)| range.file()).collect()
            }
            Self::Read { file, .. }
            | Self::Write { file, .. }
            | Self::Setattr { file, .. }
            | Self::SetXattr { file, .. }
            | Self::RemoveXattr { file, .. }
            | Self::Fallocate { file, .. }
            | Self::Seek { file, .. }
            | Self::Unlock { file, .. } => vec![*file],
            Self::Create { parent, .. }
            | Self::Tmpfile { parent, .. }
            | Self::Mknod { parent, .. }
            | Self::Mkdir { parent, .. }
            | Self::Symlink { parent, .. }
            | Self::Unlink { parent, .. }
            | Self::Rmdir { parent, .. } => vec![*parent],
            Self::Link { file, parent, .. } => vec![*file, *parent],
            Self::Rename { source_parent, target_parent, .. } => {
                vec![*source_parent, *target_parent]
            }
            Self::Copy { source, target, .. } => vec![*source, *target],
            Self::Sync { file } => file.iter().copied().collect(),
            Self::Space { .. } | Self::Numbers { .. } | Self::Run(_) => Vec::new(),
            Self::Lock { lock, .. } | Self::TestLock { lock } => vec![lock.file],
        }
    }
}

/// What [`Call::Read`] does about leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadLease {
    /// The bytes are not kept.
    None,
    /// A lease on all pages that were asked for, but nobody is waited for:
    /// [`Stop::Lease`](gabion_map::Stop::Lease) if somebody is in the way.
    AtOnce,
    /// A lease on all pages that were asked for, when it is their turn.
    InTurn,
}

/// What is welcome besides the ranges of an [`Call::Acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// The rest of each directory of which a name is asked for, unless it is large.
    Names,
    /// And the attributes of the objects that the names stand for.
    Children,
}

/// What a server says in a session.
#[derive(Clone, Debug)]
pub enum ToClient {
    /// To one call.
    Answer {
        /// Which.
        id: CallId,
        /// The result.
        result: Result<Answer, Error>,
        /// Items that the call has changed, as they are now; those that the client has leases on
        /// replace what it has.
        updates: Vec<(Key, Option<Value>)>,
        /// Leases that the client has from now on, with all items in them.
        grants: Vec<Grant>,
        /// Nothing that was done before has a later time.
        now: Timestamp,
        /// Its place among changes if it is one; else nothing that was done before has a higher
        /// one.
        order: u64,
        /// The time that was recorded, if it has changed something.
        done: Option<Timestamp>,
    },
    /// The [`ToServer::Ping`]s up to this number of messages have arrived.
    Pong {
        /// Messages that have arrived.
        received: u64,
        /// The server's clock.
        now: Timestamp,
    },
    /// The client's changes up to this one are applied.
    Applied {
        /// The last one.
        number: ChangeNumber,
        /// How long the files are that they changed.
        extents: Vec<(Key, Option<Value>)>,
        /// Bytes of changes that may be under way from now on.
        credit: u64,
    },
    /// These calls of others were done, and their clients may not know. What is said from now on
    /// may depend on them.
    Witness(Vec<Witness>),
    /// The client has said that it holds these locks, and does not hold them: others have them, or
    /// it may not have them.
    LocksLost(Vec<Lock>),
    /// These are durable, with all bytes. The client answers [`ToServer::Settled`].
    Durable {
        /// Of each session its own.
        round: u64,
        /// All changes up to this one.
        number: ChangeNumber,
        /// Calls that were answered.
        calls: Vec<CallId>,
    },
    /// A change could not be applied, though the client has made it.
    Failed {
        /// Which.
        number: ChangeNumber,
        /// Why.
        error: Error,
    },
    /// The client shall give up a range, as far as it was granted before, and say so.
    Revoke {
        /// How to say so.
        id: RevokeId,
        /// What.
        range: KeyRange,
        /// What it keeps of it.
        keep: Keep,
    },
    /// The client shall change nothing by itself, and say so, until it is thawed or its session is
    /// over: so all come to one instant.
    Freeze(u64),
    /// The instant of that [`ToClient::Freeze`] is over.
    Thaw(u64),
    /// In these subvolumes the client shall change nothing by itself, whatever its credit is: they
    /// have little room. In all others it may, whatever was said before.
    Tight(Vec<SubvolId>),
}

/// A lease with what it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The range.
    pub range: KeyRange,
    /// Whether others may read it, too, or the client may change it.
    pub mode: LockMode,
    /// All items in it, in key order; none for ranges of bytes. The `FILE` item tells size and
    /// blocks as they are, written or not.
    pub items: Vec<(Key, Value)>,
}

/// A result.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It is done.
    Done,
    /// An object.
    Object(Attributes),
    /// An object that was made or found.
    Made(Attributes, Disposition),
    /// Bytes of a file.
    Bytes(Vec<u8>),
    /// Where bytes were written, and how many.
    Written {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
    },
    /// An offset, or a number of bytes.
    Number(u64),
    /// Blocks in all, and those that can still be filled.
    Space {
        /// In blocks.
        total: u64,
        /// In blocks.
        available: u64,
        /// In blocks.
        used: u64,
        /// How many objects there may be, if that is limited.
        objects: Option<u64>,
        /// How many of them there may be besides those that are there.
        objects_left: Option<u64>,
    },
    /// A lock in the way, if there is one.
    Lock(Option<Lock>),
    /// What an errand has come to.
    Report(Report),
}
