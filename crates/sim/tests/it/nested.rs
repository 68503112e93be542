//! Volumes of mirrors within other things keep their promises, and broken ones are caught.

use std::env;

use gabion_sim::volume::Sabotage;
use gabion_sim::volume::nested::run;

use crate::processor;
use crate::seeds::seeds;

#[test]
fn nested_volumes_keep_their_promises() {
    processor::stay_on_one();
    for seed in seeds(4) {
        let summary = run(seed, Sabotage::Nothing).unwrap_or_else(|failure| panic!("{failure}"));
        if env::var("GABION_SEEDS").is_ok() {
            eprintln!("seed {seed}: {summary:?}");
        }
        if seed % 8 == 3 {
            assert_eq!(run(seed, Sabotage::Nothing), Ok(summary), "one seed, two outcomes");
        }
    }
}

/// Something is broken on purpose; a trial must end with one of these complaints. Seed `first` is
/// known to show it; the others are tried when that has become another trial.
fn is_caught(sabotage: Sabotage, first: u64, complaints: &[&str]) {
    let all = match env::var("GABION_SEED").map(|seed| seed.parse().expect("a number")) {
        Ok(seed) => seed..=seed,
        Err(_) => first..=first + 40,
    };
    processor::stay_on_one();
    let mut found = Vec::new();
    for seed in all {
        if let Err(failure) = run(seed, sabotage) {
            if complaints.iter().any(|complaint| failure.violation.contains(complaint)) {
                return;
            }
            found.push(failure.violation);
        }
    }
    panic!("{sabotage:?} is not caught by {complaints:?}, but: {found:#?}");
}

#[test]
fn members_that_ignore_flushes_below_others_are_caught() {
    is_caught(Sabotage::IgnoredFlushes, 3, &["older than", "which cannot be", "differ"]);
}

#[test]
fn a_member_that_does_not_write_below_others_is_caught() {
    is_caught(Sabotage::LostWrites, 3, &["older than", "differ"]);
}

#[test]
fn openers_that_go_on_after_the_next_one_are_caught() {
    is_caught(Sabotage::IgnoredFences, 12, &["goes on after", "older than", "differ"]);
}

#[test]
fn lines_that_do_not_repeat_what_may_be_lost_are_caught() {
    is_caught(Sabotage::NoReplay, 3, &["older than", "which cannot be", "differ"]);
}

#[test]
fn what_was_flushed_and_is_torn_below_others_is_caught() {
    is_caught(Sabotage::TornFlushed, 3, &["is torn between", "what nobody wrote there"]);
}

#[test]
fn members_that_do_not_come_back_are_caught() {
    is_caught(Sabotage::NeverAttach, 1, &["after all was healed"]);
}

#[test]
fn disks_that_are_taken_for_those_whose_place_they_have_are_caught() {
    is_caught(
        Sabotage::TrustedForeign,
        10,
        &["another volume", "older than", "nobody wrote", "differ"],
    );
}

#[test]
fn rot_below_others_that_is_believed_is_caught() {
    is_caught(Sabotage::BelievedRot, 13, &["what nobody wrote there"]);
}

#[test]
fn rot_below_others_that_is_not_put_right_is_caught() {
    is_caught(Sabotage::Unrepaired, 1, &["copies that are in sync differ"]);
}
