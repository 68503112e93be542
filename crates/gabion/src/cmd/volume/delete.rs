//! `gabion volume delete`: forgets a volume, and frees its members.
//!
//! The record goes first: a member whose header is left can be used again with `--force`, while a
//! record without members would be a volume that cannot be opened.

use gabion_volume::create::release_member;
use gabion_volume::register;

use crate::failure::{Exit, Failure, Result};
use crate::volumes;

pub(super) fn delete(name: &str, yes: bool, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = &surroundings.coordinator;
    let (record, revision) = register::read(&**coordinator, name)?;
    if !yes {
        return Err(Failure::new(format!("deleting volume {name} destroys what is on it"))
            .next(format!("If that is what you want: gabion volume delete --yes {name}"))
            .exit(Exit::Usage));
    }
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
