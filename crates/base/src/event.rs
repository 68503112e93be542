//! Everything that an administrator must be told, as types.
//!
//! ```text
//! whoever notices -> Event -> Sink::publish -> Record (sequence, time, source) -> one JSON line
//!                                                                             -> text for people
//! ```
//!
//! - What an event means is decided by its type and never by the text in it. Texts are only shown.
//! - Each event answers six questions: what, of which object, since when, what it means for the
//!   data, what to do, and how grave it is ([`Event::what`] and its neighbours).
//! - Its name is promised to scripts: it is never used again for something else.
//! - A line ([`Record::to_line`]) has at most [`LINE_BYTES_MAX`] bytes, as texts are cut off at
//!   [`TEXT_BYTES_MAX`]. Reading a line never panics. A name that this program does not know, or
//!   fields that do not fit to a name, come from another version: they are kept and shown.
//!
//! Deliberately absent: clocks, files and sockets. Who publishes and who follows is in `host`.

mod kinds;
mod text;
mod wire;

use std::fmt;

pub use kinds::{
    BlockEvent, ClientEvent, CoordinatorEvent, FilesystemEvent, LogEvent, MemberEvent, ResyncEvent,
    TargetEvent, VolumeEvent,
};

use crate::sync::Mutex;
use crate::time::Timestamp;

/// The longest text in an event that is written, in bytes; the rest is cut off.
pub const TEXT_BYTES_MAX: usize = 512;
/// The longest line, in bytes without its end. Eight texts fit, whatever is in them.
pub const LINE_BYTES_MAX: usize = 32 * 1024;

/// How grave it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// All is well, or on the way to be.
    Note,
    /// Data is safe and available; one more failure may change that.
    Warning,
    /// Data is lost or cannot be reached, or somebody has to act now.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}

/// Something that has happened to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// To a volume.
    Volume {
        /// Its name.
        volume: String,
        /// What.
        event: VolumeEvent,
    },
    /// To one of a volume's members.
    Member {
        /// The volume.
        volume: String,
        /// The member's name.
        member: String,
        /// What.
        event: MemberEvent,
    },
    /// To the copying that makes a member the same as the others again.
    Resync {
        /// The volume.
        volume: String,
        /// The member that is written to.
        member: String,
        /// What.
        event: ResyncEvent,
    },
    /// To some blocks.
    Block {
        /// The volume, device or image that they are on.
        device: String,
        /// What.
        event: BlockEvent,
    },
    /// To a coordinator, as this program sees it.
    Coordinator {
        /// Its path or URL.
        coordinator: String,
        /// What.
        event: CoordinatorEvent,
    },
    /// To an export of a target.
    Target {
        /// The export's name.
        export: String,
        /// What.
        event: TargetEvent,
    },
    /// To a filesystem.
    Filesystem {
        /// Where it is mounted, or the device that it is on.
        filesystem: String,
        /// What.
        event: FilesystemEvent,
    },
    /// To a client of a filesystem that is served.
    Client {
        /// The device, image or volume that is served.
        filesystem: String,
        /// What the client calls itself.
        client: String,
        /// What.
        event: ClientEvent,
    },
    /// To the events themselves.
    Log {
        /// The program whose events they are.
        program: String,
        /// What.
        event: LogEvent,
    },
    /// Something that only another version of this program understands.
    Unknown {
        /// Its name.
        name: String,
        /// Its fields, as a JSON object.
        fields: String,
    },
}

/// A record's place among all records of one log, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// Who has published an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The program's name, with its subcommand.
    pub program: String,
    /// Its process id.
    pub pid: u32,
}

/// An event with its place, its time and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it stands in the log.
    pub sequence: Sequence,
    /// When it was published.
    pub time: Timestamp,
    /// By whom.
    pub source: Source,
    /// What has happened.
    pub event: Event,
}

impl Record {
    /// Since when it has been so.
    pub fn since(&self) -> Timestamp {
        self.event.since().unwrap_or(self.time)
    }
}

/// Where events go.
///
/// Publishing never waits for a disk or for a reader, and never fails: whoever has something to
/// tell has something more important to do.
pub trait Sink: Send + Sync {
    /// Takes an event.
    fn publish(&self, event: Event);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSink;

impl Sink for NoSink {
    fn publish(&self, _event: Event) {}
}

/// Keeps all events, for tests.
#[derive(Debug, Default)]
pub struct Collector {
    events: Mutex<Vec<Event>>,
}

impl Collector {
    /// What was published since the last call.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock())
    }
}

impl Sink for Collector {
    fn publish(&self, event: Event) {
        self.events.lock().push(event);
    }
}
