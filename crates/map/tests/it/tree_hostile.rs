//! Trees that nobody but an attacker makes: every node is valid and has its right checksum, but
//! they do not fit each other. Everything must end, without a panic, in `Corrupt` or a result.

use gabion_base::ids::{BlockAddr, Ino, Txg};
use gabion_base::rng::Rng;

use gabion_map::format::node::{Draft, ItemKey, LEVEL_MAX, Node, NodePtr, Place};
use gabion_map::tree::{Change, Diff, NodeStore, NodeWriter, Root, Visit, Visitor};
use gabion_map::{Key, Kind, MapError};

use crate::tree_store::{Memory, OWNER, UUID, key, value};

fn write(store: &Memory, draft: Draft) -> NodePtr {
    let addr = store.allocate().expect("memory has room");
    let node = draft.seal(&Place { uuid: UUID, addr, birth: Txg(1), owner: OWNER });
    store.insert(&node);
    node.ptr()
}

/// Copies a tree and damages some nodes of the copy, with checksums that fit.
fn forge(
    store: &Memory,
    ptr: NodePtr,
    level: u8,
    rng: &mut Rng,
    others: &mut Vec<NodePtr>,
) -> NodePtr {
    let node = store.load(ptr, OWNER, level).expect("the original is not damaged");
    let items = node.items();
    let mut keys: Vec<ItemKey> = (0..items.count()).map(|index| items.key(index)).collect();
    if rng.chance(1, 8) {
        let index = rng.below(keys.len() as u64) as usize;
        match rng.below(3) {
            0 => keys[index].ino = Ino(rng.below(2000)),
            1 => keys[index].at = rng.next_u64(),
            _ => keys[index].kind = Kind(rng.next_u64() as u8),
        }
        keys.sort();
        keys.dedup();
    }
    let draft = if level == 0 {
        let entries: Vec<_> =
            keys.iter().enumerate().map(|(index, key)| (*key, items.value(index))).collect();
        Draft::leaf(&entries)
    } else {
        let children: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(index, key)| {
                let child = forge(store, items.child(index), level - 1, rng, others);
                let other = others[rng.below(others.len() as u64) as usize];
                (*key, if rng.chance(1, 10) { other } else { child })
            })
            .collect();
        Draft::interior(level, &children)
    };
    let ptr = write(store, draft);
    others.push(ptr);
    ptr
}

/// Goes through a whole tree, past all damage.
#[derive(Default)]
struct Survey {
    nodes: u64,
    damages: u64,
    last: Option<Key>,
}

impl Visitor for Survey {
    fn node(&mut self, _: NodePtr, _: u8) -> Result<Visit, MapError> {
        self.nodes += 1;
        Ok(Visit::Enter)
    }

    fn item(&mut self, key: Key, _: &[u8]) -> Result<(), MapError> {
        assert!(self.last < Some(key), "items in order, whatever is damaged");
        self.last = Some(key);
        Ok(())
    }

    fn damage(&mut self, _: NodePtr, _: u8, error: MapError) -> Result<(), MapError> {
        assert!(matches!(error, MapError::Corrupt { .. }));
        self.damages += 1;
        Ok(())
    }
}

fn corrupt_or<T>(result: Result<T, MapError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(MapError::Corrupt { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

/// Any way of using a damaged tree.
fn use_all(store: &Memory, old: Root, root: Root, rng: &mut Rng) -> Survey {
    let tree = store.tree(root);
    let mut survey = Survey::default();
    tree.walk(&mut survey).expect("the survey goes on");
    for _ in 0..20 {
        corrupt_or(tree.get(key(rng.below(24_000))));
        corrupt_or(tree.at_or_before(key(rng.below(24_000))));
        corrupt_or(tree.scan(key(rng.below(24_000)), Key::last(OWNER), 500));
    }
    for (old, new) in [(old, root), (root, old)] {
        let from = key(rng.below(24_000));
        if let Some(mut diff) = corrupt_or(Diff::new(store.tree(old), store.tree(new), from)) {
            let mut last = None;
            while let Some(Some(change)) = corrupt_or(diff.next()) {
                assert!(last < Some(change.key));
                last = Some(change.key);
            }
        }
    }
    survey
}

#[test]
fn forged_trees_end_in_corrupt() {
    let mut rng = Rng::new(1);
    let (mut damaged, mut merged) = (0, 0);
    for _ in 0..60 {
        let store = Memory::new();
        let count = [300, 3000][rng.below(2) as usize];
        let length = 1 + rng.below(1000) as usize;
        let all: Vec<Change> = (0..count).map(|n| (key(n * 8), Some(value(length, n)))).collect();
        let old = store.merge(Root::EMPTY, &all, 1);
        let mut others = vec![old.ptr.expect("not empty")];
        let ptr = forge(&store, others[0], old.level, &mut rng, &mut others);
        let root = Root { ptr: Some(ptr), level: old.level };
        damaged += u64::from(use_all(&store, old, root, &mut rng).damages > 0);
        // A merge must not panic either. It releases what it met, so nothing checks that here.
        let mut changes: Vec<Change> = (0..rng.below(200))
            .map(|_| (key(rng.below(24_000)), rng.chance(1, 4).then(|| value(600, 1))))
            .collect();
        if rng.chance(1, 2) {
            let start = rng.below(24_000);
            changes.extend((start..start + 8000).map(|number| (key(number), None)));
        }
        changes.sort_by_key(|change| change.0);
        changes.dedup_by_key(|change| change.0);
        let merge = store.tree(root).merge(&Careless(&store), &changes, 1);
        merged += u64::from(corrupt_or(merge).is_some());
    }
    assert!(damaged > 30 && merged > 10 && merged < 50, "{damaged} damaged, {merged} merged");
}

/// A writer that lets everything be released: a forged tree contains some nodes twice.
struct Careless<'a>(&'a Memory);

impl NodeWriter for Careless<'_> {
    fn allocate(&self) -> Result<BlockAddr, MapError> {
        self.0.allocate()
    }

    fn write(&self, _: NodePtr, node: Node) -> Result<(), MapError> {
        self.0.insert(&node);
        Ok(())
    }

    fn release(&self, _: NodePtr) {}

    fn birth(&self) -> Txg {
        self.0.birth()
    }

    fn uuid(&self) -> gabion_base::ids::Uuid {
        UUID
    }
}

/// Twelve levels in which all children of a node are the same one: 398^12 paths.
#[test]
fn a_node_that_stands_in_many_places_is_met_once() {
    let store = Memory::new();
    let place = |at| ItemKey { ino: Ino(1), kind: Kind::DATA, at };
    let mut ptr = write(&store, Draft::leaf(&[(place(0), b"bomb")]));
    for level in 1..=LEVEL_MAX {
        let children: Vec<_> = (0..398).map(|at| (place(at), ptr)).collect();
        ptr = write(&store, Draft::interior(level, &children));
    }
    let root = Root { ptr: Some(ptr), level: LEVEL_MAX };
    let survey = use_all(&store, Root::EMPTY, root, &mut Rng::new(1));
    assert!(survey.nodes <= 398 * u64::from(LEVEL_MAX) + 1);
    assert!(survey.damages >= 397);
    let changes = [(key(12 + 5), None)];
    let merge = store.tree(root).merge(&Careless(&store), &changes, 1);
    assert!(corrupt_or(merge).is_none_or(|new| new == root));
}

#[test]
fn a_root_of_an_impossible_level_is_refused() {
    let store = Memory::new();
    let ptr = write(&store, Draft::leaf(&[(key(1).into(), b"")]));
    for level in [1, LEVEL_MAX, LEVEL_MAX + 1, 255] {
        let tree = store.tree(Root { ptr: Some(ptr), level });
        assert!(matches!(tree.get(key(1)), Err(MapError::Corrupt { .. })));
        assert!(matches!(tree.cursor(key(1)).err(), Some(MapError::Corrupt { .. })));
        let merge = tree.merge(&store, &[(key(1), None)], 1);
        assert!(matches!(merge, Err(MapError::Corrupt { .. })));
    }
}

/// Full nodes of all levels on one path, so that one more item divides them all.
#[test]
fn a_forged_tree_of_the_greatest_height_does_not_grow() {
    let store = Memory::new();
    let place = |at| ItemKey { ino: Ino(1), kind: Kind::DATA, at };
    let long = value(5000, 1);
    let mut ptr = write(&store, Draft::leaf(&[0, 2, 4].map(|at| (place(at), &long[..]))));
    for level in 1..=LEVEL_MAX {
        let others = (1..398).map(|n| u64::from(level) * 1000 + n);
        let children: Vec<_> = [0].into_iter().chain(others).map(|at| (place(at), ptr)).collect();
        ptr = write(&store, Draft::interior(level, &children));
    }
    let root = Root { ptr: Some(ptr), level: LEVEL_MAX };
    let change = (place(1).of(OWNER), Some(value(5000, 2)));
    let merge = store.tree(root).merge(&Careless(&store), &[change], 1);
    assert!(matches!(merge, Err(MapError::Corrupt { .. })));
    assert!(store.tree(root).get(place(4).of(OWNER)).is_ok_and(|item| item.is_some()));
}

#[test]
fn a_root_from_the_future_is_not_changed() {
    let store = Memory::new();
    let draft = Draft::leaf(&[(key(1).into(), b"")]);
    let addr = store.allocate().expect("memory has room");
    let node = draft.seal(&Place { uuid: UUID, addr, birth: Txg(100), owner: OWNER });
    store.insert(&node);
    let root = Root { ptr: Some(node.ptr()), level: 0 };
    let merge = store.tree(root).merge(&store, &[(key(1), None)], 1);
    assert!(matches!(merge, Err(MapError::Corrupt { .. })));
}
