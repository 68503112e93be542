//! Seeded sequences of operations that get into each other's way.
//!
//! Few names and few directories make collisions, replacements, loops of symbolic links, hard
//! links, files that are removed while open, and directories that are not empty as common as plain
//! success. The generator keeps a [`Model`] of what its operations lead to, so that most of them
//! name something that exists; the others name anything. It never walks up (`..`) and never makes
//! an absolute symbolic link, so that a workload can run below any directory.
//!
//! 1. The [`Profile`] says how often something is synced or looked at, and how large it all gets.
//! 2. `actions` says what is done otherwise, and makes an operation of it.
//! 3. `choices` says what to: the paths, open files, sizes and ranges of an operation.
//! 4. The operation is applied to the model, and only then handed out.
//!
//! Equal seeds and profiles give equal sequences: every choice is drawn from one stream of random
//! numbers, so the order in which choices are made is part of what a seed means.

mod actions;
mod choices;
mod profile;

use std::collections::VecDeque;

use gabion_base::rng::Rng;

use crate::model::Model;
use crate::op::{Kind, Op, Slot, XattrWrite};
use crate::tree::{Namespace, join};

pub use self::profile::Profile;

/// Number of places for open files that a workload uses.
pub const SLOTS: Slot = 4;

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const BLOCK: u64 = 4096;

/// An endless sequence of operations.
#[derive(Clone, Debug)]
pub struct Workload {
    rng: Rng,
    profile: Profile,
    model: Model,
    /// The model's, kept because almost every choice asks for it.
    namespace: Namespace,
    stamp: u64,
    /// What comes next in any case.
    planned: VecDeque<Op>,
}

impl Workload {
    /// The sequence of `seed`.
    pub fn new(seed: u64, profile: Profile) -> Self {
        Self::continuing(seed, profile, Model::new())
    }

    /// The sequence of `seed` on a filesystem that is `model` already.
    pub fn continuing(seed: u64, profile: Profile, model: Model) -> Self {
        let stamp = seed << 32;
        let namespace = model.namespace();
        let planned = VecDeque::new();
        Self { rng: Rng::new(seed), profile, model, namespace, stamp, planned }
    }

    /// The first `count` operations of `seed`.
    pub fn generate(seed: u64, profile: Profile, count: usize) -> Vec<Op> {
        Self::new(seed, profile).take(count).collect()
    }

    /// Operations that make some 250 objects with long attributes: a tree of several levels.
    pub fn population() -> Vec<Op> {
        let mut ops = Vec::new();
        let mut directories = vec![String::new()];
        for _ in 0..2 {
            let made: Vec<String> =
                directories.iter().flat_map(|at| NAMES.map(|name| join(at, name))).collect();
            ops.extend(made.iter().map(|path| Op::Mkdir { path: path.clone(), mode: 0o755 }));
            directories = made;
        }
        for path in directories.iter().flat_map(|at| NAMES.map(|name| join(at, name))) {
            let mut value = path.clone().into_bytes();
            value.resize(500, b'.');
            let (name, how) = ("user.long-name-of-an-attribute".to_owned(), XattrWrite::Any);
            let (kind, mode, rdev) = (Kind::File, 0o644, 0);
            ops.push(Op::Mknod { path: path.clone(), kind, mode, rdev });
            ops.push(Op::SetXattr { path, name, value, how });
        }
        ops.push(Op::Sync);
        ops
    }
}

impl Iterator for Workload {
    type Item = Op;

    fn next(&mut self) -> Option<Op> {
        let op = self.planned.pop_front().unwrap_or_else(|| self.draw());
        let bytes_only = matches!(
            op,
            Op::Write { .. } | Op::Read { .. } | Op::SetSize { .. } | Op::Fallocate { .. }
        );
        if self.model.apply(&op).is_ok() && !bytes_only {
            self.namespace = self.model.namespace();
        }
        Some(op)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::op::Errno;

    #[test]
    fn workloads_meet_every_error_and_much_success() {
        let mut model = Model::new();
        let mut answers: BTreeMap<Option<Errno>, u32> = BTreeMap::new();
        for op in Workload::new(1, Profile::ANSWERS).take(3000) {
            *answers.entry(model.apply(&op).err()).or_default() += 1;
        }
        for errno in [
            Errno::EPERM,
            Errno::ENOENT,
            Errno::ENXIO,
            Errno::EBADF,
            Errno::EEXIST,
            Errno::ENOTDIR,
            Errno::EISDIR,
            Errno::EINVAL,
            Errno::ENAMETOOLONG,
            Errno::ENOTEMPTY,
            Errno::ELOOP,
            Errno::ENODATA,
            Errno::EOPNOTSUPP,
        ] {
            assert!(answers.contains_key(&Some(errno)), "{errno:?} of {answers:?}");
        }
        assert!(answers[&None] > 1500, "{answers:?}");
        assert!(model.namespace().objects.len() > 20);
    }

    #[test]
    fn files_stay_small() {
        let mut model = Model::new();
        for op in Workload::new(2, Profile::CRASHES).take(3000) {
            let _ = model.apply(&op);
            let size = |number| model.file_bytes(number).map_or(0, <[u8]>::len) as u64;
            let largest = model.files().map(size).max().unwrap_or(0);
            assert!(largest <= 2 * Profile::CRASHES.file_size_max, "{op:?} made {largest} bytes");
        }
    }

    #[test]
    fn equal_seeds_give_equal_operations() {
        let ops = |seed| Workload::generate(seed, Profile::CRASHES, 500);
        assert_eq!(ops(5), ops(5));
        assert_ne!(ops(5), ops(6));
    }
}
