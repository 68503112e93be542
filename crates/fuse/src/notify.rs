//! What the filesystem tells the kernel unasked: that something cached is no longer true.
//!
//! These calls wait inside the kernel, and what they wait for may be a handler of this session:
//!
//! | call | waits for |
//! |---|---|
//! | `inval_entry`, `expire_entry`, `delete` | LOOKUP, CREATE, UNLINK and such of the same parent |
//! | `inval_inode` over bytes, `store` | READ of the same inode; WRITE of its dirty mapped pages |
//! | `inval_attr`, `inc_epoch`, `prune` | nothing |
//!
//! So: notify from threads of your own, never from a handler, never holding what a handler needs.
//!
//! To invalidate what the kernel does not know is a success. Errors are ENODEV (the mount or the
//! session is gone), EINVAL or ENOSYS (the kernel is too old), ENOTEMPTY and EBUSY for `delete`.

use std::io::{self, IoSlice};
use std::sync::{Arc, Weak};

use zerocopy::IntoBytes;

use crate::abi::{self, notify_code};
use crate::flight::Core;
use crate::request::NodeId;

/// Sends notifications of one session; clones are cheap and do not keep the mount alive.
#[derive(Clone)]
pub struct Notifier {
    core: Weak<Core>,
}

/// A range of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// All of it.
    All,
    /// From `offset` to the end.
    From(u64),
    /// `length` bytes from `offset`.
    Part {
        /// First byte.
        offset: u64,
        /// Bytes; not 0.
        length: u64,
    },
}

impl Notifier {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::downgrade(core) }
    }

    fn send(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        let Some(core) = self.core.upgrade() else {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        };
        send(&core, code, parts)
    }

    /// Drops cached attributes and, where nobody writes them back first, cached bytes of `range`.
    pub fn inval_inode(&self, node: NodeId, range: ByteRange) -> io::Result<()> {
        let signed = |value: u64| value.try_into().unwrap_or(i64::MAX);
        let (off, len) = match range {
            ByteRange::All => (0, 0),
            ByteRange::From(offset) => (signed(offset), 0),
            ByteRange::Part { offset, length } => (signed(offset), signed(length)),
        };
        let out = abi::NotifyInvalInodeOut { ino: node.0, off, len };
        self.send_known(notify_code::INVAL_INODE, &[out.as_bytes()])
    }

    /// Drops cached attributes only.
    pub fn inval_attr(&self, node: NodeId) -> io::Result<()> {
        let out = abi::NotifyInvalInodeOut { ino: node.0, off: -1, len: 0 };
        self.send_known(notify_code::INVAL_INODE, &[out.as_bytes()])
    }

    /// Drops what was collected of a directory's listings, and its attributes. Whether the kernel
    /// knows the directory.
    pub fn inval_listing(&self, node: NodeId) -> io::Result<bool> {
        let out = abi::NotifyInvalInodeOut { ino: node.0, off: 0, len: 0 };
        self.send_if_known(notify_code::INVAL_INODE, &[out.as_bytes()])
    }

    /// Drops a cached name, present or absent.
    pub fn inval_entry(&self, parent: NodeId, name: &[u8]) -> io::Result<()> {
        self.entry(parent, name, 0).map(drop)
    }

    /// Has a cached name looked up again before its next use, without dropping what is below it.
    pub fn expire_entry(&self, parent: NodeId, name: &[u8]) -> io::Result<()> {
        self.entry(parent, name, abi::NOTIFY_EXPIRE_ONLY).map(drop)
    }

    /// As [`expire_entry`](Self::expire_entry). Whether the kernel knows the name.
    pub fn expire_entry_if_known(&self, parent: NodeId, name: &[u8]) -> io::Result<bool> {
        self.entry(parent, name, abi::NOTIFY_EXPIRE_ONLY)
    }

    fn entry(&self, parent: NodeId, name: &[u8], flags: u32) -> io::Result<bool> {
        let namelen = name.len() as u32;
        let out = abi::NotifyInvalEntryOut { parent: parent.0, namelen, flags };
        self.send_if_known(notify_code::INVAL_ENTRY, &[out.as_bytes(), name, &[0]])
    }

    /// Drops a cached name if it leads to `child`, and tells watchers that it was deleted.
    pub fn delete(&self, parent: NodeId, child: NodeId, name: &[u8]) -> io::Result<()> {
        let namelen = name.len() as u32;
        let out = abi::NotifyDeleteOut { parent: parent.0, child: child.0, namelen, padding: 0 };
        self.send_known(notify_code::DELETE, &[out.as_bytes(), name, &[0]])
    }

    /// Puts bytes into the page cache.
    pub fn store(&self, node: NodeId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let size = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let out = abi::NotifyStoreOut { nodeid: node.0, offset, size, padding: 0 };
        self.send_known(notify_code::STORE, &[out.as_bytes(), bytes])
    }

    /// Wakes those who poll, by the `kernel_handle` of their request.
    pub fn poll(&self, kernel_handle: u64) -> io::Result<()> {
        self.send_known(notify_code::POLL, &[abi::NotifyPollOut { kh: kernel_handle }.as_bytes()])
    }

    /// Makes all cached names of the mount be looked up again before their next use.
    pub fn inc_epoch(&self) -> io::Result<()> {
        self.send(notify_code::INC_EPOCH, &[])
    }

    /// Drops inodes from the cache that nobody uses.
    pub fn prune(&self, nodes: &[NodeId]) -> io::Result<()> {
        let ids: Vec<u64> = nodes.iter().map(|node| node.0).collect();
        let count = u32::try_from(ids.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let out = abi::NotifyPruneOut { count, padding: 0, spare: 0 };
        self.send_known(notify_code::PRUNE, &[out.as_bytes(), ids.as_bytes()])
    }

    /// Has all requests that were read and not answered sent again, to whoever reads next.
    pub fn resend(&self) -> io::Result<()> {
        self.send(notify_code::RESEND, &[])
    }

    /// As `send`; that the kernel knows no such thing is a success.
    fn send_known(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        self.send_if_known(code, parts).map(drop)
    }

    fn send_if_known(&self, code: i32, parts: &[&[u8]]) -> io::Result<bool> {
        match self.send(code, parts) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            result => result.map(|()| true),
        }
    }
}

fn send(core: &Core, code: i32, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); 3];
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
    }
    core.device.write(0, code, &slices[..parts.len()])
}

/// Asks for what was read and not answered, on behalf of a session that takes a connection over.
pub(crate) fn resend(core: &Core) -> io::Result<()> {
    send(core, notify_code::RESEND, &[])
}
