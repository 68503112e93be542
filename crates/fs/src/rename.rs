//! rename(2) and renameat2(2).
//!
//! Promises beyond POSIX:
//!
//! - A name that stood for a file never stands for an empty one after a crash because of a rename:
//!   bytes of a file that takes another one's name are on disk first (`UnwrittenBytes`).
//! - No directory ever comes to lie below itself, with however many renames at a time: the
//!   ancestors that were looked at stay locked until the rename is done.

use gabion_base::ids::Ino;
use gabion_map::{FileId, LockMode, Txn};

use crate::context::{Context, Opens};
use crate::create::{self, NewObject};
use crate::entry::{self, Place, Target};
use crate::error::{Error, Result};
use crate::format::inode::Inode;
use crate::lookup::load_named;
use crate::mode::FileType;
use crate::object::{self, LINKS_MAX, ROOT};
use crate::permission::{self, Access};
use crate::remove::{self, Unnamed};

/// Nested directories that a rename looks through at most; each step is one item.
pub const DEPTH_MAX: usize = 1 << 20;

/// What to do if the new name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfTaken {
    /// Take it from what has it now.
    Replace,
    /// Fail with `Exists` (`RENAME_NOREPLACE`).
    Fail,
    /// What has it now gets the old name; it must exist (`RENAME_EXCHANGE`).
    Exchange,
}

/// What is left at the old name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing.
    Nothing,
    /// A character device 0:0 (`RENAME_WHITEOUT`).
    Whiteout,
}

/// A new name for an object.
#[derive(Clone, Copy, Debug)]
pub struct RenameRequest<'a> {
    /// Where it is.
    pub source_parent: FileId,
    /// Its name there.
    pub source_name: &'a [u8],
    /// Where it goes.
    pub target_parent: FileId,
    /// Its name there.
    pub target_name: &'a [u8],
    /// What to do if that is taken. `Exchange` leaves nothing.
    pub if_taken: IfTaken,
    /// What is left at the old name.
    pub leave: Leave,
}

/// What a rename did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The object with the new name.
    pub moved: FileId,
    /// What had the new name before and lost it.
    pub replaced: Option<Unnamed>,
    /// What had the new name before and has the old one now.
    pub exchanged: Option<FileId>,
}

/// Gives an object another name, in this directory or another one of the subvolume. Nothing
/// happens if both names stand for the same object.
pub fn rename<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    request: &RenameRequest<'_>,
    opens: &dyn Opens,
) -> Result<Renamed> {
    check_request(request)?;
    txn.lock(request.target_parent, LockMode::Exclusive)?;
    let (source_dir, source_place) =
        create::enter(txn, ctx, request.source_parent, request.source_name)?;
    let target_dir = (request.source_parent != request.target_parent)
        .then(|| object::load_directory(txn, request.target_parent))
        .transpose()?;
    let mut dirs = Dirs { source: source_dir, target: target_dir };
    permission::check_search(txn, ctx, request.target_parent, dirs.target())?;
    let target_place = Place::find(txn, ctx, request.target_parent, request.target_name)?;

    let moved = source_place.target().ok_or(Error::NotFound)?;
    let taken = target_place.target();
    [Some(moved), taken].into_iter().flatten().try_for_each(Target::check_is_object)?;
    match (request.if_taken, taken) {
        (IfTaken::Fail, Some(_)) => return Err(Error::Exists),
        (IfTaken::Exchange, None) => return Err(Error::NotFound),
        (_, Some(taken)) if taken.ino == moved.ino => {
            let moved = file_of(request, moved);
            return Ok(Renamed { moved, replaced: None, exchanged: None });
        }
        _ => {}
    }
    let moved = Subject::load(txn, request, moved)?;
    let taken = taken.map(|taken| Subject::load(txn, request, taken)).transpose()?;
    check_loops(txn, request, &moved, taken.as_ref())?;
    check_permissions(txn, ctx, request, &dirs, &moved, taken.as_ref())?;
    check_unwritten(txn, request, &moved, taken.as_ref())?;

    let places = (source_place, target_place);
    match (request.if_taken, taken) {
        (IfTaken::Exchange, Some(taken)) => {
            exchange(txn, ctx, request, &mut dirs, places, moved, taken)
        }
        (_, taken) => {
            if let Some(taken) = &taken {
                check_replacement(&moved.inode, &taken.inode)?;
            }
            replace(txn, ctx, request, &mut dirs, places, (moved, taken), opens)
        }
    }
}

/// The inodes of both directories, which may be one.
struct Dirs {
    source: Inode,
    target: Option<Inode>,
}

impl Dirs {
    fn target(&self) -> &Inode {
        self.target.as_ref().unwrap_or(&self.source)
    }

    fn target_mut(&mut self) -> &mut Inode {
        self.target.as_mut().unwrap_or(&mut self.source)
    }

    fn are_one(&self) -> bool {
        self.target.is_none()
    }

    fn store<T: Txn + ?Sized>(
        &mut self,
        txn: &mut T,
        ctx: &Context,
        request: &RenameRequest<'_>,
    ) -> Result<()> {
        self.source.touch_content(ctx);
        object::store(txn, request.source_parent, &self.source)?;
        if let Some(target) = &mut self.target {
            target.touch_content(ctx);
            object::store(txn, request.target_parent, target)?;
        }
        Ok(())
    }
}

/// An object that gets another name or loses one; locked exclusively.
struct Subject {
    file: FileId,
    inode: Inode,
}

impl Subject {
    fn load<T: Txn + ?Sized>(
        txn: &mut T,
        request: &RenameRequest<'_>,
        target: Target,
    ) -> Result<Self> {
        let file = file_of(request, target);
        txn.lock(file, LockMode::Exclusive)?;
        Ok(Self { file, inode: load_named(txn, file)? })
    }

    fn entry(&self) -> Target {
        Target { ino: self.file.ino, file_type: self.inode.file_type }
    }

    /// Records the new name.
    fn settle<T: Txn + ?Sized>(
        mut self,
        txn: &mut T,
        ctx: &Context,
        (parent, position): (FileId, u64),
    ) -> Result<()> {
        self.inode.named(parent.ino, position);
        self.inode.touch(ctx);
        object::store(txn, self.file, &self.inode)
    }
}

fn file_of(request: &RenameRequest<'_>, target: Target) -> FileId {
    FileId::new(request.source_parent.subvol, target.ino)
}

fn check_request(request: &RenameRequest<'_>) -> Result<()> {
    for name in [request.source_name, request.target_name] {
        if entry::is_dots(name) {
            return Err(Error::Busy);
        }
        entry::check_name(name)?;
    }
    if request.source_parent.subvol != request.target_parent.subvol {
        return Err(Error::CrossSubvolume);
    }
    if request.if_taken == IfTaken::Exchange && request.leave == Leave::Whiteout {
        return Err(Error::InvalidArgument);
    }
    Ok(())
}

fn check_loops<T: Txn + ?Sized>(
    txn: &mut T,
    request: &RenameRequest<'_>,
    moved: &Subject,
    taken: Option<&Subject>,
) -> Result<()> {
    if request.source_parent == request.target_parent {
        return Ok(());
    }
    if moved.inode.is_directory() && is_within(txn, request.target_parent, moved.file.ino)? {
        return Err(Error::InvalidArgument);
    }
    // Without an exchange, a directory above the source is not empty and fails for that.
    let Some(taken) = taken.filter(|_| request.if_taken == IfTaken::Exchange) else {
        return Ok(());
    };
    if taken.inode.is_directory() && is_within(txn, request.source_parent, taken.file.ino)? {
        return Err(Error::InvalidArgument);
    }
    Ok(())
}

/// Whether the directory `dir` is `ancestor` or lies below it.
fn is_within<T: Txn + ?Sized>(txn: &mut T, dir: FileId, ancestor: Ino) -> Result<bool> {
    let mut at = dir;
    for _ in 0..DEPTH_MAX {
        if at.ino == ancestor {
            return Ok(true);
        }
        if at.ino == ROOT {
            return Ok(false);
        }
        let inode = object::load_directory(txn, at)?;
        // A directory that was removed lies nowhere.
        if inode.nlink == 0 {
            return Err(Error::NotFound);
        }
        at.ino = inode.parent;
    }
    Err(Error::TooDeep)
}

fn check_permissions<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    request: &RenameRequest<'_>,
    dirs: &Dirs,
    moved: &Subject,
    taken: Option<&Subject>,
) -> Result<()> {
    if dirs.target().nlink == 0 {
        return Err(Error::NotFound);
    }
    permission::check_change(txn, ctx, request.source_parent, &dirs.source)?;
    permission::check_sticky(ctx, &dirs.source, &moved.inode)?;
    permission::check_change(txn, ctx, request.target_parent, dirs.target())?;
    if let Some(taken) = taken {
        permission::check_sticky(ctx, dirs.target(), &taken.inode)?;
    }
    if dirs.are_one() {
        return Ok(());
    }
    // Another parent means another "..", which is a change of the directory itself.
    let exchanged = taken.filter(|_| request.if_taken == IfTaken::Exchange);
    for subject in [Some(moved), exchanged].into_iter().flatten() {
        if subject.inode.is_directory() {
            permission::check(txn, ctx, subject.file, &subject.inode, Access::WRITE)?;
        }
    }
    Ok(())
}

fn check_replacement(moved: &Inode, taken: &Inode) -> Result<()> {
    match (moved.is_directory(), taken.is_directory()) {
        (true, false) => Err(Error::NotDirectory),
        (false, true) => Err(Error::IsDirectory),
        (true, true) if taken.length > 0 => Err(Error::NotEmpty),
        _ => Ok(()),
    }
}

fn check_unwritten<T: Txn + ?Sized>(
    txn: &mut T,
    request: &RenameRequest<'_>,
    moved: &Subject,
    taken: Option<&Subject>,
) -> Result<()> {
    let Some(taken) = taken else { return Ok(()) };
    let exchanged = Some(taken).filter(|_| request.if_taken == IfTaken::Exchange);
    for subject in [Some(moved), exchanged].into_iter().flatten() {
        let has_bytes = subject.inode.file_type == FileType::Regular;
        if has_bytes && txn.has_unwritten_bytes(subject.file)? {
            return Err(Error::UnwrittenBytes(subject.file));
        }
    }
    Ok(())
}

fn replace<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    request: &RenameRequest<'_>,
    dirs: &mut Dirs,
    (source_place, mut target_place): (Place<'_>, Place<'_>),
    (moved, taken): (Subject, Option<Subject>),
    opens: &dyn Opens,
) -> Result<Renamed> {
    let is_directory = moved.inode.is_directory();
    if taken.is_none() || request.leave == Leave::Whiteout {
        txn.require_space()?;
    }
    let mut whiteout = match request.leave {
        Leave::Nothing => None,
        Leave::Whiteout => {
            let object = NewObject::new(FileType::CharDevice, 0);
            Some(create::make(txn, ctx, request.source_parent, &dirs.source, &object)?)
        }
    };

    let shares_item = source_place.shares_item_with(&target_place);
    let new_name = (request.target_parent, target_place.position());
    match &mut whiteout {
        None => {
            source_place.remove(txn)?;
            dirs.source.length = dirs.source.length.saturating_sub(1);
        }
        Some((file, inode)) => {
            inode.named(request.source_parent.ino, source_place.position());
            object::store(txn, *file, inode)?;
            source_place.replace(txn, Target { ino: file.ino, file_type: inode.file_type })?;
        }
    }
    if shares_item {
        target_place = Place::find(txn, ctx, request.target_parent, request.target_name)?;
    }
    if taken.is_some() {
        target_place.replace(txn, moved.entry())?;
    } else {
        target_place.insert(txn, moved.entry())?;
        dirs.target_mut().length += 1;
    }

    if taken.as_ref().is_some_and(|taken| taken.inode.is_directory()) {
        let target = dirs.target_mut();
        target.nlink = target.nlink.saturating_sub(1);
    }
    if is_directory && !dirs.are_one() {
        dirs.source.nlink = dirs.source.nlink.saturating_sub(1);
        add_link(dirs.target_mut())?;
    }
    dirs.store(txn, ctx, request)?;
    let file = moved.file;
    moved.settle(txn, ctx, new_name)?;
    let mut replaced = None;
    if let Some(Subject { file, inode }) = taken {
        let fate = remove::drop_name(txn, ctx, new_name, (file, inode), opens)?;
        replaced = Some(Unnamed { file, fate });
    }
    Ok(Renamed { moved: file, replaced, exchanged: None })
}

fn exchange<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    request: &RenameRequest<'_>,
    dirs: &mut Dirs,
    (source_place, mut target_place): (Place<'_>, Place<'_>),
    moved: Subject,
    taken: Subject,
) -> Result<Renamed> {
    let shares_item = source_place.shares_item_with(&target_place);
    let old_name = (request.source_parent, source_place.position());
    let new_name = (request.target_parent, target_place.position());
    source_place.replace(txn, taken.entry())?;
    if shares_item {
        target_place = Place::find(txn, ctx, request.target_parent, request.target_name)?;
    }
    target_place.replace(txn, moved.entry())?;
    if !dirs.are_one() {
        match (moved.inode.is_directory(), taken.inode.is_directory()) {
            (true, false) => {
                dirs.source.nlink = dirs.source.nlink.saturating_sub(1);
                add_link(dirs.target_mut())?;
            }
            (false, true) => {
                let target = dirs.target_mut();
                target.nlink = target.nlink.saturating_sub(1);
                add_link(&mut dirs.source)?;
            }
            _ => {}
        }
    }
    dirs.store(txn, ctx, request)?;
    let renamed = Renamed { moved: moved.file, replaced: None, exchanged: Some(taken.file) };
    moved.settle(txn, ctx, new_name)?;
    taken.settle(txn, ctx, old_name)?;
    Ok(renamed)
}

fn add_link(dir: &mut Inode) -> Result<()> {
    if dir.nlink >= LINKS_MAX {
        return Err(Error::TooManyLinks);
    }
    dir.nlink += 1;
    Ok(())
}
