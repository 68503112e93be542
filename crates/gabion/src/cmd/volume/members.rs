//! `gabion volume add`, `remove`, `suspend`, `resume`, `replace` and `grow`: other members.
//!
//! | command                 | volume in use                    | not in use               |
//! |-------------------------|----------------------------------|--------------------------|
//! | add                     | its opener fills the copy        | filled when it is opened |
//! | replace                 | likewise; then the old one goes  | likewise                 |
//! | remove, suspend, resume | the wish is left for its opener  | the state is changed too |
//! | grow                    | refused by the claim             | appended                 |
//!
//! The last copy that is in sync is neither taken out nor suspended, whoever wishes it.

use std::sync::Arc;

use gabion_base::ids::Uuid;
use gabion_block::coordinator::Coordinator;
use gabion_block::copies::{COPIES_MAX, CopyIndex};
use gabion_block::record::{CopyState, Layout, MirrorCopy, Record, Wish};
use gabion_block::wishes;
use gabion_volume::create::{Occupied, prepare_member};
use gabion_volume::layout;
use gabion_volume::register;
use gabion_volume::surroundings::Surroundings;

use super::create::not_created;
use super::layouts::{absolute, parsed};
use crate::failure::{Exit, Failure, Result};
use crate::print;
use crate::volumes;

pub(super) fn add(name: &str, url: &str, occupied: Occupied, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = Arc::clone(&surroundings.coordinator);
    let (record, _) = register::read(&*coordinator, name)?;
    let Layout::Mirror { uuid, .. } = &record.layout else {
        let text = format!("volume {name} is not a mirror: it has no copies to add one to");
        return Err(
            Failure::new(text).next(format!("To lengthen it: gabion volume grow {name} URL"))
        );
    };
    let (url, on) = prepare(&record, *uuid, url, occupied, &surroundings)?;
    register::change(&*coordinator, name, |record| {
        let copies = copies_of(record, *uuid)?;
        wishes::add(copies, on.clone()).map(drop).ok_or_else(|| no_room(name))
    })?;
    let when = format!("while the volume is in use, or by gabion volume resync {name}");
    print::line(format!("{name}: {url} was added; it is filled {when}"))
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
    let old = absolute(old).unwrap_or_else(|_| old.to_owned());
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

/// Makes what is at `url` a member that can be a copy of a mirror, and gives its whole URL, too.
fn prepare(
    record: &Record,
    mirror: Uuid,
    url: &str,
    occupied: Occupied,
    surroundings: &Surroundings,
) -> Result<(String, Layout)> {
    let (name, url) = (&record.name, absolute(url)?);
    let member = prepare_member(record, &url, occupied, surroundings)
        .map_err(|error| not_created(name, &error))?;
    let on = Layout::Member(member);
    let needed = record.layout.blocks_of_copies(mirror).unwrap_or_default();
    if on.blocks().is_none_or(|blocks| blocks < needed) {
        return Err(Failure::new(format!("{url} is smaller than the other copies of {name}")));
    }
    Ok((url, on))
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

/// The mirror that has a copy on `url` alone.
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
    let url = absolute(url).unwrap_or_else(|_| url.to_owned());
    let is_used = coordinator.holder(name).map_err(volumes::unanswered)?.is_some();
    register::change(coordinator, name, |record| {
        let Some((copy, others)) = copy_on(record, &url) else {
            return Err(no_copy(name, &url));
        };
        if wish != Wish::Use && others == 0 {
            let text = format!("{url} is the last copy of volume {name} that is in sync");
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

/// Finds the copy that is on `url` alone.
fn copy_on<'a>(record: &'a mut Record, url: &str) -> Option<(&'a mut MirrorCopy, usize)> {
    let found = mirror_on(record, url)?;
    let copies = record.layout.mirror_mut(found)?;
    let others = copies.iter().filter(|copy| copy.state.is_in_sync() && !is_on(copy, url)).count();
    Some((copies.iter_mut().find(|copy| is_on(copy, url))?, others))
}

pub(super) fn grow(name: &str, url: &str, occupied: Occupied, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = Arc::clone(&surroundings.coordinator);
    let _claim = coordinator.claim(name, &surroundings.holder).map_err(|error| {
        Failure::of(format!("cannot lengthen volume {name}"), &error).next("Unmount it first.")
    })?;
    let part = parsed(url)?;
    let Layout::Member(member) = part else {
        return Err(Failure::new("only single members can be added").exit(Exit::Usage));
    };
    let (record, _) = register::read(&*coordinator, name)?;
    let member = prepare_member(&record, &member.url, occupied, &surroundings)
        .map_err(|error| not_created(name, &error))?;
    register::change(&*coordinator, name, |record| {
        let part = Layout::Member(member.clone());
        match &mut record.layout {
            Layout::Linear(parts) => parts.push(part),
            other => {
                let first = other.clone();
                *other = Layout::Linear(vec![first, part]);
            }
        }
        Ok::<_, Failure>(())
    })?;
    print::line(format!("{name}: {url} was appended"))
}
