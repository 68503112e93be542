//! The door of Gabion: the command line, and the daemon behind a mount.
//!
//! ```text
//! args -> cmd::* -> mkfs, inspect                  on the device or image itself
//!                -> mount -> serve -> mount        the daemon: disk, map, files, FUSE
//!                -> completions                    of the command line itself
//!                -> up -> supervisor               processes of the program that end with it
//!                -> status, scrub, grow, umount    ask the daemon through control
//!                -> snapshot, clone, subvolume,    the same, or open what nobody has in use:
//!                   quota                          locations
//!                -> backup, restore, verify,       streams of snapshots, from a mount or
//!                   backups                        a map
//!                -> serve -> link                  sessions of other machines' mounts
//!                -> clients, leases, locks,        ask the server through control
//!                   evict, invite
//!                -> join                           a certificate of the server, then mount
//!                -> volume -> volumes              records of volumes, and volumes themselves
//! ```
//!
//! Everything here asks, calls and prints; rules live on the floors below. The library has no
//! stable interface of its own: what is promised is the command line, its exit codes ([`run`]) and
//! the JSON that it prints.

#![forbid(unsafe_code)]

mod addresses;
mod args;
mod backup;
mod check;
mod clients;
mod cmd;
mod control;
mod date;
mod errands;
mod exports;
mod failure;
mod frugality;
mod growth;
mod link;
mod locations;
mod lost;
pub mod mount;
mod mounts;
mod offering;
mod options;
mod outside;
mod own_mount;
mod patience;
pub mod places;
mod print;
mod quotas;
mod reach;
mod remote;
mod scratch;
mod serve;
mod servers;
mod size;
mod snapshots;
mod standby;
mod state;
mod supervisor;
mod target;
mod targets;
mod trust;
mod undelete;
mod volumes;
mod watching;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

/// Runs the command line `arguments`, the program's name first.
///
/// The exit code is 0 if it did what it was asked, 1 if it could not, 2 if the command line is
/// wrong, 4 if a scrub found damage, and 32 if a mount failed that mount(8) asked for.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    if arguments.first().is_some_and(|program| cmd::mount::is_called_by_mount8(program)) {
        return end(cmd::mount::run_for_mount8(&arguments[1..]));
    }
    let command = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command,
        // Help and versions are errors to the parser, and print to standard output.
        Err(error) => error.exit(),
    };
    end(match &command {
        Command::Up(args) => cmd::up::run(args),
        Command::Mkfs(args) => cmd::mkfs::run(args),
        Command::Mount(args) => cmd::mount::run(args),
        Command::Umount(args) => cmd::umount::run(args),
        Command::Status(args) => cmd::status::run(args),
        Command::Scrub(args) => cmd::scrub::run(args),
        Command::Grow(args) => cmd::grow::run(args),
        Command::Snapshot(args) => cmd::snapshot::run(args),
        Command::Backup(args) => cmd::backup::run(args),
        Command::Backups(args) => cmd::backups::run(args),
        Command::Restore(args) => cmd::restore::run(args),
        Command::Verify(args) => cmd::verify::run(args),
        Command::Clone(args) => cmd::subvolume::clone(args),
        Command::Subvolume(args) => cmd::subvolume::run(args),
        Command::Quota(args) => cmd::quota::run(args),
        Command::Undelete(args) => cmd::undelete::run(args),
        Command::Events(args) => cmd::events::run(args),
        Command::Inspect(args) => cmd::inspect::run(args),
        Command::Completions(args) => cmd::completions::run(args),
        Command::Serve(args) => cmd::serve::run(args),
        Command::Invite(args) => cmd::invite::run(args),
        Command::Join(args) => cmd::join::run(args),
        Command::Clients(args) => cmd::clients::run(args),
        Command::Leases(args) => cmd::leases::run(args),
        Command::Locks(args) => cmd::locks::run(args),
        Command::Evict(args) => cmd::evict::run(args),
        Command::Target(args) => cmd::target::run(args),
        Command::Volume(args) => cmd::volume::run(args),
    })
}

fn end(done: failure::Result<()>) -> ExitCode {
    volumes::finish_events();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            print::notice(failure.to_string());
            failure.code().into()
        }
    }
}
