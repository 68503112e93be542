//! Files and directories on a mount, as programs use them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use gabion_base::buffer::Blocks;
use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, XattrFlags, copy_file_range, fallocate,
    linkat, openat, renameat_with, setxattr, statvfs,
};
use rustix::io::Errno;

use crate::mount_world::{BACK, BLOCK_DEVICE, LOCKS, SHARED, USUAL, World};

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|index| (((index + seed) * 31) >> 3) as u8).collect()
}

#[test]
fn what_is_written_is_read_back_before_and_after_mounting_again() {
    for kind in [USUAL, BACK, LOCKS, SHARED, BLOCK_DEVICE] {
        let Some(mut world) = World::new(kind) else { return };
        let sizes = [0, 1, 100, 4096, 5000, 70_000, 1 << 20, 5_000_000];
        fs::create_dir(world.path("dir")).unwrap();
        for size in sizes {
            fs::write(world.path(&format!("dir/{size}")), pattern(size, size)).unwrap();
        }
        for round in ["before", "after"] {
            for size in sizes {
                let path = world.path(&format!("dir/{size}"));
                assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
                assert!(fs::read(&path).unwrap() == pattern(size, size), "{size} {round}");
            }
            if round == "before" {
                world.remount();
            }
        }
        let file = OpenOptions::new().write(true).open(world.path("dir/70000")).unwrap();
        file.write_all_at(&[7; 10_000], 65_000).unwrap();
        file.set_len(72_000).unwrap();
        drop(file);
        world.remount();
        let back = fs::read(world.path("dir/70000")).unwrap();
        assert_eq!(back.len(), 72_000);
        assert!(
            back[..65_000] == pattern(65_000, 70_000) && back[65_000..].iter().all(|b| *b == 7)
        );
    }
}

#[test]
fn renaming_over_a_file_replaces_it_for_those_who_open_it_anew() {
    let Some(world) = World::new(USUAL) else { return };
    fs::write(world.path("old"), b"old").unwrap();
    fs::write(world.path("new"), b"new").unwrap();
    let mut open = File::open(world.path("old")).unwrap();
    fs::rename(world.path("new"), world.path("old")).unwrap();
    assert_eq!(fs::read(world.path("old")).unwrap(), b"new");
    assert!(fs::metadata(world.path("new")).is_err());
    let mut content = String::new();
    open.read_to_string(&mut content).unwrap();
    assert_eq!(content, "old");
    let root = File::open(world.path("")).unwrap();
    let refused = renameat_with(&root, "old", &root, "old2", RenameFlags::EXCHANGE);
    assert_eq!(refused, Err(Errno::NOENT));
    fs::write(world.path("other"), b"other").unwrap();
    renameat_with(&root, "old", &root, "other", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(world.path("old")).unwrap(), b"other");
    let refused = renameat_with(&root, "old", &root, "other", RenameFlags::NOREPLACE);
    assert_eq!(refused, Err(Errno::EXIST));
}

#[test]
fn an_unlinked_file_works_as_long_as_it_is_open_and_its_space_comes_back() {
    for kind in [USUAL, LOCKS] {
        let Some(world) = World::new(kind) else { return };
        let path = world.path("file");
        fs::write(&path, pattern(10_000_000, 1)).unwrap();
        let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.sync_all().unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.write_all_at(b"more", 20_000_000).unwrap();
        let mut content = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content.len(), 20_000_004);
        assert!(content[..10_000_000] == pattern(10_000_000, 1));
        let ino = gabion_base::ids::Ino(file.metadata().unwrap().ino());
        assert!(world.fs().stat(world.fs().file(ino)).is_ok());
        drop(file);
        // The kernel forgets it, and the background removes it, at their own pace.
        for _ in 0..10_000 {
            if world.fs().stat(world.fs().file(ino)).is_err() {
                break;
            }
            std::thread::yield_now();
            statvfs(world.path("")).unwrap();
        }
        assert!(world.fs().stat(world.fs().file(ino)).is_err(), "it is still there");
    }
}

#[test]
fn appending_through_two_handles_loses_nothing() {
    for kind in [USUAL, BACK] {
        let Some(mut world) = World::new(kind) else { return };
        let open = || OpenOptions::new().append(true).create(true).open(world.path("log")).unwrap();
        let (mut one, mut two) = (open(), open());
        for _ in 0..100 {
            one.write_all(b"one\n").unwrap();
            two.write_all(b"second\n").unwrap();
        }
        drop((one, two));
        world.remount();
        assert_eq!(fs::read(world.path("log")).unwrap(), b"one\nsecond\n".repeat(100));
    }
}

#[test]
fn entries_of_a_large_directory_are_listed_once_each() {
    let Some(mut world) = World::new(USUAL) else { return };
    let dir = world.path("dir");
    fs::create_dir(&dir).unwrap();
    let names: BTreeSet<String> = (0..3000).map(|index| format!("entry-{index}")).collect();
    for name in &names {
        File::create(dir.join(name)).unwrap();
    }
    let list = || -> Vec<String> {
        let entries = fs::read_dir(&dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    for _ in 0..2 {
        let listed = list();
        assert_eq!(listed.len(), names.len());
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
    }
    world.remount();
    assert_eq!(list().len(), names.len());
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.metadata().unwrap().is_file());
        fs::remove_file(entry.path()).unwrap();
    }
    assert_eq!(list().len(), 0);
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn links_of_both_kinds_lead_to_the_file() {
    let Some(mut world) = World::new(USUAL) else { return };
    fs::write(world.path("file"), b"content").unwrap();
    fs::hard_link(world.path("file"), world.path("second")).unwrap();
    symlink("second", world.path("symbolic")).unwrap();
    assert_eq!(fs::metadata(world.path("file")).unwrap().nlink(), 2);
    let ino = fs::metadata(world.path("file")).unwrap().ino();
    fs::remove_file(world.path("file")).unwrap();
    assert_eq!(fs::metadata(world.path("second")).unwrap().nlink(), 1);
    world.remount();
    assert_eq!(fs::read(world.path("symbolic")).unwrap(), b"content");
    assert_eq!(fs::read_link(world.path("symbolic")).unwrap().to_str(), Some("second"));
    assert_eq!(fs::metadata(world.path("second")).unwrap().ino(), ino);
}

#[test]
fn attributes_stay_true_although_the_kernel_caches_them_for_ever() {
    for kind in [USUAL, BACK] {
        let Some(mut world) = World::new(kind) else { return };
        let (dir, file) = (world.path("dir"), world.path("dir/file"));
        fs::create_dir(&dir).unwrap();
        let before = fs::metadata(&dir).unwrap();
        let mut handle = File::create(&file).unwrap();
        let after = fs::metadata(&dir).unwrap();
        assert_eq!((before.len() + 1, before.nlink()), (after.len(), after.nlink()));
        fs::create_dir(world.path("dir/sub")).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().nlink(), before.nlink() + 1);
        fs::metadata(&file).unwrap();
        handle.write_all(&[1; 100_000]).unwrap();
        handle.sync_all().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().len(), 100_000);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4640)).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o4640);
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_500_000_000, 123_456_789);
        handle.set_modified(time).unwrap();
        drop(handle);
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), time);
        let cached = fs::metadata(&file).unwrap();
        // A kernel that collects writes asks for the blocks only when the file is closed.
        assert_eq!(cached.blocks(), 200);
        world.remount();
        let stored = fs::metadata(&file).unwrap();
        assert_eq!(stored.modified().unwrap(), time);
        assert_eq!((stored.mode(), stored.len()), (cached.mode(), cached.len()));
        assert_eq!(stored.blocks(), cached.blocks());
    }
}

#[test]
fn a_file_without_a_name_can_be_given_one() {
    let Some(mut world) = World::new(USUAL) else { return };
    let root = File::open(world.path("")).unwrap();
    let open = |flags| openat(&root, ".", OFlags::TMPFILE | OFlags::RDWR | flags, Mode::RUSR);
    let file = File::from(open(OFlags::empty()).unwrap());
    file.write_all_at(b"named later", 0).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    linkat(&root, &path, &root, "name", AtFlags::SYMLINK_FOLLOW).unwrap();
    let never = File::from(open(OFlags::EXCL).unwrap());
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&never));
    assert!(linkat(&root, &path, &root, "never", AtFlags::SYMLINK_FOLLOW).is_err());
    drop((file, never, root));
    world.remount();
    assert_eq!(fs::read(world.path("name")).unwrap(), b"named later");
}

#[test]
fn a_copy_shares_blocks_and_differs_after_a_write() {
    for kind in [USUAL, BACK] {
        let Some(mut world) = World::new(kind) else { return };
        let content = pattern(50_000_000, 3);
        fs::write(world.path("source"), &content).unwrap();
        let source = File::open(world.path("source")).unwrap();
        let target = File::create(world.path("target")).unwrap();
        source.sync_all().unwrap();
        let used = || {
            world.fs().syncfs().unwrap();
            world.fs().space().used
        };
        let before = used();
        let (mut from, mut to) = (0, 0);
        while to < content.len() as u64 {
            let left = content.len() - to as usize;
            let count =
                copy_file_range(&source, Some(&mut from), &target, Some(&mut to), left).unwrap();
            assert!(count > 0, "at {to}");
        }
        assert!(used() < before + 2000, "{before} before, {} after", used());
        target.write_all_at(b"changed", 1_000_000).unwrap();
        drop((source, target));
        world.remount();
        assert!(fs::read(world.path("source")).unwrap() == content);
        let mut changed = content;
        changed[1_000_000..1_000_007].copy_from_slice(b"changed");
        assert!(fs::read(world.path("target")).unwrap() == changed);
    }
}

#[test]
fn what_the_kernel_has_not_handed_over_yet_is_no_hole() {
    use rustix::fs::SeekFrom::{Data, Hole};
    const PAGE: u64 = 4096;
    for kind in [BACK, USUAL] {
        let Some(world) = World::new(kind) else { return };
        let path = world.path("sparse");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let put = |page: u64| file.write_all_at(&[page as u8; PAGE as usize], page * PAGE).unwrap();
        let seek = |from| rustix::fs::seek(&file, from);
        assert_eq!(seek(Data(0)), Err(Errno::NXIO));
        put(20);
        assert_eq!(seek(Data(0)), Ok(20 * PAGE));
        put(40);
        assert_eq!(seek(Hole(20 * PAGE)), Ok(21 * PAGE));
        assert_eq!(seek(Data(21 * PAGE)), Ok(40 * PAGE));
        put(41);
        assert_eq!(seek(Hole(40 * PAGE)), Ok(42 * PAGE));
        [20, 22, 24].into_iter().for_each(put);
        file.sync_all().unwrap();
        [21, 23, 25].into_iter().for_each(put);
        assert_eq!(seek(Hole(20 * PAGE)), Ok(26 * PAGE));
        put(30);
        assert_eq!(seek(Data(26 * PAGE)), Ok(30 * PAGE));
        assert_eq!(seek(Data(42 * PAGE)), Err(Errno::NXIO));
        let content = fs::read(&path).unwrap();
        let pages = content.chunks(PAGE as usize).map(|page| page[0]).collect::<Vec<u8>>();
        let written = [20, 21, 22, 23, 24, 25, 30, 40, 41];
        assert!(
            (0..42).all(|page| pages[page] == if written.contains(&page) { page as u8 } else { 0 })
        );
    }
}

#[test]
fn holes_are_found_made_and_filled() {
    let Some(mut world) = World::new(USUAL) else { return };
    let path = world.path("sparse");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(&[1; 65_536], 1 << 20).unwrap();
    file.set_len(4 << 20).unwrap();
    file.sync_all().unwrap();
    let seek = |from| rustix::fs::seek(&file, from);
    use rustix::fs::SeekFrom::{Data, Hole};
    assert_eq!(seek(Data(0)), Ok(1 << 20));
    assert_eq!(seek(Hole(1 << 20)), Ok((1 << 20) + 65_536));
    assert_eq!(seek(Data(2 << 20)), Err(Errno::NXIO));
    assert_eq!(seek(Hole(2 << 20)), Ok(2 << 20));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 1 << 20, 32_768).unwrap();
    assert_eq!(seek(Data(0)), Ok((1 << 20) + 32_768));
    fallocate(&file, FallocateFlags::empty(), 0, 5 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5 << 20);
    assert!(file.metadata().unwrap().blocks() >= 5 * 2048);
    drop(file);
    world.remount();
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len(), 5 << 20);
    assert_eq!(content.iter().filter(|byte| **byte == 1).count(), 32_768);
}

#[test]
fn the_kernel_enforces_permissions_and_acls() {
    let Some(world) = World::new(USUAL) else { return };
    let path = world.path("file");
    fs::write(&path, b"secret").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let reads = || {
        let mut cat = Command::new("cat");
        cat.arg(&path).uid(65_534).gid(65_534);
        cat.output().unwrap().status.success()
    };
    assert!(!reads());
    // user::rw- user:65534:r-- group::--- mask::r-- other::---
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1, 6, u32::MAX), (2, 4, 65_534), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend_from_slice(&u16::to_le_bytes(tag));
        acl.extend_from_slice(&u16::to_le_bytes(permissions));
        acl.extend_from_slice(&u32::to_le_bytes(id));
    }
    setxattr(&path, "system.posix_acl_access", &acl, XattrFlags::empty()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    assert!(reads());
    let mut back = [0_u8; 100];
    let length = rustix::fs::getxattr(&path, "system.posix_acl_access", &mut back).unwrap();
    assert_eq!(back[..length], acl);
    setxattr(&path, "user.comment", b"text", XattrFlags::CREATE).unwrap();
    let again = setxattr(&path, "user.comment", b"text", XattrFlags::CREATE);
    assert_eq!(again, Err(Errno::EXIST));
    let mut names = [0; 100];
    let length = rustix::fs::listxattr(&path, &mut names).unwrap();
    let names = String::from_utf8_lossy(&names[..length]);
    assert!(names.contains("user.comment\0"), "{names:?}");
    rustix::fs::removexattr(&path, "user.comment").unwrap();
    let gone = rustix::fs::getxattr(&path, "user.comment", &mut back);
    assert_eq!(gone, Err(Errno::NODATA));
}

#[test]
fn programs_run_from_a_mount_and_stores_to_mapped_pages_are_kept() {
    for kind in [USUAL, BACK] {
        let Some(mut world) = World::new(kind) else { return };
        fs::copy("/bin/cat", world.path("cat")).unwrap();
        let output = Command::new(world.path("cat")).arg(world.path("cat")).output().unwrap();
        assert!(output.stdout == fs::read("/bin/cat").unwrap());
        fs::write(world.path("mapped"), [1; 10_000]).unwrap();
        let script = "import mmap,sys\n\
            f=open(sys.argv[1],'r+b')\n\
            m=mmap.mmap(f.fileno(),0)\n\
            m[5000:5005]=b'store'\n\
            assert open(sys.argv[1],'rb').read()[5000:5005]==b'store'\n\
            m.flush();m.close()";
        let mut python = Command::new("python3");
        let Ok(status) = python.args(["-c", script]).arg(world.path("mapped")).status() else {
            eprintln!("left out: needs python3");
            return;
        };
        assert!(status.success());
        world.remount();
        let content = fs::read(world.path("mapped")).unwrap();
        assert_eq!(&content[5000..5005], b"store");
        assert_eq!((content[4999], content[5005]), (1, 1));
    }
}

#[test]
fn the_filesystem_tells_how_full_it_is() {
    let Some(world) = World::new(USUAL) else { return };
    let before = statvfs(world.path("")).unwrap();
    assert_eq!(before.f_namemax, 255);
    assert!(before.f_blocks * before.f_frsize <= 256 << 20);
    assert!(before.f_bavail * before.f_frsize > 200 << 20);
    fs::write(world.path("file"), vec![1; 50 << 20]).unwrap();
    File::open(world.path("file")).unwrap().sync_all().unwrap();
    let after = statvfs(world.path("")).unwrap();
    let used = (before.f_bavail - after.f_bavail) * before.f_frsize;
    assert!((50 << 20..60 << 20).contains(&used), "{used}");
}

/// Writes until the filesystem is full and says how many bytes went in. With writes collected by
/// the kernel, it is fsync that says so.
fn fill(path: &std::path::Path) -> u64 {
    let mut file = File::create(path).unwrap();
    let chunk = vec![1; 1 << 20];
    for index in 0..1000 {
        let error = match file.write_all(&chunk) {
            Ok(()) if index % 16 < 15 => continue,
            Ok(()) => match file.sync_data() {
                Ok(()) => continue,
                Err(error) => error,
            },
            Err(error) => error,
        };
        assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{error}");
        return index << 20;
    }
    panic!("it is never full");
}

#[test]
fn a_full_filesystem_says_so_and_removing_makes_room_at_once() {
    for kind in [USUAL, BACK] {
        let Some(mut world) = World::new(kind) else { return };
        let first = fill(&world.path("first"));
        assert!(first > 150 << 20, "only {first} bytes of 256 MiB");
        fs::remove_file(world.path("first")).unwrap();
        let second = fill(&world.path("second"));
        assert!(second + (32 << 20) > first, "{second} after {first}");
        fs::remove_file(world.path("second")).unwrap();
        fs::write(world.path("third"), b"fits").unwrap();
        world.remount();
        assert_eq!(fs::read(world.path("third")).unwrap(), b"fits");
        assert!(world.fs().space().used < 1000, "{:?}", world.fs().space());
    }
}

/// With pages and past them, through a mapping, and where set-id bits go.
#[test]
fn whatever_is_written_keeps_the_time_that_programs_were_told() {
    let Some(mut world) = World::new(BACK) else { return };
    let names = ["pages", "direct", "mapped", "set-user"];
    for name in names {
        fs::write(world.path(name), [1; 8192]).unwrap();
    }
    fs::set_permissions(world.path("set-user"), Permissions::from_mode(0o4755)).unwrap();
    world.remount();
    let times = |world: &World| {
        names.map(|name| {
            let found = fs::metadata(world.path(name)).unwrap();
            (found.modified().unwrap(), found.ctime_nsec())
        })
    };
    let before = times(&world);
    let open = |name, flags| {
        OpenOptions::new().write(true).custom_flags(flags).open(world.path(name)).unwrap()
    };
    open("pages", 0).write_all_at(&[2], 0).unwrap();
    let mut blocks = Blocks::zeroed(1);
    blocks.bytes_mut().fill(2);
    open("direct", libc::O_DIRECT).write_all_at(blocks.bytes(), 4096).unwrap();
    let store = "import mmap, sys\nwith open(sys.argv[1], 'r+b') as file:\n    \
                 mmap.mmap(file.fileno(), 0)[1] = 2";
    let stored = Command::new("python3").args(["-c", store]).arg(world.path("mapped")).status();
    assert!(stored.unwrap().success());
    open("set-user", 0).write_all_at(&[2], 0).unwrap();
    let told = times(&world);
    for (before, told) in before.iter().zip(&told) {
        assert!(told.0 > before.0, "{before:?} {told:?}");
    }
    world.remount();
    assert_eq!(times(&world), told);
    let mode = fs::metadata(world.path("set-user")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o4755, "the superuser keeps them");
}
