//! Any values of what messages are made of.

use std::fmt::Debug;

use gabion_base::ids::{Ino, SubvolId};
use gabion_base::time::Timestamp;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength};
use gabion_fs::permission::Access;
use gabion_fs::{Caller, Changes, Groups, Privileges, SetTime, Through, Trust};
use gabion_link::identities::{Identities, Squash};
use gabion_link::range::KeyRange;
use gabion_link::wire::{GROUPS_MAX, NAME_BYTES_MAX};
use gabion_map::txn::Value;
use gabion_map::{FileId, Key, Kind, LockMode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// One of `choices`.
pub fn one<T: Clone + Debug + 'static>(choices: &[T]) -> impl Strategy<Value = T> + Clone + use<T> {
    select(choices.to_vec())
}

pub fn file() -> impl Strategy<Value = FileId> {
    (any::<u32>(), 0..1_u64 << 63).prop_map(|(subvol, ino)| FileId::new(SubvolId(subvol), Ino(ino)))
}

pub fn key() -> impl Strategy<Value = Key> {
    (file(), 1..=u8::MAX, any::<u64>()).prop_map(|(file, kind, at)| file.key(Kind(kind), at))
}

pub fn range() -> impl Strategy<Value = KeyRange> {
    (key(), 1..=u8::MAX, any::<u64>()).prop_map(|(one, kind, at)| {
        let other = one.file().key(Kind(kind), at);
        KeyRange::new(one.min(other), one.max(other)).expect("of one object, in order")
    })
}

pub fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    // Long ones are rare, but there are some.
    prop_oneof![20 => vec(any::<u8>(), 0..40), 1 => any::<u8>().prop_map(move |b| vec![b; max])]
}

pub fn name() -> impl Strategy<Value = Vec<u8>> {
    bytes(NAME_BYTES_MAX)
}

pub fn value() -> impl Strategy<Value = Value> {
    bytes(gabion_map::txn::VALUE_LENGTH_MAX).prop_map(Value::from)
}

pub fn time() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(s, nanos)| Timestamp::new(s, nanos))
}

pub fn privileges() -> impl Strategy<Value = Privileges> + Clone {
    one(&[Privileges::Keep, Privileges::Clear])
}

pub fn caller() -> impl Strategy<Value = Caller> {
    let few = vec(any::<u32>(), 0..9);
    let groups = prop_oneof![20 => few, 1 => any::<u32>().prop_map(|gid| vec![gid; GROUPS_MAX])];
    let trust = one(&[Trust::CheckedByKernel, Trust::CheckHere]);
    (any::<[u32; 3]>(), groups, trust).prop_map(|([uid, gid, umask], groups, trust)| Caller {
        uid,
        gid,
        groups: Groups::new(&groups),
        umask,
        trust,
    })
}

pub fn access() -> impl Strategy<Value = Access> {
    (0..8_u32).prop_map(|bits| Access::from_bits(bits).expect("it is below 8"))
}

pub fn identities() -> impl Strategy<Value = Identities> {
    let trust = one(&[Trust::CheckedByKernel, Trust::CheckHere]);
    let squash = one(&[Squash::Nobody, Squash::Root, Squash::All]);
    (trust, squash, any::<[u32; 2]>()).prop_map(|(trust, squash, [uid, gid])| Identities {
        trust,
        squash,
        uid,
        gid,
    })
}

pub fn lock_class() -> impl Strategy<Value = LockClass> {
    one(&[LockClass::Posix, LockClass::OpenFile, LockClass::Flock])
}

pub fn lock_range() -> impl Strategy<Value = LockRange> {
    any::<(u64, u64)>().prop_map(|(a, b)| LockRange::new(a.min(b), a.max(b)).expect("in order"))
}

pub fn lock() -> impl Strategy<Value = Lock> {
    let strength = one(&[Strength::Shared, Strength::Exclusive]);
    let parts = (file(), lock_class(), any::<(u64, u64)>(), any::<u32>(), strength, lock_range());
    parts.prop_map(|(file, class, (client, number), pid, strength, range)| {
        let owner = LockOwner { client, number };
        Lock { file, class, owner, pid, strength, range }
    })
}

pub fn changes() -> impl Strategy<Value = Changes> {
    let set_time = || prop_oneof![Just(SetTime::Now), time().prop_map(SetTime::At)];
    let owners = any::<(Option<u32>, Option<u32>, Option<u32>)>();
    let size = option::of((any::<u64>(), privileges()));
    let times = (option::of(set_time()), option::of(set_time()), option::of(time()));
    let through = one(&[Through::Name, Through::Handle]);
    (owners, size, times, through).prop_map(|(owners, size, (atime, mtime, ctime), through)| {
        let (permissions, uid, gid) = owners;
        Changes { permissions, uid, gid, size, atime, mtime, ctime, through }
    })
}

pub fn mode() -> impl Strategy<Value = LockMode> + Clone {
    one(&[LockMode::Shared, LockMode::Exclusive])
}
