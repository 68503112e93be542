//! Leases with what is in them.
//!
//! More is given than was asked for where that is cheap and nobody minds: the whole of a directory
//! instead of one name in it, and the attributes of what its names stand for. So a walk through a
//! tree costs a round trip for each directory.

use gabion_fs::format::dirent::Dirents;
use gabion_fs::format::inode::Inode;
use gabion_fs::{Error, FileType, Result};
use gabion_link::message::{Answer, Grant, Prefetch};
use gabion_link::range::KeyRange;
use gabion_link::table::Want;
use gabion_map::format::item::encode_file;
use gabion_map::txn::FileExtent;
use gabion_map::{FileId, Key, Kind, LockMode, Stop, Txn, Value};

use crate::snapshots;

use super::guarded::Grip;
use super::{Executed, Outcome, Request, Served};

/// Names of a directory that one answer tells; larger directories are told in parts.
const NAMES_MAX: usize = 4096;
/// Bytes of items after which an answer tells no more ranges; who lacks one asks again.
const BYTES_MAX: usize = 1 << 20;
/// Bytes of items of one range. With what was told before, it fits into an answer.
const RANGE_BYTES_MAX: usize = 2 << 20;
/// Names of one directory that a client asks for one by one.
const PARTS_MAX: usize = 2;
/// Objects of a directory that somebody who lists it waits for, at once.
const CHILDREN_MAX: usize = 1024;
/// Ranges that one call may ask for.
const RANGES_MAX: usize = 1024;

/// What an answer is made of.
#[derive(Default)]
struct Found {
    grants: Vec<Grant>,
    bytes: usize,
}

impl Found {
    fn add(&mut self, (range, mode): Want, items: Vec<(Key, Value)>) {
        self.bytes += items.iter().map(item_bytes).sum::<usize>() + size_of::<KeyRange>();
        self.grants.push(Grant { range, mode, items });
    }

    /// The item at `key`, if it is told.
    fn item(&self, key: Key) -> Option<&(Key, Value)> {
        let grant = self.grants.iter().find(|grant| grant.range.contains(key))?;
        let index = grant.items.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        Some(&grant.items[index])
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
    pub(super) fn acquire(
        &self,
        job: &Request,
        needed: &[Want],
        welcome: &[Want],
        prefetch: Prefetch,
    ) -> Executed {
        let all = || needed.iter().chain(welcome);
        if all().count() > RANGES_MAX || !all().all(is_leased_so) {
            return Executed::Ended(Outcome::plain(Err(Error::InvalidArgument)));
        }
        let mut grip = Grip::new(&self.grants, job.request, job.client());
        let mut wide = Vec::with_capacity(needed.len());
        let mut denied = Vec::new();
        for want in needed {
            let want = match self.may_list(job, want.0.file()) {
                true => self.widened(&grip, *want),
                false => *want,
            };
            if grip.ensure(want).is_err() {
                denied.push(want);
            }
            wide.push(want);
        }
        if !denied.is_empty() {
            return Executed::Blocked(denied);
        }
        let is_welcome = |want: &&Want| self.may_have(job, want) && grip.try_hold(**want);
        wide.extend(welcome.iter().filter(is_welcome));
        let told = self.tell(&mut grip, &wide, needed, prefetch);
        // What was found in a subvolume that was removed meanwhile may be anything.
        if needed.iter().any(|(range, _)| self.is_removed(range.file())) {
            return Executed::Ended(Outcome::plain(Err(Error::Stale)));
        }
        match told {
            Ok(found) => {
                let grants = found.grants;
                Executed::Ended(Outcome { grants, ..Outcome::plain(Ok(Answer::Done)) })
            }
            Err(Error::Stop(Stop::Lease)) => Executed::Blocked(grip.denied().to_vec()),
            Err(error) => Executed::Ended(Outcome::plain(Err(error))),
        }
    }

    /// All names of the directory instead of some, if they are few, and all bytes of a file, if
    /// nobody minds. Who has asked for names of a directory before goes on with others, and gets
    /// all whoever minds.
    fn widened(&self, grip: &Grip<'_>, want: Want) -> Want {
        let (range, mode) = want;
        let all = match range.kind() {
            Some(Kind::DIRENT) => KeyRange::names(range.file()),
            Some(Kind::DATA) => KeyRange::bytes_from(range.file(), 0),
            _ => return want,
        };
        if range == all {
            return want;
        }
        // Only a guess, so nobody has to be asked about it.
        let is_names = range.kind() == Some(Kind::DIRENT);
        let is_small = !is_names
            || self.inode(range.file()).is_ok_and(|inode| inode.length <= NAMES_MAX as u64);
        let goes_on = || is_names && mode == LockMode::Shared && grip.has_parts(&all, PARTS_MAX);
        match is_small && (grip.try_hold((all, mode)) || goes_on()) {
            true => (all, mode),
            false => want,
        }
    }

    /// `Stale` if there is no such object.
    pub(super) fn inode(&self, file: FileId) -> Result<Inode> {
        if snapshots::is_snapshots(file) {
            return self.list_inode(file);
        }
        let inode = self.fs.run(|txn| Ok(txn.get(file.key(Kind::INODE, 0))?))?;
        inode.and_then(|value| Inode::decode(&value).ok()).ok_or(Error::Stale)
    }

    /// The first of `wants`, which are those that are `needed` or more, are there, or there is an
    /// error.
    fn tell(
        &self,
        grip: &mut Grip<'_>,
        wants: &[Want],
        needed: &[Want],
        prefetch: Prefetch,
    ) -> Result<Found> {
        let mut found = Found::default();
        self.prefetch(wants.iter().flat_map(|(range, _)| {
            let inode = range.file().key(Kind::INODE, 0);
            [inode, range.first()]
        }))?;
        for (index, want) in wants.iter().enumerate() {
            if found.is_full() {
                return Ok(found);
            }
            let told = match want.0.kind() {
                Some(Kind::DIRENT) => self.tell_names(*want, &mut found),
                Some(Kind::DATA) => self.inode(want.0.file()).map(|_| found.add(*want, Vec::new())),
                _ => self.tell_attributes(want.0.file(), want.1, &mut found),
            };
            match told {
                Err(error) if index < needed.len() => return Err(error),
                _ => {}
            }
        }
        match prefetch {
            Prefetch::Children => self.tell_children(grip, needed.len(), &mut found)?,
            Prefetch::Names => self.tell_sought(grip, needed, &mut found)?,
        }
        Ok(found)
    }

    /// What the names stand for that were asked for one by one to be looked at: whoever looks for a
    /// name looks at its object next.
    fn tell_sought(&self, grip: &Grip<'_>, needed: &[Want], found: &mut Found) -> Result<()> {
        let is_sought = |(range, mode): &&Want| {
            let is_one = range.first() == range.last();
            range.kind() == Some(Kind::DIRENT) && is_one && *mode == LockMode::Shared
        };
        let sought = needed.iter().filter(is_sought);
        let items = sought.filter_map(|(range, _)| found.item(range.first()));
        let objects = items.flat_map(|(key, value)| objects(*key, value)).collect();
        self.tell_guessed(grip, objects, found)
    }

    /// The attributes of objects that probably are looked at next, as far as nobody minds.
    fn tell_guessed(&self, grip: &Grip<'_>, objects: Vec<FileId>, found: &mut Found) -> Result<()> {
        self.prefetch(objects.iter().map(|file| file.key(Kind::INODE, 0)))?;
        for file in objects {
            if found.is_full() {
                break;
            }
            let range = KeyRange::attributes(file);
            if !grip.owns(&range) && grip.try_hold((range, LockMode::Shared)) {
                match self.tell_attributes(file, LockMode::Shared, found) {
                    // Nobody has asked for it yet.
                    Ok(()) | Err(Error::AttributeTooLarge | Error::Stale) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Has what is going to be looked for read from the disk at once, instead of one after the
    /// other. What is in other subvolumes than the first one is left out, as it is rare.
    fn prefetch(&self, keys: impl Iterator<Item = Key>) -> Result<()> {
        let mut keys: Vec<Key> = keys.collect();
        let Some(subvol) = keys.first().map(|key| key.subvol) else { return Ok(()) };
        keys.retain(|key| key.subvol == subvol);
        self.fs.run(|txn| Ok(txn.prefetch(&keys)?))
    }

    /// What the names in `found` stand for. Those who changed some of it are waited for, as the
    /// client would have to ask for each of them.
    fn tell_children(&self, grip: &mut Grip<'_>, needed: usize, found: &mut Found) -> Result<()> {
        let mut children = children(&found.grants);
        children.retain(|file| !grip.owns(&KeyRange::attributes(*file)));
        children.truncate(NAMES_MAX);
        let mut is_denied = false;
        // Nobody waits for what is a guess.
        let waits = if needed > 0 { CHILDREN_MAX } else { 0 };
        for file in children.iter().take(waits) {
            is_denied |= grip.ensure((KeyRange::attributes(*file), LockMode::Shared)).is_err();
        }
        if is_denied {
            return Err(Error::Stop(Stop::Lease));
        }
        self.tell_guessed(grip, children, found)
    }

    fn tell_names(&self, (range, mode): Want, found: &mut Found) -> Result<()> {
        self.inode(range.file())?;
        let first = range.first();
        let mut items = self.names_in(&range, NAMES_MAX + 1)?;
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
        found.add((told, mode), items);
        Ok(())
    }

    fn tell_attributes(&self, file: FileId, mode: LockMode, found: &mut Found) -> Result<()> {
        let range = KeyRange::attributes(file);
        if snapshots::is_snapshots(file) {
            let inode = self.list_inode(file)?.encode();
            found.add((range, mode), vec![(file.key(Kind::INODE, 0), Value::from(inode))]);
            return Ok(());
        }
        let items = self.fs.run(|txn| {
            let mut items = txn.scan(range.first(), range.last(), usize::MAX)?;
            // The file itself knows better than its item how long it is.
            items.retain(|(key, _)| key.kind != Kind::FILE);
            let inode = items.first().filter(|(key, _)| key.kind == Kind::INODE);
            let (_, inode) = inode.ok_or(Error::Stale)?;
            let is_regular = |inode: Inode| inode.file_type == FileType::Regular;
            if Inode::decode(inode).is_ok_and(is_regular) {
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
        found.add((range, mode), items);
        Ok(())
    }
}

/// Whether leases of this kind are had by asking for them: on bytes that are to be read, with them.
fn is_leased_so((range, mode): &Want) -> bool {
    match range.kind() {
        Some(Kind::DIRENT) => true,
        Some(Kind::DATA) => *mode == LockMode::Exclusive,
        _ => *range == KeyRange::attributes(range.file()),
    }
}

/// The objects that the names in `grants` stand for.
fn children(grants: &[Grant]) -> Vec<FileId> {
    let mut children = Vec::new();
    let names = grants.iter().flat_map(|grant| &grant.items);
    for (key, value) in names.filter(|(key, _)| key.kind == Kind::DIRENT) {
        children.extend(objects(*key, value));
    }
    children
}

/// The objects that the names of an item stand for.
fn objects(key: Key, value: &Value) -> Vec<FileId> {
    let mut objects = Vec::new();
    let Ok(mut entries) = Dirents::decode(value) else { return objects };
    while let Ok(Some(entry)) = entries.next_object() {
        objects.push(FileId::new(key.subvol, entry.ino));
    }
    objects
}
