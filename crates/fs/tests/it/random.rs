//! Random operations against a model that keeps paths in maps.
//!
//! The model knows nothing of inodes but an identity: a name maps to an object, an object is a
//! directory or bytes. After each operation both must have answered alike.

use std::collections::BTreeMap;

use gabion_base::rng::Rng;
use gabion_fs::{
    self as fs, CopyRequest, IfTaken, Leave, Privileges, Result, SizeRule, SpaceRequest,
};

use crate::collisions;
use crate::local::Local;
use crate::world::{Backend, World, failure};

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

    /// The bytes of a file, to be changed by fallocate.
    fn content(&mut self, path: &str) -> std::result::Result<&mut Vec<u8>, &'static str> {
        let object = self.object(path)?;
        match &mut self.objects[object] {
            Object::File(content) => Ok(content),
            Object::Directory => Err("IsDirectory"),
        }
    }

    fn fallocate(&mut self, path: &str, request: SpaceRequest, at: usize, length: usize) -> Answer {
        let content = self.content(path)?;
        let size = content.len();
        let end = at + length;
        match request {
            SpaceRequest::Allocate(_) => content.resize(size.max(end), 0),
            SpaceRequest::Punch => content[at.min(size)..end.min(size)].fill(0),
            SpaceRequest::Zero(_) => {
                content.resize(size.max(end), 0);
                content[at..end].fill(0);
            }
            SpaceRequest::Collapse if end >= size => return Err("InvalidArgument"),
            SpaceRequest::Collapse => drop(content.drain(at..end)),
            SpaceRequest::Insert if at >= size => return Err("InvalidArgument"),
            SpaceRequest::Insert => drop(content.splice(at..at, vec![0; length])),
        }
        Ok(())
    }

    fn copy(&mut self, from: &str, from_at: usize, to: &str, at: usize, length: usize) -> Answer {
        let (source, target) = (self.object(from)?, self.object(to)?);
        let content = self.content(from)?;
        let end = (from_at + length).min(content.len());
        let bytes = content[from_at.min(end)..end].to_vec();
        let is_one_file = source == target;
        let content = self.content(to)?;
        if is_one_file && from_at.abs_diff(at) < bytes.len() {
            return Err("InvalidArgument");
        }
        if !bytes.is_empty() {
            content.resize(content.len().max(at + bytes.len()), 0);
            content[at..at + bytes.len()].copy_from_slice(&bytes);
        }
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

fn step(
    rng: &mut Rng,
    names: Names,
    world: &mut World<impl Backend>,
    model: &mut Model,
    seed: u64,
    number: u32,
) {
    let (one, other) = (path(rng, names), path(rng, names));
    let check = |what: &str, result: Result<()>, expected| {
        agree(seed, number, &format!("{what} {one} {other}"), result, expected);
    };
    match rng.below(12) {
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
        7 => {
            let (request, at, length) = space_request(rng);
            let expected = model.fallocate(&one, request, at, length);
            let result = fallocate(world, &one, request, at as u64, length as u64);
            check(&format!("{request:?} {at} {length}"), result, expected);
        }
        8 => {
            let mut offset = || rng.below(3) * 4096 + rng.below(3) * 10;
            let (from_at, at, length) = (offset(), offset(), 1 + offset());
            let expected = model.copy(&one, from_at as usize, &other, at as usize, length as usize);
            let result = copy(world, (&one, from_at), (&other, at), length);
            check(&format!("copy {from_at} {at} {length}"), result, expected);
        }
        kind => {
            let if_taken = match (kind, rng.below(4)) {
                (9, 0) => IfTaken::Fail,
                (10, 0 | 1) => IfTaken::Exchange,
                _ => IfTaken::Replace,
            };
            let expected = model.rename(&one, &other, if_taken);
            let result = world.rename_with(&one, &other, if_taken, Leave::Nothing);
            check(&format!("rename {if_taken:?}"), result.map(drop), expected);
        }
    }
}

/// What to do where; where blocks are moved, in whole blocks.
fn space_request(rng: &mut Rng) -> (SpaceRequest, usize, usize) {
    let (at, length) = (rng.below(9000) as usize, 1 + rng.below(9000) as usize);
    let (block, blocks) = (4096 * rng.below(3) as usize, 4096 * (1 + rng.below(2)) as usize);
    match rng.below(5) {
        0 => (SpaceRequest::Allocate(SizeRule::Extend), at, length),
        1 => (SpaceRequest::Punch, at, length),
        2 => (SpaceRequest::Zero(SizeRule::Extend), at, length),
        3 => (SpaceRequest::Collapse, block, blocks),
        _ => (SpaceRequest::Insert, block, blocks),
    }
}

fn fallocate(
    world: &mut World<impl Backend>,
    path: &str,
    request: SpaceRequest,
    at: u64,
    length: u64,
) -> Result<()> {
    let file = world.resolve(path)?;
    world.tick();
    let ctx = &world.ctx;
    world.map.run(|txn| fs::fallocate(txn, ctx, file, request, at, length, Privileges::Keep))
}

fn copy(
    world: &mut World<impl Backend>,
    (from, source_offset): (&str, u64),
    (to, target_offset): (&str, u64),
    length: u64,
) -> Result<()> {
    let (source, target) = (world.resolve(from)?, world.resolve(to)?);
    // A file that is copied to its own end grows; what is copied ends where it ended before.
    let size = world.stat(from)?.size;
    let length = length.min(size.saturating_sub(source_offset)).max(1);
    let mut request = CopyRequest { source, source_offset, target, target_offset, length };
    world.tick();
    let ctx = &world.ctx;
    while request.length > 0 {
        let count = world.map.run(|txn| fs::copy_range(txn, ctx, &request, Privileges::Keep))?;
        if count == 0 {
            break;
        }
        request.source_offset += count;
        request.target_offset += count;
        request.length -= count;
    }
    Ok(())
}

fn compare(world: &mut World<impl Backend>, model: &Model) {
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

#[test]
fn random_operations_on_the_local_map_outlive_commits_and_reopening() {
    for seed in 100..104 {
        let mut rng = Rng::new(seed);
        let names = if seed % 2 == 0 { Names::Short } else { Names::Colliding };
        let mut world = World::on(Local::new(), collisions::SEED);
        let mut model = Model::new();
        for number in 0..250 {
            step(&mut rng, names, &mut world, &mut model, seed, number);
            match rng.below(40) {
                0 => world.check(),
                1 => world.map.reopen(),
                _ => {}
            }
        }
        world.map.reopen();
        compare(&mut world, &model);
    }
}
