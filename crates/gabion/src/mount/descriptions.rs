//! Locks of open file descriptions (`F_OFD_SETLK`).
//!
//! The kernel's protocol has the same words for them as for locks of processes, and two things are
//! different: who waits in a circle for each other waits for ever, and they end with the
//! description, of which the protocol tells only that it is closed. So
//!
//! 1. each description gets a handle of its own when it is opened;
//! 2. when it locks, the system call in which its process waits says which kind of lock is meant;
//! 3. what has locked so is remembered with the handle, and unlocked with it.
//!
//! A process whose system call cannot be seen (it is another user's, and the daemon is not root's)
//! is taken for one that locks as a process. Its locks end when the last description of the file is
//! closed on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::sync::Mutex;
use gabion_fuse::{Handle, LockOwner};

/// `F_OFD_SETLK` and `F_OFD_SETLKW`.
const OFD_COMMANDS: [u64; 2] = [37, 38];

/// The open file descriptions of a mount.
#[derive(Default)]
pub(super) struct Descriptions {
    last: AtomicU64,
    /// Those that have locked as descriptions, and what the kernel calls them as owners.
    owners: Mutex<BTreeMap<Handle, LockOwner>>,
}

impl Descriptions {
    /// A handle that no other description has.
    pub(super) fn open(&self) -> Handle {
        Handle(self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Whether `process`, which waits for its lock, locks as the description. That is remembered.
    pub(super) fn locks(&self, handle: Handle, owner: LockOwner, process: u32) -> bool {
        let has_asked = asks_for_description(process);
        if has_asked {
            self.owners.lock().insert(handle, owner);
        }
        has_asked
    }

    /// Whether the owner is the description itself, which has locked before.
    pub(super) fn is_owner(&self, handle: Handle, owner: LockOwner) -> bool {
        self.owners.lock().get(&handle) == Some(&owner)
    }

    /// The description is closed. Whether it has locked as such.
    pub(super) fn close(&self, handle: Handle) -> bool {
        self.owners.lock().remove(&handle).is_some()
    }
}

fn asks_for_description(process: u32) -> bool {
    let call = fs::read_to_string(format!("/proc/{process}/syscall")).unwrap_or_default();
    is_description_call(&call)
}

/// Whether the text of a system call, its number and arguments, is fcntl(2) with such a command.
fn is_description_call(call: &str) -> bool {
    let mut words = call.split_whitespace();
    let is_fcntl = words.next().and_then(|word| word.parse().ok()) == Some(libc::SYS_fcntl);
    let command = words.nth(1).and_then(|word| word.strip_prefix("0x"));
    let command = command.and_then(|word| u64::from_str_radix(word, 16).ok());
    is_fcntl && command.is_some_and(|command| OFD_COMMANDS.contains(&command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_lock_is_in_the_system_call() {
        let fcntl = libc::SYS_fcntl;
        let call = |command: &str| format!("{fcntl} 0x3 {command} 0x7ffc 0x0 0x0 0x0 0x7f 0x7e\n");
        assert!(is_description_call(&call("0x25")) && is_description_call(&call("0x26")));
        assert!(!is_description_call(&call("0x7")));
        assert!(!is_description_call("1 0x3 0x25 0x0 0x0 0x0 0x0 0x7f 0x7e"));
        assert!(!is_description_call("running") && !is_description_call(""));
    }

    #[test]
    fn a_description_has_its_locks_until_it_is_closed() {
        let descriptions = Descriptions::default();
        let (one, other) = (descriptions.open(), descriptions.open());
        assert_ne!(one, other);
        let owner = LockOwner(7);
        // This process is in no such call.
        assert!(!descriptions.locks(one, owner, std::process::id()));
        assert!(!descriptions.close(one));
        descriptions.owners.lock().insert(other, owner);
        assert!(descriptions.is_owner(other, owner) && !descriptions.is_owner(one, owner));
        assert!(descriptions.close(other) && !descriptions.close(other));
    }
}
