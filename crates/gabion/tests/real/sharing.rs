//! Several processes on the same files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::GIB;
use crate::program::{Running, run, script};
use crate::site::{Site, is_long};

#[test]
fn locks_of_two_processes_conflict_by_kind_range_and_mode() {
    let site = Site::new("locks", GIB);
    run(script("lock_matrix.py").arg(site.path("file")));
}

#[test]
fn shared_mappings_are_one_memory_and_reach_the_disk() {
    let site = Site::new("mappings", GIB);
    let path = site.path("mapped");
    run(script("mappings.py").arg(&path));
    let wanted = fs::read(&path).unwrap();
    assert!(wanted.iter().any(|byte| *byte != 0));
    site.remount();
    assert!(fs::read(&path).unwrap() == wanted, "what was synced is gone");
    site.scrub();
}

#[test]
fn appending_processes_lose_no_line() {
    const PROCESSES: usize = 8;
    let lines = if is_long() { 20_000 } else { 1_000 };
    let site = Site::new("append", GIB);
    let path = site.path("log");
    let mut running: Vec<_> = (0..PROCESSES)
        .map(|number| {
            let mut command = script("appender.py");
            command.arg(&path).arg(number.to_string()).arg(lines.to_string());
            Running::start(&mut command)
        })
        .collect();
    running.iter_mut().for_each(|appender| assert!(appender.rest().is_empty()));
    assert!(running.into_iter().all(Running::wait), "an appender failed");
    let check = || {
        let text = fs::read_to_string(&path).unwrap();
        let mut next = [0; PROCESSES];
        for line in text.lines() {
            let words: Vec<usize> =
                line.split(' ').take(2).map(|word| word.parse().expect("whole lines")).collect();
            assert_eq!(next[words[0]], words[1], "a line of process {} is missing", words[0]);
            next[words[0]] += 1;
        }
        assert_eq!(next, [lines; PROCESSES]);
    };
    check();
    site.remount();
    check();
    site.scrub();
}

#[test]
fn readers_see_the_old_or_the_new_file_while_it_is_replaced() {
    const LINES: usize = 5_000;
    let site = Site::new("replace", GIB);
    let path = site.path("file");
    let version = |number: u32| format!("{number:08}\n").repeat(LINES);
    fs::write(&path, version(0)).unwrap();
    // A descriptor keeps the file that it was opened for.
    let kept = File::open(&path).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let text = fs::read_to_string(&path).unwrap();
                    assert_eq!(text.len(), 9 * LINES, "cut or empty");
                    let number: u32 = text[..8].parse().unwrap();
                    assert!(number >= last, "{number} came after {last}");
                    assert!(text == version(number), "version {number} is mixed");
                    last = number;
                }
            });
        }
        for number in 1..200 {
            let new = site.path("new");
            fs::write(&new, version(number)).unwrap();
            fs::rename(&new, &path).unwrap();
        }
        done.store(true, Ordering::Release);
    });
    let mut bytes = vec![0; 9 * LINES];
    kept.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == version(0).as_bytes(), "the replaced file changed under its reader");
    drop(kept);
    site.remount();
    assert!(fs::read_to_string(&path).unwrap() == version(199));
    site.scrub();
}

#[test]
fn listings_show_each_lasting_name_once_while_others_come_and_go() {
    let lasting = if is_long() { 20_000 } else { 5_000 };
    let site = Site::new("listing", GIB);
    let folder = site.path("folder");
    fs::create_dir(&folder).unwrap();
    for number in 0..lasting {
        File::create(folder.join(format!("lasting {number}"))).unwrap();
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..2 {
            let (folder, done) = (&folder, &done);
            scope.spawn(move || {
                let mut number = 0;
                while !done.load(Ordering::Acquire) {
                    let path = folder.join(format!("passing {thread} {}", number % 50));
                    if number % 100 < 50 {
                        File::create(path).unwrap();
                    } else {
                        fs::remove_file(path).unwrap();
                    }
                    number += 1;
                }
            });
        }
        for _ in 0..10 {
            let entries = fs::read_dir(&folder).unwrap();
            let names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            let once: BTreeSet<_> = names.iter().collect();
            let found = once.iter().filter(|name| name.starts_with("lasting ")).count();
            if found != lasting || once.len() != names.len() {
                done.store(true, Ordering::Release);
                panic!("{found} of {lasting} names, {} twice", names.len() - once.len());
            }
        }
        done.store(true, Ordering::Release);
    });
    fs::remove_dir_all(&folder).unwrap();
    site.scrub();
}
