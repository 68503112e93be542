//! Advisory locks with waiters.

use std::sync::Arc;

use gabion_base::sync::Mutex;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};
use gabion_fs::{Error, Result};
use gabion_map::FileId;
use gabion_node::LockEnd;

use crate::world::{MIB, World};

type Ends = Arc<Mutex<Vec<(u64, Result<()>)>>>;

fn lock(file: FileId, owner: u64, strength: Strength) -> Lock {
    Lock {
        file,
        class: LockClass::Posix,
        owner: LockOwner { client: 0, number: owner },
        pid: owner as u32,
        strength,
        range: LockRange::WHOLE,
    }
}

fn recorded(ends: &Ends, owner: u64) -> LockEnd {
    let ends = Arc::clone(ends);
    Box::new(move |result| ends.lock().push((owner, result)))
}

#[test]
fn who_waits_is_told_when_the_lock_is_free() {
    let world = World::new(64 * MIB);
    let (file, locks, ends) = (world.root(), world.fs.locks(), Ends::default());
    let acquire = |owner, wait| {
        locks.acquire(lock(file, owner, Strength::Exclusive), wait, recorded(&ends, owner))
    };
    assert!(acquire(1, Wait::No).is_none());
    assert!(acquire(2, Wait::Yes).is_some());
    assert!(acquire(3, Wait::No).is_none());
    assert_eq!(locks.conflict(&lock(file, 3, Strength::Shared)).unwrap().pid, 1);
    let owner = LockOwner { client: 0, number: 1 };
    locks.release(file, LockClass::Posix, owner, LockRange::WHOLE);
    let ends: Vec<_> = ends.lock().drain(..).collect();
    assert!(matches!(ends[..], [(1, Ok(())), (3, Err(Error::WouldBlock)), (2, Ok(()))]));
    assert_eq!(locks.held().len(), 1);
}

#[test]
fn a_wait_that_is_given_up_ends_once_and_leaves_nothing() {
    let world = World::new(64 * MIB);
    let (file, locks, ends) = (world.root(), world.fs.locks(), Ends::default());
    let acquire = |owner| {
        let lock = lock(file, owner, Strength::Exclusive);
        locks.acquire(lock, Wait::Yes, recorded(&ends, owner))
    };
    acquire(1);
    let ticket = acquire(2).unwrap();
    locks.cancel(ticket);
    locks.cancel(ticket);
    locks.release_client(0);
    let ends: Vec<_> = ends.lock().drain(..).collect();
    assert!(matches!(ends[..], [(1, Ok(())), (2, Err(Error::Interrupted))]));
    assert!(locks.held().is_empty());
}
