//! Whole images that somebody has damaged or forged. Whatever is wrong, everything that can be
//! done with a filesystem ends, without a panic, in a result or a
//! [`MapError`](gabion_map::MapError), after a bounded number of requests and in bounded memory.
//!
//! Each group of cases runs over seeds; a failing one says which, and `GABION_SEED` repeats it.
//! `GABION_CASES=50` makes a long run of it.

mod bugs;
mod exercise;
mod forge;
mod lies;
mod sample;

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::{BlockAddr, SubvolId, Txg};
use gabion_base::rng::Rng;

use self::exercise::{exercise, for_seeds};
use self::forge::{Forge, batches, payload, recount};
use crate::image::Image;

/// Address space that the whole test program may take: anything that trusts a length from disk
/// asks for far more.
const MEMORY_MAX_KIB: u64 = 6 << 20;

/// The most address space that this program ever had.
fn check_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let peak = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<u64>().ok());
    assert!(peak.is_none_or(|peak| peak < MEMORY_MAX_KIB), "{peak:?} KiB of address space");
}

#[test]
fn the_sample_is_whole() {
    let mut rng = Rng::new(1);
    exercise(sample::image(), &mut rng).expect("a whole filesystem");
    let mut forge = Forge::new(sample::image());
    forge.nodes(&mut |_, _| {});
    forge.pages(&mut |_, _| {}, &mut |_| {});
    forge.journal(&mut |units| assert!(units.len() >= 3));
    exercise(forge.image, &mut rng).expect("an image that was taken apart and put together");
}

#[test]
fn random_damage_ends_in_errors() {
    for_seeds("damage", 40, 50, |rng| {
        let mut image = sample::image();
        for _ in 0..1 + rng.below(4) {
            damage(&mut image, rng);
        }
        exercise(image, rng)
    });
    check_memory();
}

fn damage(image: &mut Image, rng: &mut Rng) {
    let written = image.written();
    let any = |rng: &mut Rng| written[rng.below(written.len() as u64) as usize];
    let (one, other) = (any(rng), any(rng));
    let mut bytes = image.read(one, 1);
    match rng.below(5) {
        0 => image.write(one, &[0; BLOCK_SIZE]),
        1 => image.write(other, &bytes),
        2 => {
            let second = image.read(other, 1);
            image.write(other, &bytes);
            image.write(one, &second);
        }
        3 => {
            let from = rng.below(BLOCK_SIZE as u64) as usize;
            bytes[from..].fill(0);
            image.write(one, &bytes);
        }
        _ => {
            for _ in 0..1 + rng.below(8) {
                bytes[rng.below(BLOCK_SIZE as u64) as usize] ^= 1 << rng.below(8);
            }
            image.write(one, &bytes);
        }
    }
}

#[test]
fn forged_nodes_and_items_end_in_errors() {
    for_seeds("nodes", 80, 50, |rng| {
        let mut forge = Forge::new(sample::image());
        let mut places: Vec<(SubvolId, BlockAddr)> = Vec::new();
        forge.nodes(&mut |tree, node| places.push((tree, node.addr)));
        let nodes: Vec<_> = places.iter().map(|(_, addr)| *addr).collect();
        // The forest is one node of many, but the most interesting one.
        let forest = places.iter().find(|(tree, _)| *tree == SubvolId(0)).expect("it has one");
        let mut targets = Vec::new();
        for _ in 0..1 + rng.below(3) {
            let any = nodes[rng.below(nodes.len() as u64) as usize];
            targets.push(if rng.chance(1, 4) { forest.1 } else { any });
        }
        forge.nodes(&mut |_, node| {
            if targets.contains(&node.addr) {
                lies::node(node, &nodes, rng);
            }
        });
        exercise(forge.image, rng)
    });
    check_memory();
}

#[test]
fn forged_allocation_maps_end_in_errors() {
    for_seeds("allocation", 30, 20, |rng| {
        let mut forge = Forge::new(sample::image());
        let mut lies = rng.clone();
        let kind = rng.below(4);
        forge.pages(
            &mut |bitmap, page| {
                let start = lies.below(sample::BLOCKS);
                let end = (start + 1 + lies.below(200)).min(sample::BLOCKS);
                for block in start..end {
                    let used = bitmap.is_set(block);
                    match (kind, used) {
                        (0, false) => bitmap.set(block, 1),
                        (1, true) => bitmap.clear(block, 1),
                        _ => {}
                    }
                }
                recount(bitmap, page);
                if kind == 2 || lies.chance(1, 5) {
                    page.free = lies::odd(&mut lies) as u32;
                    page.clusters = lies::odd(&mut lies) as u16;
                }
            },
            &mut |table| {
                if kind == 3 {
                    lies::overwrite(&mut table[..40], rng);
                }
            },
        );
        exercise(forge.image, rng)
    });
    check_memory();
}

#[test]
fn forged_superblocks_end_in_errors() {
    for_seeds("superblock", 50, 25, |rng| {
        let mut forge = Forge::new(sample::image());
        let superblock = &mut forge.superblock;
        for _ in 0..1 + rng.below(2) {
            let odd = lies::odd(rng);
            match rng.below(16) {
                0 => superblock.txg = Txg(odd.max(superblock.txg.0)),
                1 => superblock.blocks = odd,
                2 => superblock.next_subvol = SubvolId(odd as u32),
                3 => superblock.free_blocks = odd,
                4 => superblock.forest = None,
                5 => superblock.forest_level = odd as u8,
                6 => superblock.alloc.free = odd as u32,
                7 => superblock.alloc.copy = gabion_map::format::alloc::PageCopy::Unwritten,
                8 => superblock.journal.position = odd,
                9 => superblock.journal.sequence = odd,
                10 => superblock.journal.previous = odd,
                11 => superblock.created = odd as i64,
                12 => superblock.incompatible = odd,
                13 => superblock.read_only_compatible = odd,
                14 => superblock.name_seed = odd,
                _ => superblock.compatible = odd,
            }
        }
        forge.seal();
        exercise(forge.image, rng)
    });
    check_memory();
}

#[test]
fn forged_journals_end_in_errors() {
    for_seeds("journal", 80, 10, |rng| {
        let mut forge = Forge::new(sample::image());
        forge.journal(&mut |units| {
            if rng.chance(1, 3) {
                let index = rng.below(units.len() as u64) as usize;
                lies::overwrite(&mut units[index], rng);
                return;
            }
            for _ in 0..1 + rng.below(3) {
                let index = rng.below(units.len() as u64 + 1) as usize;
                let mut all = units.get(index).map_or(Vec::new(), |unit| batches(unit));
                let at = rng.below(all.len() as u64 + 1) as usize;
                all.insert(at, lies::batch(rng));
                match units.get_mut(index) {
                    Some(unit) => *unit = payload(&all),
                    None => units.push(payload(&all)),
                }
            }
        });
        exercise(forge.image, rng)
    });
    check_memory();
}
