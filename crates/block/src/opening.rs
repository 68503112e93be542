//! What to make of the members that are there when a volume is opened for writing.
//!
//! The opener goes through these steps; the decisions in them are made here.
//!
//! 1. It replaces the record by one with a new opening, so that it has the next epoch.
//! 2. It connects to all members with that epoch, which fences whoever had the volume before, and
//!    reads their headers.
//! 3. [`plan`]: a copy in sync that is not there, or is not what it was, becomes stale. Every
//!    mirror must have one left. Members that were used by somebody whom the record does not know
//!    are refused, and so is the whole volume: somebody must decide which history goes on.
//! 4. It reads the bitmaps of the copies in sync. If a write may have been under way, they may
//!    differ there: [`keep_one`], and the others are brought up to date from it.
//! 5. It writes the new opening into the headers of the members in sync, and then the plan into the
//!    record ([`complete`]). From then on the volume may be used.
//!
//! Whoever dies in between has changed nothing but the epoch.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use gabion_base::ids::Uuid;
use thiserror::Error;

use crate::epoch::{Epoch, Opening, Standing, standing};
use crate::format::header::Header;
use crate::record::{CopyState, Layout, Member, MirrorCopy, Record};

/// What is at the place of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A disk with a header.
    Header(Header),
    /// A disk without one.
    Blank,
    /// Nothing that answers.
    Unreachable(String),
}

/// What was found at the place of each member.
pub type Findings = BTreeMap<Uuid, Found>;

/// Why a volume cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpeningError {
    /// Two have had it open without knowing of each other.
    #[error(
        "{url} was used apart from the rest of the volume.\nThe volume's history:\n{record}The \
         history of {url}:\n{member}"
    )]
    Apart {
        /// The member.
        url: String,
        /// The openings that the record knows, a line each.
        record: String,
        /// The openings that the member knows.
        member: String,
    },
    /// No copy is there that has everything.
    #[error("no copy that is in sync can be used:\n{0}")]
    NoCopy(String),
    /// A member without copies is not there.
    #[error("{url} cannot be used, and there is no copy of it: {reason}")]
    NoMember {
        /// The member.
        url: String,
        /// Why.
        reason: String,
    },
}

/// How a part of the volume is.
enum Verdict {
    Fits,
    /// It is not there.
    Away(String),
    /// It is there, and nothing on it can be used.
    Useless(String),
}

/// The layout as it is to be from now on, with stale copies where something is missing.
pub fn plan(record: &Record, found: &Findings) -> Result<Layout, OpeningError> {
    let mut layout = record.layout.clone();
    let judge = Judge { record, found };
    match judge.look(&mut layout, record.completed)? {
        Verdict::Fits => Ok(layout),
        Verdict::Away(reason) | Verdict::Useless(reason) => match &record.layout {
            Layout::Mirror { .. } => Err(OpeningError::NoCopy(reason)),
            other => {
                let url = other.members().first().map_or(String::new(), |one| one.url.clone());
                Err(OpeningError::NoMember { url, reason })
            }
        },
    }
}

/// What one copy is on, as it is to be from now on, if all that it lacks is known: that is what a
/// stale one must be before it is brought up to date. Nothing if it may lack anything.
pub fn plan_copy(
    record: &Record,
    copy: &MirrorCopy,
    found: &Findings,
) -> Result<Option<Layout>, OpeningError> {
    let mut on = copy.on.clone();
    let verdict = Judge { record, found }.look(&mut on, copy.since)?;
    Ok(matches!(verdict, Verdict::Fits).then_some(on))
}

struct Judge<'a> {
    record: &'a Record,
    found: &'a Findings,
}

impl Judge<'_> {
    fn look(&self, layout: &mut Layout, since: Epoch) -> Result<Verdict, OpeningError> {
        match layout {
            Layout::Member(member) => self.look_at_member(member, since),
            Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
                let mut verdict = Verdict::Fits;
                for part in parts {
                    verdict = match (verdict, self.look(part, since)?) {
                        (Verdict::Useless(reason), _) | (_, Verdict::Useless(reason)) => {
                            Verdict::Useless(reason)
                        }
                        (Verdict::Away(reason), _) | (_, Verdict::Away(reason)) => {
                            Verdict::Away(reason)
                        }
                        (Verdict::Fits, Verdict::Fits) => Verdict::Fits,
                    };
                }
                Ok(verdict)
            }
            Layout::Mirror { copies, .. } => self.look_at_copies(copies),
        }
    }

    fn look_at_copies(&self, copies: &mut [MirrorCopy]) -> Result<Verdict, OpeningError> {
        let mut reasons = String::new();
        for (number, copy) in copies.iter_mut().enumerate() {
            let urls: Vec<_> = copy.on.members().iter().map(|one| one.url.clone()).collect();
            // Writing to a string cannot fail.
            let _ = write!(reasons, "  copy {number} ({}): ", urls.join(", "));
            let _ = match copy.state {
                CopyState::Removed => writeln!(reasons, "taken out"),
                CopyState::Suspended { .. } => writeln!(reasons, "suspended"),
                CopyState::InSync | CopyState::Stale { .. } => {
                    let mut on = copy.on.clone();
                    let was_in_sync = copy.state.is_in_sync();
                    let (state, reason) = match self.look(&mut on, copy.since)? {
                        Verdict::Fits => (copy.state, "stale".to_owned()),
                        Verdict::Away(reason) if was_in_sync => {
                            (CopyState::Stale { full: false }, reason)
                        }
                        Verdict::Away(reason) => (copy.state, format!("stale; {reason}")),
                        Verdict::Useless(reason) => (CopyState::Stale { full: true }, reason),
                    };
                    copy.state = state;
                    // What is not used now stays as it was when it was used last.
                    if state.is_in_sync() {
                        copy.on = on;
                    }
                    writeln!(reasons, "{reason}")
                }
            };
        }
        match copies.iter().any(|copy| copy.state.is_in_sync()) {
            true => Ok(Verdict::Fits),
            false => Ok(Verdict::Away(reasons)),
        }
    }

    fn look_at_member(&self, member: &Member, since: Epoch) -> Result<Verdict, OpeningError> {
        let header = match self.found.get(&member.uuid) {
            Some(Found::Header(header)) => header,
            Some(Found::Blank) => {
                return Ok(Verdict::Useless("it is another disk than before, and empty".into()));
            }
            Some(Found::Unreachable(reason)) => return Ok(Verdict::Away(reason.clone())),
            None => return Ok(Verdict::Away("nobody has looked for it".to_owned())),
        };
        if header.volume != self.record.uuid || header.member != member.uuid {
            let text = "it is another disk than before: it belongs to another volume or place";
            return Ok(Verdict::Useless(text.to_owned()));
        }
        // The record is told first that a member has become longer.
        if header.blocks > member.blocks {
            return Ok(Verdict::Useless("it has another length than before".to_owned()));
        }
        match standing(&self.record.openings, since, &header.openings) {
            Standing::Current => Ok(Verdict::Fits),
            Standing::Behind => Ok(Verdict::Useless("it is older than it was".to_owned())),
            Standing::Apart => Err(OpeningError::Apart {
                url: member.url.clone(),
                record: history(&self.record.openings),
                member: history(&header.openings),
            }),
        }
    }
}

/// A line for each opening.
pub fn history(openings: &[Opening]) -> String {
    let line = |opening: &Opening| {
        let Opening { epoch, nonce, seconds, holder } = opening;
        format!("  {epoch}, at {seconds} s since 1970, by {holder} ({nonce:016x})\n")
    };
    openings.iter().map(line).collect()
}

/// Trusts but one of the copies in sync, as they may differ where somebody was writing.
pub fn keep_one(copies: &mut [MirrorCopy]) {
    let in_sync = copies.iter_mut().filter(|copy| copy.state.is_in_sync());
    for copy in in_sync.skip(1) {
        copy.state = CopyState::Stale { full: false };
    }
}

/// Gives every mirror in `layout` a copy that counts as in sync, for a layout that is of no use as
/// it is and gets all of its content anew. Says whether that is possible.
pub fn begin_anew(layout: &mut Layout) -> bool {
    match layout {
        Layout::Member(_) => true,
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => parts.iter_mut().all(begin_anew),
        Layout::Mirror { copies, .. } => {
            if !copies.iter().any(|copy| copy.state.is_in_sync()) {
                let stale = |copy: &&mut MirrorCopy| matches!(copy.state, CopyState::Stale { .. });
                for (number, copy) in copies.iter_mut().filter(stale).enumerate() {
                    copy.state = match number {
                        0 => CopyState::InSync,
                        _ => CopyState::Stale { full: true },
                    };
                }
            }
            let mut in_sync = copies.iter_mut().filter(|copy| copy.state.is_in_sync()).peekable();
            in_sync.peek().is_some() && in_sync.all(|copy| begin_anew(&mut copy.on))
        }
    }
}

/// Notes that all that is in sync takes part in `epoch`.
pub fn complete(record: &mut Record) {
    let epoch = record.epoch();
    record.completed = epoch;
    take_part(&mut record.layout, epoch);
}

/// Notes that all of `layout` that is in sync takes part in `epoch`.
pub fn take_part(layout: &mut Layout, epoch: Epoch) {
    match layout {
        Layout::Member(_) => {}
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            parts.iter_mut().for_each(|part| take_part(part, epoch));
        }
        Layout::Mirror { copies, .. } => {
            for copy in copies.iter_mut().filter(|copy| copy.state.is_in_sync()) {
                copy.since = epoch;
                take_part(&mut copy.on, epoch);
            }
        }
    }
}

/// The members that a volume with this layout has in use: not those of stale copies.
pub fn in_use(layout: &Layout) -> Vec<&Member> {
    match layout {
        Layout::Member(member) => vec![member],
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            parts.iter().flat_map(in_use).collect()
        }
        Layout::Mirror { copies, .. } => {
            let in_sync = copies.iter().filter(|copy| copy.state.is_in_sync());
            in_sync.flat_map(|copy| in_use(&copy.on)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Wish;

    fn opening(epoch: u64, nonce: u64) -> Opening {
        Opening { epoch: Epoch(epoch), nonce, seconds: 5, holder: format!("host {nonce}") }
    }

    fn member(byte: u8) -> Layout {
        let url = format!("nbd://host{byte}/a");
        Layout::Member(Member { uuid: Uuid([byte; 16]), url, blocks: 1000 })
    }

    /// A mirror of two, opened three times, the third time by whoever is opening it now.
    fn record() -> Record {
        let copy = |byte| MirrorCopy {
            state: CopyState::InSync,
            wish: Wish::Use,
            since: Epoch(2),
            on: member(byte),
        };
        Record {
            name: "a".to_owned(),
            uuid: Uuid([9; 16]),
            openings: vec![opening(1, 11), opening(2, 22), opening(3, 33)],
            completed: Epoch(2),
            compare: 0,
            layout: Layout::Mirror {
                uuid: Uuid([8; 16]),
                blocks: 744,
                grows_to: 744,
                copies: vec![copy(1), copy(2)],
            },
            append: None,
        }
    }

    fn header(byte: u8, openings: Vec<Opening>) -> Found {
        let (volume, member) = (Uuid([9; 16]), Uuid([byte; 16]));
        Found::Header(Header { volume, member, sequence: 1, blocks: 1000, openings })
    }

    fn states(found: [Found; 2]) -> Result<Vec<CopyState>, OpeningError> {
        let [a, b] = found;
        let found = [(Uuid([1; 16]), a), (Uuid([2; 16]), b)].into();
        let mut layout = plan(&record(), &found)?;
        let copies = layout.mirror_mut(Uuid([8; 16])).unwrap();
        Ok(copies.iter().map(|copy| copy.state).collect())
    }

    const STALE: CopyState = CopyState::Stale { full: false };
    const FULL: CopyState = CopyState::Stale { full: true };

    #[test]
    fn copies_that_are_not_what_they_were_are_not_trusted() {
        let right = |byte| header(byte, vec![opening(1, 11), opening(2, 22)]);
        let old = |byte| header(byte, vec![opening(1, 11)]);
        let away = || Found::Unreachable("nobody answers".to_owned());
        assert_eq!(states([right(1), right(2)]), Ok(vec![CopyState::InSync; 2]));
        assert_eq!(states([right(1), away()]), Ok(vec![CopyState::InSync, STALE]));
        assert_eq!(states([Found::Blank, right(2)]), Ok(vec![FULL, CopyState::InSync]));
        assert_eq!(states([right(1), old(2)]), Ok(vec![CopyState::InSync, FULL]));
        assert_eq!(states([right(1), right(1)]), Ok(vec![CopyState::InSync, FULL]), "swapped");
        let error = states([away(), old(2)]).unwrap_err().to_string();
        assert!(error.contains("nobody answers") && error.contains("older"), "{error}");
    }

    #[test]
    fn a_member_that_was_away_while_the_volume_grew_is_known() {
        let mut record = record();
        let right = |byte| header(byte, vec![opening(1, 11), opening(2, 22)]);
        let found = [(Uuid([1; 16]), right(1)), (Uuid([2; 16]), right(2))].into();
        let members = record.layout.mirror_mut(Uuid([8; 16])).unwrap();
        for (copy, blocks) in members.iter_mut().zip([1200, 900]) {
            let Layout::Member(member) = &mut copy.on else { unreachable!("a member") };
            member.blocks = blocks;
        }
        let mut layout = plan(&record, &found).unwrap();
        let copies = layout.mirror_mut(Uuid([8; 16])).unwrap();
        let states: Vec<_> = copies.iter().map(|copy| copy.state).collect();
        assert_eq!(states, [CopyState::InSync, FULL], "the second one says that it is longer");
    }

    #[test]
    fn a_split_brain_is_refused_with_both_histories() {
        let right = header(1, vec![opening(1, 11), opening(2, 22)]);
        let apart = header(2, vec![opening(1, 11), opening(2, 77)]);
        let error = states([right, apart]).unwrap_err().to_string();
        for part in ["nbd://host2/a", "host 22", "host 77"] {
            assert!(error.contains(part), "{error}");
        }
    }

    /// The outer mirror goes on without it. Whatever it had in sync is so when it comes back.
    #[test]
    fn a_copy_that_is_away_as_a_whole_keeps_what_it_has_in_sync() {
        let mut record = record();
        let inner =
            |state, byte| MirrorCopy { state, wish: Wish::Use, since: Epoch(2), on: member(byte) };
        let copies = vec![inner(CopyState::InSync, 2), inner(STALE, 3)];
        let (uuid, blocks) = (Uuid([7; 16]), 744);
        let mirror = Layout::Mirror { uuid, blocks, grows_to: blocks, copies };
        record.layout.mirror_mut(Uuid([8; 16])).unwrap()[1].on = mirror;
        let right = |byte| header(byte, vec![opening(2, 22)]);
        let found = [(Uuid([1; 16]), right(1)), (Uuid([3; 16]), right(3))].into();
        let mut layout = plan(&record, &found).unwrap();
        assert_eq!(layout.mirror_mut(Uuid([8; 16])).unwrap()[1].state, STALE);
        let states = |layout: &mut Layout| {
            let copies = layout.mirror_mut(uuid).unwrap();
            copies.iter().map(|copy| copy.state).collect::<Vec<_>>()
        };
        assert_eq!(states(&mut layout), [CopyState::InSync, STALE]);
        layout.mirror_mut(uuid).unwrap()[0].state = STALE;
        assert!(begin_anew(layout.find_mirror(uuid).unwrap()));
        assert_eq!(states(&mut layout), [CopyState::InSync, FULL]);
        for copy in layout.mirror_mut(uuid).unwrap() {
            copy.state = CopyState::Suspended { full: false };
        }
        assert!(!begin_anew(layout.find_mirror(uuid).unwrap()));
    }

    #[test]
    fn one_part_that_is_away_takes_its_whole_copy_with_it() {
        let mut record = record();
        let stripe = Layout::Stripe { chunk_blocks: 16, parts: vec![member(2), member(3)] };
        record.layout.mirror_mut(Uuid([8; 16])).unwrap()[1].on = stripe;
        let right = |byte| header(byte, vec![opening(2, 22)]);
        let found = [(Uuid([1; 16]), right(1)), (Uuid([2; 16]), right(2))].into();
        let layout = plan(&record, &found).unwrap();
        assert_eq!(in_use(&layout).len(), 1);
        record.layout = layout;
        complete(&mut record);
        assert_eq!(record.completed, Epoch(3));
        let copies = record.layout.mirror_mut(Uuid([8; 16])).unwrap();
        assert_eq!((copies[0].since, copies[1].since), (Epoch(3), Epoch(2)));
        assert_eq!(copies[1].state, STALE);
    }
}
