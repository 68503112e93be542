//! A call that changes something, as an operation on whatever transaction: the server runs it on
//! its map, a client on what it has leased.

use gabion_base::ids::Ino;
use gabion_fs::{
    Attributes, Changes, Context, CopyRequest, Disposition, Error, Opens, RenameRequest, Result,
    Through, Unnamed, WriteAt,
};
use gabion_link::message::{Answer, Call};
use gabion_map::{FileId, Payload, Txn};

use crate::bytes::COPY_CHUNK;

/// What is left to do when an operation is through.
pub(crate) enum Rest {
    Nothing,
    /// An object is new.
    Made(FileId),
    /// An object has lost a name.
    LostName(Unnamed),
}

/// Runs the operation that `call` asks for. `InvalidArgument`: it asks for something else.
pub(crate) fn operate<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    call: &Call,
    opens: &dyn Opens,
) -> Result<(Answer, Rest)> {
    match call {
        Call::Create { .. }
        | Call::Tmpfile { .. }
        | Call::Mknod { .. }
        | Call::Mkdir { .. }
        | Call::Symlink { .. } => make(txn, ctx, call),
        Call::Link { .. } | Call::Unlink { .. } | Call::Rmdir { .. } | Call::Rename { .. } => {
            change_names(txn, ctx, call, opens)
        }
        Call::Setattr { file, changes } => gabion_fs::setattr(txn, ctx, *file, changes).map(object),
        Call::SetXattr { file, name, value, condition, set_group } => {
            let (condition, set_group) = (*condition, *set_group);
            gabion_fs::xattr::set(txn, ctx, *file, name, value, condition, set_group).map(done)
        }
        Call::RemoveXattr { file, name } => {
            gabion_fs::xattr::remove(txn, ctx, *file, name).map(done)
        }
        _ => change_bytes(txn, ctx, call),
    }
}

/// Whether the operation may make a new object.
pub(crate) fn may_make(call: &Call) -> bool {
    matches!(
        call,
        Call::Create { .. }
            | Call::Tmpfile { .. }
            | Call::Mknod { .. }
            | Call::Mkdir { .. }
            | Call::Symlink { .. }
    )
}

/// The object that a call has made, if it made one.
pub(crate) fn made_by(call: &Call, answer: &Answer) -> Option<Ino> {
    match answer {
        Answer::Made(made, Disposition::Created) => Some(made.file.ino),
        Answer::Object(made) if may_make(call) => Some(made.file.ino),
        _ => None,
    }
}

/// The operation as it comes to the same if it is done once more, whatever there is then: at the
/// offset that it had, and on the object that it found. Openings are told by themselves.
pub(crate) fn resolved(call: Call, answer: &Answer) -> Call {
    match (call, answer) {
        (Call::Write { file, privileges, bytes, .. }, Answer::Written { offset, .. }) => {
            Call::Write { file, at: WriteAt::Offset(*offset), privileges, bytes }
        }
        (Call::Create { request, .. }, Answer::Made(found, Disposition::Opened)) => {
            let size = request.truncate.map(|privileges| (0, privileges));
            let changes = Changes { size, through: Through::Handle, ..Changes::default() };
            Call::Setattr { file: found.file, changes }
        }
        (call, _) => call,
    }
}

/// The file whose bytes an operation has changed, or what decides how many there are.
pub(crate) fn written_by(call: &Call, answer: &Answer) -> Option<FileId> {
    match (call, answer) {
        (Call::Write { file, .. } | Call::Fallocate { file, .. }, _) => Some(*file),
        (Call::Copy { target, .. }, _) => Some(*target),
        (Call::Setattr { file, changes }, _) if changes.size.is_some() => Some(*file),
        (Call::Create { request, .. }, Answer::Made(found, Disposition::Opened))
            if request.truncate.is_some() =>
        {
            Some(found.file)
        }
        _ => None,
    }
}

fn done((): ()) -> (Answer, Rest) {
    (Answer::Done, Rest::Nothing)
}

fn object(found: Attributes) -> (Answer, Rest) {
    (Answer::Object(found), Rest::Nothing)
}

fn make<T: Txn + ?Sized>(txn: &mut T, ctx: &Context, call: &Call) -> Result<(Answer, Rest)> {
    let made = match call {
        Call::Create { parent, name, permissions, if_exists, request } => {
            let (attributes, disposition) =
                gabion_fs::create(txn, ctx, *parent, name, *permissions, *if_exists, request)?;
            let rest = match disposition {
                Disposition::Created => Rest::Made(attributes.file),
                Disposition::Opened => Rest::Nothing,
            };
            return Ok((Answer::Made(attributes, disposition), rest));
        }
        Call::Tmpfile { parent, permissions, linkable } => {
            let attributes = gabion_fs::tmpfile(txn, ctx, *parent, *permissions, *linkable)?;
            let rest = Rest::Made(attributes.file);
            return Ok((Answer::Made(attributes, Disposition::Created), rest));
        }
        Call::Mknod { parent, name, file_type, permissions, rdev } => {
            gabion_fs::mknod(txn, ctx, *parent, name, *file_type, *permissions, *rdev)?
        }
        Call::Mkdir { parent, name, permissions } => {
            gabion_fs::mkdir(txn, ctx, *parent, name, *permissions)?
        }
        Call::Symlink { parent, name, target } => {
            gabion_fs::symlink(txn, ctx, *parent, name, target)?
        }
        _ => return Err(Error::InvalidArgument),
    };
    let rest = Rest::Made(made.file);
    Ok((Answer::Object(made), rest))
}

fn change_names<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    call: &Call,
    opens: &dyn Opens,
) -> Result<(Answer, Rest)> {
    let lost = |unnamed| (Answer::Done, Rest::LostName(unnamed));
    match call {
        Call::Link { file, parent, name } => {
            gabion_fs::link(txn, ctx, *file, *parent, name).map(object)
        }
        Call::Unlink { parent, name } => {
            gabion_fs::unlink(txn, ctx, *parent, name, opens).map(lost)
        }
        Call::Rmdir { parent, name } => gabion_fs::rmdir(txn, ctx, *parent, name, opens).map(lost),
        Call::Rename {
            source_parent,
            source_name,
            target_parent,
            target_name,
            if_taken,
            leave,
        } => {
            let request = RenameRequest {
                source_parent: *source_parent,
                source_name,
                target_parent: *target_parent,
                target_name,
                if_taken: *if_taken,
                leave: *leave,
            };
            let renamed = gabion_fs::rename(txn, ctx, &request, opens)?;
            Ok((Answer::Done, renamed.replaced.map_or(Rest::Nothing, Rest::LostName)))
        }
        _ => Err(Error::InvalidArgument),
    }
}

fn change_bytes<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    call: &Call,
) -> Result<(Answer, Rest)> {
    let number = |number| (Answer::Number(number), Rest::Nothing);
    match call {
        Call::Write { file, at, privileges, bytes } => {
            let payload = Payload::Copied(bytes);
            let written = gabion_fs::write(txn, ctx, *file, *at, payload, *privileges)?;
            let (offset, length) = (written.offset, written.length as u64);
            Ok((Answer::Written { offset, length }, Rest::Nothing))
        }
        Call::Fallocate { file, request, offset, length, privileges } => {
            let (request, offset, length) = (*request, *offset, *length);
            gabion_fs::fallocate(txn, ctx, *file, request, offset, length, *privileges).map(done)
        }
        Call::Copy { source, source_offset, target, target_offset, length, privileges } => {
            let request = CopyRequest {
                source: *source,
                source_offset: *source_offset,
                target: *target,
                target_offset: *target_offset,
                length: (*length).min(COPY_CHUNK),
            };
            gabion_fs::copy_range(txn, ctx, &request, *privileges).map(number)
        }
        Call::Seek { file, offset, target } => {
            gabion_fs::seek(txn, *file, *offset, *target).map(number)
        }
        _ => Err(Error::InvalidArgument),
    }
}
