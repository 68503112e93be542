//! What is offered: disks under names, and what a client may do with them.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::{Disk, DiskError};
use gabion_base::event::{Sink, TargetEvent};

use super::ranges::Ranges;
use super::telling::Teller;
use crate::medium::Medium;
use crate::wire::option::{BlockSizes, ExportFacts};
use crate::wire::{PAYLOAD_BYTES_MAX, PREFERRED_BYTES, export_flag};

/// What clients may do with an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Anything.
    ReadWrite,
    /// Read.
    ReadOnly,
}

/// A disk under a name.
pub struct Export {
    pub(super) name: String,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) permission: Permission,
    /// Whether small requests are submitted together rather than done by a thread each.
    pub(super) is_pipelined: bool,
    /// What `disk` is the data of, if it has a header.
    pub(super) medium: Option<Arc<Medium>>,
    /// Shared by all connections, as they may write to one block.
    pub(super) ranges: Ranges,
    teller: Teller,
}

impl Export {
    /// Offers `disk` as `name`.
    pub fn new(name: impl Into<String>, disk: Arc<dyn Disk>, permission: Permission) -> Self {
        let name = name.into();
        let (ranges, teller) = (Ranges::default(), Teller::default());
        Self { name, disk, permission, is_pipelined: false, medium: None, ranges, teller }
    }

    /// Offers the data of `medium` as `name`, to be written to by who holds its epoch.
    pub fn of_medium(name: impl Into<String>, medium: Medium, permission: Permission) -> Self {
        let disk = Arc::clone(medium.data()) as Arc<dyn Disk>;
        Self { medium: Some(Arc::new(medium)), ..Self::new(name, disk, permission) }
    }

    /// Has small requests in flight on the disk without a thread for each: for a disk that is
    /// elsewhere, which then gets many at once.
    #[must_use]
    pub fn pipelined(self) -> Self {
        Self { is_pipelined: true, ..self }
    }

    /// Has administrators told of clients and of the disk's errors.
    #[must_use]
    pub fn telling(self, sink: Arc<dyn Sink>) -> Self {
        Self { teller: Teller::new(sink), ..self }
    }

    pub(super) fn tell(&self, event: TargetEvent) {
        self.teller.tell(&self.name, event);
    }

    pub(super) fn tell_failure(&self, error: &DiskError) {
        self.teller.tell_failure(&self.name, error);
    }

    /// Has clients that come from now on told how long the disk is by now. One that cannot be
    /// measured stays as long as it was.
    pub(super) fn remeasure(&self) {
        let _ = match &self.medium {
            Some(medium) => medium.remeasure(),
            None => self.disk.remeasure(),
        };
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.disk.blocks() * BLOCK_SIZE as u64
    }

    /// What a client is told that is answered with `replies` and has this permission.
    pub(super) fn facts(&self, replies: Replies, permission: Permission) -> ExportFacts {
        let mut flags = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::SEND_TRIM
            | export_flag::SEND_WRITE_ZEROES
            | export_flag::SEND_FAST_ZERO
            | export_flag::SEND_CACHE
            // There is one disk, and a flush of it covers whatever has been completed.
            | export_flag::CAN_MULTI_CONN;
        if permission == Permission::ReadOnly {
            flags |= export_flag::READ_ONLY;
        }
        if replies == Replies::Structured {
            flags |= export_flag::SEND_DF;
        }
        ExportFacts { bytes: self.bytes(), flags }
    }
}

/// Any byte can be addressed; whole blocks are served best.
pub(super) const BLOCK_SIZES: BlockSizes =
    BlockSizes { minimum: 1, preferred: PREFERRED_BYTES, maximum: PAYLOAD_BYTES_MAX };

/// How requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// In one piece, of which only the client knows the length.
    Simple,
    /// In chunks.
    Structured,
}

/// All that a server offers, in the order in which it was named.
pub struct Exports(Vec<Arc<Export>>);

impl Exports {
    /// The names must differ, and have no `?`, behind which parameters begin.
    pub fn new(exports: Vec<Export>) -> Self {
        Self(exports.into_iter().map(Arc::new).collect())
    }

    /// The export of this name. The empty name is the only export's, if there is only one.
    pub fn find(&self, name: &str) -> Option<&Arc<Export>> {
        let found = self.0.iter().find(|export| export.name == name);
        match (&self.0[..], name) {
            ([only], "") => Some(only),
            _ => found,
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|export| export.name.as_str())
    }
}
