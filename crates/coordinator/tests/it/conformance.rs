//! What every coordinator promises. Each rule is held against all three of them.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use gabion_block::coordinator::{Coordinator, CoordinatorError, RECORD_BYTES_MAX, Revision};
use gabion_coordinator::{Embedded, MemCoordinator};

use crate::etcd_server::EtcdServer;
use crate::folder::Folder;

type Handle = Box<dyn Coordinator>;
type Rule = fn(&Handle, &Handle);

const SHORT: Duration = Duration::from_millis(30);
const LONG: Duration = Duration::from_secs(20);

/// Holds all rules against two handles to one coordinator.
fn conform(one: &Handle, other: &Handle) {
    let rules: [(&str, Rule); 11] = [
        ("a record is made, replaced and removed by its revision", revisions),
        ("a revision does not come back with a record made anew", no_revision_twice),
        ("volumes are listed sorted", volumes),
        ("notes are replaced by their revision, and are no records", notes),
        ("records have a longest length, and any text within it", texts),
        ("names that are no names are refused", names),
        ("of many who replace at once one succeeds each time", race),
        ("a change wakes who waits for it", changes),
        ("a claim is held by one at a time", claims),
        ("of many who claim at once one succeeds", claim_race),
        ("the end of a claim wakes who waits for it", releases),
    ];
    for (rule, check) in rules {
        eprintln!("{}: {rule}", one.name());
        check(one, other);
    }
}

#[test]
fn memory_conforms() {
    let one = MemCoordinator::new();
    let other = one.peer();
    conform(&(Box::new(one) as Handle), &(Box::new(other) as Handle));
}

#[test]
fn embedded_conforms() {
    let folder = Folder::new();
    let open = || Box::new(Embedded::open(&folder.path().join("a/b")).unwrap()) as Handle;
    conform(&open(), &open());
}

#[test]
fn etcd_conforms() {
    let server = EtcdServer::start();
    let open = || Box::new(server.coordinator()) as Handle;
    conform(&open(), &open());
}

#[track_caller]
fn is_conflict<T: std::fmt::Debug>(done: Result<T, CoordinatorError>) {
    assert!(matches!(done, Err(CoordinatorError::Conflict { .. })), "{done:?}");
}

fn revisions(one: &Handle, other: &Handle) {
    assert_eq!(one.read("tank"), Ok(None));
    is_conflict(one.replace("tank", Revision(4711), "a"));
    is_conflict(one.remove("tank", Revision(4711)));
    is_conflict(one.remove("tank", Revision::ABSENT));
    let first = one.replace("tank", Revision::ABSENT, "a").unwrap();
    let stored = other.read("tank").unwrap().unwrap();
    assert_eq!((stored.revision, &*stored.text), (first, "a"));
    is_conflict(other.replace("tank", Revision::ABSENT, "b"));
    let second = other.replace("tank", first, "b").unwrap();
    assert_ne!(first, second);
    is_conflict(one.replace("tank", first, "c"));
    is_conflict(one.remove("tank", first));
    // The same text is a change, too.
    let third = one.replace("tank", second, "b").unwrap();
    assert_ne!(second, third);
    assert_eq!(other.read("tank").unwrap().unwrap().revision, third);
    other.remove("tank", third).unwrap();
    assert_eq!(one.read("tank"), Ok(None));
    is_conflict(one.remove("tank", third));
}

fn no_revision_twice(one: &Handle, other: &Handle) {
    let first = one.replace("again", Revision::ABSENT, "a").unwrap();
    one.remove("again", first).unwrap();
    let second = other.replace("again", Revision::ABSENT, "a").unwrap();
    assert_ne!(first, second);
    is_conflict(one.replace("again", first, "b"));
    one.remove("again", second).unwrap();
}

fn volumes(one: &Handle, other: &Handle) {
    assert_eq!(one.volumes().unwrap(), Vec::<String>::new());
    for name in ["b", "a.1", "..", "Z-_"] {
        one.replace(name, Revision::ABSENT, "x").unwrap();
    }
    assert_eq!(other.volumes().unwrap(), ["..", "Z-_", "a.1", "b"]);
    for name in one.volumes().unwrap() {
        let stored = one.read(&name).unwrap().unwrap();
        one.remove(&name, stored.revision).unwrap();
    }
}

fn notes(one: &Handle, other: &Handle) {
    assert_eq!(one.note("tank"), Ok(None));
    is_conflict(one.replace_note("tank", Revision(4711), "a"));
    let first = one.replace_note("tank", Revision::ABSENT, "a").unwrap();
    is_conflict(other.replace_note("tank", Revision::ABSENT, "b"));
    let second = other.replace_note("tank", first, "b").unwrap();
    assert_ne!(first, second);
    is_conflict(one.replace_note("tank", first, "c"));
    let stored = one.note("tank").unwrap().unwrap();
    assert_eq!((stored.revision, &*stored.text), (second, "b"));
    assert_eq!(one.read("tank"), Ok(None));
    assert_eq!(one.volumes().unwrap(), Vec::<String>::new());
    let record = one.replace("tank", Revision::ABSENT, "record").unwrap();
    assert_eq!(other.note("tank").unwrap().unwrap().revision, second);
    one.remove("tank", record).unwrap();
    assert_eq!(other.note("tank").unwrap().unwrap().text, "b");
    let long = "x".repeat(RECORD_BYTES_MAX + 1);
    let done = one.replace_note("tank", second, &long);
    assert!(matches!(done, Err(CoordinatorError::Strange { .. })), "{done:?}");
}

fn texts(one: &Handle, other: &Handle) {
    let longest = "ä".repeat(RECORD_BYTES_MAX / 2);
    let mut revision = Revision::ABSENT;
    for text in ["", "\0\n\"\\", "日本", &longest] {
        revision = one.replace("texts", revision, text).unwrap();
        assert!(other.read("texts").unwrap().unwrap().text == text);
    }
    let done = one.replace("texts", revision, &format!("{longest}x"));
    assert!(matches!(done, Err(CoordinatorError::Strange { .. })), "{done:?}");
    one.remove("texts", revision).unwrap();
}

fn names(one: &Handle, _other: &Handle) {
    for name in ["", "a/b", "a b", "ä", "a\n", &"x".repeat(200)] {
        let strange = |error: CoordinatorError| matches!(error, CoordinatorError::Strange { .. });
        assert!(one.read(name).is_err_and(strange), "{name}");
        assert!(one.replace(name, Revision::ABSENT, "x").is_err_and(strange), "{name}");
        assert!(one.holder(name).is_err_and(strange), "{name}");
        assert!(one.note(name).is_err_and(strange), "{name}");
        assert!(one.replace_note(name, Revision::ABSENT, "x").is_err_and(strange), "{name}");
        assert!(one.released(name, SHORT).is_err_and(strange), "{name}");
        assert!(one.claim(name, "me").err().is_some_and(strange), "{name}");
    }
}

fn race(one: &Handle, other: &Handle) {
    const THREADS: usize = 4;
    const ROUNDS: usize = 10;
    let mut revision = one.replace("race", Revision::ABSENT, "0").unwrap();
    for round in 0..ROUNDS {
        let start = Barrier::new(THREADS);
        let results: Vec<_> = thread::scope(|scope| {
            let racers: Vec<_> = (0..THREADS)
                .map(|number| {
                    let handle = if number % 2 == 0 { one } else { other };
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        let text = format!("{round}.{number}");
                        (text.clone(), handle.replace("race", revision, &text))
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(|(_, done)| done.is_ok());
        assert_eq!((won.len(), lost.len()), (1, THREADS - 1), "{won:?} {lost:?}");
        lost.into_iter().for_each(|(_, done)| is_conflict(done));
        let stored = other.read("race").unwrap().unwrap();
        assert_eq!((&stored.text, Ok(stored.revision)), (&won[0].0, won[0].1.clone()));
        revision = stored.revision;
    }
    one.remove("race", revision).unwrap();
}

fn changes(one: &Handle, other: &Handle) {
    let known = one.replace("changes", Revision::ABSENT, "a").unwrap();
    assert_eq!(one.changed("changes", known, SHORT), Ok(None));
    assert_eq!(one.changed("changes", known, Duration::ZERO), Ok(None));
    let now = other.changed("changes", Revision(4711), LONG).unwrap().unwrap();
    assert_eq!(now.revision, known);
    let revision = thread::scope(|scope| {
        let waiting = scope.spawn(|| one.changed("changes", known, LONG).unwrap().unwrap());
        // Others are no reason to wake up.
        let aside = other.replace("aside", Revision::ABSENT, "x").unwrap();
        other.remove("aside", aside).unwrap();
        let revision = other.replace("changes", known, "b").unwrap();
        let seen = waiting.join().unwrap();
        assert_eq!((seen.revision, &*seen.text), (revision, "b"));
        revision
    });
    other.remove("changes", revision).unwrap();
    assert_eq!(one.changed("changes", revision, SHORT), Ok(None));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| one.changed("changes", Revision::ABSENT, LONG).unwrap());
        let made = other.replace("changes", Revision::ABSENT, "c").unwrap();
        assert_eq!(waiting.join().unwrap().unwrap().revision, made);
        other.remove("changes", made).unwrap();
    });
}

fn claims(one: &Handle, other: &Handle) {
    assert_eq!(one.holder("tank"), Ok(None));
    let claim = one.claim("tank", "node a, process 7").unwrap();
    assert!(claim.is_held());
    for handle in [one, other] {
        assert_eq!(handle.holder("tank").unwrap().as_deref(), Some("node a, process 7"));
        let holder = "node a, process 7".to_owned();
        let wanted = CoordinatorError::Claimed { volume: "tank".to_owned(), holder };
        assert_eq!(handle.claim("tank", "me").err(), Some(wanted));
    }
    // Claims are no records, and of one volume only.
    assert_eq!(one.read("tank"), Ok(None));
    assert_eq!(one.volumes().unwrap(), Vec::<String>::new());
    let beside = other.claim("tank2", "b").unwrap();
    assert!(claim.is_held() && beside.is_held());
    drop(claim);
    assert_eq!(other.holder("tank"), Ok(None));
    let claim = other.claim("tank", "b").unwrap();
    assert!(claim.is_held());
    assert_eq!(one.holder("tank").unwrap().as_deref(), Some("b"));
}

fn claim_race(one: &Handle, other: &Handle) {
    const THREADS: usize = 4;
    let start = Barrier::new(THREADS);
    let claims: Vec<_> = thread::scope(|scope| {
        let racers: Vec<_> = (0..THREADS)
            .map(|number| {
                let handle = if number % 2 == 0 { one } else { other };
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    // Looking who holds it must not turn anybody away.
                    handle.holder("raced").unwrap();
                    handle.claim("raced", "me")
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1);
}

fn releases(one: &Handle, other: &Handle) {
    assert_eq!(one.released("left", LONG), Ok(None));
    let claim = one.claim("left", "node a").unwrap();
    assert_eq!(other.released("left", SHORT), Ok(Some("node a".to_owned())));
    assert_eq!(other.released("left", Duration::ZERO), Ok(Some("node a".to_owned())));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| other.released("left", LONG).unwrap());
        drop(claim);
        assert_eq!(waiting.join().unwrap(), None);
    });
    drop(other.claim("left", "node b").unwrap());
}
