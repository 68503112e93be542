//! Random operations against a model that keeps paths in maps.
//!
//! The model knows nothing of inodes but an identity: a name maps to an object, an object is a
//! directory or bytes. After each operation both must have answered alike.

use std::collections::BTreeMap;

use gabion_base::rng::Rng;
use gabion_fs::{IfTaken, Leave, Result};

use crate::collisions;
use crate::world::{World, failure};

#[derive(Clone, Debug, PartialEq)]
enum Object {
    Directory,
    File(Vec<u8>),
}

#[derive(Default)]
struct Model {
    /// Path to object number; the root is "".
    names: BTreeMap<String, usize>,
    objects: Vec<Object>,
}

type Answer = std::result::Result<(), &'static str>;

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').expect("a path of the test starts with a slash")
}

impl Model {
    fn new() -> Self {
        let names = BTreeMap::from([(String::new(), 0)]);
        Self { names, objects: vec![Object::Directory] }
    }

    fn object(&self, path: &str) -> std::result::Result<usize, &'static str> {
        let mut at = String::new();
        for name in path.split('/').skip(1) {
            if self.objects[self.names[&at]] != Object::Directory {
                return Err("NotDirectory");
            }
            at = format!("{at}/{name}");
            if !self.names.contains_key(&at) {
                return Err("NotFound");
            }
        }
        Ok(self.names[&at])
    }

    fn is_directory(&self, object: usize) -> bool {
        self.objects[object] == Object::Directory
    }

    /// Fails if `path` cannot be the place of a name.
    fn check_parent(&self, path: &str) -> Answer {
        let parent = self.object(split(path).0)?;
        if self.is_directory(parent) { Ok(()) } else { Err("NotDirectory") }
    }

    fn has_entries(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        self.names.keys().any(|name| name.starts_with(&prefix))
    }

    fn make(&mut self, path: &str, object: Object) -> Answer {
        self.check_parent(path)?;
        if self.names.contains_key(path) {
            return Err("Exists");
        }
        self.objects.push(object);
        self.names.insert(path.to_string(), self.objects.len() - 1);
        Ok(())
    }

    fn link(&mut self, path: &str, new: &str) -> Answer {
        let object = self.object(path)?;
        self.check_parent(new)?;
        if self.names.contains_key(new) {
            return Err("Exists");
        }
        if self.is_directory(object) {
            return Err("NotPermitted");
        }
        self.names.insert(new.to_string(), object);
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Answer {
        if self.is_directory(self.object(path)?) {
            return Err("IsDirectory");
        }
        self.names.remove(path);
        Ok(())
    }

    fn rmdir(&mut self, path: &str) -> Answer {
        if !self.is_directory(self.object(path)?) {
            return Err("NotDirectory");
        }
        if self.has_entries(path) {
            return Err("NotEmpty");
        }
        self.names.remove(path);
        Ok(())
    }

    fn write(&mut self, path: &str, offset: usize, bytes: &[u8]) -> Answer {
        let object = self.object(path)?;
        let Object::File(content) = &mut self.objects[object] else { return Err("IsDirectory") };
        content.resize(content.len().max(offset + bytes.len()), 0);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn truncate(&mut self, path: &str, size: usize) -> Answer {
        let object = self.object(path)?;
        let Object::File(content) = &mut self.objects[object] else { return Err("IsDirectory") };
        content.resize(size, 0);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, if_taken: IfTaken) -> Answer {
        for path in [from, to] {
            self.object(split(path).0)?;
        }
        for path in [from, to] {
            self.check_parent(path)?;
        }
        let moved = self.object(from)?;
        let taken = self.object(to).ok();
        match (if_taken, taken) {
            (IfTaken::Fail, Some(_)) => return Err("Exists"),
            (IfTaken::Exchange, None) => return Err("NotFound"),
            (_, Some(taken)) if taken == moved => return Ok(()),
            _ => {}
        }
        let is_below = |path: &str, dir: &str| path.starts_with(&format!("{dir}/"));
        if self.is_directory(moved) && is_below(to, from) {
            return Err("InvalidArgument");
        }
        if if_taken == IfTaken::Exchange {
            if is_below(from, to) {
                return Err("InvalidArgument");
            }
            self.names = std::mem::take(&mut self.names)
                .into_iter()
                .map(|(name, object)| (swap(&name, from, to), object))
                .collect();
            return Ok(());
        }
        if let Some(taken) = taken {
            match (self.is_directory(moved), self.is_directory(taken)) {
                (true, false) => return Err("NotDirectory"),
                (false, true) => return Err("IsDirectory"),
                (true, true) if self.has_entries(to) => return Err("NotEmpty"),
                _ => {}
            }
            self.names.remove(to);
        }
        self.names = std::mem::take(&mut self.names)
            .into_iter()
            .map(|(name, object)| (replace(&name, from, to).unwrap_or(name), object))
            .collect();
        Ok(())
    }
}

/// `name` with `from` at its head replaced by `to`.
fn replace(name: &str, from: &str, to: &str) -> Option<String> {
    let rest = name.strip_prefix(from)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
}

fn swap(name: &str, one: &str, other: &str) -> String {
    let swapped = replace(name, one, other).or_else(|| replace(name, other, one));
    swapped.unwrap_or_else(|| name.to_string())
}

/// Names of one letter, or longer ones that all share a hash.
#[derive(Clone, Copy)]
enum Names {
    Short,
    Colliding,
}

fn path(rng: &mut Rng, names: Names) -> String {
    let depth = 1 + rng.below(3);
    let mut path = String::new();
    for _ in 0..depth {
        let letter = ["a", "b", "c"][rng.below(3) as usize];
        path.push('/');
        match names {
            Names::Short => path.push_str(letter),
            Names::Colliding => path.push_str(&collisions::name(letter)),
        }
    }
    path
}

#[track_caller]
fn agree<T>(seed: u64, step: u32, what: &str, result: Result<T>, expected: Answer) {
    let expected = expected.map_err(str::to_string);
    let answer = if result.is_ok() { Ok(()) } else { Err(failure(result)) };
    assert_eq!(answer, expected, "seed {seed}, step {step}: {what}");
}

fn step(rng: &mut Rng, names: Names, world: &mut World, model: &mut Model, seed: u64, number: u32) {
    let (one, other) = (path(rng, names), path(rng, names));
    let check = |what: &str, result: Result<()>, expected| {
        agree(seed, number, &format!("{what} {one} {other}"), result, expected);
    };
    match rng.below(9) {
        0 => {
            let expected = model.make(&one, Object::File(Vec::new()));
            check("create", world.create(&one, 0o644).map(drop), expected);
        }
        1 => {
            let expected = model.make(&one, Object::Directory);
            check("mkdir", world.mkdir(&one, 0o755).map(drop), expected);
        }
        2 => {
            let expected = model.link(&one, &other);
            check("link", world.link(&one, &other).map(drop), expected);
        }
        3 => check("unlink", world.unlink(&one).map(drop), model.unlink(&one)),
        4 => check("rmdir", world.rmdir(&one).map(drop), model.rmdir(&one)),
        5 => {
            let (offset, byte) = (rng.below(9000), rng.below(256) as u8);
            let bytes = vec![byte; 1 + rng.below(200) as usize];
            let expected = model.write(&one, offset as usize, &bytes);
            check("write", world.write(&one, offset, &bytes), expected);
        }
        6 => {
            let size = rng.below(9000);
            let expected = model.truncate(&one, size as usize);
            check("truncate", world.truncate(&one, size).map(drop), expected);
        }
        kind => {
            let if_taken = match (kind, rng.below(4)) {
                (7, 0) => IfTaken::Fail,
                (8, 0 | 1) => IfTaken::Exchange,
                _ => IfTaken::Replace,
            };
            let expected = model.rename(&one, &other, if_taken);
            let result = world.rename_with(&one, &other, if_taken, Leave::Nothing);
            check(&format!("rename {if_taken:?}"), result.map(drop), expected);
        }
    }
}

fn compare(world: &mut World, model: &Model) {
    for (name, object) in &model.names {
        match &model.objects[*object] {
            Object::File(content) => assert!(world.read(name).unwrap() == *content, "{name}"),
            Object::Directory => {
                let prefix = format!("{name}/");
                let inside = model.names.keys().filter_map(|other| other.strip_prefix(&prefix));
                let expected: Vec<&str> = inside.filter(|rest| !rest.contains('/')).collect();
                assert_eq!(world.names(name), expected, "{name}");
            }
        }
    }
}

#[test]
fn random_operations_agree_with_a_model_of_paths() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let names = if seed % 2 == 0 { Names::Short } else { Names::Colliding };
        let mut world = World::with_seed(collisions::SEED);
        let mut model = Model::new();
        for number in 0..250 {
            step(&mut rng, names, &mut world, &mut model, seed, number);
            if number % 10 == 0 {
                world.check();
            }
        }
        compare(&mut world, &model);
    }
}
