//! `gabion clients`: who has mounted a filesystem that is served here.

use crate::args::sharing;
use crate::clients::unexpected;
use crate::cmd::status::json;
use crate::control::wire::{Client, Clients, Reply, Request};
use crate::failure::Result;
use crate::print::{self, printable};
use crate::servers::Server;

/// Runs the command.
pub fn run(args: &sharing::Clients) -> Result<()> {
    match Server::of(args.target.as_deref())?.ask(Request::Clients)? {
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
        "{:16}  {:>8}  {:>8}  {:>8}  {:16}  {}",
        "SESSION", "LEASES", "OPEN", "OWED", "MACHINE", "NAME"
    )];
    lines.extend(clients.iter().map(|client| {
        let session = &client.session;
        let name = match client.awaited {
            true => "(waited for)".to_owned(),
            false => printable(&client.name),
        };
        let machine = printable(client.machine.as_deref().unwrap_or("-"));
        let Client { leases, opens, owed, .. } = client;
        format!("{session}  {leases:8}  {opens:8}  {owed:8}  {machine:16}  {name}")
    }));
    lines.join("\n")
}
