//! Whatever is said is understood as it was meant: any values of any message, there and back.

mod calls;
mod values;

use std::fmt::Debug;
use std::sync::Arc;

use gabion_base::ids::{Ino, SubvolId, Uuid};
use gabion_fs::{Attributes, Caller, Disposition, Error, Privileges, WriteAt};
use gabion_link::message::{
    Answer, Call, CallId, Change, ChangeNumber, Era, Grant, Hello, Prefetch, Refusal,
    RefusalReason, SessionId, ToClient, ToServer, Welcome, Witness,
};
use gabion_link::table::{Keep, RevokeId};
use gabion_link::wire::{
    DATA_BYTES_MAX, FrameKind, Header, NAME_BYTES_MAX, TARGET_BYTES_MAX, TEXT_BYTES_MAX,
};
use gabion_map::key::INO_END;
use gabion_map::txn::Value;
use gabion_map::{FileId, Key, Kind, MapError};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use self::calls::{call, report};
use self::values::{
    access, bytes, caller, file, identities, key, lock, mode, one, range, time, value,
};

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
