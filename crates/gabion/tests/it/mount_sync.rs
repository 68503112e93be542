//! What is durable after which system call.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use gabion_base::time::Timestamp;
use gabion_fs::Caller;
use gabion_node::LocalFs;
use rustix::fs::{sync, syncfs};

use crate::mount_world::{BACK, BLOCK_DEVICE, USUAL, World};
use crate::world::await_tick;

fn content(fs: &LocalFs, name: &str) -> Option<Vec<u8>> {
    let caller = Caller::superuser();
    let found = fs.lookup(&caller, fs.root(), name.as_bytes()).ok()?;
    let mut bytes = vec![0; found.size as usize];
    let count = fs.read(found.file, 0, &mut bytes).unwrap();
    assert_eq!(count, bytes.len());
    Some(bytes)
}

#[test]
fn fsync_of_a_file_reaches_the_disk() {
    for kind in [USUAL, BACK, BLOCK_DEVICE] {
        let Some(world) = World::new(kind) else { return };
        fs::write(world.path("unsynced"), b"later").unwrap();
        let large = vec![5; 3_000_000];
        for (name, bytes) in [("small", &b"synced"[..]), ("large", &large)] {
            fs::write(world.path(name), bytes).unwrap();
            File::open(world.path(name)).unwrap().sync_all().unwrap();
            assert!(content(&world.after_crash(), name).as_deref() == Some(bytes), "{name}");
        }
    }
}

#[test]
fn what_is_synced_has_the_time_that_was_told() {
    let Some(world) = World::new(BACK) else { return };
    let file = File::create(world.path("file")).unwrap();
    file.sync_all().unwrap();
    await_tick();
    file.write_all_at(b"later", 0).unwrap();
    let told = file.metadata().unwrap();
    file.sync_data().unwrap();
    let fs = world.fs();
    let found = fs.lookup(&Caller::superuser(), fs.root(), b"file").unwrap();
    assert_eq!(found.mtime, Timestamp::new(told.mtime(), told.mtime_nsec() as u32));
    assert_eq!(found.ctime, Timestamp::new(told.ctime(), told.ctime_nsec() as u32));
}

#[test]
fn fsync_of_a_directory_makes_its_names_durable() {
    let Some(world) = World::new(USUAL) else { return };
    fs::write(world.path("old"), b"").unwrap();
    fs::rename(world.path("old"), world.path("new")).unwrap();
    File::open(world.path("")).unwrap().sync_all().unwrap();
    let after = world.after_crash();
    assert!(content(&after, "new").is_some() && content(&after, "old").is_none());
}

#[test]
fn sync_reaches_the_disk_on_a_block_device() {
    let Some(world) = World::new(BLOCK_DEVICE) else { return };
    fs::write(world.path("file"), vec![8; 200_000]).unwrap();
    sync();
    assert!(content(&world.after_crash(), "file") == Some(vec![8; 200_000]));
    fs::write(world.path("second"), b"2").unwrap();
    syncfs(File::open(world.path("")).unwrap()).unwrap();
    assert!(content(&world.after_crash(), "second").is_some());
}

#[test]
fn unmounting_a_block_device_returns_when_all_is_on_disk() {
    let Some(world) = World::new(BLOCK_DEVICE) else { return };
    fs::write(world.path("file"), vec![8; 200_000]).unwrap();
    let mounted = world.mounted.as_ref().unwrap();
    mounted.unmount(gabion_fuse::mount::Unmount::Plain).unwrap();
    assert!(content(&world.after_crash(), "file") == Some(vec![8; 200_000]));
    mounted.wait().unwrap();
}
