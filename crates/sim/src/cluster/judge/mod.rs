//! Whether what programs were answered can be told as a sequence, in which each answer is right.
//!
//! All names are one object, and each file's size, bytes and permissions are one. A sequence is
//! looked for each of them ([`search`]); if each has one, there is one of all calls.
//!
//! What may be lost, by the end of a session or by a crash of the server, is judged name by name
//! and grain by grain (`cell`): a rename may be lost by half, or have moved what went by its name
//! before, and what is left of several writes need not be what there was at any moment. That is
//! less strict than what is promised, at which the simulation of a local filesystem looks closer.
//!
//! Two things are allowed besides:
//!
//! - A client that has not heard of a crash yet may see what was before, as long as nobody has
//!   changed anything since: its calls may stand before the crash in the sequence.
//! - A client sees its own change when it is complete; others may before, for the server asks for
//!   no lease of who changes something. What a client reads meanwhile may stand before the change.

use std::collections::{BTreeMap, BTreeSet};

mod cut;
mod files;
mod names;
mod snapshots;
mod space;

use super::cell::{Author, Cell};
use super::history::{Event, Number, Op, Outcome, Place};
use super::search::{Verdict, search};

use self::files::{FileModel, FileState};
use self::names::{Names, NamesModel};
pub(super) use self::space::judge as judge_space;

/// Numbers of files that are not known, because nobody heard of them, begin here.
const UNHEARD: Number = 1 << 63;
/// What a name stands for that is not there.
const NOTHING: Number = 0;
/// What an attribute's stamp is that is not there.
const UNSET: u32 = 0;
/// Names of extended attributes that programs use.
pub const XATTRS: u8 = 3;
/// Grains of a file that programs use on purpose.
pub const GRAINS_MAX: usize = 32;
/// Grains of a file that are judged; those who append do not know of each other.
const GRAINS_JUDGED: usize = 64;

fn author(event: &Event) -> Author {
    Author { client: event.client, first: event.session, last: event.last_session }
}

/// What may still be lost.
struct Losses {
    sessions: Vec<u64>,
    crashed: Vec<u64>,
}

impl Losses {
    fn of(left: &[&Event]) -> Self {
        let (mut sessions, mut crashed) = (Vec::new(), Vec::new());
        for event in left {
            match &event.op {
                Op::Lost { session, by_crash } => {
                    sessions.push(*session);
                    crashed.extend(by_crash.then_some(*session));
                }
                Op::Crash { lost, .. } => crashed.extend(lost),
                _ => {}
            }
        }
        Self { sessions, crashed }
    }

    fn may_be<T: Ord + Copy>(&self, cell: &Cell<T>, value: T) -> bool {
        cell.may_become(value, &self.sessions, &self.crashed)
    }
}

/// What happens to all that there is.
fn happen<T: Ord + Copy>(cell: &mut Cell<T>, event: &Event) {
    match &event.op {
        Op::Lost { session, by_crash } => {
            if *by_crash {
                cell.crash(&[*session]);
            }
            cell.lose(*session);
        }
        Op::Crash { lost, .. } => cell.crash(lost),
        _ => cell.sync(event.client),
    }
}

/// Which calls tell anything of names.
fn tells_of_names(event: &Event) -> bool {
    let Event { op, outcome, .. } = event;
    match op {
        Op::Write { .. } | Op::Append { .. } | Op::Read { .. } => false,
        Op::Resize { .. } | Op::Reserve { .. } | Op::Chmod { .. } => false,
        Op::SetXattr { .. } | Op::RemoveXattr { .. } => false,
        Op::Xattr { .. } | Op::Xattrs { .. } => false,
        Op::Lock { .. } | Op::Unlock { .. } => false,
        Op::Lookup { .. } | Op::List { .. } | Op::Stat { .. } | Op::Fsync { .. } | Op::SyncAll => {
            !matches!(outcome, Outcome::Unknown | Outcome::Refused)
        }
        Op::InSnapshot { op, .. } => {
            let is_of_names = matches!(**op, Op::Lookup { .. } | Op::List { .. } | Op::Stat { .. });
            let is_known = !matches!(outcome, Outcome::Unknown | Outcome::Refused);
            is_known && (is_of_names || *outcome == Outcome::NoSnapshot)
        }
        _ => !matches!(outcome, Outcome::Refused | Outcome::Full),
    }
}

/// Which calls tell anything of the file.
fn tells_of(event: &Event, file: Number) -> bool {
    let Event { op, outcome, .. } = event;
    match op {
        Op::SyncAll => *outcome == Outcome::Done,
        Op::Lost { .. } | Op::Crash { .. } => true,
        Op::Snapshot { .. } | Op::RemoveSnapshot { .. } | Op::Rollback { .. } => {
            *outcome != Outcome::Refused
        }
        Op::InSnapshot { .. } if *outcome == Outcome::NoSnapshot => true,
        Op::Link { .. } | Op::Lock { .. } | Op::Unlock { .. } => false,
        Op::Fsync { .. } => *outcome == Outcome::Done && op.file() == Some(file),
        _ if op.file() != Some(file) => false,
        Op::Xattr { .. } => matches!(outcome, Outcome::Value(_) | Outcome::Absent),
        _ if op.only_reads() => {
            matches!(outcome, Outcome::Grains(_) | Outcome::Status { .. } | Outcome::Attributes(_))
        }
        _ => !matches!(outcome, Outcome::Refused | Outcome::Gone | Outcome::Full),
    }
}

/// A crash of the server.
struct Crash {
    life: u64,
    moment: u64,
    /// When the first change was complete that was made after it.
    changed: Option<u64>,
}

fn crashes(events: &[Event]) -> Vec<Crash> {
    let crash = |event: &Event| {
        let Op::Crash { life, .. } = event.op else { return None };
        let changes = events.iter().filter(|event| {
            event.life >= life && event.life != u64::MAX && has_changed(&event.outcome, &event.op)
        });
        let changed = changes.filter_map(|event| event.ended).min();
        Some(Crash { life, moment: event.invoked, changed })
    };
    events.iter().filter_map(crash).collect()
}

fn has_changed(outcome: &Outcome, op: &Op) -> bool {
    match outcome {
        Outcome::Made(_, is_new) => *is_new,
        Outcome::At(_) => true,
        Outcome::Done => {
            let is_lock = matches!(op, Op::Lock { .. } | Op::Unlock { .. });
            !is_lock && !matches!(op, Op::Fsync { .. } | Op::SyncAll)
        }
        _ => false,
    }
}

/// The calls as they are judged: from when on they may stand in the sequence. They are those of one
/// object.
fn placed(events: Vec<Event>, crashes: &[Crash]) -> Vec<Event> {
    let place = |event: &Event| {
        let missed = crashes.iter().filter(|crash| {
            event.life < crash.life && crash.changed.is_none_or(|changed| event.invoked < changed)
        });
        let missed = missed.map(|crash| crash.moment);
        let changing = events.iter().filter(|other| {
            event.op.only_reads()
                && !other.op.only_reads()
                && other.client == event.client
                && other.invoked < event.invoked
                && other.ended.is_none_or(|ended| ended > event.invoked)
        });
        let changing = changing.map(|other| other.invoked);
        let earliest = match event.op {
            Op::Lost { .. } | Op::Crash { .. } => None,
            _ => missed.chain(changing).min(),
        };
        let invoked = event.invoked.min(earliest.unwrap_or(u64::MAX));
        Event { invoked, ..event.clone() }
    };
    events.iter().map(place).collect()
}

/// What is wrong with a history that began with `entries`, if anything; else of how many objects
/// nothing was found out in time.
pub fn judge(entries: &BTreeMap<Place, Number>, events: &[Event]) -> Result<u64, String> {
    let crashes = crashes(events);
    let made = events.iter().filter_map(|event| match event.outcome {
        Outcome::Made(file, true) => Some(file),
        _ => None,
    });
    let made = made.chain(entries.values().copied()).collect();
    let own = events.iter().filter(|event| tells_of_names(event)).cloned().collect();
    let own = placed(own, &crashes);
    let names = Names::new(entries);
    let mut undecided = complain("names", &own, search(&NamesModel { made }, names, &own))?;
    let files: BTreeSet<Number> = events.iter().filter_map(|event| event.op.file()).collect();
    for file in files {
        let own = events.iter().filter(|event| tells_of(event, file)).cloned().collect();
        let own = placed(own, &crashes);
        let verdict = search(&FileModel, FileState::new(), &own);
        undecided += complain(&format!("file {file}"), &own, verdict)?;
    }
    cut::judge(events)?;
    Ok(undecided)
}

fn complain(subject: &str, events: &[Event], verdict: Verdict) -> Result<u64, String> {
    let (longest, stuck) = match verdict {
        Verdict::Fits => return Ok(0),
        Verdict::Undecided => return Ok(1),
        Verdict::Impossible { longest, stuck } => (longest, stuck),
    };
    let line = |at: &usize| {
        let Event { client, op, outcome, invoked, responded, .. } = &events[*at];
        let end = responded.map_or("..".to_owned(), |moment| moment.to_string());
        format!("    client {client} {invoked}-{end}: {op:?} -> {outcome:?}")
    };
    let skipped = longest.len().saturating_sub(40);
    let told: Vec<String> = longest[skipped..].iter().map(line).collect();
    let stuck: Vec<String> = stuck.iter().map(line).collect();
    let (told, stuck) = (told.join("\n"), stuck.join("\n"));
    let complaint = "no sequence explains the answers";
    Err(format!("{subject}: {complaint}\n  fits:\n{told}\n  stuck:\n{stuck}"))
}
