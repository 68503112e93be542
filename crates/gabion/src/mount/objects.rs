//! Requests on objects: attributes, extended attributes, opening, the filesystem as a whole.

use gabion_base::BLOCK_SIZE;
use gabion_fs::format::dirent::NAME_LENGTH_MAX;
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{OpenRequest, errno};
use gabion_fuse::{Handle, Outcome, Release, Reply, Setattr, Statfs};
use gabion_map::FileId;

use super::front::{Ask, done, failed, refuse};
use super::{Locking, encode};

/// With fewer blocks left there is no room still for what found none.
const SHORT: u64 = 512;

/// Whether a file that was opened so can be mapped, and its pages changed.
fn can_map_and_change(flags: u32) -> bool {
    flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32
}

impl Ask<'_> {
    pub(super) fn getattr(&self, handle: Option<Handle>, reply: Reply) {
        if handle.is_some()
            && let Some(errno) = self.shortages.take(self.file, self.process)
            && self.fs.space(self.file).is_ok_and(|space| space.available < SHORT)
        {
            return refuse(reply, errno);
        }
        match self.fs.stat(self.file) {
            Ok(found) => {
                reply.attr(&encode::attr(&found, self.number()), self.attributes_ttl(self.file))
            }
            Err(error) => failed(reply, &error),
        };
    }

    pub(super) fn statx(&self, reply: Reply) {
        match self.fs.stat(self.file) {
            Ok(found) => reply.statx(
                &encode::extended_attr(&found, self.number()),
                self.attributes_ttl(self.file),
            ),
            Err(error) => failed(reply, &error),
        };
    }

    pub(super) fn setattr(&self, setattr: &Setattr, reply: Reply) {
        match self.fs.setattr(&self.caller, self.file, &encode::changes(setattr)) {
            Ok(changed) => {
                reply.attr(&encode::attr(&changed, self.number()), self.attributes_ttl(self.file))
            }
            Err(error) => failed(reply, &error),
        };
    }

    pub(super) fn open(&self, flags: u32, reply: Reply) {
        if self.locking == Locking::Kernel {
            return refuse(reply, libc::ENOSYS);
        }
        let request = OpenRequest { access: encode::access(flags), truncate: None };
        match self.fs.open_file(&self.caller, self.file, &request) {
            Ok(_) => {
                self.begin_opening(self.file, flags);
                if reply.open(&self.opened(flags)) == Outcome::Gone {
                    self.end_opening(self.file, flags);
                }
            }
            Err(error) => refuse(reply, errno(&error)),
        }
    }

    pub(super) fn release(&self, release: &Release, reply: Reply) {
        if self.locking == Locking::Kernel {
            reply.ok();
            return;
        }
        let has_flock = release.unlock_flock.is_some();
        let unlocked = self.release_description(release.handle, has_flock);
        self.end_opening(self.file, release.flags);
        done(reply, unlocked);
    }

    /// A file is opened with these `O_*` flags, of which the kernel is not told yet.
    pub(super) fn begin_opening(&self, file: FileId, flags: u32) {
        if can_map_and_change(flags) {
            self.fs.may_be_mapped(file);
        }
    }

    /// Such an opening has ended.
    pub(super) fn end_opening(&self, file: FileId, flags: u32) {
        if can_map_and_change(flags) {
            self.fs.is_not_mapped(file);
        }
        self.fs.release(file);
    }

    pub(super) fn getxattr(&self, name: &[u8], room: u32, reply: Reply) {
        match self.fs.xattr(&self.caller, self.file, name) {
            Ok(value) => reply.xattr(room, &value),
            Err(error) => failed(reply, &error),
        };
    }

    pub(super) fn listxattr(&self, room: u32, reply: Reply) {
        match self.fs.xattr_names(&self.caller, self.file) {
            Ok(names) => reply.xattr(room, &names),
            Err(error) => failed(reply, &error),
        };
    }

    pub(super) fn setxattr(
        &self,
        name: &[u8],
        value: &[u8],
        flags: u32,
        kill_sgid: bool,
        reply: Reply,
    ) {
        let condition = match flags as i32 {
            0 => SetCondition::Always,
            libc::XATTR_CREATE => SetCondition::Absent,
            libc::XATTR_REPLACE => SetCondition::Present,
            _ => return refuse(reply, libc::EINVAL),
        };
        let set_group = if kill_sgid { SetGroupBit::Clear } else { SetGroupBit::Keep };
        let caller = &self.caller;
        done(reply, self.fs.set_xattr(caller, self.file, name, value, condition, set_group));
    }

    /// Where no quota limits it, the number of objects has no limit of its own: zeros say so.
    pub(super) fn statfs(&self, reply: Reply) {
        let space = match self.fs.space(self.file) {
            Ok(space) => space,
            Err(error) => return refuse(reply, errno(&error)),
        };
        reply.statfs(&Statfs {
            blocks: space.total,
            blocks_free: space.available,
            blocks_available: space.available,
            files: space.objects.unwrap_or(0),
            files_free: space.objects_left.unwrap_or(0),
            block_size: BLOCK_SIZE as u32,
            name_max: NAME_LENGTH_MAX as u32,
        });
    }
}
