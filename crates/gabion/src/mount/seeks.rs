//! Where a file has bytes and where it has holes, as lseek(2) asks (`SEEK_DATA`, `SEEK_HOLE`).
//!
//! The kernel asks without having handed over the pages that programs have changed: by write(2), if
//! it collects writes, or in mappings. What the filesystem takes for a hole may have bytes, then,
//! and a program that copies what is not a hole, as cp(1), would leave them out. So
//!
//! 1. what the filesystem knows to be bytes is answered at once;
//! 2. of what it takes for a hole, the kernel drops its pages, which hands the changed ones over
//!    first. Unchanged ones are zeros there, so nothing is lost that would have to be read again;
//! 3. then the filesystem is asked once more.
//!
//! The second step waits for requests, so a thread of its own does it. It is not one of a pool: a
//! file whose bytes take long to be written shall keep nobody from seeking in others. There are as
//! many as programs wait in lseek(2).

use std::result::Result as StdResult;
use std::sync::{Arc, OnceLock, Weak};
use std::thread;

use gabion_base::sync::ReadMostly;
use gabion_fs::errno;
use gabion_fuse::{ByteRange, NodeId, Notifier, Reply};
use gabion_map::txn::SeekTarget;
use gabion_node::{Eras, Filesystem};

use super::front::{file_of, refuse};

/// What a program wants to find.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seek {
    pub(super) node: NodeId,
    pub(super) offset: u64,
    pub(super) target: SeekTarget,
}

/// An errno where there is no offset.
type Found = StdResult<u64, i32>;

/// What is needed to look again.
pub(super) struct Seeks {
    fs: Weak<dyn Filesystem>,
    eras: Arc<Eras>,
    passage: Arc<ReadMostly<()>>,
    notifier: OnceLock<Notifier>,
}

impl Seeks {
    pub(super) fn new(
        fs: Weak<dyn Filesystem>,
        eras: &Arc<Eras>,
        passage: &Arc<ReadMostly<()>>,
    ) -> Self {
        let (eras, passage) = (Arc::clone(eras), Arc::clone(passage));
        Self { fs, eras, passage, notifier: OnceLock::new() }
    }

    /// Whom to have hand over what the kernel keeps.
    pub(super) fn tell(&self, notifier: Notifier) {
        self.notifier.get_or_init(|| notifier);
    }

    /// Answers once it is known what the kernel has.
    pub(super) fn begin(self: &Arc<Self>, seek: Seek, reply: Reply) {
        let seeks = Arc::clone(self);
        let run = move || {
            match seeks.look(seek) {
                Ok(found) => drop(reply.lseek(found)),
                Err(errno) => refuse(reply, errno),
            };
        };
        // Without a thread the reply is dropped, and answered with an error by that.
        let _ = thread::Builder::new().name("gabion-seek".to_owned()).spawn(run);
    }

    fn look(&self, seek: Seek) -> Found {
        match seek.target {
            SeekTarget::Data => self.look_for_data(seek),
            SeekTarget::Hole => self.look_for_hole(seek),
        }
    }

    fn look_for_data(&self, seek: Seek) -> Found {
        let hole = match self.ask(seek) {
            Ok(found) if found <= seek.offset => return Ok(found),
            Ok(found) => ByteRange::Part { offset: seek.offset, length: found - seek.offset },
            Err(libc::ENXIO) => ByteRange::From(seek.offset),
            Err(errno) => return Err(errno),
        };
        self.hand_over(seek.node, hole);
        self.ask(seek)
    }

    fn look_for_hole(&self, seek: Seek) -> Found {
        let begin = match self.ask(seek) {
            Ok(found) => found,
            // The kernel may know of a later end.
            Err(libc::ENXIO) => seek.offset,
            Err(errno) => return Err(errno),
        };
        let hole = match self.ask(Seek { offset: begin, target: SeekTarget::Data, ..seek }) {
            Ok(end) if end > begin => ByteRange::Part { offset: begin, length: end - begin },
            _ => ByteRange::From(begin),
        };
        self.hand_over(seek.node, hole);
        match self.ask(seek) {
            // There were bytes in it. So there may be in those behind, of any number.
            Ok(found) if found != begin => {
                self.hand_over(seek.node, ByteRange::From(found));
                self.ask(seek)
            }
            found => found,
        }
    }

    /// What the filesystem knows. A rollback may have come in between.
    fn ask(&self, Seek { node, offset, target }: Seek) -> Found {
        let fs = self.fs.upgrade().ok_or(libc::ENODEV)?;
        let _passage = self.passage.read();
        let file = file_of(&self.eras, &*fs, node).map_err(|_| libc::ESTALE)?;
        fs.seek(file, offset, target).map_err(|error| errno(&error))
    }

    fn hand_over(&self, node: NodeId, range: ByteRange) {
        if let Some(notifier) = self.notifier.get() {
            // Of a file that the kernel does not know it has no pages.
            let _ = notifier.inval_inode(node, range);
        }
    }
}
