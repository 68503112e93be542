//! The checker lets everything pass that a crash may leave, and catches what it may not.
//!
//! There is no disk here: each operation counts as one event, and what "is found after the crash"
//! is put together from the states of a model, honestly or not.

use std::collections::BTreeMap;

use gabion_base::rng::Rng;
use gabion_sim::check::{Violation, verify};
use gabion_sim::history::{History, Room};
use gabion_sim::model::{Effect, Model, Number};
use gabion_sim::op::{Kind, Op, Opening, Renaming, Target};
use gabion_sim::tree::{System, Tree};
use gabion_sim::workload::{Profile, Workload};

const BLOCK: usize = 4096;

/// A run without a disk: the model after each operation.
struct Run {
    history: History,
    states: Vec<Model>,
    effects: Vec<Vec<Effect>>,
}

impl Run {
    fn new(ops: impl IntoIterator<Item = Op>) -> Self {
        let mut run = Self {
            history: History::new(Model::new(), Room::Ample),
            states: vec![Model::new()],
            effects: Vec::new(),
        };
        for (at, op) in ops.into_iter().enumerate() {
            let mut model = run.states[at].clone();
            let answered = model.apply(&op);
            run.history.record(&op, answered, at..at + 1).expect("the model agrees with itself");
            run.effects.push(model.effects().to_vec());
            run.states.push(model);
        }
        run
    }

    fn tree(&self, state: usize) -> Tree {
        System::dump(&mut self.states[state].clone()).expect("a model can always be read")
    }

    /// Judges `found` after a crash during operation `during`.
    fn judge(&self, during: usize, found: &Tree) -> Result<(), Violation> {
        verify(&self.history, during, during + 1, found)
    }

    /// The latest state up to `prefix` at which nothing of the file was pending.
    fn clean_state(&self, number: Number, prefix: usize) -> usize {
        let mut written = None;
        for (at, effects) in self.effects[..prefix].iter().enumerate() {
            for effect in effects {
                match *effect {
                    Effect::Bytes(at_number) if at_number == number => {
                        written = written.or(Some(at));
                    }
                    Effect::Synced(at_number)
                    | Effect::Emptied(at_number)
                    | Effect::RenamedOver(at_number)
                        if at_number == number =>
                    {
                        written = None;
                    }
                    Effect::SyncedAll => written = None,
                    _ => {}
                }
            }
        }
        written.unwrap_or(prefix)
    }

    /// What an honest filesystem leaves: the names of `prefix`, and of each file the size and each
    /// block of some version that is allowed.
    fn honest(&self, prefix: usize, during: usize, rng: &mut Rng) -> Tree {
        let mut tree = self.tree(prefix);
        for (number, bytes) in &mut tree.files {
            let from = self.clean_state(*number, prefix);
            let mut version = || {
                let state = from + rng.below((during + 2 - from) as u64) as usize;
                self.states[state].file_bytes(*number).unwrap_or(bytes).to_vec()
            };
            let mut mixed = vec![0; version().len()];
            for (index, chunk) in mixed.chunks_mut(BLOCK).enumerate() {
                let mut version = version();
                version.resize(version.len().max((index + 1) * BLOCK), 0);
                chunk.copy_from_slice(&version[index * BLOCK..][..chunk.len()]);
            }
            *bytes = mixed;
        }
        tree
    }
}

#[test]
fn whatever_an_honest_filesystem_leaves_is_let_pass() {
    for seed in 1..=6 {
        let ops = Workload::generate(seed, Profile::CRASHES, 250);
        let run = Run::new(ops);
        let mut rng = Rng::new(seed);
        for during in 0..250 {
            let durable = run.history.durable(during);
            let prefix = durable + rng.below((during + 2 - durable) as u64) as usize;
            let found = run.honest(prefix, during, &mut rng);
            if let Err(violation) = run.judge(during, &found) {
                panic!("seed {seed}, during {during}, prefix {prefix}: {violation}");
            }
        }
    }
}

#[test]
fn a_filesystem_that_forgets_a_sync_is_caught() {
    let mut caught = 0;
    for seed in 1..=3 {
        let run = Run::new(Workload::generate(seed, Profile::CRASHES, 250));
        for during in 0..250 {
            let durable = run.history.durable(during);
            let before = run.tree(durable.saturating_sub(1));
            let older = (0..durable).rev().map(|state| run.tree(state).namespace);
            let changed = older.take(20).find(|names| *names != before.namespace);
            if let Some(namespace) = changed {
                let found = Tree { namespace, files: BTreeMap::new() };
                let possible =
                    (durable..=during + 1).any(|at| run.tree(at).namespace == found.namespace);
                let judged = run.judge(during, &found);
                assert!(judged.is_err() || possible, "seed {seed}, during {during}");
                caught += u32::from(judged.is_err());
            }
        }
    }
    assert!(caught > 200, "{caught}");
}

fn path(path: &str) -> Target {
    Target::Path(path.to_owned())
}

fn make(at: &str, stamp: u64) -> [Op; 2] {
    let file = path(at);
    let at = at.to_owned();
    [
        Op::Mknod { path: at, kind: Kind::File, mode: 0o644, rdev: 0 },
        Op::Write { file, offset: 0, length: 3 * BLOCK as u64, stamp },
    ]
}

fn bytes_of<'a>(tree: &'a mut Tree, path: &str) -> &'a mut Vec<u8> {
    let id = tree.namespace.objects[path].id;
    tree.files.get_mut(&id).expect("a file")
}

/// Two files that are synced, and then a third that replaces the first.
fn replacement() -> Run {
    let replace = Op::Rename { from: "new".into(), to: "a".into(), how: Renaming::Replace };
    let ops = [make("a", 1), make("b", 2)].concat().into_iter().chain([Op::Sync]);
    Run::new(ops.chain(make("new", 3)).chain([replace, Op::Fsync { object: path("b") }]))
}

const SYNCED: usize = 5;
const REPLACED: usize = 8;

#[test]
fn bytes_of_another_file_are_caught() {
    let run = replacement();
    let mut found = run.tree(SYNCED);
    assert_eq!(run.judge(SYNCED, &found), Ok(()));
    let foreign = bytes_of(&mut found, "b")[BLOCK..2 * BLOCK].to_vec();
    bytes_of(&mut found, "a")[BLOCK..2 * BLOCK].copy_from_slice(&foreign);
    let judged = run.judge(SYNCED, &found).expect_err("foreign bytes");
    let Violation::Bytes { block, origin, .. } = &judged else { panic!("{judged}") };
    assert_eq!((*block, origin.as_str()), (1, "block 1 of file 3 of state 4"));
}

#[test]
fn bytes_that_were_synced_and_are_gone_are_caught() {
    let run = replacement();
    let mut found = run.tree(SYNCED);
    bytes_of(&mut found, "a")[..BLOCK].fill(0);
    assert!(matches!(run.judge(SYNCED, &found), Err(Violation::Bytes { block: 0, .. })));
    bytes_of(&mut found, "b").truncate(BLOCK);
    bytes_of(&mut found, "a").clear();
    assert!(matches!(run.judge(SYNCED, &found), Err(Violation::Size { found: 0, .. })));
}

#[test]
fn a_replaced_file_is_the_old_or_the_new_one() {
    let run = replacement();
    assert_eq!(run.judge(REPLACED - 1, &run.tree(REPLACED)), Ok(()));
    assert_eq!(run.judge(REPLACED - 1, &run.tree(REPLACED - 1)), Ok(()));
    for size in [0, BLOCK] {
        let mut found = run.tree(REPLACED);
        bytes_of(&mut found, "a").truncate(size);
        let judged = run.judge(REPLACED - 1, &found);
        assert!(matches!(judged, Err(Violation::Size { .. })), "{judged:?}");
    }
    // Before the rename the new file may be anything that it was.
    let mut found = run.tree(REPLACED - 1);
    bytes_of(&mut found, "new").clear();
    assert_eq!(run.judge(REPLACED - 1, &found), Ok(()));
}

#[test]
fn syncing_one_file_makes_all_earlier_names_durable() {
    let run = replacement();
    let judged = run.judge(REPLACED + 1, &run.tree(REPLACED - 1));
    let lost = Violation::Lost { found: REPLACED - 1, durable: REPLACED + 1 };
    assert_eq!(judged, Err(lost));
}

#[test]
fn half_a_rename_is_caught() {
    let run = replacement();
    let mut found = run.tree(REPLACED);
    let object = found.namespace.objects["a"].clone();
    found.namespace.objects.insert("new".to_owned(), object);
    let judged = run.judge(REPLACED - 1, &found).expect_err("it has two names");
    let Violation::Names { difference, .. } = &judged else { panic!("{judged}") };
    assert!(difference.contains("\"new\" is there"), "{difference}");
}

#[test]
fn an_operation_that_was_not_begun_has_no_effect() {
    let run = replacement();
    assert!(run.judge(SYNCED, &run.tree(REPLACED)).is_err());
}

#[test]
fn a_file_that_is_cut_and_written_again_is_either_but_nothing_else() {
    let cut = Op::Open { path: "a".into(), slot: 0, how: Opening::Truncate };
    let write = Op::Write { file: Target::Slot(0), offset: 0, length: 100, stamp: 7 };
    let run = Run::new(make("a", 1).into_iter().chain([Op::Sync, cut, write]));
    for state in 3..=5 {
        assert_eq!(run.judge(4, &run.tree(state)), Ok(()), "state {state}");
    }
    let mut found = run.tree(3);
    bytes_of(&mut found, "a").truncate(100);
    assert_eq!(run.judge(4, &found), Ok(()), "old bytes, new size: the same block, mixed by size");
    bytes_of(&mut found, "a")[0] ^= 1;
    assert!(run.judge(4, &found).is_err());
}
