//! Merging and reading, against a map in memory.

use std::collections::BTreeMap;
use std::ops::Range;

use gabion_base::rng::Rng;

use gabion_map::format::node::{NODE_CAPACITY, NodePtr};
use gabion_map::tree::{Change, NodeStore, Root, Visit, Visitor};
use gabion_map::txn::VALUE_LENGTH_MAX;
use gabion_map::{Key, MapError};

use crate::tree_store::{Memory, Model, OWNER, apply, key, value};

/// A random batch over keys numbered below `keys`.
fn batch(rng: &mut Rng, keys: u64, model: &Model) -> Vec<Change> {
    let mut changes = BTreeMap::new();
    let length = |rng: &mut Rng| match rng.below(20) {
        0 => rng.below(VALUE_LENGTH_MAX as u64 + 1) as usize,
        1 => VALUE_LENGTH_MAX,
        2..8 => rng.below(400) as usize,
        _ => rng.below(60) as usize,
    };
    let count = [1, 10, 300, 1500][rng.below(4) as usize];
    match rng.below(6) {
        // Anywhere.
        0 | 1 => {
            for _ in 0..count {
                let length = length(rng);
                changes.insert(key(rng.below(keys)), Some(value(length, rng.next_u64() % 256)));
            }
        }
        // One run of new neighbours.
        2 => {
            let start = rng.below(keys);
            for number in start..start + count {
                let length = length(rng);
                changes.insert(key(number), Some(value(length, 1)));
            }
        }
        // Past the end.
        3 => {
            let last = model.last_key_value().map_or(0, |(last, _)| last.ino.0 + 1);
            for number in last * 12..last * 12 + count {
                changes.insert(key(number), Some(value(rng.below(200) as usize, 2)));
            }
        }
        // A range goes away, sometimes nearly everything.
        4 => {
            let start = rng.below(keys);
            let end = if rng.chance(1, 4) { keys * 2 } else { start + rng.below(2 * count) };
            for (key, _) in model.range(key(start)..key(end)) {
                changes.insert(*key, None);
            }
        }
        // Some of everything, and deletions of what is not there.
        _ => {
            for _ in 0..count {
                let put = rng.chance(1, 2).then(|| value(length(rng), 3));
                changes.insert(key(rng.below(keys)), put);
            }
        }
    }
    changes.into_iter().collect()
}

fn check_reads(store: &Memory, root: Root, model: &Model, rng: &mut Rng, keys: u64) {
    let tree = store.tree(root);
    for _ in 0..20 {
        let at = key(rng.below(keys + 100));
        let value = tree.get(at).expect("nothing is damaged");
        assert_eq!(value, model.get(&at).cloned());
        let before = tree.at_or_before(at).expect("nothing is damaged");
        let expected = model.range(..=at).next_back();
        assert_eq!(before.as_ref().map(|item| item.key()), expected.map(|(key, _)| *key));
        let to = key(rng.below(keys + 100));
        let limit = rng.below(50) as usize;
        let expected: Vec<_> = model
            .range(at..)
            .take_while(|(key, _)| **key <= to)
            .take(limit)
            .map(|(key, value)| (*key, value.clone()))
            .collect();
        assert_eq!(tree.scan(at, to, limit).expect("nothing is damaged"), expected);
    }
}

fn run(seed: u64, rounds: u32, keys: u64, threads: usize) {
    let mut rng = Rng::new(seed);
    let store = Memory::new();
    let mut model = Model::new();
    let mut root = Root::EMPTY;
    for round in 0..rounds {
        let changes = batch(&mut rng, keys, &model);
        apply(&mut model, &changes);
        root = store.merge(root, &changes, threads);
        println!("seed {seed} round {round}: {} changes, {} items", changes.len(), model.len());
        store.check(root, &model);
        check_reads(&store, root, &model, &mut rng, keys);
    }
}

#[test]
fn random_merges_agree_with_a_map() {
    for seed in 0..3 {
        run(seed, 40, 4000, 1);
    }
    run(100, 20, 40_000, 1);
}

#[test]
fn random_merges_of_few_large_items_agree_with_a_map() {
    for seed in 10..15 {
        run(seed, 40, 100, 1);
    }
}

#[test]
fn random_merges_on_several_threads_agree_with_a_map() {
    for seed in 20..23 {
        run(seed, 20, 6000, 4);
    }
}

#[test]
fn threads_do_not_change_the_shape() {
    let mut rng = Rng::new(5);
    let (one, four) = (Memory::new(), Memory::new());
    let mut roots = (Root::EMPTY, Root::EMPTY);
    let mut model = Model::new();
    for _ in 0..20 {
        let changes = batch(&mut rng, 20_000, &model);
        apply(&mut model, &changes);
        roots = (one.merge(roots.0, &changes, 1), four.merge(roots.1, &changes, 4));
        assert_eq!(roots.0.level, roots.1.level);
        assert_eq!(one.live().len(), four.live().len());
        assert_eq!(one.take_writes(), four.take_writes());
        four.check(roots.1, &model);
    }
}

#[test]
fn old_roots_keep_what_they_had() {
    let mut rng = Rng::new(6);
    let store = Memory::new();
    let mut model = Model::new();
    let mut root = Root::EMPTY;
    let mut states = Vec::new();
    for _ in 0..15 {
        let changes = batch(&mut rng, 3000, &model);
        apply(&mut model, &changes);
        root = store.merge(root, &changes, 1);
        states.push((root, model.clone()));
    }
    for (root, model) in &states {
        let all = store.tree(*root).scan(Key::first(OWNER), Key::last(OWNER), usize::MAX);
        let all = all.expect("nothing is damaged");
        assert!(all.iter().map(|(key, value)| (key, value)).eq(model.iter()));
    }
}

/// A tree of `count` items of `length` bytes each, at every `step`th number.
fn filled(store: &Memory, count: u64, step: u64, length: usize) -> (Root, Model) {
    let changes: Vec<Change> =
        (0..count).map(|n| (key(n * step), Some(value(length, n)))).collect();
    let root = store.merge(Root::EMPTY, &changes, 1);
    (root, changes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}

#[test]
fn a_merge_that_changes_nothing_writes_nothing() {
    let store = Memory::new();
    let (root, model) = filled(&store, 5000, 2, 50);
    store.take_writes();
    let mut changes: Vec<Change> = (0..5000).map(|n| (key(n * 2 + 1), None)).collect();
    assert_eq!(store.merge(root, &changes, 1), root);
    changes = model.iter().step_by(7).map(|(key, value)| (*key, Some(value.clone()))).collect();
    assert_eq!(store.merge(root, &changes, 1), root);
    assert_eq!(store.merge(root, &[], 1), root);
    assert_eq!(store.merge(Root::EMPTY, &[(key(1), None)], 1), Root::EMPTY);
    assert_eq!(store.take_writes(), 0);
    store.check(root, &model);
}

#[test]
fn one_change_rewrites_one_path() {
    let store = Memory::new();
    let (root, mut model) = filled(&store, 100_000, 1, 50);
    store.take_writes();
    store.take_loads();
    let changes = [(key(50_000), Some(value(50, 99)))];
    let root = store.merge(root, &changes, 1);
    let height = u64::from(root.level) + 1;
    assert_eq!((store.take_loads(), store.take_writes()), (height, height));
    apply(&mut model, &changes);
    store.check(root, &model);
}

#[test]
fn appending_leaves_full_nodes_behind() {
    let store = Memory::new();
    let mut root = Root::EMPTY;
    let mut model = Model::new();
    for round in 0..400 {
        let start = round * 50;
        let changes: Vec<Change> =
            (start..start + 50).map(|number| (key(number), Some(value(80, number)))).collect();
        root = store.merge(root, &changes, 1);
        apply(&mut model, &changes);
    }
    store.check(root, &model);
    let bytes = model.len() * (19 + 80);
    let full = bytes.div_ceil(NODE_CAPACITY);
    let nodes = store.live().len();
    assert!(nodes <= full * 108 / 100 + 2, "{nodes} nodes for the content of {full}");
}

#[test]
fn random_inserts_leave_nodes_two_thirds_full() {
    let mut rng = Rng::new(8);
    let store = Memory::new();
    let mut root = Root::EMPTY;
    let mut model = Model::new();
    for _ in 0..120 {
        let changes: BTreeMap<_, _> =
            (0..100).map(|_| (key(rng.below(1 << 40)), Some(value(80, 1)))).collect();
        let changes: Vec<Change> = changes.into_iter().collect();
        root = store.merge(root, &changes, 1);
        apply(&mut model, &changes);
    }
    store.check(root, &model);
    let nodes = store.live().len();
    let fill = model.len() * (19 + 80) * 100 / (nodes * NODE_CAPACITY);
    assert!((60..=90).contains(&fill), "{fill} percent");
}

#[test]
fn a_tree_shrinks_to_nothing_in_any_order() {
    let mut rng = Rng::new(9);
    for order in 0..3 {
        let store = Memory::new();
        let (mut root, mut model) = filled(&store, 30_000, 1, 60);
        assert_eq!(root.level, 1);
        while !model.is_empty() {
            let keys: Vec<Key> = model.keys().copied().collect();
            let chosen: Vec<Change> = match order {
                0 => keys.iter().take(3000).map(|key| (*key, None)).collect(),
                1 => keys.iter().rev().take(3000).rev().map(|key| (*key, None)).collect(),
                _ if keys.len() < 50 => keys.iter().map(|key| (*key, None)).collect(),
                _ => keys.iter().filter(|_| rng.chance(1, 3)).map(|key| (*key, None)).collect(),
            };
            root = store.merge(root, &chosen, 1);
            apply(&mut model, &chosen);
            store.check(root, &model);
        }
        assert_eq!(root, Root::EMPTY);
        assert!(store.live().is_empty());
    }
}

/// A tree with one item of the greatest length for each of `numbers`: three to a leaf.
fn leaves_of_three(store: &Memory, root: Root, model: &mut Model, numbers: Range<u64>) -> Root {
    let put = |number| (key(number), Some(value(VALUE_LENGTH_MAX, number)));
    let changes: Vec<Change> = numbers.map(put).collect();
    apply(model, &changes);
    store.merge(root, &changes, 1)
}

/// How many nodes of each level a tree has.
fn nodes_by_level(store: &Memory, root: Root) -> Vec<usize> {
    struct Count(Vec<usize>);
    impl Visitor for Count {
        fn node(&mut self, _: NodePtr, level: u8) -> Result<Visit, MapError> {
            self.0[usize::from(level)] += 1;
            Ok(Visit::Enter)
        }

        fn item(&mut self, _: Key, _: &[u8]) -> Result<(), MapError> {
            Ok(())
        }
    }
    let mut count = Count(vec![0; usize::from(root.level) + 1]);
    store.tree(root).walk(&mut count).expect("nothing is damaged");
    count.0
}

/// Three levels, of which a merge leaves one small leaf under each of several parents: such a
/// leaf has no sibling, and must find its neighbour across the parents.
#[test]
fn lonely_leaves_unite_across_their_parents() {
    let store = Memory::new();
    let mut model = Model::new();
    let root = leaves_of_three(&store, Root::EMPTY, &mut model, 0..6000);
    assert_eq!(root.level, 2);
    let mut changes: Vec<Change> = model.keys().map(|key| (*key, None)).collect();
    for number in (500..6000).step_by(1000) {
        changes[number].1 = Some(value(10, 1));
    }
    let root = store.merge(root, &changes, 1);
    apply(&mut model, &changes);
    assert_eq!(model.len(), 6);
    store.check(root, &model);
    assert_eq!((root.level, store.live().len()), (0, 1));
}

/// The last two of three leaves under a parent get loose, and are still loose when united.
#[test]
fn a_loose_leaf_that_united_with_a_loose_one_is_united_again() {
    let store = Memory::new();
    let mut model = Model::new();
    let root = leaves_of_three(&store, Root::EMPTY, &mut model, 0..1200);
    // The first parent has the first half of the leaves.
    assert_eq!(nodes_by_level(&store, root), [400, 2, 1]);
    let changes: Vec<Change> =
        (594..600).map(|number| (key(number), (number % 3 == 0).then(|| value(10, 1)))).collect();
    apply(&mut model, &changes);
    let root = store.merge(root, &changes, 1);
    store.check(root, &model);
    assert_eq!(nodes_by_level(&store, root), [398, 2, 1]);
}

#[test]
fn appending_leaves_full_interior_nodes_behind() {
    let store = Memory::new();
    let mut model = Model::new();
    let mut root = Root::EMPTY;
    for leaf in 0..800 {
        root = leaves_of_three(&store, root, &mut model, 3 * leaf..3 * leaf + 3);
    }
    assert_eq!(nodes_by_level(&store, root), [800, 3, 1]);
    store.check(root, &model);
}

/// The right edge may be a chain of nodes with one child each. When all else goes, it must not
/// stay as the root.
#[test]
fn a_chain_on_the_right_edge_does_not_become_the_root() {
    let store = Memory::new();
    let mut model = Model::new();
    let mut root = Root::EMPTY;
    let spread = |leaf: u64| 3 * leaf * 10..3 * leaf * 10 + 3;
    for leaf in 0..399 {
        root = leaves_of_three(&store, root, &mut model, spread(leaf));
    }
    // 378 leaves and 21; then 20 more among the first, and 20 less at the end.
    for leaf in 0..20 {
        let start = spread(leaf).start + 10;
        root = leaves_of_three(&store, root, &mut model, start..start + 3);
    }
    let delete = |root: Root, model: &mut Model, numbers: Range<u64>| {
        let gone = model.range(key(numbers.start)..key(numbers.end));
        let changes: Vec<Change> = gone.map(|(key, _)| (*key, None)).collect();
        apply(model, &changes);
        store.merge(root, &changes, 1)
    };
    root = delete(root, &mut model, spread(379).start..spread(400).start);
    store.check(root, &model);
    assert_eq!(nodes_by_level(&store, root), [399, 2, 1]);
    root = delete(root, &mut model, 0..spread(378).start);
    store.check(root, &model);
    assert_eq!((root.level, model.len()), (0, 3));
}

#[test]
fn a_long_value_is_refused_before_anything_is_written() {
    let store = Memory::new();
    let changes = [(key(1), Some(value(1, 1))), (key(2), Some(value(VALUE_LENGTH_MAX + 1, 1)))];
    let error = store.tree(Root::EMPTY).merge(&store, &changes, 1).expect_err("too long");
    assert!(matches!(error, MapError::ItemTooLong { length: 5001, .. }));
    assert_eq!(store.take_writes(), 0);
}

#[test]
fn a_merge_without_room_fails_and_the_old_tree_stays() {
    for threads in [1, 4] {
        let store = Memory::with_room(200);
        let (root, model) = filled(&store, 5000, 2, 80);
        let live = store.live();
        let changes: Vec<Change> =
            (0..10_000).map(|number| (key(number), Some(value(300, 1)))).collect();
        let error = store.tree(root).merge(&store, &changes, threads).expect_err("no room");
        assert!(matches!(error, MapError::NoSpace));
        store.forget(live);
        store.check(root, &model);
    }
}

#[test]
fn a_cursor_goes_forward_and_seeks_both_ways() {
    let store = Memory::new();
    let (root, model) = filled(&store, 2000, 3, 30);
    let mut cursor = store.tree(root).cursor(key(2)).expect("nothing is damaged");
    for (at, expected) in model.iter().skip(1) {
        assert_eq!(cursor.item(), Some((*at, &expected[..])));
        cursor.advance().expect("nothing is damaged");
    }
    assert_eq!(cursor.item(), None);
    cursor.advance().expect("the end is no error");
    assert_eq!(cursor.item(), None);
    cursor.seek(key(300)).expect("nothing is damaged");
    assert_eq!(cursor.item().map(|item| item.0), Some(key(300)));
    let empty = store.tree(Root::EMPTY).cursor(Key::first(OWNER)).expect("nothing is there");
    assert_eq!(empty.item(), None);
}

#[test]
fn a_full_scan_loads_each_node_once() {
    let store = Memory::new();
    let (root, model) = filled(&store, 20_000, 1, 60);
    store.take_loads();
    let all = store.tree(root).scan(Key::first(OWNER), Key::last(OWNER), usize::MAX);
    assert_eq!(all.expect("nothing is damaged").len(), model.len());
    assert_eq!(store.take_loads(), store.live().len() as u64);
    assert!(store.load(root.ptr.expect("a root"), OWNER, root.level).is_ok());
}
