//! `gabion evict`: ends the session of a client of a filesystem that is served here.

use crate::args;
use crate::clients::{ask, unexpected};
use crate::control::wire::{Reply, Request};
use crate::failure::Result;
use crate::print::{self, printable};

/// Runs the command.
pub fn run(args: &args::Evict) -> Result<()> {
    match ask(&args.target, Request::Evict { client: args.client.clone() })? {
        Reply::Evicted(evicted) => {
            let (session, name) = (evicted.session, printable(&evicted.name));
            print::line(format_args!("the session {session} of {name} has ended"))
        }
        other => Err(unexpected(&other)),
    }
}
