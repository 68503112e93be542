//! `gabion backups`: shows the streams at a place, and which builds upon which.

use gabion_backup::format::header::Lock;
use serde::Serialize;

use super::status::json;
use crate::args::backup::Backups;
use crate::backup::streams::{Found, Streams};
use crate::date;
use crate::failure::{Failure, Result};
use crate::print;
use crate::size::Size;

/// A stream. The names and meanings of the fields are promised to scripts.
#[derive(Serialize)]
struct Row {
    /// Its number, 32 hexadecimal digits.
    stream: String,
    /// The number of the one that it builds upon; null if it is full.
    base: Option<String>,
    /// When its snapshot was made.
    created: String,
    /// What was saved.
    origin: String,
    /// The file.
    path: String,
    /// Its length.
    bytes: u64,
    /// Whether it has all that was to be saved.
    complete: bool,
    /// Whether it is encrypted.
    encrypted: bool,
}

/// Runs the command.
pub fn run(args: &Backups) -> Result<()> {
    let Streams { found, named, .. } = Streams::of(&args.from).map_err(Failure::without_damage)?;
    let found = named.map_or(found, |named| vec![named]);
    let rows: Vec<Row> = found.iter().map(row).collect();
    if args.json {
        return print::line(json(&rows));
    }
    for row in &rows {
        let kind = match &row.base {
            None => "full".to_owned(),
            Some(base) => format!("upon {}", &base[..8]),
        };
        let state = match (row.complete, row.encrypted) {
            (false, _) => "  not complete",
            (true, true) => "  encrypted",
            (true, false) => "",
        };
        print::line(format!(
            "{}  {}  {kind:13}  {:>10}  {}{state}",
            &row.stream[..8],
            row.created,
            Size(row.bytes).to_string(),
            print::printable(&row.origin)
        ))?;
    }
    Ok(())
}

fn row(found: &Found) -> Row {
    let header = &found.header;
    Row {
        stream: header.stream.to_string(),
        base: header.base.map(|base| base.to_string()),
        created: date::seconds(header.created.seconds),
        origin: String::from_utf8_lossy(&header.origin).into_owned(),
        path: found.path.clone(),
        bytes: found.length,
        complete: found.is_complete,
        encrypted: header.lock != Lock::Open,
    }
}
