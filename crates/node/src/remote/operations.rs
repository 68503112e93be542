//! Operations: those that read run here, on what is [leased](super::reading); of those that change
//! something, see [`changing`](super::changing).

use std::sync::Arc;

use gabion_base::ids::SubvolId;
use gabion_fs::create::Linkable;
use gabion_fs::format::dirent;
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Access, Attributes, Caller, Changes, Context, CopyRequest, Detail, Disposition, Error,
    FileType, IfExists, Listing, OpenRequest, Privileges, RenameRequest, Result, SpaceRequest,
    WriteAt, Written,
};
use gabion_link::message::{Answer, Call, Prefetch, ReadLease};
use gabion_link::range::KeyRange;
use gabion_map::map::SpaceReport;
use gabion_map::txn::SeekTarget;
use gabion_map::{FileId, Kind, MapError, Payload, Stop};

use super::RemoteFs;
use super::failures::{nonsense, written_off};
use super::gate::end_hearsay;
use super::opens::{Told, through_handle};
use super::pages::{Course, pages};

/// The cookie of the last entry of a directory that is no name.
const DOTS: u64 = 2;
/// Subvolumes whose space is known while the server is away, at most.
const SPACES_MAX: usize = 64;

impl RemoteFs {
    pub(super) fn context(&self, caller: &Caller) -> Context {
        let now = self.server_time.at(self.clock.monotonic());
        let caller = self.identities().foresee(caller);
        Context { seed: self.identity.seed, now, caller }
    }

    /// Asks for what only the server can do.
    pub(super) fn done(&self, caller: &Caller, call: Call) -> Result<()> {
        match self.call(caller, call)? {
            Answer::Done => Ok(()),
            _ => Err(nonsense()),
        }
    }

    /// Makes a change that answers nothing.
    fn done_here(&self, caller: &Caller, call: Call) -> Result<()> {
        match self.change(caller, call)? {
            Answer::Done => Ok(()),
            _ => Err(nonsense()),
        }
    }

    fn object(&self, caller: &Caller, call: Call) -> Result<Attributes> {
        match self.change(caller, call)? {
            Answer::Object(attributes) => Ok(attributes),
            _ => Err(nonsense()),
        }
    }

    /// Whether an object's attributes are leased.
    pub fn keeps_attributes(&self, file: FileId) -> bool {
        self.is_alive()
            && !self.is_mapped(file)
            && self.cache.read().covers(&KeyRange::attributes(file))
    }

    /// Whether a name is leased, there or not.
    pub fn keeps_name(&self, dir: FileId, name: &[u8]) -> bool {
        let key = dir.key(Kind::DIRENT, dirent::position(name, self.identity.seed));
        self.is_alive() && self.cache.read().covers(&KeyRange::key(key))
    }

    /// What was found out for this thread's request has reached the kernel.
    pub fn answered(&self) {
        self.pages.end_own();
        self.gate.leave_own();
        end_hearsay();
    }

    /// The object that `name` stands for.
    pub fn lookup(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<Attributes> {
        self.on_the_way(parent, name, || self.look_up(caller, parent, name))
    }

    fn look_up(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<Attributes> {
        let ctx = self.context(caller);
        self.places.wait_for_moves(parent, name);
        let found = self.read_items(caller, Prefetch::Names, |txn| {
            let found = gabion_fs::lookup(txn, &ctx, parent, name)?;
            self.hold_for_a_moment(&found, caller);
            Ok(found)
        });
        let found = match found {
            Err(Error::CrossSubvolume) => self.lookup_subvolume(caller, parent, name),
            Err(Error::NotFound) => self.lookup_absent(parent, name),
            found => found,
        };
        let found = found.and_then(|found| self.numbered(found));
        match &found {
            Ok(found) => self.stands_for(parent, name, found),
            Err(_) => self.places.removed(parent, name),
        }
        found
    }

    /// The object with this number.
    pub fn find(&self, file: FileId) -> Result<Attributes> {
        match self.stat(file)? {
            found if found.nlink == 0 => Err(Error::Stale),
            found => Ok(found),
        }
    }

    /// The attributes of an object.
    pub fn stat(&self, file: FileId) -> Result<Attributes> {
        if file == self.root() && !self.is_alive() {
            // It is what df, mountpoint and umount ask for.
            if let Some(root) = self.last.lock().root.clone() {
                return Ok(root);
            }
        }
        if let Some(found) = self.is_on_a_way(file) {
            return Ok(found);
        }
        let caller = Caller::superuser();
        let found = self.read_items(&caller, Prefetch::Names, |txn| gabion_fs::stat(txn, file))?;
        if file == self.root() {
            self.last.lock().root = Some(found.clone());
        }
        Ok(found)
    }

    /// Makes and opens a regular file, or opens what is there.
    pub fn create(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        permissions: u32,
        if_exists: IfExists,
        request: &OpenRequest,
    ) -> Result<(Attributes, Disposition)> {
        let (name, request) = (name.to_vec(), *request);
        let access = request.access;
        let call = Call::Create { parent, name, permissions, if_exists, request };
        self.made(caller, call, access)
    }

    /// Makes a regular file without a name.
    pub fn tmpfile(
        &self,
        caller: &Caller,
        parent: FileId,
        permissions: u32,
        linkable: Linkable,
    ) -> Result<Attributes> {
        let call = Call::Tmpfile { parent, permissions, linkable };
        let access = Access::READ | Access::WRITE;
        self.made(caller, call, access).map(|(attributes, _)| attributes)
    }

    fn made(
        &self,
        caller: &Caller,
        call: Call,
        access: Access,
    ) -> Result<(Attributes, Disposition)> {
        match self.change(caller, call)? {
            Answer::Made(attributes, disposition) => {
                self.opened(&attributes, caller, access, Told::ByTheCall);
                Ok((attributes, disposition))
            }
            _ => Err(nonsense()),
        }
    }

    /// Makes a file, pipe, socket or device.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        file_type: FileType,
        permissions: u32,
        rdev: u32,
    ) -> Result<Attributes> {
        let name = name.to_vec();
        self.object(caller, Call::Mknod { parent, name, file_type, permissions, rdev })
    }

    /// Makes a directory.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        permissions: u32,
    ) -> Result<Attributes> {
        let made = self.object(caller, Call::Mkdir { parent, name: name.to_vec(), permissions })?;
        self.stands_for(parent, name, &made);
        Ok(made)
    }

    /// Makes a symbolic link.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: FileId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attributes> {
        let (name, target) = (name.to_vec(), target.to_vec());
        self.object(caller, Call::Symlink { parent, name, target })
    }

    /// Gives `file` one more name.
    pub fn link(
        &self,
        caller: &Caller,
        file: FileId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Attributes> {
        self.object(caller, Call::Link { file, parent, name: name.to_vec() })
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()> {
        self.done_here(caller, Call::Unlink { parent, name: name.to_vec() })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: &Caller, parent: FileId, name: &[u8]) -> Result<()> {
        self.done_here(caller, Call::Rmdir { parent, name: name.to_vec() })?;
        self.places.removed(parent, name);
        Ok(())
    }

    /// Gives an object another name.
    pub fn rename(&self, caller: &Caller, request: &RenameRequest<'_>) -> Result<()> {
        let call = Call::Rename {
            source_parent: request.source_parent,
            source_name: request.source_name.to_vec(),
            target_parent: request.target_parent,
            target_name: request.target_name.to_vec(),
            if_taken: request.if_taken,
            leave: request.leave,
        };
        self.done_here(caller, call)?;
        self.places.renamed(request);
        Ok(())
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, caller: &Caller, file: FileId) -> Result<Vec<u8>> {
        self.read_items(caller, Prefetch::Names, |txn| gabion_fs::readlink(txn, file))
    }

    /// At most `limit` entries of a directory after `cookie`; 0 starts.
    pub fn readdir(
        &self,
        caller: &Caller,
        dir: FileId,
        cookie: u64,
        limit: usize,
        detail: Detail,
    ) -> Result<Listing> {
        let prefetch = match detail {
            Detail::Names => Prefetch::Names,
            Detail::Attributes => Prefetch::Children,
        };
        let is_beginning = cookie <= DOTS && detail == Detail::Attributes;
        if is_beginning {
            self.begins_to_list(dir);
        }
        let listing = self.read_items(caller, prefetch, |txn| {
            let listing = gabion_fs::readdir(txn, dir, cookie, limit, detail)?;
            self.tell_listing(dir, &listing);
            Ok(listing)
        })?;
        for entry in &listing.entries {
            if let Some(found) = &entry.attributes {
                self.stands_for(dir, entry.name(), found);
            }
        }
        if is_beginning {
            self.has_listed(caller, dir);
        }
        Ok(self.renumbered(dir, listing))
    }

    /// Changes attributes and answers with the new ones.
    pub fn setattr(&self, caller: &Caller, file: FileId, changes: &Changes) -> Result<Attributes> {
        self.object(caller, Call::Setattr { file, changes: changes.clone() })
    }

    /// Whether the caller may use an object in these ways.
    pub fn access(&self, caller: &Caller, file: FileId, wanted: Access) -> Result<()> {
        let ctx = self.context(caller);
        self.read_items(caller, Prefetch::Names, |txn| gabion_fs::access(txn, &ctx, file, wanted))
    }

    /// Opens an object.
    pub fn open_file(
        &self,
        caller: &Caller,
        file: FileId,
        request: &OpenRequest,
    ) -> Result<Attributes> {
        let ctx = self.context(caller);
        if self.is_read_only() && request.access.has(Access::WRITE) {
            return Err(MapError::ReadOnly.into());
        }
        if request.access.has(Access::WRITE) {
            self.check_writable(caller, file)?;
        }
        if let Some(privileges) = request.truncate {
            let size = Some((0, privileges));
            self.setattr(caller, file, &Changes { size, ..Changes::default() })?;
        }
        let request = OpenRequest { truncate: None, ..*request };
        let removals = self.removals.ended();
        // With the lease, nobody takes its last name without our being told.
        let found = self.read_items(caller, Prefetch::Names, |txn| {
            let found = gabion_fs::open(txn, &ctx, file, &request)?;
            self.opened(&found, caller, request.access, Told::NotYet);
            Ok(found)
        });
        let found = match found {
            Ok(found) if found.nlink == 0 || !self.removals.are_none_since(removals) => {
                self.is_there(file).inspect_err(|_| self.closed(file)).map(|()| found)
            }
            found => found,
        };
        if let Err(Error::Stale) = found {
            self.came_too_late();
        }
        found
    }

    /// Takes the opening of [`RemoteFs::open_file`] or [`RemoteFs::create`] back.
    pub fn release(&self, file: FileId) {
        self.closed(file);
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<Vec<u8>> {
        let ctx = self.context(caller);
        self.read_items(caller, Prefetch::Names, |txn| {
            gabion_fs::xattr::value(txn, &ctx, file, name)
        })
    }

    /// The names of the extended attributes, each ended by a NUL.
    pub fn xattr_names(&self, caller: &Caller, file: FileId) -> Result<Vec<u8>> {
        let ctx = self.context(caller);
        self.read_items(caller, Prefetch::Names, |txn| gabion_fs::xattr::list(txn, &ctx, file))
    }

    /// Sets an extended attribute.
    pub fn set_xattr(
        &self,
        caller: &Caller,
        file: FileId,
        name: &[u8],
        value: &[u8],
        condition: SetCondition,
        set_group: SetGroupBit,
    ) -> Result<()> {
        let (name, value) = (name.to_vec(), value.to_vec());
        self.done_here(caller, Call::SetXattr { file, name, value, condition, set_group })
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, caller: &Caller, file: FileId, name: &[u8]) -> Result<()> {
        self.done_here(caller, Call::RemoveXattr { file, name: name.to_vec() })
    }

    /// Reads bytes that nobody keeps.
    pub fn read_now(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize> {
        self.read_call(caller, file, offset, into, ReadLease::None)
    }

    /// Reads bytes that the kernel is going to keep.
    pub fn read_pages(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize> {
        if self.is_mapped(file) {
            return self.read_mapped(caller, file, offset, into);
        }
        self.yield_bytes(file);
        let range = pages(offset, into.len().max(1) as u64);
        if self.pages.begin(file, range) == Course::Flying {
            match self.read_call(caller, file, offset, into, ReadLease::AtOnce) {
                Err(Error::Stop(Stop::Lease)) => {}
                outcome => return outcome,
            }
        }
        self.gate.leave_own();
        self.pages.is_in_the_way();
        if !self.pages.wait_for_turn(self.settings.deadline) {
            return Err(Error::Busy);
        }
        self.read_call(caller, file, offset, into, ReadLease::InTurn)
    }

    pub(super) fn read_call(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        into: &mut [u8],
        lease: ReadLease,
    ) -> Result<usize> {
        let length = into.len() as u32;
        let caller = &through_handle(caller);
        loop {
            match self.call(caller, Call::Read { file, offset, length, lease })? {
                // It came after the session's end: nobody would tell the kernel to drop it.
                Answer::Bytes(_) if lease != ReadLease::None && !self.is_alive() => {}
                Answer::Bytes(bytes) if bytes.len() <= into.len() => {
                    into[..bytes.len()].copy_from_slice(&bytes);
                    return Ok(bytes.len());
                }
                _ => return Err(nonsense()),
            }
        }
    }

    /// Writes bytes, all of them.
    pub fn write(
        &self,
        caller: &Caller,
        file: FileId,
        at: WriteAt,
        payload: &Payload<'_>,
        privileges: Privileges,
    ) -> Result<Written> {
        let bytes = Arc::new(payload.bytes().to_vec());
        let call = Call::Write { file, at, privileges, bytes };
        match self.change(&through_handle(caller), call)? {
            Answer::Written { offset, length } => Ok(Written { offset, length: length as usize }),
            _ => Err(nonsense()),
        }
    }

    /// Changes the layout of a file's bytes.
    pub fn fallocate(
        &self,
        caller: &Caller,
        file: FileId,
        request: SpaceRequest,
        offset: u64,
        length: u64,
        privileges: Privileges,
    ) -> Result<()> {
        let call = Call::Fallocate { file, request, offset, length, privileges };
        self.done_here(&through_handle(caller), call)
    }

    /// The next data or hole at or after `offset`.
    pub fn seek(&self, file: FileId, offset: u64, target: SeekTarget) -> Result<u64> {
        self.number_of(&Caller::superuser(), Call::Seek { file, offset, target })
    }

    fn number_of(&self, caller: &Caller, call: Call) -> Result<u64> {
        match self.call(caller, call)? {
            Answer::Number(number) => Ok(number),
            _ => Err(nonsense()),
        }
    }

    /// Copies bytes from file to file and says how many; fewer than asked for need not mean the
    /// end.
    pub fn copy_range(
        &self,
        caller: &Caller,
        request: &CopyRequest,
        privileges: Privileges,
    ) -> Result<u64> {
        let CopyRequest { source, source_offset, target, target_offset, length } = *request;
        let call = Call::Copy { source, source_offset, target, target_offset, length, privileges };
        match self.change(&through_handle(caller), call)? {
            Answer::Number(number) => Ok(number),
            _ => Err(nonsense()),
        }
    }

    /// Makes an object and everything that completed before durable.
    pub fn fsync(&self, file: FileId) -> Result<()> {
        self.sync(Some(file))?;
        self.check_locks(file)
    }

    fn sync(&self, file: Option<FileId>) -> Result<()> {
        let losses = self.losses();
        let (marks, order) = (self.unsynced.take(file), self.pending.order());
        let synced = self.done(&Caller::superuser(), Call::Sync { file });
        // A server that has started again without our changes has synced what it has, not what was
        // written before.
        let is_lost = self.losses() != losses;
        if is_lost || synced.is_err() {
            self.unsynced.put_back(marks, is_lost);
        }
        synced?;
        if !is_lost {
            self.pending.synced(file, order);
        }
        match self.unsynced.take_lost(file) {
            true => Err(written_off()),
            false => Ok(()),
        }
    }

    /// Makes everything that completed before durable.
    pub fn syncfs(&self) -> Result<()> {
        self.sync(None)
    }

    /// Space in numbers, as whoever adds to a subvolume finds it; as last known if the server is
    /// away.
    pub fn space(&self, of: SubvolId) -> Result<SpaceReport> {
        let known = self.last.lock().spaces.get(&of).copied();
        if let Some(known) = known.filter(|_| !self.is_alive()) {
            return Ok(known);
        }
        match self.call(&Caller::superuser(), Call::Space { of })? {
            Answer::Space { total, available, used, objects, objects_left } => {
                let space = SpaceReport { total, available, used, objects, objects_left };
                let spaces = &mut self.last.lock().spaces;
                while spaces.len() >= SPACES_MAX && !spaces.contains_key(&of) {
                    spaces.pop_last();
                }
                spaces.insert(of, space);
                Ok(space)
            }
            _ => Err(nonsense()),
        }
    }
}
