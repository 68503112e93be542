//! Values that break things: near the ends of their types, near each other, near real ones.

use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg};
use gabion_base::rng::Rng;

use gabion_map::format::item::{
    Access, Dead, Extent, FileData, Reference, Sharing, SubvolRecord, Unwritten,
};
use gabion_map::format::journal::{Batch, DroppedRange, FreedRun, JournaledBytes, Run};
use gabion_map::format::node::{ItemKey, NodePtr};
use gabion_map::format::subvolume::{Count, Extended, Hold, Most, Quota, Removal, Schedule};
use gabion_map::{FileId, Kind};

use super::forge::{Item, NodeBytes};
use super::sample::BLOCKS;

/// A number that somebody may have forgotten.
pub fn odd(rng: &mut Rng) -> u64 {
    const BASES: [u64; 20] = [
        0,
        1,
        4,
        16,
        256,
        2048,
        4096,
        5000,
        32_768,
        65_536,
        BLOCKS,
        1 << 20,
        1 << 31,
        1 << 32,
        1 << 38,
        1 << 51,
        (1 << 63) - 4096,
        1 << 63,
        u64::MAX - 4096,
        u64::MAX,
    ];
    let base = BASES[rng.below(BASES.len() as u64) as usize];
    match rng.below(6) {
        0 => rng.next_u64() >> rng.below(64),
        1 => base.wrapping_add(1 + rng.below(4)),
        2 => base.wrapping_sub(1 + rng.below(4)),
        3 => rng.below(BLOCKS + 10),
        4 => 10 + rng.below(20),
        _ => base,
    }
}

/// A number that may well be right.
fn plausible(rng: &mut Rng, below: u64) -> u64 {
    if rng.chance(3, 4) { rng.below(below) } else { odd(rng) }
}

fn address(rng: &mut Rng) -> BlockAddr {
    BlockAddr(plausible(rng, BLOCKS))
}

fn birth(rng: &mut Rng) -> Txg {
    Txg(plausible(rng, 8))
}

fn sharing(rng: &mut Rng) -> Sharing {
    if rng.chance(1, 2) { Sharing::Sole } else { Sharing::Shared }
}

fn pointer(rng: &mut Rng) -> Option<NodePtr> {
    let addr = BlockAddr(address(rng).0 & !3);
    let ptr = NodePtr { addr, birth: birth(rng), checksum: rng.next_u64() };
    rng.chance(3, 4).then_some(ptr)
}

/// An item that nobody has put.
pub fn item(rng: &mut Rng) -> Item {
    let ino = Ino(10 + rng.below(10));
    let block = if rng.chance(3, 4) { rng.below(60) } else { odd(rng) % (1 << 52) };
    let data = |at: u64, data: &FileData| {
        (ItemKey { ino, kind: Kind::DATA, at: at.wrapping_mul(4096) }, data.encode())
    };
    let (key, mut value) = match rng.below(9) {
        0 | 1 => {
            let count = 1 + plausible(rng, 40) % 300;
            let checksums = (0..count).map(|_| rng.next_u64() as u32).collect();
            let extent =
                Extent { addr: address(rng), birth: birth(rng), sharing: sharing(rng), checksums };
            data(block, &FileData::Extent(extent))
        }
        2 => {
            let count = plausible(rng, 100) as u32;
            let run =
                Unwritten { addr: address(rng), birth: birth(rng), sharing: sharing(rng), count };
            data(block, &FileData::Unwritten(run))
        }
        3 => {
            let length = [0, 1, 2048, 2049, 4000][rng.below(5) as usize];
            let at = if rng.chance(3, 4) { 0 } else { block };
            data(at, &FileData::Inline(vec![7; length]))
        }
        4 => {
            let mut value = odd(rng).to_le_bytes().to_vec();
            value.extend_from_slice(&plausible(rng, 50).to_le_bytes());
            (ItemKey { ino, kind: Kind::FILE, at: 0 }, value)
        }
        5 => {
            let reference = Reference { count: plausible(rng, 50) as u32, more: odd(rng) as u32 };
            let key = ItemKey { ino: Ino(0), kind: Kind::REFERENCE, at: address(rng).0 };
            (key, reference.encode())
        }
        6 => {
            let key = ItemKey {
                ino: Ino(plausible(rng, 7)),
                kind: Kind::SUBVOLUME,
                at: plausible(rng, 2),
            };
            (key, record(rng).encode())
        }
        7 => {
            let dead = Dead {
                count: plausible(rng, 50) as u32,
                owners: odd(rng) as u32,
                birth: birth(rng),
            };
            let key = ItemKey { ino: Ino(rng.below(5)), kind: Kind::DEAD, at: address(rng).0 };
            (key, dead.encode())
        }
        _ => {
            let kind = Kind(rng.next_u64() as u8);
            let mut value = vec![0; rng.below(200) as usize];
            rng.fill(&mut value);
            (ItemKey { ino: Ino(odd(rng)), kind, at: odd(rng) }, value)
        }
    };
    if rng.chance(1, 10) {
        value.truncate(rng.below(value.len() as u64 + 1) as usize);
    }
    (key, value)
}

fn record(rng: &mut Rng) -> SubvolRecord {
    SubvolRecord {
        access: if rng.chance(1, 2) { Access::Writable } else { Access::ReadOnly },
        parent: SubvolId(odd(rng) as u32),
        origin: SubvolId(odd(rng) as u32),
        root: pointer(rng),
        level: plausible(rng, 3) as u8,
        birth: birth(rng),
        newest_snapshot_birth: birth(rng),
        newest_snapshot: SubvolId(plausible(rng, 5) as u32),
        next_ino: odd(rng),
        nodes: odd(rng),
        extended: extended(rng),
    }
}

fn extended(rng: &mut Rng) -> Extended {
    if rng.chance(1, 2) {
        return Extended::default();
    }
    let place = ItemKey { ino: Ino(odd(rng)), kind: Kind(plausible(rng, 12) as u8), at: odd(rng) };
    let removals = [
        Removal::None,
        Removal::Marked,
        Removal::Draining,
        Removal::Walking(place),
        Removal::Dropping,
    ];
    let mut name = vec![b'n'; plausible(rng, 4) as usize % 300];
    rng.fill(&mut name);
    Extended {
        chain: SubvolId(plausible(rng, 5) as u32),
        base: SubvolId(plausible(rng, 5) as u32),
        base_birth: birth(rng),
        created: odd(rng) as i64,
        removal: removals[rng.below(5) as usize],
        hold: if rng.chance(1, 4) { Hold::Held } else { Hold::Released },
        name,
        quota: rng.chance(1, 3).then(|| quota(rng)),
        schedule: rng.chance(1, 4).then(|| Schedule { hourly: 1, ..Schedule::default() }),
    }
}

fn quota(rng: &mut Rng) -> Quota {
    let most = Most { blocks: Some(odd(rng)), objects: rng.chance(1, 2).then(|| odd(rng)) };
    let count = Count { blocks: odd(rng), objects: plausible(rng, 5) };
    Quota { most, count: rng.chance(3, 4).then_some(count) }
}

/// Overwrites a number of 1, 2, 4 or 8 bytes somewhere in `bytes`.
pub fn overwrite(bytes: &mut [u8], rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    let width = (1 << rng.below(4)).min(bytes.len());
    let at = rng.below((bytes.len() - width + 1) as u64) as usize;
    let value = odd(rng).to_le_bytes();
    bytes[at..at + width].copy_from_slice(&value[..width]);
}

/// Changes something in a node.
pub fn node(node: &mut NodeBytes, others: &[BlockAddr], rng: &mut Rng) {
    let count = node.count() as u64;
    if rng.chance(1, 20) {
        return overwrite(&mut node.bytes[..64], rng);
    }
    if node.level() > 0 {
        let slot = 64 + rng.below(count) as usize * 41;
        let other = others[rng.below(others.len() as u64) as usize];
        return match rng.below(3) {
            0 => node.bytes[slot + 17..slot + 25].copy_from_slice(&other.0.to_le_bytes()),
            1 => overwrite(&mut node.bytes[slot..slot + 17], rng),
            _ => overwrite(&mut node.bytes[slot + 17..slot + 41], rng),
        };
    }
    let interesting: Vec<usize> = (0..node.count())
        .filter(|index| {
            let kind = node.key(*index).kind;
            kind >= Kind::DATA || kind == Kind::FILE || kind == Kind::INODE && rng.chance(1, 50)
        })
        .collect();
    let any = rng.below(count) as usize;
    let index = interesting.get(rng.below(interesting.len().max(1) as u64) as usize);
    let index = *index.unwrap_or(&any);
    match rng.below(8) {
        0..3 => {
            let mut at = node.values()[index].clone();
            at.end = at.end.min(at.start + 60);
            overwrite(&mut node.bytes[at], rng);
        }
        3 => {
            let mut items = node.items();
            let at = if rng.chance(1, 2) { rng.below(80) * 4096 } else { odd(rng) };
            items[index].0.at = at;
            node.set_items(items);
        }
        4 => {
            // The same blocks once more, elsewhere.
            let mut items = node.items();
            let mut copy = items[index].clone();
            match rng.below(3) {
                0 => copy.0.ino = Ino(10 + rng.below(8)),
                1 => copy.0.at = rng.below(80) * 4096,
                _ => copy.0.at = copy.0.at.wrapping_add(4096),
            }
            items.push(copy);
            node.set_items(items);
        }
        5 => {
            let mut items = node.items();
            items.remove(index);
            node.set_items(items);
        }
        _ => {
            let mut items = node.items();
            (0..1 + rng.below(6)).for_each(|_| items.push(item(rng)));
            node.set_items(items);
        }
    }
}

fn run(rng: &mut Rng) -> Run {
    Run { addr: address(rng), count: plausible(rng, 30) as u32 }
}

/// A batch that nobody has made.
pub fn batch(rng: &mut Rng) -> Batch {
    let file = |rng: &mut Rng| {
        let subvol = SubvolId(1 + plausible(rng, 2) as u32 % 7);
        FileId::new(subvol, Ino(if rng.chance(3, 4) { 10 + rng.below(8) } else { odd(rng) }))
    };
    let mut batch = Batch::default();
    for _ in 0..rng.below(4) {
        let (key, value) = item(rng);
        let subvol = file(rng).subvol;
        batch.items.push((key.of(subvol), rng.chance(3, 4).then(|| value.into())));
    }
    for _ in 0..rng.below(4) {
        let offset = if rng.chance(3, 4) { rng.below(60) } else { odd(rng) >> 12 };
        let bytes = vec![5; 1 + rng.below(20_000) as usize];
        batch.bytes.push(JournaledBytes { file: file(rng), offset: offset << 12, bytes });
    }
    for _ in 0..rng.below(3) {
        let place = |rng: &mut Rng| if rng.chance(3, 4) { rng.below(60) } else { odd(rng) >> 12 };
        let (from, to) = (place(rng) << 12, place(rng) << 12);
        batch.dropped.push(DroppedRange { file: file(rng), from, to });
    }
    (0..rng.below(3)).for_each(|_| batch.allocated.push(run(rng)));
    for _ in 0..rng.below(3) {
        let subvol = SubvolId(rng.below(5) as u32);
        batch.freed.push(FreedRun { subvol, run: run(rng), birth: birth(rng) });
    }
    batch
}
