//! `gabion evict`: ends the session of a client of a filesystem that is served here.

use crate::args::sharing;
use crate::clients::{ask, unexpected};
use crate::control::wire::{Reply, Request};
use crate::failure::Result;
use crate::print::{self, printable};

/// Runs the command.
pub fn run(args: &sharing::Evict) -> Result<()> {
    let request = Request::Evict { client: args.client.clone(), revoke: args.revoke };
    match ask(&args.target, request)? {
        Reply::Evicted(evicted) => {
            if !evicted.session.is_empty() {
                let (session, name) = (evicted.session, printable(&evicted.name));
                print::line(match name.is_empty() {
                    true => format!("the session {session} is not waited for any more"),
                    false => format!("the session {session} of {name} has ended"),
                })?;
            }
            let revoked = evicted.revoked.map(|machine| printable(&machine));
            revoked.map_or(Ok(()), |machine| {
                print::line(format_args!("{machine} has to be invited again"))
            })
        }
        other => Err(unexpected(&other)),
    }
}
