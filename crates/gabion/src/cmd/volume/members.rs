//! `gabion volume add`, `remove`, `suspend`, `resume` and `replace`: other copies.
//!
//! | command                 | volume in use                    | not in use               |
//! |-------------------------|----------------------------------|--------------------------|
//! | add                     | its opener fills the copy        | filled when it is opened |
//! | replace                 | likewise; then the old one goes  | likewise                 |
//! | remove, suspend, resume | the wish is left for its opener  | the state is changed too |
//!
//! The last copy of a mirror that is in sync is neither taken out nor suspended, whoever wishes it.
//! A mirror may lie within something else; a copy is known by what it is on.

use std::sync::Arc;

use gabion_base::ids::Uuid;
use gabion_block::coordinator::Coordinator;
use gabion_block::copies::{COPIES_MAX, CopyIndex};
use gabion_block::record::{CopyState, Layout, MirrorCopy, Record, Wish};
use gabion_block::wishes;
use gabion_volume::create::{Content, Occupied, prepare_part};
use gabion_volume::layout;
use gabion_volume::register;
use gabion_volume::surroundings::Surroundings;

use super::create::not_created;
use super::layouts::parsed;
use crate::failure::{Exit, Failure, Result};
use crate::print;
use crate::volumes;

pub(super) fn add(
    name: &str,
    url: &str,
    beside: Option<&str>,
    occupied: Occupied,
    given: Option<&str>,
) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = Arc::clone(&surroundings.coordinator);
    let (mut record, _) = register::read(&*coordinator, name)?;
    let uuid = match beside {
        Some(beside) => {
            let beside = spelled(beside);
            mirror_on(&mut record, &beside).ok_or_else(|| no_copy(name, &beside))?
        }
        None => only_mirror(&record)?,
    };
    let (url, on) = prepare(&record, uuid, url, occupied, &surroundings)?;
    register::change(&*coordinator, name, |record| {
        let copies = copies_of(record, uuid)?;
        wishes::add(copies, on.clone()).map(drop).ok_or_else(|| no_room(name))
    })?;
    let when = format!("while the volume is in use, or by gabion volume resync {name}");
    print::line(format!("{name}: {url} was added; it is filled {when}"))
}

/// The mirror that is meant if nobody says which one.
fn only_mirror(record: &Record) -> Result<Uuid> {
    let name = &record.name;
    let mirrors = record.layout.mirrors();
    match (&record.layout, &mirrors[..]) {
        (Layout::Mirror { uuid, .. }, _) => Ok(*uuid),
        (_, []) => {
            let text = format!("volume {name} has no mirror that a copy could be added to");
            Err(Failure::new(text).next(format!("To lengthen it: gabion volume grow {name} URL")))
        }
        (_, [(uuid, _)]) => Ok(*uuid),
        (_, several) => {
            let text = format!("volume {name} has {} mirrors", several.len());
            Err(Failure::new(text)
                .next("Say which one by one of its copies: --beside COPY")
                .exit(Exit::Usage))
        }
    }
}

/// The old copy stays until the new one is in sync; whoever has the volume sees to that.
pub(super) fn replace(
    name: &str,
    old: &str,
    new: &str,
    occupied: Occupied,
    given: Option<&str>,
) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = Arc::clone(&surroundings.coordinator);
    let old = spelled(old);
    let (mut record, _) = register::read(&*coordinator, name)?;
    let uuid = mirror_on(&mut record, &old).ok_or_else(|| no_copy(name, &old))?;
    let (new, on) = prepare(&record, uuid, new, occupied, &surroundings)?;
    register::change(&*coordinator, name, |record| {
        let copies = copies_of(record, uuid)?;
        let at = copies.iter().position(|copy| is_on(copy, &old));
        let at = CopyIndex(at.ok_or_else(|| no_copy(name, &old))? as u8);
        wishes::replace(copies, at, on.clone()).map(drop).ok_or_else(|| no_room(name))
    })?;
    let when = format!("while the volume is in use, or by gabion volume resync {name}");
    print::line(format!("{name}: {new} was added; it is filled {when}, and {old} leaves then"))
}

/// Makes what `text` names a copy that a mirror can have, and gives it as the record has it, too.
fn prepare(
    record: &Record,
    mirror: Uuid,
    text: &str,
    occupied: Occupied,
    surroundings: &Surroundings,
) -> Result<(String, Layout)> {
    let name = &record.name;
    let on = parsed(text)?;
    let text = layout::text(&on);
    let on = prepare_part(record, on, Content::Unknown, occupied, surroundings)
        .map_err(|error| not_created("add to", name, &error))?;
    let needed = record.layout.blocks_of_copies(mirror).map_or(0, |(_, grows_to)| grows_to);
    if on.blocks().is_none_or(|blocks| blocks < needed) {
        return Err(Failure::new(format!("{text} is smaller than the other copies of {name}")));
    }
    Ok((text, on))
}

/// How the record spells the copy that `text` names. What is not there any more is not looked for.
fn spelled(text: &str) -> String {
    parsed(text).map_or_else(|_| text.to_owned(), |layout| layout::text(&layout))
}

fn copies_of(record: &mut Record, mirror: Uuid) -> Result<&mut Vec<MirrorCopy>> {
    let changed = Failure::new(format!("volume {} was changed by somebody else", record.name));
    record.layout.mirror_mut(mirror).ok_or(changed)
}

fn no_room(name: &str) -> Failure {
    Failure::new(format!("volume {name} has {COPIES_MAX} copies already"))
}

fn no_copy(name: &str, url: &str) -> Failure {
    Failure::new(format!("no copy of volume {name} is on {url}"))
        .next(format!("To see them: gabion volume status {name}"))
}

fn is_on(copy: &MirrorCopy, url: &str) -> bool {
    layout::text(&copy.on) == url && copy.state != CopyState::Removed
}

/// The mirror that has a copy on just that.
fn mirror_on(record: &mut Record, url: &str) -> Option<Uuid> {
    let mirrors: Vec<_> = record.layout.mirrors().iter().map(|(uuid, _)| *uuid).collect();
    mirrors.into_iter().find(|uuid| {
        record
            .layout
            .mirror_mut(*uuid)
            .is_some_and(|copies| copies.iter().any(|copy| is_on(copy, url)))
    })
}

pub(super) fn wish(coordinator: &dyn Coordinator, name: &str, url: &str, wish: Wish) -> Result<()> {
    let url = spelled(url);
    let is_used = coordinator.holder(name).map_err(volumes::unanswered)?.is_some();
    register::change(coordinator, name, |record| {
        let Some((copy, others)) = copy_on(record, &url) else {
            return Err(no_copy(name, &url));
        };
        if wish != Wish::Use && others == 0 {
            let text =
                format!("{url} is the last copy of its mirror in volume {name} that is in sync");
            return Err(Failure::new(text).next("Bring another one in sync first."));
        }
        copy.wish = wish;
        if !is_used {
            copy.state = match (wish, copy.state) {
                (Wish::Remove, _) => CopyState::Removed,
                (Wish::Suspend, state) => CopyState::Suspended { full: state.is_full() },
                (Wish::Use, CopyState::Suspended { full }) => CopyState::Stale { full },
                (Wish::Use | Wish::Replace { .. }, state) => state,
            };
        }
        Ok(())
    })
}

/// Finds the copy that is on just that.
fn copy_on<'a>(record: &'a mut Record, url: &str) -> Option<(&'a mut MirrorCopy, usize)> {
    let found = mirror_on(record, url)?;
    let copies = record.layout.mirror_mut(found)?;
    let others = copies.iter().filter(|copy| copy.state.is_in_sync() && !is_on(copy, url)).count();
    Some((copies.iter_mut().find(|copy| is_on(copy, url))?, others))
}
