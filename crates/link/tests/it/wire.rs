//! Whatever is said is understood as it was meant: any values of any message, there and back.

use std::fmt::Debug;
use std::sync::Arc;

use gabion_base::ids::{Ino, SubvolId, Uuid};
use gabion_base::time::Timestamp;
use gabion_fs::create::Linkable;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};
use gabion_fs::permission::Access;
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Attributes, Caller, Changes, Disposition, Error, FileType, Groups, IfExists, IfTaken, Leave,
    OpenRequest, Privileges, SetTime, SizeRule, SpaceRequest, Through, Trust, WriteAt,
};
use gabion_map::format::subvolume::{Count, Most, Quota, Schedule};
use gabion_map::key::INO_END;
use gabion_map::txn::{SeekTarget, Value};
use gabion_map::{FileId, Key, Kind, LockMode, MapError};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use gabion_link::errand::{DifferenceRow, Errand, QuotaRow, Report, SnapshotRow, SubvolumeRow};
use gabion_link::identities::{Identities, Squash};
use gabion_link::message::{
    Answer, Call, CallId, Change, ChangeNumber, Era, Grant, Hello, Prefetch, ReadLease, Refusal,
    RefusalReason, SessionId, ToClient, ToServer, Welcome, Witness,
};
use gabion_link::range::KeyRange;
use gabion_link::table::{Keep, RevokeId};
use gabion_link::wire::{
    DATA_BYTES_MAX, FrameKind, GROUPS_MAX, Header, NAME_BYTES_MAX, TARGET_BYTES_MAX,
    TEXT_BYTES_MAX, XATTR_BYTES_MAX,
};

/// One of `choices`.
fn one<T: Clone + Debug + 'static>(choices: &[T]) -> impl Strategy<Value = T> + Clone + use<T> {
    select(choices.to_vec())
}

fn file() -> impl Strategy<Value = FileId> {
    (any::<u32>(), 0..1_u64 << 63).prop_map(|(subvol, ino)| FileId::new(SubvolId(subvol), Ino(ino)))
}

fn key() -> impl Strategy<Value = Key> {
    (file(), 1..=u8::MAX, any::<u64>()).prop_map(|(file, kind, at)| file.key(Kind(kind), at))
}

fn range() -> impl Strategy<Value = KeyRange> {
    (key(), 1..=u8::MAX, any::<u64>()).prop_map(|(one, kind, at)| {
        let other = one.file().key(Kind(kind), at);
        KeyRange::new(one.min(other), one.max(other)).expect("of one object, in order")
    })
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    // Long ones are rare, but there are some.
    prop_oneof![20 => vec(any::<u8>(), 0..40), 1 => any::<u8>().prop_map(move |b| vec![b; max])]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    bytes(NAME_BYTES_MAX)
}

fn value() -> impl Strategy<Value = Value> {
    bytes(gabion_map::txn::VALUE_LENGTH_MAX).prop_map(Value::from)
}

fn time() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(s, nanos)| Timestamp::new(s, nanos))
}

fn privileges() -> impl Strategy<Value = Privileges> + Clone {
    one(&[Privileges::Keep, Privileges::Clear])
}

fn caller() -> impl Strategy<Value = Caller> {
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

fn access() -> impl Strategy<Value = Access> {
    (0..8_u32).prop_map(|bits| Access::from_bits(bits).expect("it is below 8"))
}

fn identities() -> impl Strategy<Value = Identities> {
    let trust = one(&[Trust::CheckedByKernel, Trust::CheckHere]);
    let squash = one(&[Squash::Nobody, Squash::Root, Squash::All]);
    (trust, squash, any::<[u32; 2]>()).prop_map(|(trust, squash, [uid, gid])| Identities {
        trust,
        squash,
        uid,
        gid,
    })
}

fn lock_class() -> impl Strategy<Value = LockClass> {
    one(&[LockClass::Posix, LockClass::OpenFile, LockClass::Flock])
}

fn lock_range() -> impl Strategy<Value = LockRange> {
    any::<(u64, u64)>().prop_map(|(a, b)| LockRange::new(a.min(b), a.max(b)).expect("in order"))
}

fn lock() -> impl Strategy<Value = Lock> {
    let strength = one(&[Strength::Shared, Strength::Exclusive]);
    let parts = (file(), lock_class(), any::<(u64, u64)>(), any::<u32>(), strength, lock_range());
    parts.prop_map(|(file, class, (client, number), pid, strength, range)| {
        let owner = LockOwner { client, number };
        Lock { file, class, owner, pid, strength, range }
    })
}

fn changes() -> impl Strategy<Value = Changes> {
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

fn call_for_bytes() -> impl Strategy<Value = Call> {
    let at = prop_oneof![Just(WriteAt::End), any::<u64>().prop_map(WriteAt::Offset)];
    let lease = one(&[ReadLease::None, ReadLease::AtOnce, ReadLease::InTurn]);
    let request = one(&[
        SpaceRequest::Allocate(SizeRule::Extend),
        SpaceRequest::Allocate(SizeRule::Keep),
        SpaceRequest::Punch,
        SpaceRequest::Zero(SizeRule::Extend),
        SpaceRequest::Zero(SizeRule::Keep),
        SpaceRequest::Collapse,
        SpaceRequest::Insert,
    ]);
    let target = one(&[SeekTarget::Data, SeekTarget::Hole]);
    prop_oneof![
        (file(), any::<u64>(), any::<u32>(), lease)
            .prop_map(|(file, offset, length, lease)| Call::Read { file, offset, length, lease }),
        (file(), at, privileges(), bytes(DATA_BYTES_MAX)).prop_map(
            |(file, at, privileges, bytes)| {
                let bytes = Arc::new(bytes);
                Call::Write { file, at, privileges, bytes }
            }
        ),
        (file(), request, any::<(u64, u64)>(), privileges()).prop_map(
            |(file, request, (offset, length), privileges)| Call::Fallocate {
                file,
                request,
                offset,
                length,
                privileges
            }
        ),
        (file(), file(), any::<[u64; 3]>(), privileges()).prop_map(
            |(source, target, [source_offset, target_offset, length], privileges)| Call::Copy {
                source,
                source_offset,
                target,
                target_offset,
                length,
                privileges
            }
        ),
        (file(), any::<u64>(), target).prop_map(|(file, offset, target)| Call::Seek {
            file,
            offset,
            target
        }),
        option::of(file()).prop_map(|file| Call::Sync { file }),
        any::<u32>().prop_map(|of| Call::Space { of: SubvolId(of) }),
    ]
}

fn call_for_names() -> impl Strategy<Value = Call> {
    let if_exists = one(&[IfExists::Open, IfExists::Fail]);
    let access = access();
    let request = (access, option::of(privileges()))
        .prop_map(|(access, truncate)| OpenRequest { access, truncate });
    let file_type = one(&[
        FileType::Fifo,
        FileType::CharDevice,
        FileType::Directory,
        FileType::BlockDevice,
        FileType::Regular,
        FileType::Symlink,
        FileType::Socket,
    ]);
    let linkable = one(&[Linkable::Yes, Linkable::No]);
    let if_taken = one(&[IfTaken::Replace, IfTaken::Fail, IfTaken::Exchange]);
    let leave = one(&[Leave::Nothing, Leave::Whiteout]);
    let numbers = || any::<(u32, u32)>();
    prop_oneof![
        (file(), name(), any::<u32>(), if_exists, request).prop_map(
            |(parent, name, permissions, if_exists, request)| Call::Create {
                parent,
                name,
                permissions,
                if_exists,
                request
            }
        ),
        (file(), any::<u32>(), linkable).prop_map(|(parent, permissions, linkable)| {
            Call::Tmpfile { parent, permissions, linkable }
        }),
        (file(), name(), file_type, numbers()).prop_map(
            |(parent, name, file_type, (permissions, rdev))| Call::Mknod {
                parent,
                name,
                file_type,
                permissions,
                rdev
            }
        ),
        (file(), name(), any::<u32>()).prop_map(|(parent, name, permissions)| Call::Mkdir {
            parent,
            name,
            permissions
        }),
        (file(), name(), bytes(TARGET_BYTES_MAX))
            .prop_map(|(parent, name, target)| Call::Symlink { parent, name, target }),
        (file(), file(), name()).prop_map(|(file, parent, name)| Call::Link { file, parent, name }),
        (file(), name()).prop_map(|(parent, name)| Call::Unlink { parent, name }),
        (file(), name()).prop_map(|(parent, name)| Call::Rmdir { parent, name }),
        (file(), name(), file(), name(), if_taken, leave).prop_map(
            |(source_parent, source_name, target_parent, target_name, if_taken, leave)| {
                Call::Rename {
                    source_parent,
                    source_name,
                    target_parent,
                    target_name,
                    if_taken,
                    leave,
                }
            }
        ),
    ]
}

fn call_for_the_rest() -> impl Strategy<Value = Call> {
    let prefetch = one(&[Prefetch::Names, Prefetch::Children]);
    let condition = one(&[SetCondition::Always, SetCondition::Absent, SetCondition::Present]);
    let set_group = one(&[SetGroupBit::Keep, SetGroupBit::Clear]);
    prop_oneof![
        (vec((range(), mode()), 0..5), vec((range(), mode()), 0..3), prefetch)
            .prop_map(|(needed, welcome, prefetch)| Call::Acquire { needed, welcome, prefetch }),
        any::<[u32; 2]>().prop_map(|[of, count]| Call::Numbers { of: SubvolId(of), count }),
        (file(), changes()).prop_map(|(file, changes)| Call::Setattr { file, changes }),
        (file(), name(), bytes(XATTR_BYTES_MAX), condition, set_group).prop_map(
            |(file, name, value, condition, set_group)| Call::SetXattr {
                file,
                name,
                value,
                condition,
                set_group
            }
        ),
        (file(), name()).prop_map(|(file, name)| Call::RemoveXattr { file, name }),
        (lock(), one(&[Wait::Yes, Wait::No])).prop_map(|(lock, wait)| Call::Lock { lock, wait }),
        (file(), lock_class(), any::<u64>(), lock_range())
            .prop_map(|(file, class, owner, range)| Call::Unlock { file, class, owner, range }),
        lock().prop_map(|lock| Call::TestLock { lock }),
        errand().prop_map(Call::Run),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..600)
}

fn subvolume() -> impl Strategy<Value = SubvolId> + Clone {
    any::<u32>().prop_map(SubvolId)
}

fn errand() -> impl Strategy<Value = Errand> {
    prop_oneof![
        (path(), subvolume()).prop_map(|(path, after)| Errand::Snapshots { path, after }),
        (path(), name(), any::<i64>()).prop_map(|(path, name, created)| Errand::Snapshot {
            path,
            name,
            created
        }),
        (path(), vec(name(), 0..5))
            .prop_map(|(path, names)| Errand::RemoveSnapshots { path, names }),
        (path(), name(), any::<bool>()).prop_map(|(path, name, is_held)| Errand::Hold {
            path,
            name,
            is_held
        }),
        (path(), name(), name(), any::<u64>()).prop_map(|(path, from, to, skip)| Errand::Compare {
            path,
            from,
            to,
            skip
        }),
        subvolume().prop_map(|after| Errand::Subvolumes { after }),
        (path(), option::of(path()), any::<i64>())
            .prop_map(|(path, of, created)| Errand::Subvolume { path, of, created }),
        path().prop_map(|path| Errand::RemoveSubvolume { path }),
        (path(), name(), name(), any::<i64>()).prop_map(|(path, name, keep_as, created)| {
            Errand::Rollback { path, name, keep_as, created }
        }),
        (path(), path()).prop_map(|(from, to)| Errand::RenameSubvolume { from, to }),
        subvolume().prop_map(|after| Errand::Quotas { after }),
        (path(), most()).prop_map(|(path, most)| Errand::SetQuota { path, most }),
        path().prop_map(|path| Errand::Schedule { path }),
        (path(), keep()).prop_map(|(path, keep)| Errand::SetSchedule { path, keep }),
    ]
}

fn most() -> impl Strategy<Value = Most> {
    let number = || option::of(any::<u64>());
    (number(), number()).prop_map(|(blocks, objects)| Most { blocks, objects })
}

fn keep() -> impl Strategy<Value = Schedule> {
    any::<[u16; 4]>().prop_map(|[hourly, daily, weekly, monthly]| Schedule {
        hourly,
        daily,
        weekly,
        monthly,
    })
}

fn report() -> impl Strategy<Value = Report> {
    let row = (subvolume(), name(), any::<i64>(), any::<bool>())
        .prop_map(|(id, name, created, is_held)| SnapshotRow { id, name, created, is_held });
    let of_subvolume =
        (subvolume(), option::of(path())).prop_map(|(id, path)| SubvolumeRow { id, path });
    let difference = prop_oneof![
        path().prop_map(DifferenceRow::Added),
        path().prop_map(DifferenceRow::Removed),
        path().prop_map(DifferenceRow::Changed),
        (path(), path()).prop_map(|(from, to)| DifferenceRow::Renamed { from, to }),
    ];
    let count = any::<[u64; 2]>().prop_map(|[blocks, objects]| Count { blocks, objects });
    let quota = (most(), option::of(count)).prop_map(|(most, count)| Quota { most, count });
    let limited = (subvolume(), option::of(path()), quota).prop_map(|(id, path, quota)| QuotaRow {
        id,
        path,
        quota,
    });
    prop_oneof![
        (vec(limited, 0..4), any::<bool>()).prop_map(|(rows, more)| Report::Quotas { rows, more }),
        keep().prop_map(|keep| Report::Schedule { keep }),
        (vec(row, 0..4), any::<bool>()).prop_map(|(rows, more)| Report::Snapshots { rows, more }),
        (vec(of_subvolume, 0..4), any::<bool>())
            .prop_map(|(rows, more)| Report::Subvolumes { rows, more }),
        (vec(difference, 0..4), any::<bool>())
            .prop_map(|(rows, more)| Report::Differences { rows, more }),
    ]
}

fn mode() -> impl Strategy<Value = LockMode> + Clone {
    one(&[LockMode::Shared, LockMode::Exclusive])
}

fn change() -> impl Strategy<Value = Change> {
    let made = option::of((0..INO_END).prop_map(Ino));
    (any::<[u64; 2]>(), time(), made, caller(), call()).prop_map(
        |([number, order], now, made, caller, call)| {
            let number = ChangeNumber(number);
            Change { number, order, now, made, caller, call }
        },
    )
}

fn witness() -> impl Strategy<Value = Witness> {
    let made = option::of((0..INO_END).prop_map(Ino));
    (any::<[u64; 3]>(), time(), made).prop_map(|([session, call, order], now, made)| {
        let (session, call) = (SessionId(session), CallId(call));
        Witness { session, call, order, now, made }
    })
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![call_for_bytes(), call_for_names(), call_for_the_rest()]
}

fn to_server() -> impl Strategy<Value = ToServer> {
    let asked = |(id, after, caller, call)| {
        let after = ChangeNumber(after);
        ToServer::Call { id: CallId(id), caller, call, after }
    };
    prop_oneof![
        10 => (any::<u64>(), any::<u64>(), caller(), call()).prop_map(asked),
        5 => change().prop_map(ToServer::Change),
        2 => (any::<u64>(), change())
            .prop_map(|(id, change)| ToServer::Done { id: CallId(id), change }),
        1 => Just(ToServer::Recovered),
        1 => vec(witness(), 0..4).prop_map(ToServer::Witnessed),
        1 => any::<u64>().prop_map(ToServer::Settled),
        1 => any::<u64>().prop_map(ToServer::Frozen),
        1 => vec(range(), 0..5).prop_map(ToServer::Yielded),
        1 => Just(ToServer::Ping),
        1 => Just(ToServer::Goodbye),
        1 => (file(), caller(), access())
            .prop_map(|(file, caller, access)| ToServer::Opened { file, caller, access }),
        1 => file().prop_map(ToServer::Closed),
        1 => (file(), caller(), time())
            .prop_map(|(file, caller, at)| ToServer::Accessed { file, caller, at }),
        1 => vec(any::<u64>().prop_map(RevokeId), 0..5).prop_map(ToServer::Released),
        1 => vec(range(), 0..5).prop_map(ToServer::Unwanted),
        1 => any::<u64>().prop_map(|id| ToServer::Cancel(CallId(id))),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let types = one(&[1_u32, 2, 4, 6, 8, 10, 12]);
    let mode = (types, 0..0o10000_u32).prop_map(|(kind, permissions)| kind << 12 | permissions);
    let times = (time(), time(), time(), time());
    (file(), mode, any::<[u32; 4]>(), any::<[u64; 4]>(), times).prop_map(
        |(file, mode, [nlink, uid, gid, rdev], [generation, size, sectors, change], times)| {
            let (atime, mtime, ctime, btime) = times;
            Attributes {
                file,
                generation,
                mode,
                nlink,
                uid,
                gid,
                rdev,
                size,
                sectors,
                atime,
                mtime,
                ctime,
                btime,
                change,
            }
        },
    )
}

fn answer() -> impl Strategy<Value = Answer> {
    let disposition = one(&[Disposition::Created, Disposition::Opened]);
    prop_oneof![
        Just(Answer::Done),
        attributes().prop_map(Answer::Object),
        (attributes(), disposition).prop_map(|(made, how)| Answer::Made(made, how)),
        bytes(DATA_BYTES_MAX).prop_map(Answer::Bytes),
        any::<(u64, u64)>().prop_map(|(offset, length)| Answer::Written { offset, length }),
        any::<u64>().prop_map(Answer::Number),
        (any::<[u64; 3]>(), any::<[Option<u64>; 2]>()).prop_map(|(blocks, objects)| {
            let ([total, available, used], [objects, objects_left]) = (blocks, objects);
            Answer::Space { total, available, used, objects, objects_left }
        }),
        option::of(lock()).prop_map(Answer::Lock),
        report().prop_map(Answer::Report),
    ]
}

/// Errors that say the same on both sides.
fn error() -> impl Strategy<Value = Error> {
    let map = [MapError::NoSpace, MapError::OverQuota, MapError::ReadOnly, MapError::TooLarge];
    let map = map.map(Error::from);
    let asked = [Error::NotFound, Error::Stale, Error::TooDeep, Error::Deadlock];
    one(&[&map[..], &asked[..]].concat())
}

fn grant() -> impl Strategy<Value = Grant> {
    let places = vec((1..=u8::MAX, any::<u64>(), value()), 0..6);
    (range(), mode(), places).prop_map(|(range, mode, places)| {
        let at = |(kind, at, value)| (range.file().key(Kind(kind), at), value);
        let mut items: Vec<(Key, Value)> = places.into_iter().map(at).collect();
        items.push((range.first(), Value::from(&b"first"[..])));
        items.retain(|(key, _)| range.contains(*key));
        items.sort();
        items.dedup_by_key(|(key, _)| *key);
        Grant { range, mode, items }
    })
}

fn to_client() -> impl Strategy<Value = ToClient> {
    let result = prop_oneof![3 => answer().prop_map(Ok), 1 => error().prop_map(Err)];
    let updates = vec((key(), option::of(value())), 0..4);
    let extents = vec((key(), option::of(value())), 0..4);
    let keep = one(&[Keep::Nothing, Keep::Shared]);
    let applied = |(number, extents, credit)| {
        let number = ChangeNumber(number);
        ToClient::Applied { number, extents, credit }
    };
    prop_oneof![
        10 => (any::<[u64; 2]>(), result, updates, vec(grant(), 0..4), time(), option::of(time()))
            .prop_map(|([id, order], result, updates, grants, now, done)| ToClient::Answer {
                id: CallId(id),
                result,
                updates,
                grants,
                now,
                order,
                done,
            }),
        1 => (any::<[u64; 2]>(), vec(any::<u64>().prop_map(CallId), 0..5)).prop_map(
            |([round, number], calls)| {
                ToClient::Durable { round, number: ChangeNumber(number), calls }
            }
        ),
        1 => vec(witness(), 0..4).prop_map(ToClient::Witness),
        1 => any::<u64>().prop_map(ToClient::Freeze),
        1 => any::<u64>().prop_map(ToClient::Thaw),
        1 => vec(any::<u32>().prop_map(SubvolId), 0..4).prop_map(ToClient::Tight),
        1 => vec(lock(), 0..4).prop_map(ToClient::LocksLost),
        1 => (any::<u64>(), time()).prop_map(|(received, now)| ToClient::Pong { received, now }),
        1 => (any::<u64>(), extents, any::<u64>()).prop_map(applied),
        1 => (any::<u64>(), error()).prop_map(|(number, error)| {
            ToClient::Failed { number: ChangeNumber(number), error }
        }),
        1 => (any::<u64>(), range(), keep).prop_map(|(id, range, keep)| {
            ToClient::Revoke { id: RevokeId(id), range, keep }
        }),
    ]
}

fn words(value: impl Debug) -> String {
    format!("{value:?}")
}

proptest! {
    #[test]
    fn what_clients_say_is_understood(said in to_server()) {
        let payload = said.encode();
        let understood = ToServer::decode(&payload).expect("just encoded");
        prop_assert_eq!(words(&understood), words(&said));
        let header = Header::message(1, 0, &payload);
        prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn what_servers_say_is_understood(said in to_client()) {
        let payload = said.encode();
        let understood = ToClient::decode(&payload).expect("just encoded");
        prop_assert_eq!(words(&understood), words(&said));
    }

    #[test]
    fn greetings_are_understood(
        session in option::of(any::<(u64, u64)>()),
        numbers: [u64; 6],
        now in time(),
        (patience_ms, subvol, read_only) in any::<(u32, u32, bool)>(),
        uuid: [u8; 16],
        (identities, root) in (identities(), 1..1_u64 << 63),
        path in bytes(TARGET_BYTES_MAX),
        name in "\\PC{0,60}",
    ) {
        let [id, secret, received, seed, start, credit] = numbers;
        let session = session.map(|(id, secret)| (SessionId(id), secret));
        let hello = Hello { session, start, received, name: name.clone(), path };
        prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        let (filesystem, subvol) = (Uuid(uuid), SubvolId(subvol));
        let session = SessionId(id);
        let welcome = Welcome {
            session, secret, received, patience_ms, filesystem, subvol, seed, read_only, start, now,
            credit, identities, root: Ino(root),
            eras: vec![Era { subvol, chain: SubvolId(patience_ms) }],
        };
        prop_assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
        let refusal = Refusal { reason: RefusalReason::Gone, text: name };
        let payload = refusal.encode();
        prop_assert_eq!(Header::greeting(FrameKind::Refusal, &payload).number, 0);
        prop_assert_eq!(Refusal::decode(&payload), Ok(refusal));
    }
}

#[test]
fn a_long_name_of_a_client_is_cut() {
    let name = "/long".repeat(1000);
    let hello = Hello { session: None, start: 0, received: 0, name, path: vec![] };
    let understood = Hello::decode(&hello.encode()).expect("just encoded");
    assert_eq!(understood.name, hello.name[..TEXT_BYTES_MAX]);
}

#[test]
fn what_is_too_long_to_be_sent_is_found_before() {
    let parent = FileId::new(SubvolId(1), Ino(2));
    let unlink = |length| Call::Unlink { parent, name: vec![b'a'; length] };
    assert!(unlink(NAME_BYTES_MAX).check().is_ok());
    assert!(matches!(unlink(NAME_BYTES_MAX + 1).check(), Err(Error::NameTooLong)));
    let write = |length| Call::Write {
        file: parent,
        at: WriteAt::End,
        privileges: Privileges::Keep,
        bytes: Arc::new(vec![0; length]),
    };
    assert!(write(DATA_BYTES_MAX).check().is_ok());
    assert!(matches!(write(DATA_BYTES_MAX + 1).check(), Err(Error::InvalidArgument)));
}

#[test]
fn a_count_is_compared_with_what_is_left_before_room_is_made() {
    // The ranges of an `Acquire`, the groups of its caller, the names of a `Released`.
    let mut released = ToServer::Released(vec![RevokeId(1)]).encode();
    released[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(ToServer::decode(&released).is_err());
    let call = Call::Acquire { needed: vec![], welcome: vec![], prefetch: Prefetch::Names };
    let (caller, after) = (Caller::superuser(), ChangeNumber(0));
    let acquire = ToServer::Call { id: CallId(1), caller, call, after }.encode();
    for at in [25, 35, 39] {
        let mut longer = acquire.clone();
        assert_eq!(longer[at..at + 4], [0; 4], "a count stands at {at}");
        longer[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(ToServer::decode(&longer).is_err());
    }
}
