//! Machines that share a filesystem see one filesystem, whatever fails, and broken ones are caught.

use std::env;

use gabion_sim::cluster::{Sabotage, run};

use crate::processor;
use crate::seeds::seeds;

#[test]
fn machines_that_share_a_filesystem_see_one_filesystem() {
    processor::stay_on_one();
    let (mut answered, mut unknown, mut undecided) = (0, 0, 0);
    let seeds = seeds(90);
    let count = seeds.clone().count() as u64;
    for seed in seeds {
        let summary = run(seed, Sabotage::Nothing).unwrap_or_else(|failure| panic!("{failure}"));
        answered += summary.answered;
        unknown += summary.unknown;
        undecided += summary.undecided;
        if seed % 50 == 0 {
            assert_eq!(run(seed, Sabotage::Nothing), Ok(summary), "one seed, two outcomes");
        }
    }
    if env::var("GABION_SEEDS").is_ok() {
        eprintln!("{answered} calls answered, {unknown} not known, {undecided} objects undecided");
    }
    assert!(undecided <= 1 + count / 50, "{undecided} objects are not judged");
}

/// Seeds that are tried for one that catches what is broken.
const TRIALS: u64 = 200;

/// Something is broken on purpose; one of the seeds must end with one of these complaints. The
/// first is one that is known to; if it does not any more, others follow.
fn is_caught(sabotage: Sabotage, first: u64, complaints: &[&str]) {
    let all = match env::var("GABION_SEED").map(|seed| seed.parse().expect("a number")) {
        Ok(seed) => seed..=seed,
        Err(_) => first..=first + TRIALS,
    };
    processor::stay_on_one();
    let mut found = Vec::new();
    for seed in all {
        if let Err(failure) = run(seed, sabotage) {
            if complaints.iter().any(|complaint| failure.violation.contains(complaint)) {
                eprintln!("{sabotage:?} is caught by seed {seed}");
                return;
            }
            found.push(failure.violation);
        }
    }
    panic!("{sabotage:?} is not caught by {complaints:?}, but: {found:#?}");
}

const WRONG: &str = "no sequence explains";

#[test]
fn a_kernel_that_keeps_names_is_caught() {
    is_caught(Sabotage::KernelKeepsNames, 2, &[WRONG]);
}

#[test]
fn a_kernel_that_keeps_attributes_is_caught() {
    is_caught(Sabotage::KernelKeepsAttributes, 2, &[WRONG]);
}

#[test]
fn a_kernel_that_keeps_pages_is_caught() {
    is_caught(Sabotage::KernelKeepsPages, 1, &[WRONG]);
}

#[test]
fn a_kernel_that_keeps_listings_is_caught() {
    is_caught(Sabotage::KernelKeepsListings, 2, &[WRONG]);
}

#[test]
fn a_kernel_that_keeps_attributes_by_name_is_caught() {
    is_caught(Sabotage::KernelKeepsXattrs, 120, &[WRONG]);
}

#[test]
fn a_server_that_does_not_hear_of_locks_is_caught() {
    is_caught(Sabotage::LostLocks, 6, &["two have locks that conflict"]);
}

#[test]
fn a_server_that_does_not_hear_of_unlocking_is_caught() {
    is_caught(Sabotage::LostUnlocks, 16, &["nobody's lock explains", "after all was healed"]);
}

#[test]
fn a_server_that_asks_nobody_is_caught() {
    is_caught(Sabotage::GrantsAnyway, 1, &[WRONG]);
}

#[test]
fn a_client_that_says_it_has_forgotten_before_it_has_is_caught() {
    is_caught(Sabotage::ReleasedAtOnce, 10, &[WRONG]);
}

#[test]
fn a_client_that_ignores_the_end_of_its_session_is_caught() {
    is_caught(Sabotage::EndlessSessions, 117, &[WRONG]);
}

#[test]
fn a_server_that_changes_things_at_once_after_a_start_is_caught() {
    is_caught(Sabotage::NoGrace, 44, &[WRONG]);
}

#[test]
fn a_disk_that_does_not_flush_is_caught() {
    is_caught(Sabotage::IgnoredFlushes, 10, &[WRONG]);
}

#[test]
fn a_server_that_does_not_know_what_is_open_is_caught() {
    is_caught(Sabotage::ForgottenOpens, 4, &["Stale"]);
}

#[test]
fn calls_without_an_answer_are_caught() {
    is_caught(Sabotage::LostCalls, 3, &["after all was healed"]);
}

#[test]
fn changes_that_never_reach_the_server_are_caught() {
    is_caught(Sabotage::LostChanges, 40, &[WRONG]);
}

#[test]
fn changes_that_die_with_the_server_are_caught() {
    is_caught(Sabotage::NothingSaidAgain, 8, &[WRONG]);
}

#[test]
fn changes_that_are_made_again_in_another_order_are_caught() {
    is_caught(Sabotage::NoOrder, 141, &[WRONG, "could not be made"]);
}

#[test]
fn a_server_that_promises_more_room_than_there_is_is_caught() {
    is_caught(Sabotage::EndlessCredit, 23, &["a change could not be made"]);
}

#[test]
fn a_kernel_that_says_that_there_is_no_room_is_caught() {
    is_caught(Sabotage::ImaginaryFullness, 203, &["there was room for it"]);
}

#[test]
fn snapshots_for_which_nobody_stands_still_are_caught() {
    is_caught(Sabotage::SnapshotsAnyway, 1005, &[WRONG, "is of no moment"]);
}

#[test]
fn rollbacks_that_are_not_made_are_caught() {
    is_caught(Sabotage::RollbacksOfNothing, 9, &[WRONG]);
}
