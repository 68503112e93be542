//! Answers to READDIR and READDIRPLUS: entries one after the other, each padded to 8 bytes, never
//! more than the kernel has room for.
//!
//! ```text
//! READDIR      Dirent (24) | name | 0..7 zeros
//! READDIRPLUS  EntryOut (128) | Dirent (24) | name | 0..7 zeros
//! ```
//!
//! An entry that does not fit leaves the buffer unchanged. The kernel counts one lookup for each
//! entry of READDIRPLUS that names a node, except `.` and `..`; [`DirectoryPlusBuffer::undo_last`]
//! takes back an entry whose lookup could not be counted after all.

use zerocopy::IntoBytes;

use crate::abi;
use crate::attr::Entry;

/// One name of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryEntry<'a> {
    /// Inode number shown to users.
    pub ino: u64,
    /// Where to go on after this entry; not 0.
    pub next_offset: u64,
    /// The type bits of the mode (`S_IFMT`).
    pub mode: u32,
    /// The name.
    pub name: &'a [u8],
}

/// Whether an entry went into the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Fit {
    /// It did.
    Added,
    /// There was no room; the buffer is unchanged and should be sent.
    Full,
}

/// The answer to READDIR.
#[derive(Debug)]
pub struct DirectoryBuffer(Entries);

impl DirectoryBuffer {
    /// An empty answer with room for `size` bytes.
    pub fn new(size: u32) -> Self {
        Self(Entries::new(size))
    }

    /// Adds a name.
    pub fn push(&mut self, entry: &DirectoryEntry<'_>) -> Fit {
        self.0.push(None, entry)
    }

    /// Takes back the entry last added.
    pub fn undo_last(&mut self) {
        self.0.undo_last();
    }

    /// Whether nothing was added: the end of the directory.
    pub fn is_empty(&self) -> bool {
        self.0.bytes.is_empty()
    }
}

/// The answer to READDIRPLUS.
#[derive(Debug)]
pub struct DirectoryPlusBuffer(Entries);

impl DirectoryPlusBuffer {
    /// An empty answer with room for `size` bytes.
    pub fn new(size: u32) -> Self {
        Self(Entries::new(size))
    }

    /// Adds a name with the inode it leads to; `None` for `.` and `..` and whatever shall be looked
    /// up when it is used.
    pub fn push(&mut self, entry: &DirectoryEntry<'_>, found: Option<&Entry>) -> Fit {
        let found = found.map(|found| found.to_wire()).unwrap_or_default();
        self.0.push(Some(found), entry)
    }

    /// Takes back the entry last added.
    pub fn undo_last(&mut self) {
        self.0.undo_last();
    }

    /// Whether nothing was added: the end of the directory.
    pub fn is_empty(&self) -> bool {
        self.0.bytes.is_empty()
    }
}

/// An answer ready to be sent by [`Reply::directory`](crate::Reply::directory).
pub trait Listing: sealed::Sealed {
    #[doc(hidden)]
    fn bytes(&self) -> &[u8];
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::DirectoryBuffer {}
    impl Sealed for super::DirectoryPlusBuffer {}
}

impl Listing for DirectoryBuffer {
    fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Listing for DirectoryPlusBuffer {
    fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

#[derive(Debug)]
struct Entries {
    bytes: Vec<u8>,
    room: usize,
    last: usize,
}

impl Entries {
    fn new(size: u32) -> Self {
        Self { bytes: Vec::new(), room: size as usize, last: 0 }
    }

    fn push(&mut self, found: Option<abi::EntryOut>, entry: &DirectoryEntry<'_>) -> Fit {
        let head = abi::Dirent {
            ino: entry.ino,
            off: entry.next_offset,
            namelen: entry.name.len() as u32,
            kind: (entry.mode & libc::S_IFMT) >> 12,
        };
        let found = found.as_ref().map_or(&[][..], |found| found.as_bytes());
        let size = (found.len() + size_of_val(&head) + entry.name.len()).next_multiple_of(8);
        if self.room - self.bytes.len() < size {
            return Fit::Full;
        }
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(found);
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(entry.name);
        self.bytes.resize(self.last + size, 0);
        Fit::Added
    }

    fn undo_last(&mut self) {
        self.bytes.truncate(self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8]) -> DirectoryEntry<'_> {
        DirectoryEntry { ino: 7, next_offset: 1, mode: libc::S_IFDIR | 0o755, name }
    }

    #[test]
    fn entries_are_padded_and_a_full_buffer_is_left_unchanged() {
        let mut buffer = DirectoryBuffer::new(72);
        assert_eq!(buffer.push(&entry(b"a")), Fit::Added);
        assert_eq!(buffer.bytes().len(), 32);
        assert_eq!(buffer.bytes()[20..], [4, 0, 0, 0, b'a', 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(buffer.push(&entry(b"seventeen letters")), Fit::Full);
        assert_eq!(buffer.bytes().len(), 32);
        assert_eq!(buffer.push(&entry(b"sixteen letters!")), Fit::Added);
        assert_eq!(buffer.bytes().len(), 72);
    }

    #[test]
    fn undoing_the_last_entry_leaves_the_others() {
        let mut buffer = DirectoryPlusBuffer::new(4096);
        assert_eq!(buffer.push(&entry(b"first"), None), Fit::Added);
        let before = buffer.bytes().to_vec();
        assert_eq!(buffer.push(&entry(b"second"), None), Fit::Added);
        buffer.undo_last();
        assert_eq!(buffer.bytes(), before);
        buffer.undo_last();
        assert_eq!(buffer.bytes(), before, "only one entry can be taken back");
    }
}
