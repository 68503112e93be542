//! Trees with some of everything, and all that can be seen of one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

use super::{BLOCK, run};
use crate::world::Folder;

/// Bytes that do not pack, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    gabion_base::rng::Rng::new(seed).fill(&mut bytes);
    bytes
}

/// Makes some of everything that a tree can hold.
pub fn plant(folder: &Folder, root: &str) {
    let top = folder.join(root);
    fs::create_dir_all(top.join("dir/below/deep")).unwrap();
    for number in 0..50 {
        let path = top.join(format!("dir/below/file {number}"));
        fs::write(path, noise(number, number as usize * 997)).unwrap();
    }
    fs::write(top.join("linked"), "once").unwrap();
    fs::hard_link(top.join("linked"), top.join("dir/its other name")).unwrap();
    fs::write(top.join(std::ffi::OsStr::from_bytes(b"\xff\xfe\n")), "no text").unwrap();
    symlink("a target that is not there", top.join("dangling")).unwrap();
    run(folder, "mkfifo", &[&format!("{root}/fifo")]);
    run(folder, "mknod", &[&format!("{root}/null"), "c", "1", "3"]);
    run(folder, "mknod", &[&format!("{root}/block"), "b", "259", "70000"]);
    std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.write_all_at(&[7; 3 * BLOCK], 5 << 20).unwrap();
    sparse.set_len(900 << 30).unwrap();
    fs::write(top.join("large"), noise(99, 3_000_000)).unwrap();
    std::os::unix::fs::chown(top.join("large"), Some(12345), Some(4_000_000_000)).unwrap();
    fs::set_permissions(top.join("large"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(top.join("dir"), fs::Permissions::from_mode(0o3770)).unwrap();
    run(folder, "setfattr", &["-n", "user.key", "-v", "value", &format!("{root}/large")]);
    run(folder, "setfattr", &["-n", "trusted.key", "-v", "0x00ff", &format!("{root}/dir")]);
    run(folder, "setfacl", &["-m", "u:77:rw,g:78:r", &format!("{root}/linked")]);
    run(folder, "setfacl", &["-d", "-m", "u:77:rx", &format!("{root}/dir/below")]);
    let old = "1969-12-31 23:59:59.123456789Z";
    run(folder, "touch", &["-h", "-d", old, &format!("{root}/dangling")]);
    run(folder, "touch", &["-d", "2040-02-03 04:05:06.000000007Z", &format!("{root}/dir")]);
}

/// Lets two files share the blocks of `large`.
pub fn share(root: &Path) {
    let from = File::open(root.join("large")).unwrap();
    let to = File::create(root.join("shared")).unwrap();
    let mut left = from.metadata().unwrap().len() as usize;
    while left > 0 {
        left -= rustix::fs::copy_file_range(&from, None, &to, None, left).unwrap();
    }
}

/// All that can be seen of an object.
pub fn see(path: &Path, firsts: &mut BTreeMap<u64, PathBuf>, name: &Path) -> String {
    let stat = fs::symlink_metadata(path).unwrap();
    let kind = stat.file_type();
    let mut seen = format!(
        "{:o} {} {} {:x} {}.{:09}",
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.rdev(),
        stat.mtime(),
        stat.mtime_nsec()
    );
    if !kind.is_dir() {
        let first = firsts.entry(stat.ino()).or_insert_with(|| name.to_owned());
        seen += &format!(" {} {}", stat.nlink(), first.display());
    }
    if kind.is_symlink() {
        seen += &format!(" {:?}", fs::read_link(path).unwrap());
    }
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut names: Vec<_> = names[..length].split(|byte| *byte == 0).collect();
    names.sort();
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        let mut value = [0; 1000];
        let key = std::ffi::OsStr::from_bytes(name);
        let length = rustix::fs::lgetxattr(path, key, &mut value[..]).unwrap();
        seen += &format!(" {key:?}={:?}", &value[..length]);
    }
    if kind.is_file() {
        seen += &format!(" {} {:?}", stat.len(), data(path, stat.len()));
    }
    seen
}

/// Where a file has data, by blocks, and what it is.
pub fn data(path: &Path, length: u64) -> Vec<(u64, u64, u64)> {
    let file = File::open(path).unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while at < length {
        let Ok(from) = rustix::fs::seek(&file, SeekFrom::Data(at)) else { break };
        at = rustix::fs::seek(&file, SeekFrom::Hole(from)).unwrap();
        let mut bytes = vec![0; (at - from) as usize];
        file.read_exact_at(&mut bytes, from).unwrap();
        found.push((from, at, gabion_base::checksum::crc64(&bytes)));
    }
    found
}

/// All that can be seen of a tree, by paths. A directory of snapshots is not listed.
pub fn survey(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut firsts = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(name) = waiting.pop() {
        let path = root.join(&name);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            waiting.extend(names.into_iter().rev().map(|entry| name.join(entry)));
        }
        let text = see(&path, &mut firsts, &name);
        seen.insert(name, text);
    }
    seen
}

#[track_caller]
pub fn assert_same(wanted: &BTreeMap<PathBuf, String>, found: &Path) {
    let found = survey(found);
    for (path, wanted) in wanted {
        assert_eq!(found.get(path), Some(wanted), "{}", path.display());
    }
    let extra: Vec<_> = found.keys().filter(|path| !wanted.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{extra:?}");
}
