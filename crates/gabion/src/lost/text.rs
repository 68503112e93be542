//! Changes as text for people.

use std::collections::BTreeMap;

use gabion_base::time::Timestamp;
use gabion_fs::{Changes, IfTaken, SetTime, WriteAt};
use gabion_link::message::{Call, Change};
use gabion_map::FileId;

use crate::date;

/// Paths of objects, as far as they are known.
type Paths = BTreeMap<FileId, Vec<u8>>;

/// A change as one line.
pub(super) fn of(change: &Change, paths: &Paths) -> String {
    let (time, uid) = (date::seconds(change.now.seconds), change.caller.uid);
    let made = change.made.map_or_else(String::new, |ino| format!(" as inode {}", ino.0));
    format!("{time} user {uid}: {}{made}", what(&change.call, paths))
}

fn what(call: &Call, paths: &Paths) -> String {
    let object = |file: &FileId| object(paths, *file);
    let entry = |dir: &FileId, name: &[u8]| entry(paths, *dir, name);
    match call {
        Call::Write { file, at, bytes, .. } => {
            let place = match at {
                WriteAt::Offset(offset) => format!("at {offset}"),
                WriteAt::End => "at the end".to_owned(),
            };
            format!("wrote {} bytes {place} of {}", bytes.len(), object(file))
        }
        Call::Create { parent, name, request, .. } => {
            let cut = if request.truncate.is_some() { " and cut to 0 bytes" } else { "" };
            format!("opened or made the file {}{cut}", entry(parent, name))
        }
        Call::Tmpfile { parent, .. } => format!("made a file without a name in {}", object(parent)),
        Call::Mknod { parent, name, permissions, .. } => {
            format!("made {} with the permissions {permissions:03o}", entry(parent, name))
        }
        Call::Mkdir { parent, name, permissions } => {
            let name = entry(parent, name);
            format!("made the directory {name} with the permissions {permissions:03o}")
        }
        Call::Symlink { parent, name, target } => {
            format!("made the symbolic link {} to {}", entry(parent, name), quoted(target))
        }
        Call::Link { file, parent, name } => {
            format!("gave {} one more name, {}", object(file), entry(parent, name))
        }
        Call::Unlink { parent, name } => format!("removed {}", entry(parent, name)),
        Call::Rmdir { parent, name } => format!("removed the directory {}", entry(parent, name)),
        Call::Rename {
            source_parent, source_name, target_parent, target_name, if_taken, ..
        } => {
            let (from, to) = (entry(source_parent, source_name), entry(target_parent, target_name));
            match if_taken {
                IfTaken::Exchange => format!("exchanged {from} and {to}"),
                IfTaken::Replace | IfTaken::Fail => format!("renamed {from} to {to}"),
            }
        }
        Call::Setattr { file, changes } => {
            format!("changed {}: {}", object(file), attributes(changes))
        }
        Call::SetXattr { file, name, value, .. } => {
            let (name, value) = (quoted(name), value.escape_ascii());
            format!("set the attribute {name} of {} to \"{value}\"", object(file))
        }
        Call::RemoveXattr { file, name } => {
            format!("removed the attribute {} of {}", quoted(name), object(file))
        }
        Call::Fallocate { file, request, offset, length, .. } => {
            let end = offset.saturating_add(*length);
            format!("changed the space {offset}..{end} of {}: {request:?}", object(file))
        }
        Call::Copy { source, source_offset, target, target_offset, length, .. } => {
            let from = format!("{source_offset} of {}", object(source));
            format!("copied {length} bytes at {from} to {target_offset} of {}", object(target))
        }
        // These change nothing.
        others => format!("{others:?}"),
    }
}

/// The attributes that are set.
fn attributes(changes: &Changes) -> String {
    let Changes { permissions, uid, gid, size, atime, mtime, .. } = changes;
    let time = |name: &str, time: &Option<SetTime>| match time {
        None => None,
        Some(SetTime::Now) => Some(format!("{name} now")),
        Some(SetTime::At(Timestamp { seconds, .. })) => {
            Some(format!("{name} {}", date::seconds(*seconds)))
        }
    };
    let all = [
        permissions.map(|bits| format!("permissions {bits:03o}")),
        uid.map(|uid| format!("owner {uid}")),
        gid.map(|gid| format!("group {gid}")),
        size.map(|(size, _)| format!("size {size}")),
        time("time of reading", atime),
        time("time of writing", mtime),
    ];
    all.into_iter().flatten().collect::<Vec<String>>().join(", ")
}

fn object(paths: &Paths, file: FileId) -> String {
    match paths.get(&file) {
        Some(path) => format!("{} (inode {})", quoted(path), file.ino.0),
        None => format!("inode {}", file.ino.0),
    }
}

fn entry(paths: &Paths, dir: FileId, name: &[u8]) -> String {
    let mut path = match paths.get(&dir).map(Vec::as_slice) {
        Some(b"/") => Vec::new(),
        Some(path) => path.to_vec(),
        None => format!("inode {}", dir.ino.0).into_bytes(),
    };
    path.push(b'/');
    path.extend_from_slice(name);
    quoted(&path)
}

/// In quotes, on one line.
fn quoted(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("\"{}\"", text.escape_debug()),
        Err(_) => format!("\"{}\"", bytes.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};
    use gabion_fs::{Leave, Privileges};

    use super::*;

    fn file(number: u64) -> FileId {
        FileId::new(SubvolId(1), Ino(number))
    }

    #[test]
    fn a_change_is_told_in_one_line_whatever_its_names_are() {
        let paths = Paths::from([(file(1), b"/".to_vec()), (file(2), b"/a\nb".to_vec())]);
        let told = |call: Call| what(&call, &paths);
        let write = |file, at| {
            let (bytes, privileges) = (b"text".to_vec().into(), Privileges::Keep);
            Call::Write { file, at, privileges, bytes }
        };
        assert_eq!(
            told(write(file(2), WriteAt::Offset(7))),
            r#"wrote 4 bytes at 7 of "/a\nb" (inode 2)"#
        );
        assert_eq!(told(write(file(3), WriteAt::End)), "wrote 4 bytes at the end of inode 3");
        let unlink = |parent, name: &[u8]| Call::Unlink { parent, name: name.to_vec() };
        assert_eq!(told(unlink(file(1), "Ärger".as_bytes())), r#"removed "/Ärger""#);
        assert_eq!(told(unlink(file(9), b"\xff\"")), r#"removed "inode 9/\xff\"""#);
        let rename = Call::Rename {
            source_parent: file(1),
            source_name: b"x".to_vec(),
            target_parent: file(2),
            target_name: b"y".to_vec(),
            if_taken: IfTaken::Replace,
            leave: Leave::Nothing,
        };
        assert_eq!(told(rename), r#"renamed "/x" to "/a\nb/y""#);
        let size = Some((5, Privileges::Keep));
        let changes = Changes { permissions: Some(0o64), size, ..Changes::default() };
        let setattr = Call::Setattr { file: file(3), changes };
        assert_eq!(told(setattr), "changed inode 3: permissions 064, size 5");
    }
}
