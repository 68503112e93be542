//! Writes whose bytes come from another file, by copy_file_range(2).
//!
//! Each has a source of its own, without a name, so that what it has is known: all of it, or
//! nothing if the session has ended. So such a write is one like any other, or was not made.

use std::time::Duration;

use gabion_fs::{CopyRequest, Error, Result};

use super::{PAGE_GRAINS, Program, bytes};
use crate::cluster::history::{GRAIN, Number, Outcome};

/// Of so many writes one comes from another file.
const COPIED_OF: u32 = 3;
/// What has taken longer until the source is there is not copied.
const PATIENCE: Duration = Duration::from_secs(1);

impl Program {
    /// Whether the bytes of the write with this stamp come from another file.
    pub(super) fn copies(&self, stamp: u32) -> bool {
        self.world.has_copies && stamp.is_multiple_of(COPIED_OF)
    }

    pub(super) fn copy(&self, file: Number, grain: u32, count: u32, stamp: u32) -> Result<Outcome> {
        let mount = &self.client.mount;
        let begun = self.client.monotonic();
        let offset = |grain: u32| u64::from(grain) * GRAIN as u64;
        // Whole blocks are shared. All else lies otherwise in the blocks of the source, and so is
        // copied at once.
        let is_whole = grain.is_multiple_of(PAGE_GRAINS) && count.is_multiple_of(PAGE_GRAINS);
        let source_offset = offset(if is_whole { 0 } else { (grain + 1) % PAGE_GRAINS });
        let source = mount.scratch(self.dir(0), source_offset, &bytes(count, stamp));
        let source = source.map_err(|_| Error::Busy)?;
        let copied = match self.client.monotonic().saturating_sub(begun) < PATIENCE {
            true => mount.copy(&CopyRequest {
                source,
                source_offset,
                target: self.id(file),
                target_offset: offset(grain),
                length: offset(count),
            }),
            false => Err(Error::Busy),
        };
        mount.close(source);
        match copied {
            Ok(copied) if copied == offset(count) => Ok(Outcome::Done),
            Ok(0) | Err(Error::Stale) => Err(Error::Busy),
            Ok(copied) => {
                let text = format!("{copied} bytes of {} were copied", offset(count));
                self.world.baton.fail(&text);
                Ok(Outcome::Refused)
            }
            Err(error) => Err(error),
        }
    }
}
