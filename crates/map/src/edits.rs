//! Changes of the list of subvolumes, applied at the freeze of a commit: at that moment nobody
//! applies changes of anything else, so each operation sees all of them or none.
//!
//! Whoever makes a list of edits holds the commit lock and has checked that they can be made: they
//! cannot fail.

use std::sync::Arc;

use gabion_base::ids::{SubvolId, Txg};

use crate::catalogue::{Catalogue, Subvol};
use crate::format::item::{Access, SubvolRecord};
use crate::format::subvolume::{Count, Extended, Hold, Most, Quota, Removal, Schedule};
use crate::quota::Usage;
use crate::removal::Work;
use crate::tree::Root;

/// One change of the list of subvolumes, done at the freeze of a commit.
pub(crate) enum Edit {
    /// A snapshot of `of` as the commit has it.
    Snapshot { of: SubvolId, id: SubvolId, name: Vec<u8>, created: i64 },
    /// A new record.
    Put { id: SubvolId, record: SubvolRecord },
    /// `of` becomes what the snapshot `to` is, in the new chain `chain`.
    Rewind { of: SubvolId, to: SubvolId, chain: SubvolId },
    /// How far a removal is.
    Removal { of: SubvolId, removal: Removal },
    /// The newest snapshot of `of` is this one, of this birth.
    Newest { of: SubvolId, snapshot: SubvolId, birth: Txg },
    /// Whether it may be removed.
    Hold { of: SubvolId, hold: Hold },
    /// It stands in this one.
    Parent { of: SubvolId, parent: SubvolId },
    /// How much it may refer to.
    Quota { of: SubvolId, most: Most },
    /// From here on it is noted in `usage` by how much changes what it refers to.
    Recount { of: SubvolId, usage: Arc<Usage> },
    /// So much it referred to when `usage` began.
    Counted { of: SubvolId, usage: Arc<Usage>, count: Count },
    /// Which snapshots of it are made by themselves.
    Schedule { of: SubvolId, schedule: Option<Schedule> },
}

/// What a commit changes in the list of subvolumes, and what it does for removals.
#[derive(Default)]
pub(crate) struct ForestChange {
    pub(crate) edits: Vec<Edit>,
    pub(crate) work: Option<Work>,
}

/// What the rest of the commit has to know of the edits.
#[derive(Default)]
pub(crate) struct Edited {
    /// Whose records were changed.
    pub(crate) ids: Vec<SubvolId>,
    /// Snapshots, and of what. They get their roots when the trees are merged.
    pub(crate) snapshots: Vec<(SubvolId, SubvolId)>,
    /// Subvolumes that have another tree from now on, or none that could be read.
    pub(crate) roots: Vec<(SubvolId, Option<(Root, u64)>)>,
}

/// Applies `edits`, in order, for the commit `txg`.
pub(crate) fn apply_edits(subvols: &mut Catalogue, txg: Txg, edits: &[Edit]) -> Edited {
    let mut edited = Edited::default();
    for edit in edits {
        apply_edit(subvols, txg, edit, &mut edited);
    }
    edited
}

fn apply_edit(subvols: &mut Catalogue, txg: Txg, edit: &Edit, edited: &mut Edited) {
    let mut change = |of: &SubvolId, change: &mut dyn FnMut(&mut SubvolRecord)| {
        if let Some(subvol) = subvols.get_mut(*of) {
            change(&mut subvol.record);
            edited.ids.push(*of);
        }
    };
    match edit {
        Edit::Snapshot { of, id, name, created } => {
            let mut made = None;
            change(of, &mut |source| {
                made = Some(snapshot_record(source, *of, txg, name, *created));
                (source.newest_snapshot, source.newest_snapshot_birth) = (*id, txg);
            });
            if let Some(record) = made {
                // It is found by its name when it can be read.
                subvols.insert_unnamed(*id, record);
                edited.ids.push(*id);
                edited.snapshots.push((*id, *of));
            }
        }
        Edit::Put { id, record } => {
            let root = Root { ptr: record.root, level: record.level };
            edited.roots.push((*id, Some((root, record.nodes))));
            subvols.insert(*id, record.clone());
            edited.ids.push(*id);
        }
        Edit::Rewind { of, to, chain } => {
            let Some(target) = subvols.get(to).map(|target| target.record.clone()) else { return };
            if let Some(subvol) = subvols.get_mut(*of) {
                rewind(subvol, &target, *to, *chain);
                edited.ids.push(*of);
                let root = Root { ptr: target.root, level: target.level };
                edited.roots.push((*of, Some((root, target.nodes))));
            }
        }
        Edit::Removal { of, removal } => {
            change(of, &mut |record| record.extended.removal = *removal);
            subvols.leave(*of);
            edited.roots.push((*of, None));
        }
        Edit::Newest { of, snapshot, birth } => change(of, &mut |record| {
            (record.newest_snapshot, record.newest_snapshot_birth) = (*snapshot, *birth);
        }),
        Edit::Hold { of, hold } => change(of, &mut |record| record.extended.hold = *hold),
        Edit::Parent { of, parent } => change(of, &mut |record| record.parent = *parent),
        Edit::Schedule { of, schedule } => {
            change(of, &mut |record| record.extended.schedule = *schedule);
        }
        Edit::Quota { of, .. } | Edit::Recount { of, .. } | Edit::Counted { of, .. } => {
            if let Some(subvol) = subvols.get_mut(*of) {
                edit_quota(subvol, edit);
                edited.ids.push(*of);
            }
        }
    }
}

fn edit_quota(subvol: &mut Subvol, edit: &Edit) {
    let quota = &mut subvol.record.extended.quota;
    match edit {
        Edit::Quota { most, .. } if *most == Most::default() => {
            *quota = None;
            subvol.usage = None;
        }
        Edit::Quota { most, .. } => {
            let limited = Quota { most: *most, count: quota.and_then(|quota| quota.count) };
            *quota = Some(limited);
            match &subvol.usage {
                Some(usage) => usage.limit(*most),
                None => subvol.usage = Some(Arc::new(Usage::new(&limited))),
            }
        }
        Edit::Recount { usage, .. } => {
            if let Some(quota) = quota {
                quota.count = None;
                usage.limit(quota.most);
                subvol.usage = Some(Arc::clone(usage));
            }
        }
        Edit::Counted { usage, count, .. } => {
            // Another count may have begun since.
            let is_it = subvol.usage.as_ref().is_some_and(|now| Arc::ptr_eq(now, usage));
            if let Some(quota) = quota.as_mut().filter(|_| is_it) {
                usage.begin_at(*count);
                quota.count = usage.count();
            }
        }
        _ => {}
    }
}

fn snapshot_record(
    source: &SubvolRecord,
    of: SubvolId,
    txg: Txg,
    name: &[u8],
    created: i64,
) -> SubvolRecord {
    let extended = Extended {
        removal: Removal::None,
        hold: Hold::Released,
        name: name.to_vec(),
        created,
        schedule: None,
        ..source.extended.clone()
    };
    SubvolRecord { access: Access::ReadOnly, origin: of, birth: txg, extended, ..source.clone() }
}

fn rewind(subvol: &mut Subvol, target: &SubvolRecord, to: SubvolId, chain: SubvolId) {
    let record = &mut subvol.record;
    if let Some(quota) = &mut record.extended.quota {
        quota.count = target.extended.quota.and_then(|quota| quota.count);
        subvol.usage = Some(Arc::new(Usage::new(quota)));
    }
    (record.newest_snapshot, record.newest_snapshot_birth) = (SubvolId(0), Txg(0));
    record.origin = to;
    record.extended.chain = chain;
    record.extended.base = to;
    record.extended.base_birth = target.birth;
}
