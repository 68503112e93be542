//! The events of each kind of object, with their names and fields.
//!
//! One list declares, for each event, its type, its name on a line and the names of its fields, so
//! that what is written and what is read cannot drift apart. Names are written out and do not
//! follow from those of the types: a type can get a better name, a line cannot.

use super::wire::{Field, Fields};
use crate::ids::BlockAddr;
use crate::time::Timestamp;

macro_rules! kinds {
    ($(#[$doc:meta])* $kind:ident {
        $($(#[$event_doc:meta])* $event:ident = $name:literal {
            $($(#[$field_doc:meta])* $field:ident = $key:literal: $type:ty,)*
        })*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $kind {
            $($(#[$event_doc])* $event { $($(#[$field_doc])* $field: $type,)* },)*
        }

        impl $kind {
            pub(super) const NAMES: &'static [&'static str] = &[$($name),*];

            pub(super) fn name(&self) -> &'static str {
                match self {
                    $(Self::$event { .. } => $name,)*
                }
            }

            pub(super) fn write(&self, fields: &mut Fields) {
                match self {
                    $(Self::$event { $($field),* } => {
                        $($field.write($key, fields);)*
                    })*
                }
            }

            /// Nothing if there is no event of this name here, or if the fields do not fit.
            pub(super) fn read(name: &str, fields: &mut Fields) -> Option<Self> {
                match name {
                    $($name => Some(Self::$event { $($field: Field::read($key, fields)?),* }),)*
                    _ => None,
                }
            }

            /// One of each.
            pub(super) fn examples() -> Vec<Self> {
                vec![$(Self::$event { $($field: Field::example($key)),* }),*]
            }
        }
    };
}

kinds! {
    /// What happens to a volume.
    VolumeEvent {
        /// It can be used, by this holder alone.
        Opened = "volume-opened" {
            /// The epoch that it was opened with.
            epoch = "epoch": u64,
            /// Who has opened it.
            holder = "holder": String,
        }
        /// Its holder has let go of it, with all of it on the members.
        Closed = "volume-closed" {
            /// The epoch that has ended.
            epoch = "epoch": u64,
        }
        /// Somebody else has opened it, and this holder can write no more.
        Fenced = "volume-fenced" {
            /// The epoch of who was fenced.
            epoch = "epoch": u64,
            /// The epoch of who has it now.
            by = "by": u64,
        }
        /// The coordinator lets others have it, although it is in use.
        ClaimLost = "volume-claim-lost" {
            /// The epoch that it is open with.
            epoch = "epoch": u64,
        }
        /// The coordinator keeps others from it again.
        ClaimBack = "volume-claim-back" {
            /// The epoch that it is open with.
            epoch = "epoch": u64,
        }
        /// Not all members are in sync.
        Degraded = "volume-degraded" {
            /// Members in sync.
            working = "working": u64,
            /// All members.
            members = "members": u64,
        }
        /// All members are in sync again.
        Whole = "volume-whole" {
            /// All members.
            members = "members": u64,
        }
        /// It can neither be read nor written.
        Unavailable = "volume-unavailable" {
            /// Why.
            reason = "reason": String,
        }
        /// More of it can be used.
        Grown = "volume-grown" {
            /// Its length by now.
            bytes = "bytes": u64,
        }
        /// It is to become longer, and does not.
        NotGrown = "volume-not-grown" {
            /// Why.
            reason = "reason": String,
        }
        /// Members were written to without each other.
        SplitBrain = "volume-split-brain" {
            /// A member.
            one = "one": String,
            /// A member that has another history.
            other = "other": String,
        }
    }
}

kinds! {
    /// What happens to a member of a volume.
    MemberEvent {
        /// It misses writes and is not read from.
        Stale = "member-stale" {
            /// Why.
            reason = "reason": String,
        }
        /// It does not answer.
        Unreachable = "member-unreachable" {
            /// What was tried, and how it failed.
            reason = "reason": String,
        }
        /// It answers again.
        Back = "member-back" {
            /// When it was last heard of before.
            since = "since": Timestamp,
        }
        /// There is another medium in its place, and it was left alone.
        Foreign = "member-foreign" {
            /// What is there.
            found = "found": String,
        }
        /// It takes much longer than the others.
        Slow = "member-slow" {
            /// How long it takes, in milliseconds.
            latency_ms = "latency_ms": u64,
            /// How long the others take, in milliseconds.
            others_ms = "others_ms": u64,
        }
    }
}

kinds! {
    /// What happens to a resynchronisation.
    ResyncEvent {
        /// It has begun.
        Started = "resync-started" {
            /// Bytes to copy.
            bytes = "bytes": u64,
        }
        /// It goes on.
        Progress = "resync-progress" {
            /// Bytes that were copied.
            done = "done": u64,
            /// Bytes to copy in all.
            total = "total": u64,
        }
        /// The member is the same as the others.
        Finished = "resync-finished" {
            /// Bytes that were copied.
            bytes = "bytes": u64,
        }
        /// It cannot go on now.
        Interrupted = "resync-interrupted" {
            /// Why.
            reason = "reason": String,
        }
        /// A comparison has found blocks that differ between members in sync.
        DifferencesFound = "resync-differences-found" {
            /// How many.
            blocks = "blocks": u64,
        }
    }
}

kinds! {
    /// What happens to blocks.
    BlockEvent {
        /// One copy could not be read. It was written again from another.
        ReadErrorRepaired = "block-read-error-repaired" {
            /// Where.
            address = "address": BlockAddr,
            /// The copy that was repaired.
            copy = "copy": String,
        }
        /// One copy did not fit to its checksum. It was written again from another.
        ChecksumRepaired = "block-checksum-repaired" {
            /// Where.
            address = "address": BlockAddr,
            /// The copy that was repaired.
            copy = "copy": String,
        }
        /// No copy fits to the checksum.
        ChecksumLost = "block-checksum-lost" {
            /// Where.
            address = "address": BlockAddr,
        }
    }
}

kinds! {
    /// What happens to a coordinator.
    CoordinatorEvent {
        /// It does not answer.
        Unreachable = "coordinator-unreachable" {
            /// Since when.
            since = "since": Timestamp,
            /// What was the matter at last.
            reason = "reason": String,
        }
        /// It answers again.
        Back = "coordinator-back" {
            /// Since when it did not.
            since = "since": Timestamp,
        }
    }
}

kinds! {
    /// What happens to a target.
    TargetEvent {
        /// A client has connected that can write.
        ClientConnected = "target-client-connected" {
            /// Its address, or that it is one of this machine.
            client = "client": String,
            /// The epoch that it holds; 0 if it holds none.
            epoch = "epoch": u64,
            /// Who holds that epoch, in its own words.
            holder = "holder": String,
        }
        /// A client that could write is gone.
        ClientLeft = "target-client-left" {
            /// Its address, or that it is one of this machine.
            client = "client": String,
            /// The epoch that it held.
            epoch = "epoch": u64,
        }
        /// Somebody has taken a higher epoch, and whoever has a lower one can write no more.
        EpochTaken = "target-epoch-taken" {
            /// The epoch.
            epoch = "epoch": u64,
            /// Who has taken it, in its own words.
            holder = "holder": String,
            /// The epoch before.
            before = "before": u64,
        }
        /// The disk below it has failed something.
        DiskFailed = "target-disk-failed" {
            /// What.
            operation = "operation": String,
            /// Where.
            address = "address": BlockAddr,
            /// The system's reason.
            reason = "reason": String,
        }
        /// A client that does not know that the volume was opened by another was refused.
        ClientFenced = "target-client-fenced" {
            /// Its address.
            client = "client": String,
            /// The epoch that it came with.
            epoch = "epoch": u64,
            /// The newest epoch that the target has seen.
            newest = "newest": u64,
        }
    }
}

kinds! {
    /// What happens to a filesystem.
    FilesystemEvent {
        /// It takes no more changes, so that what is on the disk stays as it is.
        StoppedWriting = "filesystem-stopped-writing" {
            /// Why.
            reason = "reason": String,
        }
        /// The disk does not take bytes of files; they are kept, and tried again.
        WritesRefused = "filesystem-writes-refused" {
            /// Why.
            reason = "reason": String,
        }
        /// The disk has taken what it had refused.
        WritesAgain = "filesystem-writes-again" {}
        /// It is served, and clients of an earlier start of the server may live still.
        ServedAgain = "filesystem-served-again" {
            /// How long they are waited for at most, in milliseconds.
            patience_ms = "patience_ms": u64,
        }
        /// A server waits for its turn to serve it.
        StandsBy = "filesystem-standby" {
            /// Who has it.
            holder = "holder": String,
        }
        /// A server that has waited serves it now.
        TakesOver = "filesystem-taken-over" {
            /// Who had it.
            before = "before": String,
        }
        /// Another server has it, so that this one does not serve it any more.
        ServedElsewhere = "filesystem-served-elsewhere" {
            /// How that is known.
            reason = "reason": String,
        }
        /// A snapshot that was due is not there, or there are more than shall be kept.
        ScheduleNotFollowed = "filesystem-schedule-not-followed" {
            /// Where the subvolume is.
            subvolume = "subvolume": String,
            /// The snapshot that was due.
            snapshot = "snapshot": String,
            /// Why.
            reason = "reason": String,
        }
    }
}

kinds! {
    /// What happens to a client of a filesystem that is served.
    ClientEvent {
        /// Its session has begun.
        Connected = "client-connected" {
            /// The session, 16 hexadecimal digits.
            session = "session": String,
            /// Where it has come from.
            address = "address": String,
        }
        /// It has ended its session.
        Left = "client-left" {
            /// The session.
            session = "session": String,
        }
        /// It was not heard of for too long.
        Silent = "client-silent" {
            /// The session, which has ended.
            session = "session": String,
            /// How long it may be silent, in milliseconds.
            patience_ms = "patience_ms": u64,
        }
        /// It was there, and its session was ended.
        Evicted = "client-evicted" {
            /// The session.
            session = "session": String,
            /// Why.
            reason = "reason": String,
        }
        /// Its programs have lost locks on a file, and were not told yet.
        LockLost = "client-lock-lost" {
            /// Where it is mounted.
            mount = "mount": String,
            /// The file, from the root of the mount, or its number.
            file = "file": String,
            /// Locks.
            count = "count": u64,
            /// The first byte that was locked.
            first = "first": u64,
            /// The last one.
            last = "last": u64,
            /// Why.
            reason = "reason": String,
        }
        /// What its programs were told is done is not at the server.
        ChangesLost = "client-changes-lost" {
            /// Where it is mounted.
            mount = "mount": String,
            /// Changes.
            count = "count": u64,
            /// Bytes of files in them.
            bytes = "bytes": u64,
            /// Bytes of files that are kept.
            kept = "kept": u64,
            /// Where they are kept, with the changes as text.
            folder = "folder": String,
            /// Why.
            reason = "reason": String,
        }
    }
}

kinds! {
    /// What happens to events.
    LogEvent {
        /// More was to be told than could be written.
        Dropped = "events-dropped" {
            /// Events that nobody will see.
            count = "count": u64,
        }
    }
}
