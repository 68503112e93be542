//! Any calls of a client, and errands with what they report.

use std::sync::Arc;

use gabion_base::ids::SubvolId;
use gabion_fs::create::Linkable;
use gabion_fs::lock::Wait;
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{FileType, IfExists, IfTaken, Leave, OpenRequest, SizeRule, SpaceRequest, WriteAt};
use gabion_link::errand::{DifferenceRow, Errand, QuotaRow, Report, SnapshotRow, SubvolumeRow};
use gabion_link::message::{Call, Prefetch, ReadLease};
use gabion_link::wire::{DATA_BYTES_MAX, TARGET_BYTES_MAX, XATTR_BYTES_MAX};
use gabion_map::format::subvolume::{Count, Most, Quota, Schedule};
use gabion_map::txn::SeekTarget;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::values::{
    access, bytes, changes, file, lock, lock_class, lock_range, mode, name, one, privileges, range,
};

pub fn call_for_bytes() -> impl Strategy<Value = Call> {
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

pub fn call_for_names() -> impl Strategy<Value = Call> {
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

pub fn call_for_the_rest() -> impl Strategy<Value = Call> {
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

pub fn call() -> impl Strategy<Value = Call> {
    prop_oneof![call_for_bytes(), call_for_names(), call_for_the_rest()]
}

pub fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..600)
}

pub fn subvolume() -> impl Strategy<Value = SubvolId> + Clone {
    any::<u32>().prop_map(SubvolId)
}

pub fn errand() -> impl Strategy<Value = Errand> {
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

pub fn most() -> impl Strategy<Value = Most> {
    let number = || option::of(any::<u64>());
    (number(), number()).prop_map(|(blocks, objects)| Most { blocks, objects })
}

pub fn keep() -> impl Strategy<Value = Schedule> {
    any::<[u16; 4]>().prop_map(|[hourly, daily, weekly, monthly]| Schedule {
        hourly,
        daily,
        weekly,
        monthly,
    })
}

pub fn report() -> impl Strategy<Value = Report> {
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
