//! Advisory locks of processes on a mount, kept by the kernel and kept by the filesystem.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use gabion::mount::{Coherence, Locking};
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;

use crate::mount_world::{Kind, LOCKS, Role, SHARED, USUAL, World};

/// Not a test: what processes of tests do.
#[test]
fn in_a_role() {
    let Some((role, path)) = Role::own() else { return };
    let file = File::options().read(true).write(true).open(path).unwrap();
    let lock = |operation| match role.split_once('-').unwrap().1 {
        "flock" => flock(&file, operation),
        _ => fcntl_lock(&file, operation),
    };
    match role.split_once('-').unwrap().0 {
        "hold" => lock(FlockOperation::LockExclusive).unwrap(),
        "wait" => {
            assert_eq!(lock(FlockOperation::NonBlockingLockExclusive), Err(Errno::AGAIN));
            Role::say("waits");
            lock(FlockOperation::LockExclusive).unwrap();
        }
        _ => unreachable!("{role}"),
    }
    Role::say("holds");
    let _ = std::io::stdin().read(&mut [0]);
}

fn kinds() -> impl Iterator<Item = (Kind, &'static str)> {
    let classes = ["flock", "fcntl"];
    [USUAL, LOCKS, SHARED].into_iter().flat_map(move |kind| classes.map(|class| (kind, class)))
}

#[test]
fn who_waits_gets_the_lock_when_its_holder_is_gone() {
    for (kind, class) in kinds() {
        let Some(world) = World::new(kind) else { return };
        let path = world.path("file");
        File::create(&path).unwrap().write_all_at(b"x", 0).unwrap();
        let mut holder = Role::start(&format!("hold-{class}"), &path);
        holder.expect("holds");
        let mut waiter = Role::start(&format!("wait-{class}"), &path);
        waiter.expect("waits");
        if kind.locking == Locking::Filesystem || kind.coherence == Coherence::Shared {
            assert_eq!(world.fs().locks().held().len(), 1);
        }
        holder.finish();
        waiter.expect("holds");
        waiter.finish();
        let again = File::options().write(true).open(&path).unwrap();
        fcntl_lock(&again, FlockOperation::NonBlockingLockExclusive).unwrap();
        flock(&again, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}

#[test]
fn a_process_that_waits_for_a_lock_can_be_killed() {
    for (kind, class) in kinds() {
        let Some(world) = World::new(kind) else { return };
        let path = world.path("file");
        File::create(&path).unwrap();
        let mut holder = Role::start(&format!("hold-{class}"), &path);
        holder.expect("holds");
        let mut waiter = Role::start(&format!("wait-{class}"), &path);
        waiter.expect("waits");
        waiter.kill();
        // The holder's death frees it, and nobody else has it.
        holder.kill();
        let file = File::options().write(true).open(&path).unwrap();
        fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        drop(file);
        let mut last = Role::start(&format!("hold-{class}"), &path);
        last.expect("holds");
        last.finish();
    }
}
