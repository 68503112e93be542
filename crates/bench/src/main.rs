//! Figures of Gabion beside those of ext4 and of a FUSE passthrough, from one run.
//!
//! A figure alone says little: machines differ, and one machine differs from minute to minute. So
//! everything is measured on all systems one after the other, in an order that rotates, a few
//! times; what counts is the ratio within a round, and of the rounds' ratios the median.
//!
//! - `mount` uses mounted filesystems through system calls, as programs do.
//! - `engine` makes the calls of the mount's front end in this process, without FUSE, and compares
//!   with the same system calls on ext4: what is lost between both tables is lost on the way
//!   through the kernel.
//! - `nbd` uses NBD servers, ours and those of others, by one client.
//! - `backup` saves a mount with `gabion backup`, beside restic.
//! - `snapshots` makes some while programs write, and saves what is different, beside btrfs.
//! - `link` mounts one filesystem twice, ours and those of others that several machines can share.
//!
//! All images lie in one directory on one disk, made alike: of full length, every block written, so
//! that nobody pays for the host's allocations. Everything runs in mount and process namespaces of
//! its own, so nothing stays mounted or attached however it ends; see [`namespace`].
//!
//! Absent: absolute promises, and several machines. A result below its target
//! is marked and is no error.

#![forbid(unsafe_code)]

mod args;
mod backup;
mod engine;
mod figures;
mod link;
mod namespace;
mod random;
mod snapshots;
mod systems;
mod table;
mod targets;
mod workloads;

use anyhow::Result;
use mimalloc::MiMalloc;

/// The one of the program `gabion`, whose parts are measured.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;
use clap::Parser;

use crate::args::{Cli, Command};

fn main() -> Result<()> {
    let command = Cli::parse().command;
    // It has a process outside, and enters by itself.
    if !matches!(command, Command::Link(_)) {
        namespace::enter()?;
    }
    match command {
        Command::Mount(args) => workloads::run(&args),
        Command::Engine(args) => engine::run(&args),
        Command::Targets(args) => targets::run(&args),
        Command::Link(args) => link::run(&args),
        Command::Backup(args) => backup::run(&args),
        Command::Snapshots(args) => snapshots::run(&args),
        Command::Agent => link::agent::run(),
    }
}
