//! `gabion volume`: makes volumes, shows them, and leaves the administrator's wishes in their
//! records.
//!
//! A volume that is in use is never touched by these commands: they change its record, and whoever
//! has it open, on whatever machine, sees to it.

mod create;
mod delete;
mod export;
mod grow;
mod layouts;
mod members;
mod resync;
mod show;

use gabion_block::record::Wish;
use gabion_volume::create::Occupied;
use gabion_volume::register::RegisterError;

use crate::args::volumes::{Volume as Args, VolumeCommand as Command};
use crate::failure::{Failure, Result};
use crate::volumes;

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let given = args.coordinator.as_deref();
    let coordinator = || volumes::coordinator(given);
    match &args.command {
        Command::Create(args) => create::create(args, given),
        Command::List { json } => show::list(&*coordinator()?, *json),
        Command::Status { name, json } => show::status(&*coordinator()?, name, *json),
        Command::Add { name, url, beside, force } => {
            members::add(name, url, beside.as_deref(), occupied(*force), given)
        }
        Command::Remove { name, url } => members::wish(&*coordinator()?, name, url, Wish::Remove),
        Command::Suspend { name, url } => members::wish(&*coordinator()?, name, url, Wish::Suspend),
        Command::Resume { name, url } => members::wish(&*coordinator()?, name, url, Wish::Use),
        Command::Replace { name, old, new, force } => {
            members::replace(name, old, new, occupied(*force), given)
        }
        Command::Grow(args) => grow::grow(args, given),
        Command::Resync { name, verify } => resync::resync(name, *verify, given),
        Command::Export { name, offering } => export::export(name, offering, given),
        Command::Delete { name, yes } => delete::delete(name, *yes, given),
    }
}

fn occupied(force: bool) -> Occupied {
    if force { Occupied::Overwrite } else { Occupied::Refuse }
}

impl From<RegisterError> for Failure {
    fn from(error: RegisterError) -> Self {
        match &error {
            RegisterError::Absent(_) => {
                Self::new(error.to_string()).next("To see which there are: gabion volume list")
            }
            _ => Self::of("cannot use the volume's record", &error),
        }
    }
}
