//! Whether what programs were told of advisory locks can be true.
//!
//! ```text
//!   asks ------- is told that it has it ------- unlocks ------- is told so
//!    |<----------- may have it ---------------------------------->|
//!                 |<------ has it ------------->|
//! ```
//!
//! - Of two locks that conflict, never does somebody have one while another one has the other.
//! - Who is refused a lock was so because somebody may have had one that conflicts.
//! - Only who may have a lock can close a circle by waiting for another one.
//! - Who has lost a lock writes nothing to the file until it has given it up.
//!
//! A lock is lost with its session, from the moment on at which the server begins to end that. When
//! it lets others have it is not known.

use super::history::{Event, LockKind, Number, Op, Outcome, Span};

/// A lock that somebody has, had, or may have had.
struct Hold<'a> {
    event: &'a Event,
    file: Number,
    kind: LockKind,
    owner: u32,
    span: Span,
    is_exclusive: bool,
    /// When somebody surely has it; empty if that is not known.
    sure: (u64, u64),
    /// When its session was lost with it, if it was.
    lost: Option<u64>,
    /// When it is given up, or to be had as another one.
    given_up: u64,
    /// Until when somebody may have it.
    until: u64,
}

impl Hold<'_> {
    fn conflicts_with(&self, other: &Self) -> bool {
        let are_kin = (self.kind == LockKind::Flock) == (other.kind == LockKind::Flock);
        let are_equal = self.kind == other.kind && self.owner == other.owner;
        let meet = self.span.0 <= other.span.1 && other.span.0 <= self.span.1;
        let is_any_exclusive = self.is_exclusive || other.is_exclusive;
        self.file == other.file && are_kin && !are_equal && meet && is_any_exclusive
    }

    fn may_be_had_between(&self, from: u64, to: u64) -> bool {
        self.event.invoked < to && from < self.until
    }
}

impl std::fmt::Display for Hold<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Event { client, op, invoked, responded, .. } = self.event;
        let until = self.given_up;
        write!(f, "client {client} {invoked}-{responded:?}: {op:?}, given up at {until}")
    }
}

/// What is wrong with what was answered, if anything.
pub fn judge(events: &[Event]) -> Result<(), String> {
    let asked: Vec<Hold<'_>> = events.iter().filter_map(|event| hold(event, events)).collect();
    let is_had = |hold: &&Hold<'_>| matches!(hold.event.outcome, Outcome::Done | Outcome::Unknown);
    let had: Vec<&Hold<'_>> = asked.iter().filter(is_had).collect();
    for (at, one) in had.iter().enumerate() {
        for other in had[at + 1..].iter().filter(|other| one.conflicts_with(other)) {
            if one.sure.0.max(other.sure.0) < one.sure.1.min(other.sure.1) {
                return Err(format!("two have locks that conflict:\n    {one}\n    {other}"));
            }
        }
        if let Some(event) = written_without(one, events) {
            return Err(format!(
                "a write without the lock that was lost:\n    {one}\n    {event:?}"
            ));
        }
    }
    for refused in &asked {
        let Some(responded) = refused.event.responded else { continue };
        let may_be_had =
            |hold: &&&Hold<'_>| hold.may_be_had_between(refused.event.invoked, responded);
        let mut others = had.iter().filter(may_be_had);
        let is_explained = match refused.event.outcome {
            Outcome::Blocked => others.any(|hold| hold.conflicts_with(refused)),
            Outcome::Circle => others.any(|hold| hold.owner == refused.owner),
            _ => true,
        };
        if !is_explained {
            let outcome = &refused.event.outcome;
            return Err(format!("nobody's lock explains the answer {outcome:?}:\n    {refused}"));
        }
    }
    Ok(())
}

fn hold<'a>(event: &'a Event, events: &[Event]) -> Option<Hold<'a>> {
    let Op::Lock { file, kind, owner, span, is_exclusive, .. } = event.op else { return None };
    let gives_up = |later: &&Event| match later.op {
        Op::Unlock { file: of, kind: as_kind, owner: by, span: part } => {
            (of, as_kind, by, part) == (file, kind, owner, span) && later.invoked > event.invoked
        }
        _ => false,
    };
    let lost = events.iter().filter(|other| match other.op {
        Op::Lost { session, .. } => (event.session..=event.last_session).contains(&session),
        _ => false,
    });
    let lost = lost.map(|lost| lost.invoked).min();
    let unlocked = events.iter().find(gives_up);
    let changes = |later: &&Event| match later.op {
        Op::Lock { file: of, kind: as_kind, owner: by, span: part, .. } => {
            (of, as_kind, by, part) == (file, kind, owner, span) && later.invoked > event.invoked
        }
        _ => false,
    };
    let changed = events.iter().find(changes).map_or(u64::MAX, |changed| changed.invoked);
    let given_up = unlocked.map_or(u64::MAX, |unlocked| unlocked.invoked).min(changed);
    let is_sure = event.outcome == Outcome::Done;
    let begin = event.responded.filter(|_| is_sure).unwrap_or(u64::MAX);
    let done = unlocked.filter(|unlocked| unlocked.outcome == Outcome::Done);
    let until = done.and_then(|unlocked| unlocked.responded).unwrap_or(u64::MAX);
    let sure = (begin, given_up.min(lost.unwrap_or(u64::MAX)));
    Some(Hold { event, file, kind, owner, span, is_exclusive, sure, lost, given_up, until })
}

/// Bytes that were written by the client in a later session, though the lock was not given up.
fn written_without<'a>(hold: &Hold<'_>, events: &'a [Event]) -> Option<&'a Event> {
    let lost = hold.lost?;
    // A program that does not give it up has died with its machine.
    if hold.sure.0 >= hold.sure.1 || hold.given_up == u64::MAX || lost > hold.given_up {
        return None;
    }
    events.iter().find(|event| {
        let writes = match event.op {
            Op::Write { file, .. } | Op::Append { file, .. } => file == hold.file,
            _ => false,
        };
        writes
            && event.client == hold.event.client
            && event.session > hold.event.last_session
            && event.responded.is_some_and(|responded| responded < hold.given_up)
            && matches!(event.outcome, Outcome::Done | Outcome::At(_))
    })
}
