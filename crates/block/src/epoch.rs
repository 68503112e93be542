//! Openings of a volume for writing, and the two ways in which histories of them can differ.
//!
//! Whoever opens a volume takes the next epoch in its record and adds an [`Opening`] with a random
//! nonce to the history that record and members keep. Two histories in which one epoch has two
//! nonces come from two openers that did not know of each other: the members have been used apart.

use std::fmt;

/// Openings that are remembered.
pub const OPENINGS_MAX: usize = 32;
/// The longest name of a holder, in bytes.
pub const HOLDER_BYTES_MAX: usize = 64;

/// Counts the openings of a volume, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

/// Times that members are attached within one epoch, at most.
const ATTACHMENTS_MAX: u64 = 1 << 20;

impl Epoch {
    /// What a target is told: the epoch, and below it how often this opener has attached the
    /// member, so that its own earlier connections are fenced, too.
    pub fn fence(self, attachment: u64) -> u64 {
        assert!(attachment < ATTACHMENTS_MAX, "attached {attachment} times");
        self.0 * ATTACHMENTS_MAX + attachment
    }

    /// The epoch of what a target was told.
    pub fn of_fence(fence: u64) -> Self {
        Self(fence / ATTACHMENTS_MAX)
    }
}

/// That somebody opened the volume for writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The epoch that was taken.
    pub epoch: Epoch,
    /// A random number of the opener.
    pub nonce: u64,
    /// When, in seconds since 1970.
    pub seconds: i64,
    /// Who, for people.
    pub holder: String,
}

/// `text`, cut to what fits as a holder's name.
pub fn holder(text: &str) -> String {
    let mut end = text.len().min(HOLDER_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Adds an opening to a history, which forgets its oldest if it is full.
pub fn remember(history: &mut Vec<Opening>, opening: Opening) {
    if history.len() >= OPENINGS_MAX {
        history.drain(..=history.len() - OPENINGS_MAX);
    }
    history.push(opening);
}

/// What a member's history says beside the record's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It took part in every opening that was completed.
    Current,
    /// It is an older state of the member, as from a backup, or missed some openings.
    Behind,
    /// It was opened by somebody of whom the record does not know.
    Apart,
}

/// Compares a member's history with the record's, of which all openings up to `completed` were
/// completed.
pub fn standing(record: &[Opening], completed: Epoch, member: &[Opening]) -> Standing {
    let newest_known = record.last().map_or(Epoch(0), |opening| opening.epoch);
    let known = |epoch| record.iter().find(|opening| opening.epoch == epoch);
    let is_strange = |opening: &Opening| match known(opening.epoch) {
        Some(known) => known.nonce != opening.nonce,
        None => opening.epoch > newest_known,
    };
    if member.iter().any(is_strange) {
        return Standing::Apart;
    }
    let latest = member.last().map_or(Epoch(0), |opening| opening.epoch);
    if latest >= completed { Standing::Current } else { Standing::Behind }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(epoch: u64, nonce: u64) -> Opening {
        Opening { epoch: Epoch(epoch), nonce, seconds: 0, holder: String::new() }
    }

    #[test]
    fn histories_tell_who_is_behind_and_who_went_on_apart() {
        let record = [opening(1, 11), opening(2, 22), opening(3, 33)];
        let is = |completed, member: &[Opening]| standing(&record, Epoch(completed), member);
        assert_eq!(is(3, &record), Standing::Current);
        assert_eq!(is(2, &record[..2]), Standing::Current, "the third was not completed");
        assert_eq!(is(3, &record[..2]), Standing::Behind);
        assert_eq!(is(3, &[]), Standing::Behind);
        assert_eq!(is(3, &[opening(2, 22), opening(3, 99)]), Standing::Apart);
        assert_eq!(is(3, &[opening(3, 33), opening(4, 44)]), Standing::Apart);
    }

    #[test]
    fn a_history_is_bounded() {
        let mut history = Vec::new();
        for epoch in 0..100 {
            remember(&mut history, opening(epoch, 0));
        }
        assert_eq!(history.len(), OPENINGS_MAX);
        assert_eq!(history.last(), Some(&opening(99, 0)));
    }

    #[test]
    fn a_holder_is_cut_between_characters() {
        assert_eq!(holder(&"ä".repeat(40)), "ä".repeat(32));
        assert_eq!(holder(&format!("a{}", "ä".repeat(40))).len(), 63);
    }
}
