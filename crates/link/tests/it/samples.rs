//! One of everything that is said. The golden file is made of them, and fuzzing begins with them:
//! they never change, but new ones may be added.

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
use gabion_map::txn::SeekTarget;
use gabion_map::{FileId, Kind, LockMode, MapError};

use gabion_link::errand::{
    DeltaPlace, DeltaRow, DifferenceRow, Errand, QuotaRow, Report, SnapshotRow, SubvolumeRow,
};
use gabion_link::identities::{Identities, Squash};
use gabion_link::join::{Admission, Application};
use gabion_link::message::{
    Answer, Call, CallId, Change, ChangeNumber, Era, Grant, Hello, Prefetch, ReadLease, Refusal,
    RefusalReason, SessionId, ToClient, ToServer, Welcome, Witness,
};
use gabion_link::range::KeyRange;
use gabion_link::table::{Keep, RevokeId};
use gabion_link::wire::{FrameKind, Header};

const DIR: FileId = FileId::new(SubvolId(1), Ino(2));
const FILE: FileId = FileId::new(SubvolId(1), Ino(0x0102_0304_0506_0708));

fn name(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::new(seconds, 999_999_999)
}

/// Hellos.
pub fn hellos() -> Vec<Hello> {
    let session = Some((SessionId(0x1112), 0x2122_2324_2526_2728));
    vec![
        Hello {
            session: None,
            start: 0,
            received: 0,
            name: "host1:/mnt".to_owned(),
            path: name("sub/dir"),
        },
        Hello { session, start: 78, received: 77, name: "h\u{f6}st".to_owned(), path: vec![] },
    ]
}

/// Applications.
pub fn applications() -> Vec<Application> {
    let secret = std::array::from_fn(|at| 0x60 + at as u8);
    vec![Application { secret, name: "host1".to_owned(), request: vec![0x30, 0x02, 0x05, 0x00] }]
}

/// Admissions.
pub fn admissions() -> Vec<Admission> {
    vec![Admission { certificate: vec![0x30, 0x00] }]
}

/// Welcomes.
pub fn welcomes() -> Vec<Welcome> {
    vec![Welcome {
        session: SessionId(0x1112),
        secret: 0x2122_2324_2526_2728,
        received: 77,
        patience_ms: 30_000,
        filesystem: Uuid(std::array::from_fn(|at| 0x30 + at as u8)),
        subvol: SubvolId(1),
        seed: 0x4142_4344_4546_4748,
        read_only: true,
        start: 0x5152_5354_5556_5758,
        now: time(1_000_000_000),
        credit: 0x6162_6364,
        identities: Identities {
            trust: Trust::CheckHere,
            squash: Squash::Root,
            uid: 65534,
            gid: 65533,
        },
        root: DIR.ino,
        eras: vec![Era { subvol: SubvolId(1), chain: SubvolId(9) }],
    }]
}

/// Refusals.
pub fn refusals() -> Vec<Refusal> {
    let reasons = [
        RefusalReason::Version,
        RefusalReason::Unauthorized,
        RefusalReason::Gone,
        RefusalReason::Busy,
        RefusalReason::Other,
    ];
    reasons.map(|reason| Refusal { reason, text: "why".to_owned() }).into()
}

/// Headers.
pub fn headers() -> Vec<Header> {
    vec![Header::greeting(FrameKind::Hello, b"payload"), Header::message(7, 5, b"payload")]
}

fn lock(class: LockClass) -> Lock {
    Lock {
        file: FILE,
        class,
        owner: LockOwner { client: 3, number: 0x5152 },
        pid: 4711,
        strength: Strength::Exclusive,
        range: LockRange::new(10, 19).expect("not upside down"),
    }
}

fn changes() -> Changes {
    Changes {
        permissions: Some(0o4755),
        uid: Some(1000),
        gid: None,
        size: Some((4097, Privileges::Clear)),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(time(-2))),
        ctime: Some(time(3)),
        through: Through::Handle,
    }
}

/// Calls for bytes and space.
fn calls_for_bytes() -> Vec<Call> {
    let (file, offset, length) = (FILE, 4096, 8192);
    let privileges = Privileges::Clear;
    let space = |request| Call::Fallocate { file, request, offset, length, privileges };
    vec![
        Call::Read { file, offset, length: 100, lease: ReadLease::None },
        Call::Read { file, offset, length: 100, lease: ReadLease::AtOnce },
        Call::Read { file, offset, length: 100, lease: ReadLease::InTurn },
        Call::Write {
            file,
            at: WriteAt::Offset(offset),
            privileges,
            bytes: Arc::new(name("bytes")),
        },
        Call::Write { file, at: WriteAt::End, privileges: Privileges::Keep, bytes: Arc::default() },
        space(SpaceRequest::Allocate(SizeRule::Extend)),
        space(SpaceRequest::Punch),
        space(SpaceRequest::Zero(SizeRule::Keep)),
        space(SpaceRequest::Collapse),
        space(SpaceRequest::Insert),
        Call::Copy {
            source: FILE,
            source_offset: 1,
            target: DIR,
            target_offset: 2,
            length: 3,
            privileges,
        },
        Call::Seek { file, offset, target: SeekTarget::Data },
        Call::Seek { file, offset, target: SeekTarget::Hole },
        Call::Sync { file: None },
        Call::Sync { file: Some(FILE) },
        Call::Space { of: SubvolId(3) },
    ]
}

/// Calls for names.
fn calls_for_names() -> Vec<Call> {
    let (parent, permissions) = (DIR, 0o640);
    let create = |if_exists, request| {
        let name = name("file");
        Call::Create { parent, name, permissions, if_exists, request }
    };
    let access = Access::READ | Access::WRITE;
    let truncating = OpenRequest { access, truncate: Some(Privileges::Keep) };
    let rename = |if_taken, leave| Call::Rename {
        source_parent: DIR,
        source_name: name("old"),
        target_parent: FILE,
        target_name: name("new"),
        if_taken,
        leave,
    };
    let file_type = FileType::CharDevice;
    vec![
        create(IfExists::Fail, OpenRequest::READ),
        create(IfExists::Open, truncating),
        Call::Tmpfile { parent, permissions, linkable: Linkable::Yes },
        Call::Tmpfile { parent, permissions, linkable: Linkable::No },
        Call::Mknod { parent, name: name("null"), file_type, permissions, rdev: 0x103 },
        Call::Mkdir { parent, name: name("dir"), permissions },
        Call::Symlink { parent, name: name("link"), target: name("../target") },
        Call::Link { file: FILE, parent, name: name("second") },
        Call::Unlink { parent, name: name("file") },
        Call::Rmdir { parent, name: name("dir") },
        rename(IfTaken::Replace, Leave::Nothing),
        rename(IfTaken::Fail, Leave::Whiteout),
        rename(IfTaken::Exchange, Leave::Nothing),
    ]
}

/// All other calls.
fn calls_for_the_rest() -> Vec<Call> {
    let needed = vec![
        (KeyRange::attributes(DIR), LockMode::Shared),
        (KeyRange::bytes(FILE, 0, 4096), LockMode::Exclusive),
    ];
    let welcome = vec![(KeyRange::names(DIR), LockMode::Exclusive)];
    let set = |condition, set_group| {
        let (name, value) = (name("user.a"), name("value"));
        Call::SetXattr { file: FILE, name, value, condition, set_group }
    };
    let range = LockRange::WHOLE;
    vec![
        Call::Acquire { needed, welcome: vec![], prefetch: Prefetch::Names },
        Call::Acquire { needed: vec![], welcome, prefetch: Prefetch::Children },
        Call::Numbers { of: SubvolId(1), count: 2048 },
        Call::Setattr { file: FILE, changes: changes() },
        Call::Setattr { file: FILE, changes: Changes::default() },
        set(SetCondition::Always, SetGroupBit::Keep),
        set(SetCondition::Absent, SetGroupBit::Clear),
        set(SetCondition::Present, SetGroupBit::Keep),
        Call::RemoveXattr { file: FILE, name: name("user.a") },
        Call::Lock { lock: lock(LockClass::Posix), wait: Wait::Yes },
        Call::Lock { lock: lock(LockClass::Flock), wait: Wait::No },
        Call::Unlock { file: FILE, class: LockClass::OpenFile, owner: 0x5152, range },
        Call::TestLock { lock: Lock { strength: Strength::Shared, ..lock(LockClass::OpenFile) } },
    ]
}

/// What clients say.
pub fn to_server() -> Vec<ToServer> {
    let caller = Caller {
        uid: 1000,
        gid: 100,
        groups: Groups::new(&[4, 27]),
        umask: 0o22,
        trust: Trust::CheckedByKernel,
    };
    let calls = [calls_for_bytes(), calls_for_names(), calls_for_the_rest()].concat();
    let calls = calls.into_iter().zip(1..).map(|(call, id)| {
        let callers = [caller.clone(), Caller::superuser()];
        let caller = callers[usize::from(id > 1)].clone();
        ToServer::Call { id: CallId(id), caller, call, after: ChangeNumber(id / 10) }
    });
    let change = |made| Change {
        number: ChangeNumber(0x0102),
        order: 0x0506,
        now: time(5),
        made,
        caller: Caller::superuser(),
        call: Call::Unlink { parent: DIR, name: name("file") },
    };
    let others = [
        ToServer::Ping,
        ToServer::Opened { file: FILE, caller: caller.clone(), access: Access::READ },
        ToServer::Closed(FILE),
        ToServer::Released(vec![RevokeId(1), RevokeId(2)]),
        ToServer::Unwanted(vec![KeyRange::names(DIR)]),
        ToServer::Cancel(CallId(9)),
        ToServer::Goodbye,
        ToServer::Change(change(None)),
        ToServer::Change(change(Some(Ino(0x0304)))),
        ToServer::Yielded(vec![KeyRange::object(FILE)]),
        ToServer::Done {
            id: CallId(0x0708),
            change: Change { number: ChangeNumber(0), ..change(Some(Ino(0x0304))) },
        },
        ToServer::Recovered,
        ToServer::Witnessed(vec![witness()]),
        ToServer::Settled(0x0102),
        ToServer::Yielded(vec![KeyRange::locks(FILE)]),
        ToServer::Locked(vec![lock(LockClass::Posix), lock(LockClass::Flock)]),
        ToServer::Unlocked {
            file: FILE,
            class: LockClass::Posix,
            owner: 0x5152,
            range: LockRange::new(10, 19).expect("not upside down"),
        },
        ToServer::Frozen(0x0102),
        ToServer::Accessed { file: FILE, caller: caller.clone(), at: time(6) },
    ];
    let errands = errands().into_iter().map(|errand| ToServer::Call {
        id: CallId(0x0a0b),
        caller: caller.clone(),
        call: Call::Run(errand),
        after: ChangeNumber(0),
    });
    calls.chain(others).chain(errands).collect()
}

const KEEP: Schedule = Schedule { hourly: 24, daily: 7, weekly: 4, monthly: 0x0102 };

fn errands() -> Vec<Errand> {
    let (path, created) = (name("a/b"), 0x0102_0304);
    vec![
        Errand::Snapshots { path: vec![], after: SubvolId(0) },
        Errand::Snapshot { path: path.clone(), name: name("monday"), created },
        Errand::RemoveSnapshots { path: path.clone(), names: vec![name("monday"), name("x")] },
        Errand::Hold { path: path.clone(), name: name("monday"), is_held: true },
        Errand::Compare { path: vec![], from: name("a"), to: name("b"), skip: 7 },
        Errand::Delta {
            path: path.clone(),
            from: name("a"),
            to: name("b"),
            after: DeltaPlace { ino: Ino(7), rows: 8 },
        },
        Errand::Subvolumes { after: SubvolId(3) },
        Errand::Subvolume { path: path.clone(), of: None, created: -1 },
        Errand::Subvolume { path: path.clone(), of: Some(name(".snapshots/monday")), created },
        Errand::RemoveSubvolume { path: path.clone() },
        Errand::Rollback {
            path: path.clone(),
            name: name("monday"),
            keep_as: name("before"),
            created,
        },
        Errand::RenameSubvolume { from: path.clone(), to: name("c") },
        Errand::Quotas { after: SubvolId(3) },
        Errand::SetQuota { path: path.clone(), most: Most { blocks: Some(0x0102), objects: None } },
        Errand::Schedule { path: path.clone() },
        Errand::SetSchedule { path, keep: KEEP },
    ]
}

fn reports() -> Vec<Report> {
    let row =
        SnapshotRow { id: SubvolId(9), name: name("monday"), created: 0x0102_0304, is_held: true };
    let differences = vec![
        DifferenceRow::Added(name("a")),
        DifferenceRow::Removed(name("b")),
        DifferenceRow::Changed(name("c")),
        DifferenceRow::Renamed { from: name("d"), to: name("e") },
    ];
    let (dir, ino) = (Ino(2), Ino(0x0304));
    let rows = vec![
        DeltaRow::Gone(ino),
        DeltaRow::NameGone { dir, name: name("a") },
        DeltaRow::Name { dir, name: name("b"), ino },
        DeltaRow::Touched { ino, path: name("c/b"), is_new: true },
        DeltaRow::Stretch { ino, from: 0x1000, to: 0x2000, is_hole: true },
    ];
    let next = Some(DeltaPlace { ino, rows: 5 });
    let subvolumes = vec![
        SubvolumeRow { id: SubvolId(9), path: Some(name("a/b")) },
        SubvolumeRow { id: SubvolId(10), path: None },
    ];
    let most = Most { blocks: None, objects: Some(0x0506) };
    let count = Some(Count { blocks: 0x0708, objects: 9 });
    let quotas = vec![
        QuotaRow { id: SubvolId(9), path: Some(name("/a/b")), quota: Quota { most, count } },
        QuotaRow { id: SubvolId(10), path: None, quota: Quota { most, count: None } },
    ];
    vec![
        Report::Snapshots { rows: vec![row], more: true },
        Report::Subvolumes { rows: subvolumes, more: false },
        Report::Differences { rows: differences, more: false },
        Report::Delta { rows, next },
        Report::Delta { rows: vec![], next: None },
        Report::Quotas { rows: quotas, more: true },
        Report::Schedule { keep: KEEP },
    ]
}

fn witness() -> Witness {
    Witness {
        session: SessionId(0x1112),
        call: CallId(0x0708),
        order: 0x0506,
        now: time(5),
        made: Some(Ino(0x0304)),
    }
}

fn attributes() -> Attributes {
    Attributes {
        file: FILE,
        generation: 1,
        mode: 0o100_644,
        nlink: 2,
        uid: 1000,
        gid: 100,
        rdev: 0,
        size: 4097,
        sectors: 16,
        atime: time(1),
        mtime: time(2),
        ctime: time(3),
        btime: time(4),
        change: 5,
    }
}

/// What servers say.
pub fn to_client() -> Vec<ToClient> {
    let results = vec![
        Ok(Answer::Done),
        Ok(Answer::Object(attributes())),
        Ok(Answer::Made(attributes(), Disposition::Created)),
        Ok(Answer::Made(Attributes { mode: 0o040_755, ..attributes() }, Disposition::Opened)),
        Ok(Answer::Bytes(name("bytes"))),
        Ok(Answer::Written { offset: 4096, length: 5 }),
        Ok(Answer::Number(8192)),
        Ok(Answer::Space {
            total: 100,
            available: 60,
            used: 40,
            objects: Some(1000),
            objects_left: None,
        }),
        Ok(Answer::Lock(None)),
        Ok(Answer::Lock(Some(lock(LockClass::Posix)))),
        Err(Error::NotFound),
        Err(MapError::NoSpace.into()),
        Err(MapError::Stopped { uuid: Uuid([7; 16]), cause: "no flush".to_owned() }.into()),
    ];
    let answers = results.into_iter().zip(1..).map(|(result, id)| ToClient::Answer {
        id: CallId(id),
        result,
        updates: vec![],
        grants: vec![],
        now: time(6),
        order: 0x0304,
        done: None,
    });
    let value = |text: &str| Arc::from(text.as_bytes());
    let range = KeyRange::attributes(DIR);
    let items =
        vec![(DIR.key(Kind::INODE, 0), value("inode")), (DIR.key(Kind::XATTR, 9), value(""))];
    let with_items = ToClient::Answer {
        id: CallId(99),
        result: Ok(Answer::Done),
        updates: vec![
            (DIR.key(Kind::DIRENT, 0x6162), Some(value("entry"))),
            (DIR.key(Kind::DIRENT, 0x6163), None),
        ],
        grants: vec![
            Grant { range, mode: LockMode::Shared, items },
            Grant {
                range: KeyRange::bytes_from(FILE, 4096),
                mode: LockMode::Exclusive,
                items: vec![],
            },
        ],
        now: time(7),
        order: 0x0305,
        done: Some(time(6)),
    };
    let others = [
        with_items,
        ToClient::Pong { received: 12, now: time(8) },
        ToClient::Revoke { id: RevokeId(3), range: KeyRange::names(DIR), keep: Keep::Shared },
        ToClient::Revoke { id: RevokeId(4), range: KeyRange::names(DIR), keep: Keep::Nothing },
        ToClient::Applied {
            number: ChangeNumber(0x0102),
            extents: vec![(FILE.key(Kind::FILE, 0), Some(value("extent")))],
            credit: 0x6162_6364,
        },
        ToClient::Failed { number: ChangeNumber(0x0102), error: Error::Stale },
        ToClient::Witness(vec![witness(), Witness { made: None, ..witness() }]),
        ToClient::LocksLost(vec![lock(LockClass::Posix), lock(LockClass::Flock)]),
        ToClient::Durable {
            round: 0x0506,
            number: ChangeNumber(0x0102),
            calls: vec![CallId(0x0708), CallId(0x0709)],
        },
        ToClient::Freeze(0x0102),
        ToClient::Thaw(0x0102),
        ToClient::Tight(vec![SubvolId(1), SubvolId(0x0304)]),
    ];
    let reports = reports().into_iter().map(|report| ToClient::Answer {
        id: CallId(0x0a0b),
        result: Ok(Answer::Report(report)),
        updates: vec![],
        grants: vec![],
        now: time(6),
        order: 0x0304,
        done: None,
    });
    answers.chain(others).chain(reports).collect()
}
