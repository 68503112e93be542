//! `gabion volume delete`: forgets a volume, and frees its members.
//!
//! The record goes first: a member whose header is left can be used again with `--force`, while a
//! record without members would be a volume that cannot be opened.

use gabion_volume::create::release_member;
use gabion_volume::register;

use crate::cmd::consent;
use crate::failure::{Failure, Result};
use crate::volumes;

pub(super) fn delete(name: &str, yes: bool, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = &surroundings.coordinator;
    let (record, revision) = register::read(&**coordinator, name)?;
    consent::require(yes, &format!("volume {name} would be forgotten with all that is on it"))?;
    let _claim = coordinator
        .claim(name, &surroundings.holder)
        .map_err(|error| Failure::of(format!("cannot delete volume {name}"), &error))?;
    coordinator.remove(name, revision).map_err(volumes::unanswered)?;
    for member in [Some(&record.layout), record.append.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(|part| part.members())
    {
        if let Err(error) = release_member(&record, member, &surroundings) {
            eprintln!("gabion: {} keeps its header: {error}", member.url);
        }
    }
    Ok(())
}
