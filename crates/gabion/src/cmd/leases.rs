//! `gabion leases`: what the clients of a filesystem that is served here may cache.

use crate::args::sharing;
use crate::clients::{unexpected, what};
use crate::cmd::status::json;
use crate::control::wire::{LeaseRow, Leases, Reply, Request};
use crate::failure::Result;
use crate::print;
use crate::servers::Server;

/// Runs the command.
pub fn run(args: &sharing::Leases) -> Result<()> {
    let (server, path) = Server::and_path(args.target.as_deref(), args.path.as_deref())?;
    match server.ask(Request::Leases { path })? {
        Reply::Leases(leases) if args.json => print::line(json(&leases)),
        Reply::Leases(leases) => print::line(text(&leases)),
        other => Err(unexpected(&other)),
    }
}

fn text(leases: &Leases) -> String {
    if leases.leases.is_empty() && leases.waiting.is_empty() {
        return format!("nobody has leases on {}", what(&leases.target, leases.path.as_deref()));
    }
    let mut lines =
        vec![format!("{:16}  {:>12}  {:9}  {:10}  {}", "CLIENT", "INODE", "MODE", "WHAT", "RANGE")];
    lines.extend(leases.leases.iter().map(|lease| line(lease, "")));
    if leases.more_leases > 0 {
        lines.push(format!("and {} more", leases.more_leases));
    }
    lines.extend(leases.waiting.iter().map(|wanted| line(wanted, "  waits")));
    if leases.more_waiting > 0 {
        lines.push(format!("and {} more that are waited for", leases.more_waiting));
    }
    lines.join("\n")
}

fn line(row: &LeaseRow, state: &str) -> String {
    let range = match (row.from, row.to) {
        (None | Some(0), None) => "all".to_owned(),
        (from, None) => format!("{}..", from.unwrap_or(0)),
        (from, Some(to)) => format!("{}..{to}", from.unwrap_or(0)),
    };
    let LeaseRow { client, inode, mode, what, .. } = row;
    format!("{client}  {inode:12}  {mode:9}  {what:10}  {range}{state}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_the_range_and_who_waits() {
        let row = |from, to| LeaseRow {
            client: "00000000000000ab".to_owned(),
            inode: 7,
            what: "bytes".to_owned(),
            from,
            to,
            mode: "shared".to_owned(),
        };
        let start = "00000000000000ab             7  shared     bytes       ";
        assert_eq!(line(&row(None, None), ""), format!("{start}all"));
        assert_eq!(line(&row(Some(5), None), ""), format!("{start}5.."));
        assert_eq!(line(&row(Some(0), Some(9)), "  waits"), format!("{start}0..9  waits"));
    }
}
