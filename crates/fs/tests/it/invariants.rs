//! What is true of every map after every operation.

use std::collections::{BTreeMap, BTreeSet};

use gabion_base::ids::Ino;
use gabion_fs::format::dirent::{Dirents, position};
use gabion_fs::format::inode::{Flags, Inode, place};
use gabion_fs::{FileType, ROOT};
use gabion_map::{FileId, Kind};

use crate::memory_map::MemoryMap;

/// Checks the whole map.
pub fn check(map: &MemoryMap, seed: u64) {
    let mut inodes = BTreeMap::new();
    let mut orphans = BTreeSet::new();
    let mut names: BTreeMap<FileId, Vec<FileId>> = BTreeMap::new();
    let mut entries: BTreeMap<FileId, u64> = BTreeMap::new();
    let mut places: BTreeSet<(FileId, Ino, u32)> = BTreeSet::new();
    let mut subdirs: BTreeMap<FileId, u32> = BTreeMap::new();
    for (key, value) in &map.items {
        match key.kind {
            Kind::INODE => {
                inodes.insert(key.file(), Inode::decode(value).expect("a good inode"));
            }
            Kind::ORPHAN => {
                assert_eq!(key.ino, Ino(0));
                orphans.insert(FileId::new(key.subvol, Ino(key.at)));
            }
            Kind::DIRENT => {
                let mut list = Dirents::decode(value).expect("good entries");
                while let Some(entry) = list.next_entry().expect("a good entry") {
                    assert_eq!(position(entry.name, seed), key.at);
                    let target = FileId::new(key.subvol, entry.ino);
                    places.insert((target, key.ino, place(key.at)));
                    names.entry(target).or_default().push(key.file());
                    *entries.entry(key.file()).or_default() += 1;
                    if entry.file_type == FileType::Directory {
                        *subdirs.entry(key.file()).or_default() += 1;
                    }
                }
            }
            Kind::XATTR | Kind::SYMLINK => {}
            _ => panic!("{key:?} does not belong here"),
        }
    }
    for (file, inode) in &inodes {
        let parents = names.get(file).map_or(&[][..], Vec::as_slice);
        assert_eq!(orphans.contains(file), inode.nlink == 0, "{file:?} {inode:?}");
        if inode.nlink == 0 {
            assert_eq!(parents, []);
            assert_eq!(entries.get(file), None);
        } else if inode.parent != Ino(0) && file.ino != ROOT && !inode.is_device() {
            assert!(places.contains(&(*file, inode.parent, inode.place)), "{file:?} {inode:?}");
        }
        if inode.nlink == 0 {
            continue;
        }
        if inode.is_directory() {
            assert_eq!(inode.nlink, 2 + subdirs.get(file).copied().unwrap_or(0), "{file:?}");
            assert_eq!(inode.length, entries.get(file).copied().unwrap_or(0), "{file:?}");
            let parent = FileId::new(file.subvol, inode.parent);
            let expected = if file.ino == ROOT { vec![] } else { vec![parent] };
            assert_eq!(parents, expected, "{file:?}");
        } else {
            assert_eq!(inode.nlink as usize, parents.len(), "{file:?}");
            assert!(!entries.contains_key(file));
        }
        if inode.flags.has(Flags::LINKABLE) {
            assert_eq!(inode.nlink, 0);
        }
    }
    for (target, parents) in &names {
        assert!(inodes.contains_key(target), "{parents:?} name {target:?}, which is gone");
    }
    for orphan in &orphans {
        assert!(inodes.contains_key(orphan), "{orphan:?} is gone and still an orphan");
    }
    for key in map.items.keys().filter(|key| key.ino != Ino(0)) {
        let inode = inodes.get(&key.file()).unwrap_or_else(|| panic!("{key:?} is left over"));
        match key.kind {
            Kind::SYMLINK => assert_eq!(inode.file_type, FileType::Symlink),
            Kind::XATTR => assert!(inode.flags.has(Flags::ATTRIBUTES)),
            _ => {}
        }
    }
    for file in map.files.keys() {
        let inode = inodes.get(file).unwrap_or_else(|| panic!("bytes of {file:?} are left over"));
        assert_eq!(inode.file_type, FileType::Regular);
    }
}
