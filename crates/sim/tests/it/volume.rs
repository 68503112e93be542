//! Volumes keep their promises in a world where everything fails, and broken ones are caught.

use std::env;

use gabion_sim::volume::{Sabotage, run, run_until_cut};

use crate::seeds::seeds;

#[test]
fn volumes_keep_their_promises() {
    let mut events = 0;
    for seed in seeds(150) {
        let summary = run(seed, Sabotage::Nothing).unwrap_or_else(|failure| panic!("{failure}"));
        events += summary.events;
        if seed % 50 == 0 {
            assert_eq!(run(seed, Sabotage::Nothing), Ok(summary), "one seed, two outcomes");
        }
    }
    if env::var("GABION_SEEDS").is_ok() {
        eprintln!("{events} events");
    }
}

/// At each moment of some trials, be it while the volume is opened, while somebody writes, or
/// while nobody does.
#[test]
fn what_was_flushed_is_kept_wherever_the_power_goes() {
    let mut points = 0;
    for seed in seeds(1) {
        let cut_after = |events| {
            run_until_cut(seed, events, Sabotage::Nothing)
                .unwrap_or_else(|failure| panic!("cut after {events}: {failure}"))
        };
        points += (1..).take_while(|events| cut_after(*events).is_some()).count();
    }
    assert!(points > 60, "{points} points only");
}

#[test]
fn flushes_that_are_ignored_are_seen_when_the_power_goes() {
    let is_seen = |events| run_until_cut(1, events, Sabotage::IgnoredFlushes).is_err();
    assert!((1..400).any(is_seen));
}

/// Something is broken on purpose; one of the seeds must end with one of these complaints.
fn is_caught(sabotage: Sabotage, complaints: &[&str]) {
    let mut found = Vec::new();
    for seed in 1..=200 {
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
fn members_that_ignore_flushes_are_caught() {
    is_caught(Sabotage::IgnoredFlushes, &["older than", "which cannot be"]);
}

#[test]
fn clients_that_do_not_repeat_what_may_be_lost_are_caught() {
    is_caught(Sabotage::NoReplay, &["older than", "which cannot be"]);
}

#[test]
fn a_copy_that_does_not_write_is_caught() {
    is_caught(Sabotage::LostWrites, &["older than"]);
    is_caught(Sabotage::LostWrites, &["at block"]);
}

#[test]
fn copies_that_may_differ_and_are_trusted_are_caught() {
    is_caught(Sabotage::AllKept, &["and copy 0"]);
}

#[test]
fn an_opener_that_goes_on_after_the_next_one_is_caught() {
    is_caught(Sabotage::IgnoredFences, &["goes on after"]);
}

#[test]
fn a_record_that_was_not_changed_is_caught() {
    is_caught(Sabotage::ForgottenRecord, &["which cannot be", "older than", "and copy 0"]);
}

#[test]
fn another_disk_that_is_taken_for_the_old_one_is_caught() {
    is_caught(Sabotage::TrustedForeign, &["which cannot be", "older than", "and copy 0"]);
}

#[test]
fn an_opening_that_leaves_what_it_finds_volatile_is_caught() {
    is_caught(Sabotage::UnflushedOpening, &["which cannot be"]);
}

#[test]
fn a_repair_that_does_not_look_is_caught() {
    is_caught(Sabotage::BlindRepairs, &["older than", "which cannot be", "and copy 0"]);
}

#[test]
fn zeros_in_place_of_what_cannot_be_read_are_caught() {
    is_caught(Sabotage::ZerosForUnreadable, &["older than", "which cannot be", "and copy 0"]);
}

#[test]
fn a_copy_that_leaves_before_the_one_that_replaces_it_is_filled_is_caught() {
    is_caught(Sabotage::EarlyReplacement, &["left before"]);
}

#[test]
fn zeros_that_are_not_written_are_caught() {
    is_caught(Sabotage::ForgottenZeros, &["older than", "which cannot be"]);
}

#[test]
fn discards_of_more_than_was_asked_for_are_caught() {
    is_caught(Sabotage::WideDiscards, &["older than", "which cannot be", "and copy 0"]);
}

#[test]
fn requests_without_an_answer_are_caught() {
    is_caught(Sabotage::LostAnswers, &["has no answer since"]);
}

#[test]
fn copies_that_never_come_back_are_caught() {
    is_caught(Sabotage::NeverAttach, &["after all was healed"]);
}

#[test]
fn rubbish_behind_the_end_of_a_volume_that_grows_is_caught() {
    is_caught(Sabotage::RubbishBehindTheEnd, &["what nobody wrote there"]);
}

#[test]
fn a_length_that_was_not_recorded_is_caught() {
    is_caught(Sabotage::ForgottenLength, &["became shorter"]);
}

#[test]
fn volumes_that_never_grow_are_caught() {
    is_caught(Sabotage::NeverGrown, &["after all was healed"]);
}

#[test]
fn members_that_tear_what_was_flushed_are_caught() {
    is_caught(Sabotage::TornFlushed, &["is torn between", "what nobody wrote there"]);
}

#[test]
fn rot_that_is_believed_is_caught() {
    is_caught(Sabotage::BelievedRot, &["what nobody wrote there"]);
}

#[test]
fn copies_that_are_not_put_right_are_caught() {
    is_caught(Sabotage::Unrepaired, &["and copy 0"]);
}
