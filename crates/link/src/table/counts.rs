//! On how many objects each client has leases, and what becomes of one that has too many.
//!
//! An honest client keeps itself within what its memory allows, which is less. One that does not
//! is told to give up some of what it has: in the order of the objects, so that each comes in its
//! turn, as nobody knows here what it looks at. If it has much more all the same it gets nothing
//! that it asks for before it has given up some. So what is remembered for it has a bound, whatever
//! it does; and a client that gives up nothing at all is its driver's business.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use gabion_map::{FileId, LockMode};

use super::{Action, ClientId, LeaseTable};
use crate::range::KeyRange;

/// Objects that a client has leases on.
const OBJECTS_MAX: usize = 1 << 20;
/// Who has more gives up this part of the limit besides, lest each new object should cost an old
/// one.
const EXCESS_PART: usize = 16;
/// Who has so many times as many gets no more.
const OVERDRAWN: usize = 2;

/// One client's objects.
#[derive(Debug, Default)]
struct Count {
    objects: usize,
    /// Those that it was told to give up, as they are too many.
    leaving: BTreeSet<FileId>,
    /// It was the last one that was chosen.
    last: Option<FileId>,
}

/// All clients'.
#[derive(Debug)]
pub(super) struct Counts {
    limit: usize,
    of: BTreeMap<ClientId, Count>,
}

impl Default for Counts {
    fn default() -> Self {
        Self { limit: OBJECTS_MAX, of: BTreeMap::new() }
    }
}

impl Counts {
    /// The client has its first lease on an object.
    pub(super) fn begun(&mut self, client: ClientId) {
        self.of.entry(client).or_default().objects += 1;
    }

    /// It has got one more on an object.
    pub(super) fn granted(&mut self, client: ClientId, file: FileId) {
        if let Some(count) = self.of.get_mut(&client) {
            count.leaving.remove(&file);
        }
    }

    /// It has lost its last one on an object.
    pub(super) fn ended(&mut self, client: ClientId, file: FileId) {
        let Some(count) = self.of.get_mut(&client) else { return };
        count.objects -= 1;
        count.leaving.remove(&file);
        if count.objects == 0 {
            self.of.remove(&client);
        }
    }

    pub(super) fn evict(&mut self, client: ClientId) {
        self.of.remove(&client);
    }

    /// Whether the client has so much that it gets no more.
    pub(super) fn is_overdrawn(&self, client: ClientId) -> bool {
        // Mostly there are few clients.
        self.of.get(&client).is_some_and(|count| count.objects >= OVERDRAWN * self.limit)
    }

    /// How many objects it has to be told to give up.
    fn excess(&self, client: ClientId) -> usize {
        let Some(count) = self.of.get(&client) else { return 0 };
        match (count.objects - count.leaving.len()).checked_sub(self.limit) {
            None | Some(0) => 0,
            Some(excess) => excess + self.limit / EXCESS_PART,
        }
    }
}

impl LeaseTable {
    /// A table in which clients have leases on about `objects` objects each.
    pub fn with_limit(objects: usize) -> Self {
        let counts = Counts { limit: objects, of: BTreeMap::new() };
        Self { counts, ..Self::default() }
    }

    /// On how many objects the client has leases.
    pub fn objects_of(&self, client: ClientId) -> usize {
        self.counts.of.get(&client).map_or(0, |count| count.objects)
    }

    /// Tells a client that has leases on too many objects to give up some.
    pub(super) fn shed(&mut self, client: ClientId, actions: &mut Vec<Action>) {
        let excess = self.counts.excess(client);
        if excess == 0 {
            return;
        }
        let Some(count) = self.counts.of.get_mut(&client) else { return };
        let begin = count.last.map_or(Bound::Unbounded, Bound::Excluded);
        let end = count.last.map_or(Bound::Unbounded, Bound::Included);
        let behind = self.objects.range((begin, Bound::Unbounded));
        let before = count.last.map(|_| self.objects.range((Bound::Unbounded, end)));
        let all = behind.chain(before.into_iter().flatten());
        let is_its = |(file, object): &(&FileId, &super::Object)| {
            object.leases.contains_key(&client) && !count.leaving.contains(file)
        };
        let chosen: Vec<FileId> = all.filter(is_its).map(|(file, _)| *file).take(excess).collect();
        count.last = chosen.last().copied();
        count.leaving.extend(&chosen);
        for file in chosen {
            self.revoke_from(client, &(KeyRange::everything(file), LockMode::Exclusive), actions);
        }
    }
}
