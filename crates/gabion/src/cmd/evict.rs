//! `gabion evict`: ends the session of a client of a filesystem that is served here.

use std::path::Path;

use crate::args::sharing;
use crate::clients::unexpected;
use crate::control::wire::{Reply, Request};
use crate::failure::Result;
use crate::print::{self, printable};
use crate::servers::Server;

/// Runs the command.
pub fn run(args: &sharing::Evict) -> Result<()> {
    let (target, client) = match &args.second {
        Some(client) => (Some(Path::new(&args.first)), client.clone()),
        None => (None, args.first.to_string_lossy().into_owned()),
    };
    let request = Request::Evict { client, revoke: args.revoke };
    match Server::of(target)?.ask(request)? {
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
