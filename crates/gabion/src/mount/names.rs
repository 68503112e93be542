//! Requests on names. What the kernel is told of an object counts one lookup of it, which is taken
//! back if the answer did not arrive.

use std::time::Duration;

use gabion_fs::create::Linkable;
use gabion_fs::{
    Attributes, Detail, Error, FileType, IfExists, IfTaken, Leave, Listed, Listing, OpenRequest,
    Privileges, RenameRequest, Result, errno,
};
use gabion_fuse as fuse;
use gabion_fuse::{
    DirectoryBuffer, DirectoryEntry, DirectoryPlusBuffer, Fit, OpenFlags, Opened, Outcome,
    ReadDirectory, Reply,
};
use gabion_map::FileId;
use gabion_node::Kept;

use super::front::{Ask, ended, failed, refuse};
use super::kernel::FOREVER;
use super::{Coherence, Locking, encode};

/// Bytes of the shortest entry of READDIR and of READDIRPLUS: what bounds how many are asked for.
const ENTRY_MIN: usize = 32;
const ENTRY_PLUS_MIN: usize = 160;
/// Entries that one request reads at most; what the kernel usually has room for is less.
const ENTRIES_MAX: usize = 4096;

const PERMISSIONS: u32 = 0o7777;

impl Ask<'_> {
    /// Answers with what `name` in the directory that is asked of stands for.
    fn entry(&self, name: &[u8], found: Result<Attributes>, reply: Reply) -> Outcome {
        let found = match found {
            Ok(found) => found,
            Err(error) => return reply.error(errno(&error)),
        };
        let outcome = reply.entry(&self.encoded(name, &found));
        if outcome == Outcome::Gone {
            self.fs.forget(found.file, 1);
        }
        outcome
    }

    /// The same of a name that was just given.
    fn new_entry(&self, name: &[u8], made: Result<Attributes>, reply: Reply) {
        if self.entry(name, made, reply) == Outcome::Gone {
            self.unseen(self.file);
        }
    }

    /// Whoever asked for a change of names of a directory was not told that it was made, and so its
    /// kernel goes on without it.
    fn unseen(&self, dir: FileId) {
        match self.coherence {
            Coherence::Alone => self.refused.add(self.node_of(dir)),
            Coherence::Shared => self.fs.unseen(dir),
        }
    }

    /// Answers a request to take a name away.
    pub(super) fn removed(&self, reply: Reply, removed: Result<()>) {
        if ended(reply, removed) == Outcome::Gone {
            self.unseen(self.file);
        }
    }

    fn encoded(&self, name: &[u8], found: &Attributes) -> fuse::Entry {
        let (name_ttl, ttl) = (self.name_ttl(name), self.attributes_ttl(found.file));
        let (node, number) = (self.node_of(found.file), self.fs.number(found.file));
        encode::entry(found, node, number, name_ttl, ttl)
    }

    pub(super) fn lookup(&self, name: &[u8], reply: Reply) {
        // An NFS server asks for what it remembers by number, and for the parents of that.
        let found = match name {
            b"." => self.fs.find(self.file),
            _ => self.fs.lookup(&self.caller, self.file, name),
        };
        match found {
            Err(Error::NotFound) => {
                reply.entry_absent(self.name_ttl(name));
            }
            // The kernel would take away what is mounted there.
            Err(error) if errno(&error) == libc::EIO && self.names.leads_to_mount(name) => {
                refuse(reply, libc::EINTR);
            }
            found => {
                self.entry(name, found, reply);
            }
        }
    }

    pub(super) fn symlink(&self, name: &[u8], target: &[u8], reply: Reply) {
        self.new_entry(name, self.fs.symlink(&self.caller, self.file, name, target), reply);
    }

    pub(super) fn mknod(&self, name: &[u8], mode: u32, rdev: u32, reply: Reply) {
        // Like mknod(2): no type is a regular file.
        let file_type = match mode & libc::S_IFMT {
            0 => Some(FileType::Regular),
            _ => FileType::of_mode(mode),
        };
        let Some(file_type) = file_type else {
            return refuse(reply, libc::EINVAL);
        };
        let permissions = mode & PERMISSIONS;
        let made = self.fs.mknod(&self.caller, self.file, name, file_type, permissions, rdev);
        self.new_entry(name, made, reply);
    }

    pub(super) fn mkdir(&self, name: &[u8], mode: u32, reply: Reply) {
        self.new_entry(
            name,
            self.fs.mkdir(&self.caller, self.file, name, mode & PERMISSIONS),
            reply,
        );
    }

    pub(super) fn link(&self, source: FileId, name: &[u8], reply: Reply) {
        self.new_entry(name, self.fs.link(&self.caller, source, self.file, name), reply);
    }

    pub(super) fn rename(
        &self,
        name: &[u8],
        new_parent: FileId,
        new_name: &[u8],
        flags: u32,
        reply: Reply,
    ) {
        let known = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
        let exclusive = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE;
        if flags & !known != 0 || flags & exclusive == exclusive {
            return refuse(reply, libc::EINVAL);
        }
        let request = RenameRequest {
            source_parent: self.file,
            source_name: name,
            target_parent: new_parent,
            target_name: new_name,
            if_taken: match flags & exclusive {
                0 => IfTaken::Replace,
                libc::RENAME_NOREPLACE => IfTaken::Fail,
                _ => IfTaken::Exchange,
            },
            leave: match flags & libc::RENAME_WHITEOUT {
                0 => Leave::Nothing,
                _ => Leave::Whiteout,
            },
        };
        let renamed = self.fs.rename(&self.caller, &request);
        if renamed.is_ok() && self.coherence == Coherence::Shared {
            self.kernel_moves(&request);
        }
        if ended(reply, renamed) == Outcome::Gone {
            self.unseen(self.file);
            self.unseen(new_parent);
        }
    }

    /// The kernel is going to move what it keeps of the names.
    fn kernel_moves(&self, request: &RenameRequest<'_>) {
        let source = (request.source_parent, request.source_name);
        let target = (request.target_parent, request.target_name);
        let moves = |from, to: (FileId, &[u8])| {
            let is_kept = self.names.moved(from, to, self.node_of(to.0));
            if is_kept && !self.is_leased(to.0, to.1) {
                self.names.forget_moved();
            }
        };
        moves(source, target);
        if request.if_taken == IfTaken::Exchange {
            moves(target, source);
        }
    }

    pub(super) fn create(
        &self,
        name: &[u8],
        mode: u32,
        flags: u32,
        privileges: Privileges,
        reply: Reply,
    ) {
        let has = |flag: i32| flags & flag as u32 != 0;
        let if_exists = if has(libc::O_EXCL) { IfExists::Fail } else { IfExists::Open };
        let truncate = has(libc::O_TRUNC).then_some(privileges);
        let request = OpenRequest { access: encode::access(flags), truncate };
        let permissions = mode & PERMISSIONS;
        let made = self.fs.create(&self.caller, self.file, name, permissions, if_exists, &request);
        let made = made.map(|(attributes, _)| attributes);
        self.created(made, self.name_ttl(name), flags, reply);
    }

    pub(super) fn tmpfile(&self, mode: u32, flags: u32, reply: Reply) {
        let linkable = match flags & libc::O_EXCL as u32 {
            0 => Linkable::Yes,
            _ => Linkable::No,
        };
        let made = self.fs.tmpfile(&self.caller, self.file, mode & PERMISSIONS, linkable);
        // No name, nothing that could change.
        self.created(made, FOREVER, flags, reply);
    }

    fn created(&self, made: Result<Attributes>, name_ttl: Duration, flags: u32, reply: Reply) {
        let made = match made {
            Ok(made) => made,
            Err(error) => return refuse(reply, errno(&error)),
        };
        // A kernel that opens by itself does not say when it closes.
        if self.locking == Locking::Kernel {
            self.fs.release(made.file);
        }
        let (number, ttl) = (self.fs.number(made.file), self.attributes_ttl(made.file));
        let entry = encode::entry(&made, self.node_of(made.file), number, name_ttl, ttl);
        if self.locking == Locking::Filesystem {
            self.begin_opening(made.file, flags);
        }
        if reply.create(&entry, &self.opened(flags)) == Outcome::Gone {
            self.fs.forget(made.file, 1);
            self.unseen(self.file);
            if self.locking == Locking::Filesystem {
                self.end_opening(made.file, flags);
            }
        }
    }

    /// A file that was opened with these `O_*` flags. Its pages stay cached, whoever had it open
    /// before, but what others shall see at once does not wait in pages, unless it is mapped.
    pub(super) fn opened(&self, flags: u32) -> Opened {
        let is_written = flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        let flags = match self.coherence {
            Coherence::Shared if is_written => {
                OpenFlags::DIRECT_IO | OpenFlags::PARALLEL_DIRECT_WRITES
            }
            Coherence::Alone | Coherence::Shared => OpenFlags::KEEP_CACHE,
        };
        Opened { flags, handle: self.descriptions.open() }
    }

    pub(super) fn readlink(&self, reply: Reply) {
        match self.fs.readlink(&self.caller, self.file) {
            Ok(target) => {
                self.record_reading(0);
                reply.bytes(&target)
            }
            Err(error) => failed(reply, &error),
        };
    }

    /// Some names of a directory, which counts as reading it where they are the first ones.
    fn list(&self, read: &ReadDirectory, limit: usize, detail: Detail) -> Result<Listing> {
        let listing = self.fs.readdir(&self.caller, self.file, read.offset, limit, detail)?;
        if read.offset == 0 {
            self.record_reading(read.flags);
        }
        Ok(listing)
    }

    pub(super) fn readdir(&self, read: &ReadDirectory, reply: Reply) {
        let limit = (read.size as usize / ENTRY_MIN).min(ENTRIES_MAX);
        let listing = match self.list(read, limit, Detail::Names) {
            Ok(listing) => listing,
            Err(error) => return refuse(reply, errno(&error)),
        };
        if listing.entries.is_empty() {
            return self.directory_end(reply);
        }
        let mut buffer = DirectoryBuffer::new(read.size);
        for entry in &listing.entries {
            if buffer.push(&directory_entry(entry)) == Fit::Full {
                break;
            }
        }
        reply.directory(&buffer);
    }

    /// There are no more names. If that is told in the ordinary way the kernel keeps those that it
    /// was told before.
    fn directory_end(&self, reply: Reply) {
        match self.fs.is_kept(Kept::Listing(self.file)) {
            true => reply.directory(&DirectoryBuffer::new(0)),
            false => reply.directory_end_unkept(),
        };
    }

    pub(super) fn readdirplus(&self, read: &ReadDirectory, reply: Reply) {
        let limit = (read.size as usize / ENTRY_PLUS_MIN).min(ENTRIES_MAX);
        let listing = match self.list(read, limit, Detail::Attributes) {
            Ok(listing) => listing,
            Err(error) => return refuse(reply, errno(&error)),
        };
        if listing.entries.is_empty() {
            return self.directory_end(reply);
        }
        let mut buffer = DirectoryPlusBuffer::new(read.size);
        let mut told = 0;
        for entry in &listing.entries {
            let found = entry.attributes.as_ref();
            let found = found.map(|found| self.encoded(entry.name(), found));
            if buffer.push(&directory_entry(entry), found.as_ref()) == Fit::Full {
                break;
            }
            told += 1;
        }
        let kept = match reply.directory(&buffer) {
            Outcome::Delivered => told,
            Outcome::Gone => 0,
        };
        for found in listing.entries[kept..].iter().filter_map(|entry| entry.attributes.as_ref()) {
            self.fs.forget(found.file, 1);
        }
    }
}

fn directory_entry(entry: &Listed) -> DirectoryEntry<'_> {
    DirectoryEntry {
        ino: entry.ino.0,
        next_offset: entry.cookie,
        mode: entry.file_type.bits(),
        name: entry.name(),
    }
}
