//! Locks of programs at different mounts exclude each other as those of programs at one do.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use super::cluster::{Cluster, Place};
use crate::program::{Running, script};
use crate::site::is_long;

/// Mounts of each test.
const MACHINES: usize = 4;

fn counts_are_exact(kind: &str, place: Place) {
    let count = if is_long() { 3_000 } else { 40 };
    let cluster = Cluster::new(&format!("count-{kind}"), place, MACHINES);
    fs::write(cluster.path(0, "counter"), format!("{:019}\n", 0)).unwrap();
    // Two at each mount: they exclude each other, too.
    let counters: Vec<_> = (0..2 * MACHINES)
        .map(|number| {
            let mut command = script("counter.py");
            command.arg(cluster.path(number % MACHINES, "counter"));
            Running::start(command.args([kind, &count.to_string()]))
        })
        .collect();
    assert!(counters.into_iter().all(Running::wait), "a counter failed");
    for machine in 0..MACHINES {
        let found = fs::read_to_string(cluster.path(machine, "counter")).unwrap();
        assert_eq!(found.trim_end().parse(), Ok(2 * MACHINES * count), "mount {machine}");
    }
    cluster.finish();
}

#[test]
fn counters_under_flock_are_exact_on_four_mounts() {
    counts_are_exact("flock", Place::Loopback);
}

#[test]
fn counters_under_fcntl_are_exact_on_four_mounts() {
    counts_are_exact("fcntl", Place::Network);
}

#[test]
fn counters_under_locks_of_descriptions_are_exact_on_four_mounts() {
    counts_are_exact("ofd", Place::Loopback);
}

/// Starts a program and waits until it says that it holds its first lock.
fn holding(cluster: &Cluster, machine: usize, rounds: u64) -> Child {
    let mut command = script("ping_pong.py");
    command.arg(cluster.path(machine, "slots"));
    command.args([MACHINES as u64 + 1, machine as u64, rounds].map(|number| number.to_string()));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "holds\n");
    child
}

#[test]
fn locks_that_are_handed_on_among_four_mounts_keep_every_count() {
    let rounds = if is_long() { 5_000 } else { 60 };
    let cluster = Cluster::new("ping-pong", Place::Network, MACHINES);
    fs::write(cluster.path(0, "slots"), [0; 8 * (MACHINES + 1)]).unwrap();
    let mut players: Vec<_> =
        (0..MACHINES).map(|machine| holding(&cluster, machine, rounds)).collect();
    for player in &mut players {
        writeln!(player.stdin.take().unwrap()).unwrap();
    }
    let ended: Vec<_> = players.into_iter().map(|mut player| player.wait().unwrap()).collect();
    assert!(ended.iter().all(|status| status.success()), "{ended:?}");
    for machine in 0..MACHINES {
        let bytes = fs::read(cluster.path(machine, "slots")).unwrap();
        let counts = bytes.chunks(8).map(|count| u64::from_le_bytes(count.try_into().unwrap()));
        assert_eq!(counts.sum::<u64>(), MACHINES as u64 * rounds, "mount {machine}");
    }
    cluster.finish();
}

#[test]
fn a_lock_is_refused_at_every_other_mount_until_its_holder_dies() {
    let cluster = Cluster::new("refused", Place::Loopback, MACHINES);
    for kind in ["flock", "lockf"] {
        let path = |machine: usize| cluster.path(machine, kind);
        fs::write(path(0), "locked").unwrap();
        let locker = |machine: usize, mode: &str| {
            let mut command = script("locker.py");
            Running::start(command.arg(path(machine)).args([kind, mode]))
        };
        for holder in 0..MACHINES {
            let mut held = locker(holder, "hold");
            assert_eq!(held.line().as_deref(), Some("held"), "{kind}, mount {holder}");
            for other in (0..MACHINES).filter(|other| *other != holder) {
                assert_eq!(locker(other, "try").line().as_deref(), Some("refused"), "{kind}");
            }
            // Who waits gets it when the holder is gone.
            let mut waiter = locker((holder + 1) % MACHINES, "wait");
            assert_eq!(waiter.line().as_deref(), Some("waits"));
            held.kill();
            assert_eq!(waiter.line().as_deref(), Some("held"), "{kind}, after mount {holder}");
            waiter.kill();
            waiter.wait();
        }
    }
    cluster.finish();
}
