//! Differences of two states of a tree: what they say, and what they cost.

use std::collections::BTreeSet;

use gabion_base::rng::Rng;

use gabion_map::tree::{Change, Diff, Root};
use gabion_map::{Key, Value};

use crate::tree_store::{Memory, Model, OWNER, apply, key, value};

type Changed = (Key, Option<Value>, Option<Value>);

fn differences(store: &Memory, old: Root, new: Root, from: Key) -> Vec<Changed> {
    all(store, Diff::new(store.tree(old), store.tree(new), from).expect("nothing is damaged"))
}

fn all(store: &Memory, mut diff: Diff<'_>) -> Vec<Changed> {
    let mut found = Vec::new();
    while let Some(change) = diff.next().expect("nothing is damaged") {
        found.push((change.key, change.old.map(Value::from), change.new.map(Value::from)));
    }
    assert!(diff.next().expect("nothing is damaged").is_none(), "the end is the end");
    assert_eq!(store.foreseen(), 0, "nothing is read in vain");
    found
}

fn expected(old: &Model, new: &Model, from: Key) -> Vec<Changed> {
    let keys: BTreeSet<_> =
        old.range(from..).chain(new.range(from..)).map(|item| *item.0).collect();
    keys.into_iter()
        .map(|key| (key, old.get(&key).cloned(), new.get(&key).cloned()))
        .filter(|(_, old, new)| old != new)
        .collect()
}

#[test]
fn differences_agree_with_the_model() {
    let mut rng = Rng::new(1);
    for _ in 0..2 {
        let store = Memory::new();
        let mut states = vec![(Root::EMPTY, Model::new())];
        for round in 0..8 {
            let (root, mut model) = states.last().cloned().expect("the empty tree");
            let count = [3000, 1, 20, 500][round % 4];
            let mut changes: Vec<Change> = (0..count)
                .map(|_| {
                    let put = rng.chance(2, 3).then(|| value(rng.below(300) as usize, 7));
                    (key(rng.below(5000)), put)
                })
                .collect();
            if round == 5 {
                changes = model.keys().step_by(2).map(|key| (*key, None)).collect();
            }
            changes.sort_by_key(|change| change.0);
            changes.dedup_by_key(|change| change.0);
            let root = store.merge(root, &changes, 1);
            apply(&mut model, &changes);
            states.push((root, model));
        }
        for (old_root, old) in &states {
            for (new_root, new) in &states {
                for from in [Key::first(OWNER), key(rng.below(5000))] {
                    let found = differences(&store, *old_root, *new_root, from);
                    let mut expected = expected(old, new, from);
                    assert_eq!(found, expected);
                    let end = key(rng.below(5000));
                    let (old, new) = (store.tree(*old_root), store.tree(*new_root));
                    let diff = Diff::new(old, new, from).expect("nothing is damaged");
                    expected.retain(|(key, ..)| *key < end);
                    assert_eq!(all(&store, diff.until(end)), expected);
                }
            }
        }
    }
}

#[test]
fn the_cost_follows_the_change() {
    let mut rng = Rng::new(2);
    let store = Memory::new();
    let all: Vec<Change> = (0..100_000).map(|n| (key(n), Some(value(100, n)))).collect();
    let old = store.merge(Root::EMPTY, &all, 1);
    let mut changes: Vec<Change> =
        (0..10).map(|_| (key(rng.below(100_000)), Some(value(90, 1)))).collect();
    changes.sort_by_key(|change| change.0);
    let new = store.merge(old, &changes, 1);
    assert_eq!(old.level, 2, "700 leaves under 2 nodes under the root");
    store.take_loads();
    assert_eq!(differences(&store, old, new, Key::first(OWNER)).len(), 10);
    let loads = store.take_loads();
    // Ten changed leaves with their parents in both trees, and the first leaf of the range.
    assert!(loads <= 2 * (10 + 2 + 1) + 2, "{loads} loads for ten changes");
    assert!(differences(&store, new, new, Key::first(OWNER)).is_empty());
    assert_eq!(store.take_loads(), 0);
}

#[test]
fn trees_of_different_height_share_what_they_share() {
    let store = Memory::new();
    let few: Vec<Change> = (0..300).map(|n| (key(n), Some(value(100, n)))).collect();
    let old = store.merge(Root::EMPTY, &few, 1);
    let more: Vec<Change> = (300..100_000).map(|n| (key(n), Some(value(100, n)))).collect();
    let new = store.merge(old, &more, 1);
    assert_eq!((old.level, new.level), (1, 2));
    store.take_loads();
    let found = differences(&store, old, new, key(99_000));
    assert_eq!(found.len(), 1000);
    assert!(found.iter().all(|change| change.1.is_none()));
    assert!(store.take_loads() < 20);
    assert_eq!(differences(&store, new, old, Key::first(OWNER)).len(), 99_700);
}
