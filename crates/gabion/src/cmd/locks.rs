//! `gabion locks`: advisory locks that are held and waited for, where a filesystem is served.

use crate::args::sharing;
use crate::clients::{unexpected, what};
use crate::cmd::status::json;
use crate::control::wire::{LockRow, Locks, Reply, Request};
use crate::failure::Result;
use crate::print;
use crate::servers::Server;

/// Runs the command.
pub fn run(args: &sharing::Locks) -> Result<()> {
    let (server, path) = Server::and_path(args.target.as_deref(), args.path.as_deref())?;
    match server.ask(Request::Locks { path })? {
        Reply::Locks(locks) if args.json => print::line(json(&locks)),
        Reply::Locks(locks) => print::line(text(&locks)),
        other => Err(unexpected(&other)),
    }
}

fn text(locks: &Locks) -> String {
    if locks.locks.is_empty() && locks.waiting.is_empty() {
        return format!("nobody has locks on {}", what(&locks.target, locks.path.as_deref()));
    }
    let mut lines = vec![format!(
        "{:16}  {:>12}  {:5}  {:9}  {:>8}  {}",
        "CLIENT", "INODE", "KIND", "MODE", "PID", "RANGE"
    )];
    lines.extend(locks.locks.iter().map(|lock| line(lock, "")));
    if locks.more_locks > 0 {
        lines.push(format!("and {} more", locks.more_locks));
    }
    lines.extend(locks.waiting.iter().map(|lock| line(lock, "  waits")));
    if locks.more_waiting > 0 {
        lines.push(format!("and {} more that are waited for", locks.more_waiting));
    }
    lines.join("\n")
}

fn line(row: &LockRow, state: &str) -> String {
    let range = match (row.from, row.to) {
        (0, None) => "all".to_owned(),
        (from, None) => format!("{from}.."),
        (from, Some(to)) => format!("{from}..{to}"),
    };
    let LockRow { client, inode, kind, mode, pid, .. } = row;
    format!("{client}  {inode:12}  {kind:5}  {mode:9}  {pid:8}  {range}{state}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_who_has_locked_what() {
        let row = |from, to| LockRow {
            client: "00000000000000ab".to_owned(),
            inode: 7,
            kind: "fcntl".to_owned(),
            mode: "shared".to_owned(),
            from,
            to,
            pid: 4711,
        };
        let start = "00000000000000ab             7  fcntl  shared         4711  ";
        assert_eq!(line(&row(0, None), ""), format!("{start}all"));
        assert_eq!(line(&row(5, None), ""), format!("{start}5.."));
        assert_eq!(line(&row(0, Some(9)), "  waits"), format!("{start}0..9  waits"));
    }
}
