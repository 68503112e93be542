//! `gabion volume add`, `remove`, `suspend`, `resume`, `replace` and `grow`: other members.
//!
//! | command                 | volume in use                    | not in use               |
//! |-------------------------|----------------------------------|--------------------------|
//! | add                     | its opener fills the copy        | filled when it is opened |
//! | remove, suspend, resume | the wish is left for its opener  | the state is changed too |
//! | grow                    | refused by the claim             | appended                 |
//!
//! The last copy that is in sync is neither taken out nor suspended, whoever wishes it.

use std::sync::Arc;

use gabion_block::coordinator::Coordinator;
use gabion_block::copies::COPIES_MAX;
use gabion_block::epoch::Epoch;
use gabion_block::record::{CopyState, Layout, MirrorCopy, Record, Wish};
use gabion_volume::create::{Occupied, prepare_member};
use gabion_volume::layout;
use gabion_volume::register;

use super::create::not_created;
use super::layouts::{absolute, parsed};
use crate::failure::{Exit, Failure, Result};
use crate::print;
use crate::volumes;

pub(super) fn add(name: &str, url: &str, occupied: Occupied, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = Arc::clone(&surroundings.coordinator);
    let url = absolute(url)?;
    let (record, _) = register::read(&*coordinator, name)?;
    let Layout::Mirror { uuid, blocks, .. } = &record.layout else {
        let text = format!("volume {name} is not a mirror: it has no copies to add one to");
        return Err(
            Failure::new(text).next(format!("To lengthen it: gabion volume grow {name} URL"))
        );
    };
    let (uuid, needed) = (*uuid, *blocks);
    let member = prepare_member(&record, &url, occupied, &surroundings)
        .map_err(|error| not_created(name, &error))?;
    let on = Layout::Member(member);
    if on.blocks().is_none_or(|blocks| blocks < needed) {
        return Err(Failure::new(format!("{url} is smaller than the other copies of {name}")));
    }
    register::change(&*coordinator, name, |record| {
        let copies = record
            .layout
            .mirror_mut(uuid)
            .ok_or_else(|| Failure::new(format!("volume {name} was changed by somebody else")))?;
        let copy = MirrorCopy {
            state: CopyState::Stale { full: true },
            wish: Wish::Use,
            since: Epoch(0),
            on: on.clone(),
        };
        match copies.iter().position(|copy| copy.state == CopyState::Removed) {
            Some(free) => copies[free] = copy,
            None if copies.len() < COPIES_MAX => copies.push(copy),
            None => {
                let text = format!("volume {name} has {COPIES_MAX} copies already");
                return Err(Failure::new(text));
            }
        }
        Ok(())
    })?;
    let when = format!("while the volume is in use, or by gabion volume resync {name}");
    print::line(format!("{name}: {url} was added; it is filled {when}"))
}

pub(super) fn wish(coordinator: &dyn Coordinator, name: &str, url: &str, wish: Wish) -> Result<()> {
    let url = absolute(url).unwrap_or_else(|_| url.to_owned());
    let is_used = coordinator.holder(name).map_err(volumes::unanswered)?.is_some();
    register::change(coordinator, name, |record| {
        let Some((copy, others)) = copy_on(record, &url) else {
            return Err(Failure::new(format!("no copy of volume {name} is on {url}"))
                .next(format!("To see them: gabion volume status {name}")));
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
                (Wish::Use, state) => state,
            };
        }
        Ok(())
    })
}

/// Finds the copy that is on `url` alone.
fn copy_on<'a>(record: &'a mut Record, url: &str) -> Option<(&'a mut MirrorCopy, usize)> {
    let mirrors: Vec<_> = record.layout.mirrors().iter().map(|(uuid, _)| *uuid).collect();
    let is_it =
        |copy: &MirrorCopy| layout::text(&copy.on) == url && copy.state != CopyState::Removed;
    let found = mirrors.into_iter().find(|uuid| {
        record.layout.mirror_mut(*uuid).is_some_and(|copies| copies.iter().any(is_it))
    })?;
    let copies = record.layout.mirror_mut(found)?;
    let others = copies.iter().filter(|copy| copy.state.is_in_sync() && !is_it(copy)).count();
    Some((copies.iter_mut().find(|copy| is_it(copy))?, others))
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
