//! Random operations one after the other, each at a mount that is chosen at random. What is found
//! at any mount is what would be found if there were only one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::FallocateFlags;

use super::cluster::{AtEnd, Cluster, Place};
use crate::numbers::Numbers;
use crate::program::script;
use crate::site::is_long;

/// The longest that a file becomes, in bytes.
const LENGTH_MAX: usize = 200_000;
/// The longest read or write.
const PIECE_MAX: usize = 40_000;
/// So many operations are told when something is wrong.
const TOLD: usize = 40;

fn operations(short: usize, long: usize) -> usize {
    if is_long() { long } else { short }
}

/// What was done last, for people.
struct History {
    what: String,
    last: VecDeque<String>,
    count: usize,
}

impl History {
    fn new(what: String) -> Self {
        Self { what, last: VecDeque::new(), count: 0 }
    }

    fn note(&mut self, text: String) {
        self.count += 1;
        if self.last.len() == TOLD {
            self.last.pop_front();
        }
        self.last.push_back(format!("{}: {text}", self.count));
    }

    #[track_caller]
    fn fail(&self, why: &str) -> ! {
        let last: Vec<_> = self.last.iter().map(String::as_str).collect();
        panic!("{}: {why}\nafter:\n{}", self.what, last.join("\n"));
    }
}

/// A process that reads through a mapping.
struct Mapped {
    child: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Mapped {
    fn new(path: &Path) -> Self {
        let mut command = script("mapped.py");
        command.arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let ask = child.stdin.take();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(line, "mapped\n");
        Self { child, ask, answers }
    }

    fn read(&mut self, offset: usize, length: usize) -> Vec<u8> {
        writeln!(self.ask.as_mut().unwrap(), "{offset} {length}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let digits = line.trim_end().as_bytes().chunks(2);
        digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // Then it has no more to read, and ends.
        self.ask = None;
        let _ = self.child.wait();
    }
}

/// A file at one mount, open in all ways for all the time.
struct Hand {
    path: PathBuf,
    /// For reading and writing.
    both: File,
    appending: File,
    /// For reading only: of this one the kernel may keep pages.
    reading: File,
    mapped: Mapped,
}

impl Hand {
    fn new(path: PathBuf) -> Self {
        let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let appending = OpenOptions::new().append(true).open(&path).unwrap();
        let reading = File::open(&path).unwrap();
        let mapped = Mapped::new(&path);
        Self { path, both, appending, reading, mapped }
    }
}

/// A file at all mounts, with what must be in it.
struct Alternating {
    hands: Vec<Hand>,
    model: Vec<u8>,
    numbers: Numbers,
    history: History,
}

impl Alternating {
    fn new(cluster: &Cluster, seed: u64) -> Self {
        let bytes = vec![b'-'; LENGTH_MAX];
        fs::write(cluster.path(0, "file"), &bytes).unwrap();
        let hands = (0..cluster.machines()).map(|machine| Hand::new(cluster.path(machine, "file")));
        Self {
            hands: hands.collect(),
            model: bytes,
            numbers: Numbers(seed),
            history: History::new(format!("seed {seed}")),
        }
    }

    /// A mount, an offset in the file or behind its end, and a length that is not 0.
    fn place(&mut self) -> (usize, usize, usize) {
        let machine = self.numbers.below(self.hands.len() as u64) as usize;
        let length = 1 + self.numbers.below(PIECE_MAX as u64) as usize;
        let offset = self.numbers.below((LENGTH_MAX - length) as u64) as usize;
        (machine, offset, length)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let first = self.numbers.below(256) as usize;
        (0..length).map(|index| (first + index / 7) as u8).collect()
    }

    fn lengthen(&mut self, length: usize) {
        if self.model.len() < length {
            self.model.resize(length, 0);
        }
    }

    fn step(&mut self) {
        let (machine, offset, length) = self.place();
        match self.numbers.below(10) {
            0..=2 => {
                self.history.note(format!("write {length} at {offset}, mount {machine}"));
                let bytes = self.bytes(length);
                self.hands[machine].both.write_all_at(&bytes, offset as u64).unwrap();
                self.lengthen(offset + length);
                self.model[offset..offset + length].copy_from_slice(&bytes);
            }
            3 | 4 if self.model.len() + length <= LENGTH_MAX => {
                self.history.note(format!("append {length}, mount {machine}"));
                let bytes = self.bytes(length);
                self.hands[machine].appending.write_all(&bytes).unwrap();
                self.model.extend(bytes);
            }
            5 => {
                self.history.note(format!("truncate to {offset}, mount {machine}"));
                self.hands[machine].both.set_len(offset as u64).unwrap();
                self.model.resize(offset, 0);
            }
            6 => {
                self.history.note(format!("punch {length} at {offset}, mount {machine}"));
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let file = &self.hands[machine].both;
                rustix::fs::fallocate(file, flags, offset as u64, length as u64).unwrap();
                let length_now = self.model.len();
                let hole = offset.min(length_now)..(offset + length).min(length_now);
                self.model[hole].fill(0);
            }
            7 => {
                self.history.note(format!("sync, mount {machine}"));
                self.hands[machine].both.sync_all().unwrap();
            }
            8 => {
                self.history.note(format!("close and open, mount {machine}"));
                let hand = &mut self.hands[machine];
                hand.both = OpenOptions::new().read(true).write(true).open(&hand.path).unwrap();
                hand.reading = File::open(&hand.path).unwrap();
            }
            _ => {}
        }
    }

    /// Looks at the file in one way, at one mount.
    fn check(&mut self) {
        let (machine, offset, length) = self.place();
        let wanted_length = self.model.len();
        let end = (offset + length).min(wanted_length);
        let wanted = &self.model[offset.min(end)..end];
        let hand = &mut self.hands[machine];
        let read = |file: &File| {
            let mut bytes = vec![0xaa; length];
            let mut count = 0;
            while count < length {
                match file.read_at(&mut bytes[count..], (offset + count) as u64).unwrap() {
                    0 => break,
                    more => count += more,
                }
            }
            bytes.truncate(count);
            bytes
        };
        let (how, found) = match self.numbers.below(4) {
            0 => ("read", read(&hand.both)),
            1 => ("read through the page cache", read(&hand.reading)),
            2 if !wanted.is_empty() => {
                ("read through a mapping", hand.mapped.read(offset, wanted.len()))
            }
            _ => {
                let by_path = fs::metadata(&hand.path).unwrap().len();
                let by_descriptor = hand.reading.metadata().unwrap().len();
                if [by_path, by_descriptor] != [wanted_length as u64; 2] {
                    self.history.fail(&format!(
                        "mount {machine} has {by_path} and {by_descriptor} bytes, not \
                         {wanted_length}"
                    ));
                }
                return;
            }
        };
        if found != wanted {
            let differs = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
            let at = differs.unwrap_or(found.len().min(wanted.len()));
            self.history.fail(&format!(
                "{how} {length} at {offset}, mount {machine}: {} bytes and not {}, other ones from \
                 {} on: {:?} and not {:?}",
                found.len(),
                wanted.len(),
                offset + at,
                found.get(at),
                wanted.get(at)
            ));
        }
    }
}

fn a_file_is_the_same(name: &str, place: Place, machines: usize, seed: u64, count: usize) {
    let cluster = Cluster::new(name, place, machines);
    let mut file = Alternating::new(&cluster, seed);
    for _ in 0..count {
        file.step();
        file.check();
        file.check();
    }
    drop(file.hands);
    for machine in 0..machines {
        assert!(fs::read(cluster.path(machine, "file")).unwrap() == file.model, "mount {machine}");
    }
    cluster.finish();
}

#[test]
fn a_file_that_is_changed_at_either_mount_is_the_same_at_both() {
    a_file_is_the_same("alternate-2", Place::Loopback, 2, 1, operations(700, 60_000));
}

#[test]
fn a_file_that_is_changed_at_any_machine_is_the_same_at_all() {
    a_file_is_the_same("alternate-4", Place::Network, 4, 2, operations(700, 60_000));
}

/// Others read the same pages all the time, so that the kernel hears of the file's end in several
/// ways at once.
#[test]
fn a_file_that_is_cut_at_one_mount_ends_there_for_all_who_read_it_at_another() {
    let cluster = Cluster::new("cut-file", Place::Loopback, 2);
    let path = cluster.path(0, "file");
    let writer = File::create(cluster.path(1, "file")).unwrap();
    writer.write_all_at(&[b'x'; LENGTH_MAX], 0).unwrap();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = AtEnd(&is_done);
        for seed in 0..2 {
            let (path, is_done) = (&path, &is_done);
            scope.spawn(move || {
                let (file, mut numbers) = (File::open(path).unwrap(), Numbers(seed));
                while !is_done.load(Ordering::Acquire) {
                    let offset = numbers.below(LENGTH_MAX as u64);
                    file.read_at(&mut [0; 20_000], offset).unwrap();
                }
            });
        }
        let (file, mut numbers) = (File::open(&path).unwrap(), Numbers(7));
        let mut bytes = vec![0; PIECE_MAX];
        for round in 0..operations(150, 20_000) {
            writer.write_all_at(&[b'x'; LENGTH_MAX], 0).unwrap();
            let length = 1 + numbers.below(LENGTH_MAX as u64 / 2);
            writer.set_len(length).unwrap();
            let offset = length.saturating_sub(PIECE_MAX as u64 / 2);
            let count = file.read_at(&mut bytes, offset).unwrap();
            assert_eq!(offset + count as u64, length, "in round {round}");
        }
    });
    drop(writer);
    cluster.finish();
}

/// What is told of an operation on names: nothing, or the error.
type Told = Result<(), i32>;

fn told(result: io::Result<()>) -> Told {
    result.map_err(|error| match error.raw_os_error().unwrap_or(0) {
        // POSIX lets a filesystem say either of a folder that is not empty.
        libc::EEXIST => libc::ENOTEMPTY,
        other => other,
    })
}

/// What is known of a name: type, permissions, and what is specific to the type.
fn describe(path: &Path) -> Result<(u32, String), i32> {
    let found = fs::symlink_metadata(path);
    let found = found.map_err(|error| error.raw_os_error().unwrap_or(0))?;
    let detail = match found.file_type() {
        kind if kind.is_dir() => {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name != "lost+found")
                .collect();
            names.sort();
            names.join(" ")
        }
        kind if kind.is_symlink() => fs::read_link(path).unwrap().display().to_string(),
        _ => format!("{} links: {}", found.nlink(), fs::read_to_string(path).unwrap()),
    };
    Ok((found.mode(), detail))
}

/// How many operations on names there are.
const OPERATIONS: u64 = 14;

/// The first number of the same operation: some are done more often.
fn kind(number: u64) -> u64 {
    match number {
        1 => 0,
        4 => 3,
        8 => 7,
        10 | 11 => 9,
        other => other,
    }
}

/// Does the operation `number` on names below `root`.
fn change(root: &Path, number: u64, names: [&String; 2], text: &str) -> Told {
    let [first, second] = names.map(|name| root.join(name));
    told(match number {
        0 | 1 => fs::write(&first, text),
        2 => OpenOptions::new().write(true).create_new(true).open(&first).map(drop),
        3 | 4 => fs::create_dir(&first),
        5 => fs::remove_file(&first),
        6 => fs::remove_dir(&first),
        7 | 8 => fs::rename(&first, &second),
        9..=11 => fs::hard_link(&first, &second),
        12 => symlink(text, &first),
        _ => fs::symlink_metadata(&first).and_then(|found| {
            let permissions = PermissionsExt::from_mode(0o700 | found.mode() ^ 0o011);
            match found.is_symlink() {
                true => Ok(()),
                false => fs::set_permissions(&first, permissions),
            }
        }),
    })
}

/// Everything below `root`, by its path from there.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, String)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("lost+found") {
                continue;
            }
            let description = describe(&path).unwrap();
            if path.symlink_metadata().unwrap().is_dir() {
                folders.push(path.clone());
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned(), description);
        }
    }
    found
}

fn names_are_those_of_one_folder(
    name: &str,
    place: Place,
    machines: usize,
    seed: u64,
    count: usize,
) {
    let cluster = Cluster::new(name, place, machines);
    let reference = cluster.beside("reference");
    fs::create_dir(&reference).unwrap();
    let mut numbers = Numbers(seed);
    let mut history = History::new(format!("seed {seed}"));
    let tops = ["a", "b", "c", "d"];
    let depths = ["", "/x", "/y", "/x/z"];
    let all: Vec<String> = tops
        .iter()
        .flat_map(|top| depths.iter().map(move |depth| format!("{top}{depth}")))
        .collect();
    let mut outcomes = BTreeSet::new();
    for step in 0..count {
        let machine = numbers.below(machines as u64) as usize;
        let number = numbers.below(OPERATIONS);
        let names = [numbers.of(&all), numbers.of(&all)];
        let text = format!("{step}");
        let wanted = change(&reference, number, names, &text);
        let found = change(cluster.root(machine), number, names, &text);
        history.note(format!("{number} of {names:?}, mount {machine}: {wanted:?}"));
        if found != wanted {
            history.fail(&format!("it said {found:?}"));
        }
        outcomes.insert((kind(number), wanted));
        for _ in 0..3 {
            let (machine, name) = (numbers.below(machines as u64) as usize, numbers.of(&all));
            let wanted = describe(&reference.join(name));
            let found = describe(&cluster.path(machine, name));
            if found != wanted {
                history.fail(&format!("{name} at mount {machine} is {found:?} and not {wanted:?}"));
            }
        }
    }
    // Every operation has succeeded, and most have failed, too.
    let has_succeeded = |number| outcomes.contains(&(kind(number), Ok(())));
    assert!((0..OPERATIONS).all(has_succeeded), "{outcomes:?}");
    assert!(outcomes.len() > 24, "{outcomes:?}");
    for machine in 0..machines {
        assert_eq!(tree(cluster.root(machine)), tree(&reference), "mount {machine}");
    }
    cluster.finish();
}

#[test]
fn names_that_are_changed_at_either_mount_are_the_same_at_both() {
    names_are_those_of_one_folder("names-2", Place::Loopback, 2, 1, operations(900, 60_000));
}

#[test]
fn names_that_are_changed_at_any_machine_are_the_same_at_all() {
    names_are_those_of_one_folder("names-4", Place::Network, 4, 2, operations(900, 60_000));
}

#[test]
fn a_folder_takes_the_place_of_one_that_another_mount_has_moved() {
    let cluster = Cluster::new("moved-folder", Place::Loopback, 2);
    for name in ["moved", "new", "parent"] {
        fs::create_dir(cluster.path(0, name)).unwrap();
        assert!(fs::metadata(cluster.path(1, name)).unwrap().is_dir());
    }
    fs::rename(cluster.path(0, "moved"), cluster.path(0, "parent/place")).unwrap();
    fs::rename(cluster.path(1, "new"), cluster.path(1, "parent/place")).unwrap();
    assert_eq!(tree(cluster.root(0)), tree(cluster.root(1)));
    assert_eq!(tree(cluster.root(0)).len(), 2);
    cluster.finish();
}
