//! What the coordinator keeps of a volume: its members, how they are put together, and which copies
//! are to be trusted.
//!
//! The text that is kept of it is in [`crate::format::record`].

use gabion_base::ids::Uuid;

use crate::epoch::{Epoch, Opening};
use crate::format::header::MEMBER_DATA_START;
pub use crate::format::record::RecordError;
use crate::geometry::Geometry;

/// Members of a volume, at most.
pub const MEMBERS_MAX: usize = 64;
/// The longest name of a volume.
const NAME_BYTES_MAX: usize = 64;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name with the coordinator.
    pub name: String,
    /// Its identity, which its members know.
    pub uuid: Uuid,
    /// The latest openings, oldest first. The last one has the volume's epoch.
    pub openings: Vec<Opening>,
    /// The latest opening that was completed: since then it is known what every copy has.
    pub completed: Epoch,
    /// How often somebody has asked to have all copies compared.
    pub compare: u64,
    /// How the members are put together.
    pub layout: Layout,
    /// What somebody wants to have behind the end. It is no part of the volume before whoever has
    /// the volume open has reached it.
    pub append: Option<Layout>,
}

/// A device made of members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One member.
    Member(Member),
    /// One after the other.
    Linear(Vec<Layout>),
    /// In turns of `chunk_blocks` blocks.
    Stripe {
        /// Blocks on one part before it is the next one's turn.
        chunk_blocks: u64,
        /// The parts.
        parts: Vec<Layout>,
    },
    /// The same on all.
    Mirror {
        /// Names it in its bitmaps.
        uuid: Uuid,
        /// Blocks of each copy that are used, with the mirror's own at their heads.
        blocks: u64,
        /// How many somebody wants to have used; as many as are, or more.
        grows_to: u64,
        /// The copies; their places never change.
        copies: Vec<MirrorCopy>,
    },
}

/// A disk that is part of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity, which is in its header.
    pub uuid: Uuid,
    /// Where it is: a path, or the URI of an export.
    pub url: String,
    /// How many blocks of it are used, with its header.
    pub blocks: u64,
}

/// A copy in a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorCopy {
    /// Whether it is to be trusted.
    pub state: CopyState,
    /// What the administrator wants of it.
    pub wish: Wish,
    /// The latest opening in which it was used: a copy whose members do not know of that one is an
    /// older state of itself, as from a backup, and nothing on it can be used.
    pub since: Epoch,
    /// What it is on.
    pub on: Layout,
}

/// Whether a copy is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// It has everything that was ever acknowledged.
    InSync,
    /// It lacks what the bitmaps of the others say; if `full`, it may lack anything.
    Stale {
        /// Nothing on it can be used.
        full: bool,
    },
    /// As stale, and not to be brought up to date until somebody says so.
    Suspended {
        /// Nothing on it can be used.
        full: bool,
    },
    /// It was taken out; its place stays empty until somebody adds a copy.
    Removed,
}

/// What an administrator wants of a copy. Whoever has the volume open sees to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// That it is used.
    Use,
    /// That it is left alone.
    Suspend,
    /// That it is taken out.
    Remove,
    /// That it is taken out once the copy with this first member is in sync.
    Replace {
        /// The identity of that member.
        by: Uuid,
    },
}

impl CopyState {
    /// Whether it is [`CopyState::InSync`].
    pub fn is_in_sync(self) -> bool {
        self == Self::InSync
    }

    /// Whether nothing on it can be used.
    pub fn is_full(self) -> bool {
        matches!(self, Self::Stale { full: true } | Self::Suspended { full: true })
    }
}

/// Why `name` cannot be a volume's, if so.
pub fn unfit_name(name: &str) -> Option<&'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Some("it must have 1 to 64 characters");
    }
    if name.starts_with(['.', '-']) || !name.bytes().all(fits) {
        return Some("it must be letters, digits, '-', '_' and '.', and not begin with '.' or '-'");
    }
    None
}

impl Record {
    /// The volume's epoch; 0 if it was never opened.
    pub fn epoch(&self) -> Epoch {
        self.openings.last().map_or(Epoch(0), |opening| opening.epoch)
    }
}

impl Layout {
    /// All members, in order.
    pub fn members(&self) -> Vec<&Member> {
        match self {
            Self::Member(member) => vec![member],
            Self::Linear(parts) | Self::Stripe { parts, .. } => {
                parts.iter().flat_map(Self::members).collect()
            }
            Self::Mirror { copies, .. } => {
                copies.iter().flat_map(|copy| copy.on.members()).collect()
            }
        }
    }

    /// Blocks that the device has for whoever uses it; nothing if its parts are too small, or do
    /// not fit together.
    pub fn blocks(&self) -> Option<u64> {
        match self {
            Self::Member(member) => member.blocks.checked_sub(MEMBER_DATA_START),
            Self::Linear(parts) => {
                parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.blocks()?))
            }
            Self::Stripe { chunk_blocks, parts } => {
                let least = parts.iter().map(Self::blocks).min().flatten()?;
                (least / chunk_blocks * chunk_blocks).checked_mul(parts.len() as u64)
            }
            Self::Mirror { blocks, grows_to, copies, .. } => {
                if grows_to < blocks {
                    return None;
                }
                let mut there = copies.iter().filter(|copy| copy.state != CopyState::Removed);
                let fits = there.all(|copy| copy.on.blocks().is_some_and(|on| on >= *blocks));
                Some(Geometry::of_copies(*blocks).filter(|_| fits)?.blocks())
            }
        }
        .filter(|blocks| *blocks > 0)
    }

    /// All mirrors, the outer ones first.
    pub fn mirrors(&self) -> Vec<(Uuid, &[MirrorCopy])> {
        match self {
            Self::Member(_) => Vec::new(),
            Self::Linear(parts) | Self::Stripe { parts, .. } => {
                parts.iter().flat_map(Self::mirrors).collect()
            }
            Self::Mirror { uuid, copies, .. } => {
                let inner = copies.iter().flat_map(|copy| copy.on.mirrors());
                std::iter::once((*uuid, copies.as_slice())).chain(inner).collect()
            }
        }
    }

    /// Blocks of each copy of the mirror `wanted` that are used, and how many somebody wants to
    /// have used, if it is in here.
    pub fn blocks_of_copies(&self, wanted: Uuid) -> Option<(u64, u64)> {
        match self {
            Self::Member(_) => None,
            Self::Linear(parts) | Self::Stripe { parts, .. } => {
                parts.iter().find_map(|part| part.blocks_of_copies(wanted))
            }
            Self::Mirror { uuid, blocks, grows_to, .. } if *uuid == wanted => {
                Some((*blocks, *grows_to))
            }
            Self::Mirror { copies, .. } => {
                copies.iter().find_map(|copy| copy.on.blocks_of_copies(wanted))
            }
        }
    }

    /// The copies of the mirror `wanted`, if it is in here.
    pub fn mirror_mut(&mut self, wanted: Uuid) -> Option<&mut Vec<MirrorCopy>> {
        match self.find_mirror(wanted)? {
            Self::Mirror { copies, .. } => Some(copies),
            _ => None,
        }
    }

    /// The mirror `wanted` itself, if it is in here.
    pub fn find_mirror(&mut self, wanted: Uuid) -> Option<&mut Self> {
        match self {
            Self::Mirror { uuid, .. } if *uuid == wanted => Some(self),
            Self::Member(_) => None,
            Self::Linear(parts) | Self::Stripe { parts, .. } => {
                parts.iter_mut().find_map(|part| part.find_mirror(wanted))
            }
            Self::Mirror { copies, .. } => {
                copies.iter_mut().find_map(|copy| copy.on.find_mirror(wanted))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        assert_eq!(unfit_name("tank-1.a_b"), None);
        for name in ["", ".a", "-a", "a/b", "ä", &"a".repeat(65)] {
            assert!(unfit_name(name).is_some(), "{name}");
        }
    }
}
