//! What operations are done to: paths, open files, modes, names of attributes, sizes and ranges.
//!
//! Each choice is mostly sensible and sometimes anything:
//!
//! - a path mostly is that of an object of the kind that was asked for, else of a few names at any
//!   depth, whatever is there; one name in a hundred is as long as names can be, or longer;
//! - an open file mostly is one that is open;
//! - sizes stay within the profile's; half of the ranges are of whole blocks, half are near a
//!   file's head.
//!
//! Nothing here changes the model.

use crate::op::{Kind, Op, Slot, Target};
use crate::tree::join;
use crate::workload::{BLOCK, NAMES, SLOTS, Workload};

const DEPTH_MAX: usize = 4;

impl Workload {
    /// Any path, whatever is there.
    fn anything(&mut self) -> String {
        let depth = 1 + self.rng.below(DEPTH_MAX as u64);
        let names: Vec<String> = (0..depth).map(|_| self.name()).collect();
        names.join("/")
    }

    /// Mostly the path of an object of one of `kinds`. Only a directory can be the root.
    pub(super) fn existing(&mut self, kinds: &[Kind]) -> String {
        if self.rng.chance(1, 12) {
            return self.anything();
        }
        let paths = kinds.iter().flat_map(|kind| self.namespace.paths(*kind));
        let paths: Vec<&String> = paths.filter(|path| !path.is_empty()).collect();
        match paths.is_empty() {
            true => self.anything(),
            false => paths[self.rng.below(paths.len() as u64) as usize].clone(),
        }
    }

    /// Mostly the path of an object.
    pub(super) fn object(&mut self) -> String {
        use Kind::{CharDevice, Directory, Fifo, File, Symlink};
        self.existing(&[File, Directory, Symlink, Fifo, CharDevice])
    }

    /// A name in a directory that exists, mostly.
    pub(super) fn free(&mut self) -> String {
        let name = self.name();
        if self.rng.chance(1, 3) {
            return name;
        }
        let directory = self.existing(&[Kind::Directory]);
        match directory.split('/').count() < DEPTH_MAX {
            true => join(&directory, &name),
            false => name,
        }
    }

    fn name(&mut self) -> String {
        match self.rng.below(100) {
            0 => "n".repeat(256),
            1 => "n".repeat(255),
            _ => (*self.pick(&NAMES)).to_owned(),
        }
    }

    pub(super) fn symlink_target(&mut self) -> String {
        match self.rng.below(8) {
            0 => format!("{}/{}", self.name(), self.name()),
            1 => "far/".repeat(30) + "away",
            _ => self.name(),
        }
    }

    pub(super) fn slot(&mut self) -> Slot {
        let open: Vec<Slot> = self.model.open_slots().collect();
        match open.is_empty() || self.rng.chance(1, 20) {
            true => self.rng.below(u64::from(SLOTS)) as Slot,
            false => *self.pick(&open),
        }
    }

    pub(super) fn file(&mut self) -> Target {
        match self.rng.below(20) {
            0 => Target::Path(self.object()),
            1..=8 if self.model.open_slots().next().is_some() => Target::Slot(self.slot()),
            _ => Target::Path(self.existing(&[Kind::File])),
        }
    }

    pub(super) fn file_size(&self, file: &Target) -> u64 {
        let op = Op::Stat { object: file.clone() };
        match self.model.clone().apply(&op) {
            Ok(crate::op::Value::Status(status)) => status.size,
            _ => 0,
        }
    }

    pub(super) fn mode(&mut self) -> u32 {
        let special = *self.pick(&[0, 0, 0, 0o1000, 0o2000, 0o4000, 0o7000]);
        special | *self.pick(&[0o644, 0o600, 0o755, 0o777, 0o000, 0o2755, 0o750])
    }

    pub(super) fn xattr_name(&mut self) -> String {
        let names = ["user.a", "user.b", "user.long-name-of-an-attribute", "trusted.a", "none.a"];
        (*self.pick(&names)).to_owned()
    }

    pub(super) fn size(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => 0,
            1 => self.rng.below(self.profile.file_size_max / BLOCK + 1) * BLOCK,
            _ => self.rng.below(self.profile.file_size_max + 1),
        }
    }

    /// Offset and length within the greatest size, often of whole blocks, often short.
    pub(super) fn range(&mut self) -> (u64, u64) {
        let size = self.profile.file_size_max;
        let near = self.rng.chance(1, 2);
        let limit = if near { size / 8 } else { size };
        let (mut offset, mut length) = (self.rng.below(limit), self.rng.below(limit));
        if self.rng.chance(1, 2) {
            (offset, length) = (offset / BLOCK * BLOCK, length.div_ceil(BLOCK) * BLOCK);
        }
        if self.rng.chance(1, 4) {
            length = self.rng.below(100);
        }
        (offset, length.min(size - offset))
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.rng.below(from.len() as u64) as usize]
    }
}
