//! Counting what a whole tree refers to: when a quota is set, and when a scrub compares.

use gabion_base::ids::{BlockAddr, SubvolId};

use super::Delta;
use crate::commit::{FOREST, subvol_key};
use crate::error::MapError;
use crate::format::item::{Access, SubvolRecord, decode_file};
use crate::format::node::NodePtr;
use crate::format::subvolume::Count;
use crate::key::{Key, Kind};
use crate::pin::Pin;
use crate::tree::{Visit, Visitor};

/// What an item counts.
pub(super) fn weigh(key: Key, value: Option<&[u8]>) -> Result<Delta, MapError> {
    let mut delta = Delta::default();
    match (key.kind, value) {
        (_, None) => {}
        (Kind::FILE, Some(value)) => {
            let file = decode_file(value).map_err(|source| MapError::BadItem { key, source })?;
            delta.blocks = i64::try_from(file.blocks).unwrap_or(i64::MAX);
        }
        (Kind::INODE, Some(_)) => delta.objects = 1,
        _ => {}
    }
    Ok(delta)
}

impl Pin<'_> {
    /// Counts what a subvolume refers to.
    pub(super) fn count(&self, of: SubvolId) -> Result<Count, MapError> {
        let mut counter = Counter::default();
        self.tree(of).walk(&mut counter)?;
        Ok(counter.count)
    }

    pub(super) fn check_count(&self, of: SubvolId) -> Result<(), MapError> {
        let key = subvol_key(of);
        let forest = self.tree(FOREST);
        let Some(value) = forest.get(key)? else { return Ok(()) };
        let record = SubvolRecord::decode(&value);
        let record = record.map_err(|source| MapError::BadItem { key, source })?;
        let quota = record.extended.quota.filter(|_| record.access == Access::Writable);
        let Some(noted) = quota.and_then(|quota| quota.count) else { return Ok(()) };
        match self.count(of)? == noted {
            true => Ok(()),
            false => Err(MapError::Corrupt {
                structure: "subvolume",
                addr: record.root.map_or(BlockAddr(0), |root| root.addr),
                reason: "the count of its quota is not what its tree has; set the quota anew",
            }),
        }
    }
}

/// Counts what a tree refers to.
#[derive(Default)]
struct Counter {
    count: Count,
}

impl Visitor for Counter {
    fn node(&mut self, _ptr: NodePtr, _level: u8) -> Result<Visit, MapError> {
        Ok(Visit::Enter)
    }

    fn item(&mut self, key: Key, value: &[u8]) -> Result<(), MapError> {
        let delta = weigh(key, Some(value))?;
        self.count.blocks = self.count.blocks.saturating_add(delta.blocks as u64);
        self.count.objects += delta.objects as u64;
        Ok(())
    }
}
