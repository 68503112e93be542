//! `gabion clients`: who has mounted a filesystem that is served here.

use crate::args;
use crate::clients::{ask, unexpected};
use crate::cmd::status::json;
use crate::control::wire::{Clients, Reply, Request};
use crate::failure::Result;
use crate::print::{self, printable};

/// Runs the command.
pub fn run(args: &args::Clients) -> Result<()> {
    match ask(&args.target, Request::Clients)? {
        Reply::Clients(clients) if args.json => print::line(json(&clients)),
        Reply::Clients(clients) => print::line(text(&clients)),
        other => Err(unexpected(&other)),
    }
}

fn text(clients: &Clients) -> String {
    let Clients { target, address, clients } = clients;
    if clients.is_empty() {
        return format!("{target}, served at gabion://{address}/, has no clients");
    }
    let mut lines = vec![format!(
        "{:16}  {:>8}  {:>8}  {:>8}  {}",
        "SESSION", "LEASES", "OPEN", "OWED", "NAME"
    )];
    lines.extend(clients.iter().map(|client| {
        let (session, name) = (&client.session, printable(&client.name));
        format!("{session}  {:8}  {:8}  {:8}  {name}", client.leases, client.opens, client.owed)
    }));
    lines.join("\n")
}
