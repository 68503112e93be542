//! Requests and replies: what an application does arrives, and what is answered reaches it.

use std::ffi::CString;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use gabion_fuse::{ByteRange, LockFamily, LockKind, NodeId};

use crate::memfs::Mounted;

#[test]
fn files_are_written_read_listed_renamed_and_removed() {
    let mounted = Mounted::new();
    fs::create_dir(mounted.path("dir")).unwrap();
    fs::write(mounted.path("dir/a"), b"hello").unwrap();
    assert_eq!(fs::read(mounted.path("dir/a")).unwrap(), b"hello");
    assert_eq!(fs::metadata(mounted.path("dir/a")).unwrap().len(), 5);
    fs::rename(mounted.path("dir/a"), mounted.path("b")).unwrap();
    assert!(fs::metadata(mounted.path("dir/a")).is_err());
    symlink("b", mounted.path("link")).unwrap();
    assert_eq!(fs::read_link(mounted.path("link")).unwrap(), Path::new("b"));
    assert_eq!(fs::read(mounted.path("link")).unwrap(), b"hello");
    fs::remove_file(mounted.path("b")).unwrap();
    fs::remove_dir(mounted.path("dir")).unwrap();
    assert!(fs::metadata(mounted.path("b")).is_err());
}

#[test]
fn a_large_directory_is_listed_completely_with_its_attributes() {
    let mounted = Mounted::new();
    let long = "n".repeat(100);
    for index in 0..300 {
        fs::write(mounted.path(&format!("{long}{index}")), b"x").unwrap();
    }
    let asked = mounted.fs.record(|record| record.lookups);
    let mut seen = 0;
    for entry in fs::read_dir(mounted.at.path()).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().len(), 1);
        seen += 1;
    }
    assert_eq!(seen, 300);
    assert!(mounted.fs.record(|record| record.readdirplus) > 2);
    assert_eq!(mounted.fs.record(|record| record.lookups), asked);
}

#[test]
fn payload_of_a_write_arrives_whole_and_page_aligned() {
    let mounted = Mounted::new();
    let bytes: Vec<u8> =
        (0..5 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut file = fs::File::create_new(mounted.path("file")).unwrap();
    for size in [1, 100, 4096, 70_000, 1 << 20, (1 << 20) + 1] {
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&bytes[..size]).unwrap();
    }
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&bytes).unwrap();
    let (largest, misaligned) = mounted
        .fs
        .record(|record| (record.write_sizes.iter().copied().max(), record.write_misaligned));
    assert_eq!((largest, misaligned), (Some(1 << 20), 0));
    mounted.session.notifier().inval_inode(NodeId(2), ByteRange::All).unwrap();
    let mut back = Vec::new();
    fs::File::open(mounted.path("file")).unwrap().read_to_end(&mut back).unwrap();
    assert!(back == bytes);
}

#[test]
fn attributes_that_are_set_are_seen() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    fs::write(&path, b"abc").unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(10).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    file.set_modified(time).unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    let seen = fs::metadata(&path).unwrap();
    assert_eq!((seen.len(), seen.uid(), seen.gid()), (10, 12, 34));
    assert_eq!(seen.modified().unwrap(), time);
    assert_eq!(seen.created().unwrap(), SystemTime::UNIX_EPOCH + Duration::from_secs(77));
}

#[test]
fn creation_carries_mode_and_umask() {
    let mounted = Mounted::new();
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o640).open(mounted.path("file")).unwrap();
    assert_eq!(fs::metadata(mounted.path("file")).unwrap().mode() & 0o7777, 0o640);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap().trim();
    let umask = u32::from_str_radix(umask, 8).unwrap();
    assert_eq!(mounted.fs.record(|record| record.umasks.clone()), [umask]);
}

#[test]
fn file_without_a_name_is_created_and_copied_into() {
    let mounted = Mounted::new();
    let mut options = fs::OpenOptions::new();
    let directory = mounted.at.path();
    let file = options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(directory);
    let file = file.unwrap();
    (&file).write_all(b"nameless").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8);

    fs::write(mounted.path("source"), b"12345678").unwrap();
    let source = fs::File::open(mounted.path("source")).unwrap();
    // SAFETY: both descriptors are open; null offsets mean the files' own.
    let copied = unsafe {
        let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        libc::copy_file_range(source.as_raw_fd(), null, fd, null, 8, 0)
    };
    assert_eq!(copied, 8);
    // SAFETY: the descriptor is open.
    let hole = unsafe { libc::lseek(source.as_raw_fd(), 1, libc::SEEK_HOLE) };
    assert_eq!(hole, 6);
}

#[test]
fn extended_attributes_are_sized_listed_and_read() {
    let mounted = Mounted::new();
    fs::write(mounted.path("file"), b"").unwrap();
    let path = CString::new(mounted.path("file").as_os_str().as_bytes()).unwrap();
    let mut room = [0u8; 64];
    // SAFETY: all strings are NUL-terminated, and buffers are given with their sizes.
    unsafe {
        let (name, value) = (c"user.colour".as_ptr(), b"red");
        assert_eq!(libc::setxattr(path.as_ptr(), name, value.as_ptr().cast(), 3, 0), 0);
        assert_eq!(libc::getxattr(path.as_ptr(), name, std::ptr::null_mut(), 0), 3);
        assert_eq!(libc::getxattr(path.as_ptr(), name, room.as_mut_ptr().cast(), 2), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ERANGE));
        assert_eq!(libc::getxattr(path.as_ptr(), name, room.as_mut_ptr().cast(), 64), 3);
        assert_eq!(&room[..3], value);
        assert_eq!(libc::listxattr(path.as_ptr(), room.as_mut_ptr().cast(), 64), 12);
    }
    assert_eq!(&room[..12], b"user.colour\0");
}

#[test]
fn fcntl_and_flock_are_told_apart() {
    let mounted = Mounted::new();
    let file = fs::File::create_new(mounted.path("file")).unwrap();
    // SAFETY: zero is a valid flock; the descriptor is open and the structure lives.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as _;
    range.l_start = 10;
    range.l_len = 5;
    unsafe {
        assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &range), 0);
        assert_eq!(libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB), 0);
    }
    let locks = mounted.fs.record(|record| record.locks.clone());
    assert_eq!((locks[0].family, locks[1].family), (LockFamily::Posix, LockFamily::Flock));
    assert_eq!((locks[0].lock.start, locks[0].lock.end), (10, 14));
    assert_eq!((locks[0].lock.kind, locks[1].lock.kind), (LockKind::Exclusive, LockKind::Shared));
}

#[test]
fn cached_attributes_and_names_last_until_invalidated() {
    let mounted = Mounted::new();
    let notifier = mounted.session.notifier();
    fs::write(mounted.path("file"), b"old").unwrap();
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"old");
    // Reading and writing make attributes stale; this has them cached again.
    assert_eq!(fs::metadata(mounted.path("file")).unwrap().len(), 3);
    mounted.fs.overwrite(2, b"newer");
    assert_eq!(fs::metadata(mounted.path("file")).unwrap().len(), 3);
    notifier.inval_attr(NodeId(2)).unwrap();
    assert_eq!(fs::metadata(mounted.path("file")).unwrap().len(), 5);
    notifier.inval_inode(NodeId(2), ByteRange::Part { offset: 0, length: 5 }).unwrap();
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"newer");

    let lookups = || mounted.fs.record(|record| record.lookups);
    let expect_lookup = |asked: usize| {
        let before = lookups();
        assert!(fs::metadata(mounted.path("absent")).is_err());
        assert_eq!(lookups(), before + asked);
    };
    expect_lookup(1);
    expect_lookup(0);
    notifier.inval_entry(NodeId::ROOT, b"absent").unwrap();
    expect_lookup(1);
    notifier.expire_entry(NodeId::ROOT, b"absent").unwrap();
    expect_lookup(1);
    notifier.inc_epoch().unwrap();
    expect_lookup(1);
    expect_lookup(0);
}

#[test]
fn pruned_inodes_are_forgotten_with_all_their_lookups() {
    let mounted = Mounted::new();
    fs::write(mounted.path("file"), b"x").unwrap();
    mounted.fs.wait_for(|record| (record.released == 1).then_some(()));
    let notifier = mounted.session.notifier();
    notifier.prune(&[NodeId(2), NodeId(99)]).unwrap();
    notifier.inval_entry(NodeId::ROOT, b"file").unwrap();
    mounted.fs.wait_for(|record| (record.forgotten.get(&2) == Some(&1)).then_some(()));
    notifier.delete(NodeId::ROOT, NodeId(2), b"file").unwrap();
    notifier.inval_attr(NodeId(12345)).unwrap();
}
