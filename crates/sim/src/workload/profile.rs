//! What a workload is like: how large its objects get, and what is done to them how often.
//!
//! A profile is for one use. Answers are compared best where much is looked at; crashes tell most
//! where much is synced, for only what was synced has to be there afterwards; small files are
//! written over and replaced more often in as many operations.

/// What a workload is like.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// No file grows beyond this many bytes (but by moving bytes up, at most twice that).
    pub file_size_max: u64,
    /// With so many objects, removing becomes more likely than making.
    pub objects_max: usize,
    /// How often files and names are synced, among 1000 operations.
    pub syncs: u32,
    /// How often something is only looked at, among 1000 operations.
    pub looks: u32,
}

impl Profile {
    /// For comparing answers: much is looked at, syncing is rare.
    pub const ANSWERS: Profile =
        Profile { file_size_max: 256 << 10, objects_max: 60, syncs: 10, looks: 250 };
    /// For crashes: nothing is looked at, syncing is common, files are small.
    pub const CRASHES: Profile =
        Profile { file_size_max: 48 << 10, objects_max: 24, syncs: 120, looks: 0 };
    /// For crashes: few small files that are synced and written over again and again.
    pub const SYNCS: Profile =
        Profile { file_size_max: 20 << 10, objects_max: 8, syncs: 300, looks: 0 };
    /// For crashes: more objects than fit a node of a tree.
    pub const MANY: Profile =
        Profile { file_size_max: 16 << 10, objects_max: 400, syncs: 100, looks: 0 };
    /// For crashes on a full disk: more bytes than there is room.
    pub const FULL: Profile =
        Profile { file_size_max: 256 << 10, objects_max: 16, syncs: 120, looks: 0 };
    /// For crashes: files of many extents.
    pub const LARGE: Profile =
        Profile { file_size_max: 3 << 20, objects_max: 10, syncs: 150, looks: 0 };
}
