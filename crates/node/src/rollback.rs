//! Rolling back in use: a subvolume becomes what a snapshot of it is.
//!
//! Who uses the filesystem meanwhile must not go on with what was found out before: front ends keep
//! everybody out for as long as this takes, and know objects by other numbers afterwards
//! ([`crate::Eras`]).

use gabion_base::ids::SubvolId;
use gabion_fs::Result;
use gabion_map::format::item::Access;
use gabion_map::{FileId, LocalMap};

use crate::differences::path_of_entry;
use crate::local::LocalFs;

/// A rollback that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The snapshot that has what there was before.
    pub kept: SubvolId,
    /// Objects of the subvolume that somebody referred to. Nobody does any more.
    pub known: Vec<FileId>,
}

/// What is kept of a subvolume that is rolled back at `time` is called so, as no snapshot is yet.
pub fn kept_name(time: &str, is_taken: impl Fn(&[u8]) -> bool) -> String {
    let first = format!("before-rollback-{time}");
    let others = (2_u64..).map(|number| format!("{first}-{number}"));
    let mut names = std::iter::once(first.clone()).chain(others);
    names.find(|name| !is_taken(name.as_bytes())).unwrap_or(first)
}

/// Why `of` cannot become what its snapshot `to` is, which is called `name`: a subvolume that
/// stands in it would have no name there. One that has none as it is loses nothing.
pub fn left_without_name(
    map: &LocalMap,
    of: SubvolId,
    to: SubvolId,
    name: &str,
) -> Result<Option<String>> {
    for (id, record) in map.subvolumes() {
        let stands_there = record.access == Access::Writable && record.parent == of && id != of;
        if !stands_there || path_of_entry(map, to, id)?.is_some() {
            continue;
        }
        if let Some(path) = path_of_entry(map, of, id)? {
            let path = String::from_utf8_lossy(&path);
            return Ok(Some(format!(
                "the subvolume {path:?} stands in it and has no name in {name}: move or delete it \
                 first"
            )));
        }
    }
    Ok(None)
}

impl LocalFs {
    /// Makes the subvolume `of` what its snapshot `to` is. What it was is kept as a snapshot with
    /// the name `keep_as`.
    pub fn roll_back(
        &self,
        of: SubvolId,
        to: SubvolId,
        keep_as: &[u8],
        created: i64,
    ) -> Result<RolledBack> {
        let kept = self.map.rollback(of, to, keep_as, created)?;
        let known = self.references.forget(of);
        self.reaper.forget(of);
        // It may be from before there was a quota.
        self.map.count_usages()?;
        Ok(RolledBack { kept, known })
    }
}
