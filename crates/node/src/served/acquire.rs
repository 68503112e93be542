//! Leases with what is in them.
//!
//! More is given than was asked for where that is cheap and nobody minds: the whole of a directory
//! instead of one name in it, and the attributes of what its names stand for. So a walk through a
//! tree costs a round trip for each directory.

use gabion_base::ids::Ino;
use gabion_fs::format::dirent::Dirents;
use gabion_fs::format::inode::Inode;
use gabion_fs::{Error, FileType, Result};
use gabion_link::message::{Answer, Grant, Prefetch};
use gabion_link::range::KeyRange;
use gabion_map::format::item::encode_file;
use gabion_map::txn::FileExtent;
use gabion_map::{FileId, Key, Kind, LockMode, Txn, Value};

use super::guarded::Grip;
use super::{Executed, Job, Outcome, Served};

/// Names of a directory that one answer tells; larger directories are told in parts.
const NAMES_MAX: usize = 4096;
/// Bytes of items after which an answer tells no more ranges; who lacks one asks again.
const BYTES_MAX: usize = 1 << 20;
/// Bytes of items of one range. With what was told before, it fits into an answer.
const RANGE_BYTES_MAX: usize = 2 << 20;
/// Ranges that one call may ask for.
const RANGES_MAX: usize = 1024;

/// What an answer is made of.
#[derive(Default)]
struct Found {
    grants: Vec<Grant>,
    bytes: usize,
}

impl Found {
    fn add(&mut self, range: KeyRange, items: Vec<(Key, Value)>) {
        self.bytes += items.iter().map(item_bytes).sum::<usize>() + size_of::<KeyRange>();
        self.grants.push(Grant { range, items });
    }

    fn is_full(&self) -> bool {
        self.bytes >= BYTES_MAX
    }
}

/// What an item takes in an answer, at most.
fn item_bytes((_, value): &(Key, Value)) -> usize {
    size_of::<Key>() + value.len()
}

impl Served {
    pub(super) fn acquire(&self, job: &Job, ranges: &[KeyRange], prefetch: Prefetch) -> Executed {
        let is_leased_so = |range: &KeyRange| match range.kind() {
            Some(Kind::DIRENT) => true,
            _ => *range == KeyRange::attributes(range.file()),
        };
        if ranges.len() > RANGES_MAX || !ranges.iter().all(is_leased_so) {
            return Executed::Ended(Outcome::plain(Err(Error::InvalidArgument)));
        }
        let mut grip = Grip::new(&self.grants, job.request, job.client());
        let mut wide = Vec::with_capacity(ranges.len());
        let mut denied = Vec::new();
        for range in ranges {
            let range = self.widened(&grip, *range);
            if grip.ensure((range, LockMode::Shared)).is_err() {
                denied.push((range, LockMode::Shared));
            }
            wide.push(range);
        }
        if !denied.is_empty() {
            return Executed::Blocked(denied);
        }
        let outcome = match self.tell(&grip, &wide, prefetch) {
            Ok(found) => {
                Outcome { result: Ok(Answer::Done), updates: Vec::new(), grants: found.grants }
            }
            Err(error) => Outcome::plain(Err(error)),
        };
        Executed::Ended(outcome)
    }

    /// All names of the directory instead of some, if they are few and nobody minds.
    fn widened(&self, grip: &Grip<'_>, range: KeyRange) -> KeyRange {
        let all = KeyRange::names(range.file());
        if range.kind() != Some(Kind::DIRENT) || range == all {
            return range;
        }
        // Only a guess, so nobody has to be asked about it.
        let inode = self.fs.run(|txn| Ok(txn.get(range.file().key(Kind::INODE, 0))?));
        let inode = inode.ok().flatten().and_then(|value| Inode::decode(&value).ok());
        let is_small = inode.is_some_and(|inode| inode.length <= NAMES_MAX as u64);
        if is_small && grip.try_hold((all, LockMode::Shared)) { all } else { range }
    }

    fn tell(&self, grip: &Grip<'_>, ranges: &[KeyRange], prefetch: Prefetch) -> Result<Found> {
        let mut found = Found::default();
        for range in ranges {
            if found.is_full() {
                return Ok(found);
            }
            match range.kind() {
                Some(Kind::DIRENT) => self.tell_names(*range, &mut found)?,
                _ => self.tell_attributes(range.file(), &mut found)?,
            }
        }
        if prefetch == Prefetch::Children {
            let children = children(&found.grants);
            for ino in children {
                if found.is_full() {
                    break;
                }
                let child = self.fs.file(ino);
                if grip.try_hold((KeyRange::attributes(child), LockMode::Shared)) {
                    match self.tell_attributes(child, &mut found) {
                        // Nobody has asked for it yet.
                        Ok(()) | Err(Error::AttributeTooLarge) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(found)
    }

    fn tell_names(&self, range: KeyRange, found: &mut Found) -> Result<()> {
        let (first, last) = (range.first(), range.last());
        let mut items = self.fs.run(|txn| Ok(txn.scan(first, last, NAMES_MAX + 1)?))?;
        let mut told = range;
        let mut bytes = 0;
        let fits = |item: &&(Key, Value)| {
            bytes += item_bytes(item);
            bytes <= RANGE_BYTES_MAX
        };
        let count = items.iter().take(NAMES_MAX).take_while(fits).count();
        if count < items.len() {
            items.truncate(count);
            let end = items.last().map_or(first, |(key, _)| *key);
            told = KeyRange::new(first, end).expect("items come in order");
        }
        found.add(told, items);
        Ok(())
    }

    fn tell_attributes(&self, file: FileId, found: &mut Found) -> Result<()> {
        let range = KeyRange::attributes(file);
        let items = self.fs.run(|txn| {
            let mut items = txn.scan(range.first(), range.last(), usize::MAX)?;
            // The file itself knows better than its item how long it is.
            items.retain(|(key, _)| key.kind != Kind::FILE);
            let inode = items.first().filter(|(key, _)| key.kind == Kind::INODE);
            let inode = inode.and_then(|(_, value)| Inode::decode(value).ok());
            if inode.is_some_and(|inode| inode.file_type == FileType::Regular) {
                let extent = txn.file(file)?;
                if extent != FileExtent::default() {
                    let item = (file.key(Kind::FILE, 0), Value::from(encode_file(extent)));
                    items.insert(1, item);
                }
            }
            Ok(items)
        })?;
        if items.iter().map(item_bytes).sum::<usize>() > RANGE_BYTES_MAX {
            return Err(Error::AttributeTooLarge);
        }
        found.add(range, items);
        Ok(())
    }
}

/// The objects that the names in `grants` stand for.
fn children(grants: &[Grant]) -> Vec<Ino> {
    let mut children = Vec::new();
    let names = grants.iter().flat_map(|grant| &grant.items);
    for (_, value) in names.filter(|(key, _)| key.kind == Kind::DIRENT) {
        let Ok(mut entries) = Dirents::decode(value) else { continue };
        while let Ok(Some(entry)) = entries.next_entry() {
            children.push(entry.ino);
        }
    }
    children
}
