//! The store of one machine: killed users, locks that do not open, damaged files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gabion_block::coordinator::{Coordinator, CoordinatorError, Revision};
use gabion_coordinator::Embedded;

use crate::folder::Folder;

const ROLE: &str = "GABION_COORDINATOR_ROLE";
const PLACE: &str = "GABION_COORDINATOR_PLACE";

/// Another process that does something with a store, killed with its owner.
struct Other(Child);

impl Other {
    fn start(role: &str, folder: &Path) -> (Self, impl Iterator<Item = String> + use<>) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "embedded::what_another_process_does", "--nocapture"])
            .env(ROLE, role)
            .env(PLACE, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // What the test's harness prints is not what we said, and may stand before it in a line.
        let said = lines.filter_map(|line| line.split_once("SAID ").map(|(_, said)| said.into()));
        (Self(child), said)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nothing in a run of its own: it is what [`Other`] runs.
#[test]
fn what_another_process_does() {
    let (Ok(role), Some(place)) = (std::env::var(ROLE), std::env::var_os(PLACE)) else { return };
    let coordinator = Embedded::open(Path::new(&place)).unwrap();
    match &*role {
        "claim" => {
            let claim = coordinator.claim("tank", "the other process").unwrap();
            println!("SAID claimed");
            loop {
                assert!(claim.is_held());
                std::thread::park();
            }
        }
        "count" => loop {
            let stored = coordinator.read("tank").unwrap();
            let (revision, count) = match stored {
                Some(stored) => (stored.revision, stored.text.parse::<u64>().unwrap()),
                None => (Revision::ABSENT, 0),
            };
            coordinator.replace("tank", revision, &(count + 1).to_string()).unwrap();
            println!("SAID {}", count + 1);
        },
        role => panic!("{role}"),
    }
}

#[test]
fn a_claim_ends_with_the_process_that_is_killed() {
    let folder = Folder::new();
    let coordinator = Embedded::open(folder.path()).unwrap();
    let (other, mut said) = Other::start("claim", folder.path());
    assert_eq!(said.next().as_deref(), Some("claimed"));
    let refused = coordinator.claim("tank", "me").err().unwrap();
    assert_eq!(refused.to_string(), "volume tank is in use by the other process");
    other.kill();
    assert_eq!(coordinator.holder("tank"), Ok(None));
    assert!(coordinator.claim("tank", "me").unwrap().is_held());
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let folder = Folder::new();
    let coordinator = Embedded::open(folder.path()).unwrap();
    let mut last = 0;
    for round in 1..=5 {
        let (other, mut said) = Other::start("count", folder.path());
        for _ in 0..(3 * round) {
            last = said.next().unwrap().parse().unwrap();
        }
        other.kill();
        if let Some(later) = said.last() {
            last = later.parse().unwrap();
        }
        let found: u64 = coordinator.read("tank").unwrap().unwrap().text.parse().unwrap();
        // The last one may have come to an end that could not be told any more.
        assert!((last..=last + 1).contains(&found), "{found} after {last}");
        last = found;
    }
}

#[test]
fn a_claim_without_its_file_is_not_held() {
    let folder = Folder::new();
    let coordinator = Embedded::open(folder.path()).unwrap();
    let claim = coordinator.claim("tank", "me").unwrap();
    fs::remove_file(folder.path().join("claims/tank.claim")).unwrap();
    assert!(!claim.is_held());
    assert!(coordinator.claim("tank", "you").unwrap().is_held());
}

#[test]
fn a_lock_that_does_not_open_is_waited_for_with_an_end() {
    let folder = Folder::new();
    let coordinator = Embedded::open(folder.path()).unwrap();
    let coordinator = coordinator.with_deadline(Duration::from_millis(20));
    coordinator.replace("tank", Revision::ABSENT, "a").unwrap();
    let lock = File::open(folder.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let Err(CoordinatorError::Unavailable { reason, .. }) = coordinator.read("tank") else {
        panic!("it is locked")
    };
    assert!(reason.contains("another process keeps") && reason.contains("/lock"), "{reason}");
    lock.unlock().unwrap();
    assert!(coordinator.read("tank").unwrap().is_some());
}

#[test]
fn a_store_that_is_none_is_named_with_the_next_step() {
    let folder = Folder::new();
    let coordinator = Embedded::open(folder.path()).unwrap();
    let path = folder.path().join("records.redb");
    for garbage in ["garbage".to_owned(), "x".repeat(100_000)] {
        fs::write(&path, garbage).unwrap();
        for error in [
            coordinator.volumes().unwrap_err(),
            coordinator.read("tank").unwrap_err(),
            coordinator.replace("tank", Revision::ABSENT, "a").unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(matches!(error, CoordinatorError::Strange { .. }), "{text}");
            assert!(text.contains(path.to_str().unwrap()) && text.contains("move it"), "{text}");
        }
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(coordinator.read("tank"), Ok(None));
}

#[test]
fn a_damaged_byte_is_an_error_or_harmless_and_never_another_record() {
    let folder = Folder::new();
    let coordinator = Embedded::open(folder.path()).unwrap();
    let text = "the record of a volume ".repeat(5);
    coordinator.replace("tank", Revision::ABSENT, &text).unwrap();
    let path = folder.path().join("records.redb");
    let good = fs::read(&path).unwrap();
    let is_used = |page: &&[u8]| page.iter().any(|byte| *byte != 0);
    assert!(good.chunks(4096).filter(is_used).count() >= 3);
    let mut found = 0;
    // Where something stands: all over the file, and all of where the record is.
    let used: Vec<_> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    let record = good.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap();
    let around = record - 40..record + 10;
    for at in used.iter().step_by(used.len() / 150).copied().chain(around) {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        fs::write(&path, &bad).unwrap();
        match coordinator.read("tank") {
            Ok(Some(stored)) => assert!(stored.text == text, "byte {at}"),
            Ok(None) => panic!("byte {at}: the record is gone"),
            Err(CoordinatorError::Strange { .. }) => found += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(found > 20, "{found} were found");
}

#[test]
fn a_text_says_which_coordinator_is_meant() {
    let folder = Folder::new();
    let path = folder.path().join("records");
    let opened = gabion_coordinator::open(path.to_str().unwrap()).unwrap();
    assert_eq!(opened.name(), path.to_str().unwrap());
    let opened = gabion_coordinator::open("etcd://one,two:7").unwrap();
    assert_eq!(opened.name(), "etcd://one,two:7");
    for wrong in ["", "etcd://", "etcd://a/b", "http://a"] {
        let error = gabion_coordinator::open(wrong).err().unwrap().to_string();
        assert!(error.contains("is no coordinator"), "{error}");
    }
    fs::write(path.with_extension("file"), "").unwrap();
    let file = path.with_extension("file");
    assert!(gabion_coordinator::open(file.to_str().unwrap()).is_err());
}
