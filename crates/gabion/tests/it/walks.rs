//! Directories that kernels list by themselves, and what others change in them meanwhile.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::RawDir;
use rustix::process::Pid;

use crate::shared::{Shared, Stopped};
use crate::world::Folder;

/// How long a walk that asks nobody may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn names(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// Lists everything and looks at its attributes: how many there are.
pub fn walk(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let below = entries.map(|path| match fs::symlink_metadata(&path).unwrap().is_dir() {
        true => walk(&path),
        false => 1,
    });
    1 + below.sum::<usize>()
}

pub fn make_tree(top: &Path) -> usize {
    for branch in 0..6 {
        let dir = top.join(format!("branch-{branch}/twig"));
        fs::create_dir_all(&dir).unwrap();
        for leaf in 0..20 {
            fs::write(dir.join(format!("leaf-{leaf}")), "leaf").unwrap();
        }
    }
    1 + 6 * 22
}

/// Does something while `daemon` stands still; nothing if that has not come to its end.
pub fn without<T: Send + 'static>(
    daemon: Pid,
    patience: Duration,
    run: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let stopped = Stopped::new(daemon);
    let (tell, told) = mpsc::channel();
    let runner = thread::spawn(move || tell.send(run()));
    let done = told.recv_timeout(patience).ok();
    drop(stopped);
    // Who was too late has nobody to tell.
    let _ = runner.join().unwrap();
    done
}

/// Walks while `daemon` stands still; nothing if somebody was asked.
pub fn walk_without(daemon: Pid, top: PathBuf) -> Option<usize> {
    without(daemon, PATIENCE, move || walk(&top))
}

#[test]
fn a_tree_that_was_walked_is_walked_again_without_the_daemon() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    let (made, top) = (a.join("top"), b.join("top"));
    fs::create_dir(&made).unwrap();
    let count = make_tree(&made);
    // The kernel takes an access time for changed when it has listed: the second walk asks for it.
    assert_eq!((walk(&top), walk(&top)), (count, count));
    assert_eq!(walk_without(shared.daemon("b"), top), Some(count));
    shared.finish(&["a", "b"]);
}

#[test]
fn a_tree_on_a_local_mount_is_walked_again_without_the_daemon() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let top = folder.mount("commit=5").join("top");
    fs::create_dir(&top).unwrap();
    let count = make_tree(&top);
    assert_eq!((walk(&top), walk(&top)), (count, count));
    assert_eq!(walk_without(folder.daemon().pid, top), Some(count));
}

/// The kernel looks at modification times, too; here they do not tell.
#[test]
fn a_directory_that_is_listed_by_many_shows_each_change_at_once() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    let (changed, listed) = (a.join("dir"), b.join("dir"));
    fs::create_dir(&changed).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    names(&listed);
                }
            });
        }
        let mut there = BTreeSet::new();
        for round in 0..120 {
            let name = format!("name-{}", round * 7 % 40);
            match there.remove(&name) {
                true => fs::remove_file(changed.join(&name)).unwrap(),
                false => {
                    fs::write(changed.join(&name), "").unwrap();
                    there.insert(name);
                }
            }
            File::open(&changed).unwrap().set_modified(long_ago).unwrap();
            let seen = names(&listed);
            if seen != there {
                is_over.store(true, Ordering::Relaxed);
                assert_eq!(seen, there, "in round {round}");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    shared.finish(&["a", "b"]);
}

#[test]
fn a_directory_of_many_that_is_changed_half_way_shows_once_what_stays() {
    const MANY: usize = 400;
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    let (changed, listed) = (a.join("dir"), b.join("dir"));
    fs::create_dir(&changed).unwrap();
    for index in 0..MANY {
        File::create(changed.join(format!("stays-{index}"))).unwrap();
        if index % 10 == 0 {
            File::create(changed.join(format!("goes-{index}"))).unwrap();
        }
    }
    // Once so that the kernel has all of it, and once half of what it has.
    assert_eq!(names(&listed).len(), MANY + MANY / 10);
    let dir = File::open(&listed).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(&dir, &mut buffer);
    let mut seen = Vec::new();
    let mut collect = |count: usize| {
        for _ in 0..count {
            let Some(entry) = entries.next() else { break };
            seen.push(entry.unwrap().file_name().to_str().unwrap().to_owned());
        }
    };
    collect(MANY / 2);
    for index in (0..MANY).step_by(10) {
        fs::remove_file(changed.join(format!("goes-{index}"))).unwrap();
        File::create(changed.join(format!("comes-{index}"))).unwrap();
    }
    collect(3 * MANY);
    drop(dir);
    let mut stays: Vec<_> = seen.iter().filter(|name| name.starts_with("stays")).collect();
    stays.sort_unstable();
    let count = stays.len();
    stays.dedup();
    assert_eq!((count, stays.len()), (MANY, MANY));
    let rest = names(&listed);
    assert!(!rest.iter().any(|name| name.starts_with("goes")) && rest.len() == MANY + MANY / 10);
    shared.finish(&["a", "b"]);
}

#[test]
fn a_directory_that_was_moved_shows_its_new_parent() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    for name in ["one", "two", "one/dir"] {
        fs::create_dir(a.join(name)).unwrap();
    }
    let parent = |dir: &Path| {
        let dir = File::open(dir).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&dir, &mut buffer);
        loop {
            let entry = entries.next().expect("every directory names its parent").unwrap();
            if entry.file_name() == c".." {
                return entry.ino();
            }
        }
    };
    let [one, two] = ["one", "two"].map(|name| fs::metadata(a.join(name)).unwrap().ino());
    assert_eq!((parent(&a.join("one/dir")), parent(&b.join("one/dir"))), (one, one));
    fs::rename(a.join("one/dir"), a.join("two/dir")).unwrap();
    assert_eq!(parent(&b.join("two/dir")), two);
    shared.finish(&["a", "b"]);
}

/// Its kernel was not told whether the change was made, and must not go on without it.
#[test]
fn a_change_whose_maker_was_killed_meanwhile_is_seen_at_his_own_mount() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    let (seen, own) = (a.join("dir"), b.join("dir"));
    fs::create_dir(&seen).unwrap();
    fs::write(seen.join("file"), "").unwrap();
    for _ in 0..2 {
        assert_eq!((names(&own).len(), own.join("new").exists()), (1, false));
    }
    let stopped = shared.stop_server();
    let mut maker = Command::new("mkdir").arg(own.join("new")).spawn().unwrap();
    // If it is killed too early there is nothing to be seen, which is as well.
    thread::sleep(Duration::from_millis(300));
    maker.kill().unwrap();
    maker.wait().unwrap();
    drop(stopped);
    let begin = Instant::now();
    loop {
        let all = [&seen, &own].map(|dir| (names(dir), dir.join("new").exists()));
        if all[0] == all[1] && all[0].1 == all[0].0.contains("new") {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "{all:?}");
        thread::sleep(Duration::from_millis(20));
    }
    shared.finish(&["a", "b"]);
}
