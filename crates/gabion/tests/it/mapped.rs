//! Files that programs at several mounts of one server have mapped, and change there.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::shared::Shared;
use crate::world::{Running, rest};

/// How long something may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PAGE: u64 = 4096;

/// Maps a file, all of it, and does what it is told by lines: `store OFFSET HEX`, `load OFFSET
/// LENGTH`, `sync` and `size`.
const MAPPING: &str = "
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(file, 0)
print('mapped', flush=True)
for line in sys.stdin:
    what, *words = line.split()
    if what == 'store':
        place, stored = int(words[0]), bytes.fromhex(words[1])
        memory[place:place + len(stored)] = stored
        print('stored', flush=True)
    elif what == 'load':
        place, length = int(words[0]), int(words[1])
        print(memory[place:place + length].hex(), flush=True)
    else:
        memory.flush()
        print('synced', flush=True)
";

/// Counts in two pages of a mapped file, under a lock on it.
const COUNTER: &str = "
import fcntl, mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(file, 0)
for _ in range(int(sys.argv[2])):
    fcntl.lockf(file, fcntl.LOCK_EX)
    for place in (0, 8300):
        count = int.from_bytes(memory[place:place + 8], 'little') + 1
        memory[place:place + 8] = count.to_bytes(8, 'little')
    fcntl.lockf(file, fcntl.LOCK_UN)
";

/// Counts in places of its own in pages that others change, too, by stores or by pwrite(2), and
/// sees to it that its own counts stay and those of others never become less.
const SLOTS: &str = "
import mmap, os, random, sys
slot, how, rounds = int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
file = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(file, 0)
pages = len(memory) // 4096
own, seen = [0] * pages, {}
def counts(place):
    mapped = int.from_bytes(memory[place:place + 8], 'little')
    return mapped, int.from_bytes(os.pread(file, 8, place), 'little')
for _ in range(rounds):
    page = random.randrange(pages)
    place = page * 4096 + slot * 8
    found = counts(place)
    if found != (own[page], own[page]):
        sys.exit(f'{slot} {how}, page {page}: {found} instead of {own[page]}')
    own[page] += 1
    count = own[page].to_bytes(8, 'little')
    if how == 'store':
        memory[place:place + 8] = count
    else:
        os.pwrite(file, count, place)
    other = page * 4096 + random.randrange(16) * 8
    if other != place:
        for count in counts(other):
            if count < seen.get(other, 0):
                sys.exit(f'{slot} {how}: {count} after {seen[other]} at {other}')
            seen[other] = count
for page in range(pages):
    if counts(page * 4096 + slot * 8) != (own[page], own[page]):
        sys.exit(f'{slot} {how}, page {page}: not {own[page]} at the end')
";

/// Cuts and lengthens a mapped file and stores into it, as far as there is any. To store, bytes are
/// read into the mapping, as whoever reads into nothing is told so and not killed.
const CUTTER: &str = "
import mmap, os, random, sys
file = os.open(sys.argv[1], os.O_RDWR)
while True:
    try:
        os.ftruncate(file, 65536)
        memory = memoryview(mmap.mmap(file, 65536))
        break
    except ValueError:
        pass  # Somebody has cut it again.
source = os.open('/dev/urandom', os.O_RDONLY)
for _ in range(int(sys.argv[2])):
    place, choice = random.randrange(65000), random.randrange(20)
    try:
        if choice < 5:
            os.ftruncate(file, random.choice([65536, 1 + place]))
        elif choice < 12:
            os.readv(source, [memory[place:place + 100]])
        elif choice < 14:
            os.pread(file, 1000, place)
        elif choice < 16:
            os.pwrite(file, bytes(200), place)
        elif choice < 17:
            os.fsync(file)
        elif choice < 18:
            os.close(os.open(sys.argv[1], os.O_RDWR | os.O_TRUNC))
        else:
            os.fstat(file)
    except OSError as error:
        if error.errno != 14:
            sys.exit(f'{choice}: {error}')
";

fn python(script: &str, path: &Path, arguments: &[&str]) -> Running {
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(path).args(arguments);
    Running(python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
}

/// Waits until all have ended well.
#[track_caller]
fn all_succeed(running: Vec<Running>) {
    for mut one in running {
        assert!(one.0.wait().unwrap().success(), "a program sees other bytes than it should");
    }
}

/// A process that has a file mapped.
struct Mapping(Running, Lines<BufReader<ChildStdout>>);

impl Mapping {
    fn of(path: &Path) -> Self {
        let mut running = python(MAPPING, path, &[]);
        let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let mut mapping = Self(running, lines);
        assert_eq!(mapping.says(), "mapped");
        mapping
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.0.0.stdin.as_ref().unwrap(), "{line}").unwrap();
    }

    fn says(&mut self) -> String {
        self.1.next().expect("the process has not ended").unwrap()
    }

    fn store(&mut self, offset: u64, byte: u8) {
        self.tell(&format!("store {offset} {byte:02x}"));
        assert_eq!(self.says(), "stored");
    }

    fn load(&mut self, offset: u64) -> u8 {
        self.tell(&format!("load {offset} 1"));
        u8::from_str_radix(&self.says(), 16).unwrap()
    }

    fn sync(&mut self) {
        self.tell("sync");
        assert_eq!(self.says(), "synced");
    }
}

fn byte(file: &File, offset: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0]
}

fn made(path: PathBuf, pages: u64) -> PathBuf {
    fs::write(&path, vec![0; (pages * PAGE) as usize]).unwrap();
    path
}

#[test]
fn what_is_stored_in_a_mapping_is_seen_at_all_mounts_at_once() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    made(a.join("file"), 4);
    let (mut one, mut other) = (Mapping::of(&a.join("file")), Mapping::of(&b.join("file")));
    // With descriptors of readers, whose pages are the same, and of those who write.
    let reader = |mount: &Path| File::open(mount.join("file")).unwrap();
    let writer =
        |mount: &Path| OpenOptions::new().read(true).write(true).open(mount.join("file")).unwrap();
    let files = [reader(&a), reader(&b), writer(&a), writer(&b)];
    for round in 1..=40 {
        one.store(10, round);
        assert_eq!(other.load(10), round);
        other.store(PAGE + 10, round);
        assert_eq!(one.load(PAGE + 10), round);
        for (number, file) in files.iter().enumerate() {
            let place = (number as u64 % 2) * PAGE + 10;
            one.store(2 * PAGE, round ^ number as u8);
            assert_eq!(byte(file, place), round, "descriptor {number}");
            assert_eq!(byte(file, 2 * PAGE), round ^ number as u8, "descriptor {number}");
        }
        // What is written at either mount is in all mappings.
        for (number, file) in files[2..].iter().enumerate() {
            file.write_all_at(&[round + number as u8], 3 * PAGE + 5).unwrap();
            assert_eq!(one.load(3 * PAGE + 5), round + number as u8);
            assert_eq!(other.load(3 * PAGE + 5), round + number as u8);
        }
    }
    one.sync();
    other.sync();
    drop((one, other, files));
    assert!(fs::read(a.join("file")).unwrap() == fs::read(b.join("file")).unwrap());
    shared.finish(&["a", "b"]);
}

#[test]
fn counters_in_a_mapping_are_exact_under_locks_at_three_mounts() {
    const COUNT: u64 = 60;
    let Some(shared) = Shared::new() else { return };
    let mounts = ["a", "b", "c"].map(|name| shared.mount(name));
    made(mounts[0].join("file"), 3);
    let counters = mounts.iter().chain(&mounts[..2]);
    let counters =
        counters.map(|mount| python(COUNTER, &mount.join("file"), &[&COUNT.to_string()]));
    all_succeed(counters.collect());
    for mount in &mounts {
        let content = fs::read(mount.join("file")).unwrap();
        for place in [0, 8300] {
            let count = u64::from_le_bytes(content[place..place + 8].try_into().unwrap());
            assert_eq!(count, 5 * COUNT);
        }
    }
    shared.finish(&["a", "b", "c"]);
}

#[test]
fn stores_and_writes_beside_each_other_in_a_page_are_all_kept() {
    let Some(shared) = Shared::new() else { return };
    let mounts = ["a", "b", "c"].map(|name| shared.mount(name));
    made(mounts[0].join("file"), 3);
    let mut slot = 0;
    let mut running = Vec::new();
    for mount in &mounts {
        for how in ["store", "write", "store", "write"] {
            running.push(python(SLOTS, &mount.join("file"), &[&slot.to_string(), how, "120"]));
            slot += 1;
        }
    }
    all_succeed(running);
    let contents = mounts.each_ref().map(|mount| fs::read(mount.join("file")).unwrap());
    assert!(contents[0] == contents[1] && contents[1] == contents[2]);
    shared.finish(&["a", "b", "c"]);
}

/// The kernel hands over no page while it waits for a change of the size.
#[test]
fn who_cuts_a_mapped_file_waits_in_no_circle() {
    let Some(shared) = Shared::new() else { return };
    let mounts = ["a", "b", "c"].map(|name| shared.mount(name));
    made(mounts[0].join("file"), 16);
    let began = Instant::now();
    let cutters =
        mounts.iter().chain(&mounts).map(|mount| python(CUTTER, &mount.join("file"), &["400"]));
    all_succeed(cutters.collect());
    // Each circle would have lasted until a session ends or an operation is given up.
    assert!(began.elapsed() < 3 * PATIENCE, "{:?}", began.elapsed());
    let events = shared.folder.gabion(&["events", "--json"]).succeeded();
    assert!(!events.contains("client-silent") && !events.contains("client-changes-lost"));
    let contents = mounts.each_ref().map(|mount| fs::read(mount.join("file")).unwrap());
    assert!(contents[0] == contents[1] && contents[1] == contents[2]);
    shared.finish(&["a", "b", "c"]);
}

#[test]
fn what_is_stored_and_not_handed_over_outlives_a_server_that_is_killed() {
    let Some(mut shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    made(a.join("file"), 4);
    File::open(a.join("file")).unwrap().sync_all().unwrap();
    let mut one = Mapping::of(&a.join("file"));
    let mut other = Mapping::of(&b.join("file"));
    for round in 1..=3 {
        one.store(0, round);
        other.store(PAGE, round);
        // Of the third page nobody but this mapping knows.
        one.store(2 * PAGE, round);
        shared.restart();
        assert_eq!((one.load(0), one.load(PAGE), one.load(2 * PAGE)), (round, round, round));
        assert_eq!((other.load(0), other.load(PAGE), other.load(2 * PAGE)), (round, round, round));
        one.sync();
        other.sync();
    }
    drop((one, other));
    let events = shared.folder.gabion(&["events", "--json"]).succeeded();
    assert!(!events.contains("client-changes-lost"), "{events}");
    shared.finish(&["a", "b"]);
}

/// Its session has ended, and what others have seen and done since counts.
#[test]
fn what_a_mount_has_stored_and_loses_with_its_session_is_kept_aside() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    made(a.join("file"), 2);
    File::open(a.join("file")).unwrap().sync_all().unwrap();
    let mut mapping = Mapping::of(&a.join("file"));
    mapping.store(PAGE + 7, 77);
    let clients = shared.folder.gabion(&["clients", "--json", "disk.img"]).succeeded();
    let clients: Value = serde_json::from_str(&clients).unwrap();
    let is_a = |client: &&Value| client["name"].as_str().unwrap().ends_with("/a");
    let client = clients["clients"].as_array().unwrap().iter().find(is_a).unwrap();
    let session = client["session"].as_str().unwrap();
    shared.folder.gabion(&["evict", "disk.img", session]).succeeded();
    assert_eq!(fs::read(b.join("file")).unwrap()[PAGE as usize + 7], 0);
    let began = Instant::now();
    let event = loop {
        let events = shared.folder.gabion(&["events", "--json"]).succeeded();
        match events.lines().find(|line| line.contains("client-changes-lost")) {
            Some(line) => break serde_json::from_str::<Value>(line).unwrap(),
            None => assert!(began.elapsed() < PATIENCE, "{events}"),
        }
        rest();
    };
    let lost = PathBuf::from(event["folder"].as_str().unwrap());
    let inode = fs::metadata(a.join("file")).unwrap().ino();
    let kept = fs::read(lost.join(format!("inode-{inode}"))).unwrap();
    assert_eq!(kept[PAGE as usize + 7], 77);
    // It has begun another session, and shows what all others see.
    assert_eq!(mapping.load(PAGE + 7), 0);
    // Whoever syncs is told once, and then it goes on.
    let file = OpenOptions::new().read(true).write(true).open(a.join("file")).unwrap();
    assert!(file.sync_all().is_err());
    mapping.store(PAGE + 7, 78);
    mapping.sync();
    assert_eq!(fs::read(b.join("file")).unwrap()[PAGE as usize + 7], 78);
    drop((mapping, file));
    shared.finish(&["a", "b"]);
}

#[test]
fn a_mapped_file_that_is_cut_elsewhere_ends_there_and_grows_again_with_zeros() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    made(a.join("file"), 4);
    let mut mapping = Mapping::of(&a.join("file"));
    mapping.store(PAGE - 1, 1);
    mapping.store(3 * PAGE, 3);
    let file = OpenOptions::new().read(true).write(true).open(b.join("file")).unwrap();
    file.set_len(PAGE + 10).unwrap();
    assert_eq!(fs::metadata(a.join("file")).unwrap().len(), PAGE + 10);
    assert_eq!(fs::read(a.join("file")).unwrap()[PAGE as usize - 1], 1);
    file.set_len(4 * PAGE).unwrap();
    assert_eq!(fs::metadata(a.join("file")).unwrap().len(), 4 * PAGE);
    assert_eq!((mapping.load(PAGE - 1), mapping.load(3 * PAGE)), (1, 0));
    mapping.store(3 * PAGE, 4);
    assert_eq!(byte(&file, 3 * PAGE), 4);
    drop((mapping, file));
    shared.finish(&["a", "b"]);
}

#[test]
fn a_program_that_maps_and_unmaps_leaves_its_stores_to_all() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    made(a.join("file"), 2);
    for round in 1..=10 {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let mut mapping = Mapping::of(&from.join("file"));
        mapping.store(PAGE + 1, round);
        // Killed, it has not unmapped; what it has stored is stored.
        drop(mapping);
        assert_eq!(fs::read(to.join("file")).unwrap()[PAGE as usize + 1], round);
        assert_eq!(fs::read(from.join("file")).unwrap()[PAGE as usize + 1], round);
    }
    shared.finish(&["a", "b"]);
}

#[test]
fn a_read_only_mount_maps_nothing_to_change_it() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = (shared.mount("a"), shared.mount_with("b", "ro,deadline=60"));
    made(a.join("file"), 1);
    let mut python = Command::new("python3");
    let script = "import mmap, sys\nf = open(sys.argv[1], 'rb')\n\
                  try:\n    mmap.mmap(f.fileno(), 4096)\n\
                  except PermissionError:\n    pass\n\
                  else:\n    sys.exit('it is mapped')\n\
                  try:\n    open(sys.argv[1], 'r+b')\n\
                  except OSError as error:\n    sys.exit(error.errno != 30)\n\
                  sys.exit('it is opened')\n";
    python.args(["-c", script]).arg(b.join("file"));
    assert!(python.status().unwrap().success());
    shared.finish(&["a", "b"]);
}
