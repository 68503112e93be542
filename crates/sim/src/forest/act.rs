//! What is done with a forest, and seeded choices of it.

use std::collections::BTreeSet;

use gabion_base::rng::Rng;

use super::{BLOCK, FIRST, Forest, Number, Volume};

/// Files of a volume, which are numbered from 0: few, so that all gets into each other's way.
pub const FILES: u64 = 4;
/// Blocks of a file.
const BLOCKS: u64 = 24;
/// Volumes that there are at most, so that each has something done with it.
const VOLUMES_MAX: usize = 14;

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Whole blocks are written.
    Write {
        /// In which volume.
        volume: Number,
        /// Which file.
        file: u64,
        /// The first block.
        block: u64,
        /// How many.
        count: u64,
        /// Which bytes.
        stamp: u64,
    },
    /// A file gets another length.
    Cut {
        /// In which volume.
        volume: Number,
        /// Which file.
        file: u64,
        /// In blocks.
        blocks: u64,
    },
    /// Blocks of a file become a hole.
    Punch {
        /// In which volume.
        volume: Number,
        /// Which file.
        file: u64,
        /// The first block.
        block: u64,
        /// How many.
        count: u64,
    },
    /// Blocks of a file become another one's, too. Both are written before.
    Share {
        /// In which volume.
        volume: Number,
        /// Of which file.
        from: u64,
        /// The first block there.
        block: u64,
        /// To which file.
        to: u64,
        /// The first block there.
        target: u64,
        /// How many.
        count: u64,
    },
    /// Nothing is left of a file.
    Drop {
        /// In which volume.
        volume: Number,
        /// Which file.
        file: u64,
    },
    /// A snapshot is made.
    Snapshot {
        /// Of which volume.
        of: Number,
    },
    /// A volume begins as a snapshot is.
    Clone {
        /// The snapshot.
        of: Number,
    },
    /// A volume becomes what a snapshot of it is.
    Rollback {
        /// The volume.
        of: Number,
        /// The snapshot.
        to: Number,
    },
    /// Volumes are removed, all or none.
    Remove {
        /// Which.
        ids: BTreeSet<Number>,
    },
    /// A snapshot is to be kept, or not any more.
    Hold {
        /// Which.
        of: Number,
        /// Whether it is.
        is_held: bool,
    },
    /// A volume gets a quota, or none any more.
    Quota {
        /// Which.
        of: Number,
        /// In blocks.
        most: Option<u64>,
    },
    /// A step of a removal is made.
    Step,
    /// All that was accepted is written.
    WriteBack,
    /// A commit is made.
    Commit,
    /// Everything is made durable.
    Sync,
    /// Everything is written, and one file made durable with what came before.
    Fsync {
        /// In which volume.
        volume: Number,
        /// Which file.
        file: u64,
    },
}

impl Act {
    /// Whether all that was done is durable when it has succeeded.
    pub fn is_barrier(&self) -> bool {
        match self {
            Self::Snapshot { .. }
            | Self::Clone { .. }
            | Self::Rollback { .. }
            | Self::Remove { .. }
            | Self::Quota { .. }
            | Self::Sync
            | Self::Fsync { .. } => true,
            // Where there is nothing to do, nothing is committed either.
            Self::Hold { .. } | Self::Step | Self::Commit | Self::WriteBack => false,
            Self::Write { .. }
            | Self::Cut { .. }
            | Self::Punch { .. }
            | Self::Share { .. }
            | Self::Drop { .. } => false,
        }
    }

    /// Something to be done next with `forest`.
    pub fn choose(forest: &Forest, rng: &mut Rng) -> Self {
        loop {
            if let Some(act) = Self::choice(forest, rng) {
                return act;
            }
        }
    }

    fn choice(forest: &Forest, rng: &mut Rng) -> Option<Self> {
        let is_full = forest.volumes.len() >= VOLUMES_MAX;
        let volume = pick(forest, rng, Volume::is_writable)?;
        let snapshot = pick(forest, rng, |it| !it.is_writable());
        Some(match rng.below(100) {
            0..9 if !is_full => Self::Snapshot { of: volume },
            9..14 if !is_full => Self::Clone { of: snapshot? },
            14..19 if !is_full => {
                let to = snapshot?;
                let of = forest.volumes[&to].of?;
                Self::Rollback { of, to }
            }
            0..9 | 19..26 => Self::Remove { ids: [snapshot?].into() },
            26..30 => Self::Remove { ids: whole(forest, volume)? },
            30..32 => Self::Hold { of: snapshot?, is_held: rng.chance(1, 3) },
            32..36 => {
                let more = rng.below(20);
                let usage = forest.volumes[&volume].usage();
                let most = (usage + more).checked_sub(4).filter(|_| rng.chance(3, 4));
                Self::Quota { of: volume, most }
            }
            36..46 => Self::Step,
            46..49 => Self::WriteBack,
            49..52 => Self::Commit,
            52..54 => Self::Sync,
            54..58 => Self::Fsync { volume, file: rng.below(FILES) },
            choice => change(forest, volume, choice, rng)?,
        })
    }
}

fn change(forest: &Forest, volume: Number, choice: u64, rng: &mut Rng) -> Option<Act> {
    let (file, block) = (rng.below(FILES), rng.below(BLOCKS));
    let count = 1 + rng.below(8);
    Some(match choice {
        58..64 => Act::Cut { volume, file, blocks: block },
        64..70 => Act::Punch { volume, file, block, count },
        70..76 => {
            let (to, target) = ((file + 1) % FILES, rng.below(BLOCKS));
            let end = forest.volumes[&volume].files.get(&file)?.size / BLOCK;
            let count = end.checked_sub(block).filter(|count| *count > 0)?.min(count);
            Act::Share { volume, from: file, block, to, target, count }
        }
        76..79 => Act::Drop { volume, file },
        _ => Act::Write { volume, file, block, count, stamp: rng.next_u64() },
    })
}

/// A volume and all its snapshots, if it may be removed at all.
fn whole(forest: &Forest, volume: Number) -> Option<BTreeSet<Number>> {
    let its = forest.volumes.iter().filter(|(_, it)| it.of == Some(volume)).map(|(id, _)| *id);
    (volume != FIRST).then(|| its.chain([volume]).collect())
}

fn pick(forest: &Forest, rng: &mut Rng, is_meant: impl Fn(&Volume) -> bool) -> Option<Number> {
    let meant = || forest.volumes.iter().filter(|(_, volume)| is_meant(volume));
    let index = rng.below(1.max(meant().count() as u64));
    meant().nth(index as usize).map(|(id, _)| *id)
}
