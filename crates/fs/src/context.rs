//! What every operation is told: by whom, when, and how names are hashed here.

use gabion_base::time::Timestamp;
use gabion_map::FileId;

use crate::caller::Caller;

/// The circumstances of one operation. All attempts at one operation get the same.
#[derive(Clone, Debug)]
pub struct Context {
    /// Seed of the hashes of names, a property of the filesystem: names that share a hash on one
    /// do not on another.
    pub seed: u64,
    /// The time to be recorded. A coarse clock makes a series of writes cheaper: the write that
    /// finds its own time recorded already changes no item.
    pub now: Timestamp,
    /// Who asks.
    pub caller: Caller,
}

/// Whether somebody still has an object open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenState {
    /// Somebody does: its content must outlive its last name.
    Open,
    /// Nobody does: it may go with its last name.
    Closed,
}

/// Knows what is open. Asked about an object while the operation holds it exclusively.
pub trait Opens {
    /// Whether `file` is open anywhere.
    fn open_state(&self, file: FileId) -> OpenState;
}

impl<F: Fn(FileId) -> OpenState> Opens for F {
    fn open_state(&self, file: FileId) -> OpenState {
        self(file)
    }
}

/// What becomes of the set-user, set-group bits of a file whose bytes change. Capabilities that
/// are attached to a file always go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileges {
    /// They stay: the caller may set them anyway.
    Keep,
    /// They go, set-group only where the group may execute.
    Clear,
}

impl Context {
    /// `Clear`, unless the caller is the superuser or the kernel has decided to keep them.
    pub(crate) fn privileges(&self, wished: Privileges) -> Privileges {
        if self.caller.is_checked_here() && !self.caller.is_superuser() {
            return Privileges::Clear;
        }
        wished
    }
}
