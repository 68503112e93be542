//! The items of the filesystem.

use gabion_base::codec::DecodeError;
use gabion_base::ids::Ino;
use gabion_base::time::Timestamp;

use gabion_fs::FileType;
use gabion_fs::format::dirent::Dirents;
use gabion_fs::format::inode::{Flags, Inode};
use gabion_fs::format::xattr::AttributeList;
use gabion_fs::format::{acl, dirent, xattr};

use super::inputs::Target;

/// All targets of the filesystem.
pub fn targets() -> Vec<Target> {
    let target = |name, run, samples| Target { name, run, samples };
    vec![
        target("inode", inode, vec![inode_sample()]),
        target("dirent", dirents, vec![dirent_sample()]),
        target("xattr", xattrs, vec![xattr_sample()]),
        target("acl", acls, vec![acl_sample()]),
    ]
}

/// An INODE item.
pub fn inode(bytes: &[u8]) -> Result<(), DecodeError> {
    assert_eq!(Inode::decode(bytes)?.encode(), bytes);
    Ok(())
}

fn inode_sample() -> Vec<u8> {
    let time = Timestamp::new(1_700_000_000, 5);
    let inode = Inode {
        permissions: 0o755,
        file_type: FileType::Directory,
        flags: Flags::ATTRIBUTES,
        uid: 1000,
        gid: 100,
        nlink: 2,
        rdev: 0,
        generation: 3,
        parent: Ino(1),
        length: 4,
        place: 0,
        change: 5,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    };
    inode.encode()
}

/// A DIRENT item, read through, and changed if it is whole.
pub fn dirents(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut entries = Dirents::decode(bytes)?;
    let mut all = Vec::new();
    while let Some(entry) = entries.next_entry()? {
        all.push(entry);
    }
    let count = |value: &[u8]| {
        let mut entries = Dirents::decode(value).expect("just encoded");
        std::iter::from_fn(|| entries.next_entry().expect("just encoded")).count()
    };
    for entry in &all {
        assert!(entry.cookie(u64::MAX) >= entry.cookie(16));
        let replaced = dirent::replace(bytes, entry, Ino(5), FileType::Socket);
        assert_eq!(count(&replaced), all.len());
        let rest = dirent::remove(bytes, entry);
        assert_eq!(rest.map_or(0, |rest| count(&rest)), all.len() - 1);
    }
    let more = dirent::insert(bytes, b"one more", Ino(5), FileType::Fifo).expect("it is whole");
    assert!(more.is_none_or(|more| count(&more) == all.len() + 1));
    Ok(())
}

fn dirent_sample() -> Vec<u8> {
    let one = dirent::encode_first(b"name", Ino(7), FileType::Regular);
    let two = dirent::insert(&one, b"other", Ino(8), FileType::Directory);
    two.expect("just encoded").expect("a free slot")
}

/// An XATTR item, read through, and changed if it is whole.
pub fn xattrs(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut list = AttributeList::decode(bytes)?;
    let mut names = Vec::new();
    while let Some(attribute) = list.next_attribute()? {
        names.push(attribute.name);
    }
    let changed = xattr::set(Some(bytes), b"user.new", b"value").expect("it is whole");
    let found = AttributeList::decode(&changed).and_then(|list| list.find(b"user.new"));
    assert_eq!(found, Ok(Some(&b"value"[..])));
    for name in names {
        if let Some(rest) = xattr::remove(bytes, name).expect("it is whole") {
            let found = AttributeList::decode(&rest).and_then(|list| list.find(name));
            assert_eq!(found, Ok(None));
        }
    }
    Ok(())
}

fn xattr_sample() -> Vec<u8> {
    let one = xattr::set(None, b"user.a", b"value").expect("nothing to decode");
    xattr::set(Some(&one), b"user.b", b"").expect("just encoded")
}

/// An access control list.
pub fn acls(bytes: &[u8]) -> Result<(), DecodeError> {
    if let Some(list) = acl::decode(bytes)? {
        assert_eq!(acl::decode(&acl::encode(&list)), Ok(Some(list)));
    }
    Ok(())
}

fn acl_sample() -> Vec<u8> {
    let entries = [(1_u8, 7_u8, u32::MAX), (2, 6, 1000), (4, 5, u32::MAX), (16, 4, u32::MAX)];
    let mut out = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries.into_iter().chain([(32, 0, u32::MAX)]) {
        out.extend_from_slice(&[tag, 0, permissions, 0]);
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}
