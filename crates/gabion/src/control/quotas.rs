//! What is said about quotas.

use serde::{Deserialize, Serialize};

/// What is to be done with quotas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuotaAction {
    /// Show all.
    List,
    /// Limit a subvolume, or limit it no longer if neither number is given.
    Set {
        /// The most bytes; as many as there is room for if not given.
        bytes: Option<u64>,
        /// The most objects; as many as there is room for if not given.
        objects: Option<u64>,
    },
}

/// Quotas of a filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotas {
    /// The image or device.
    pub target: String,
    /// Those that are meant.
    pub quotas: Vec<Quota>,
    /// Whether the kernel of this mount collects writes, so that programs hear of a quota that is
    /// used up at close(2) or fsync(2).
    #[serde(default)]
    pub collects_writes: bool,
    /// Who uses this mount, as far as can be seen, if it does that only until nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed_after: Option<Vec<String>>,
}

/// How much a subvolume may refer to, and how much it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// The subvolume's number.
    pub id: u32,
    /// Where it is, from the root of the filesystem; null if a crash has left it without a name.
    pub path: Option<String>,
    /// The most bytes; null if there is no limit.
    pub limit_bytes: Option<u64>,
    /// Bytes of its files, and 4096 for each object; null if they are not counted yet.
    pub used_bytes: Option<u64>,
    /// The most objects; null if there is no limit.
    pub limit_objects: Option<u64>,
    /// Its files, directories and other objects; null if they are not counted yet.
    pub used_objects: Option<u64>,
}
