//! `gabion volume list` and `gabion volume status`.
//!
//! Both only read the record and ask who has the claim: members are not connected to. What people
//! are shown is made of what scripts get, except for the states of copies, which are sentences.

use std::fmt::Write as _;

use gabion_base::BLOCK_SIZE;
use gabion_block::coordinator::Coordinator;
use gabion_block::growth;
use gabion_block::record::{CopyState, MirrorCopy, Record, Wish};
use gabion_volume::layout;
use gabion_volume::register;
use serde_json::{Value, json};

use crate::date;
use crate::failure::Result;
use crate::print;
use crate::size::Size;
use crate::volumes;

/// The latest openings that people are shown.
const OPENINGS_SHOWN: usize = 5;

pub(super) fn list(coordinator: &dyn Coordinator, as_json: bool) -> Result<()> {
    let names = coordinator.volumes().map_err(volumes::unanswered)?;
    let mut all = Vec::new();
    for name in &names {
        let (record, _) = register::read(coordinator, name)?;
        let holder = coordinator.holder(name).map_err(volumes::unanswered)?;
        all.push(describe(&record, holder.as_deref()));
    }
    if as_json {
        return print::line(format!("{:#}", Value::Array(all)));
    }
    if all.is_empty() {
        return print::line("there are no volumes; to make one: gabion volume create --help");
    }
    for volume in all {
        let text = |key: &str| volume[key].as_str().unwrap_or_default().to_owned();
        let size = Size(volume["bytes"].as_u64().unwrap_or_default());
        let used = match volume["holder"].as_str() {
            Some(holder) => format!("in use by {holder}"),
            None => "not in use".to_owned(),
        };
        print::line(format!("{}  {size}  {}, {used}", text("name"), text("health")))?;
    }
    Ok(())
}

/// A volume for scripts.
fn describe(record: &Record, holder: Option<&str>) -> Value {
    let mirrors: Vec<_> = record
        .layout
        .mirrors()
        .into_iter()
        .map(|(uuid, copies)| {
            let copies: Vec<_> = copies.iter().map(describe_copy).collect();
            json!({ "uuid": uuid.to_string(), "copies": copies })
        })
        .collect();
    let bytes = record.layout.blocks().unwrap_or_default().saturating_mul(BLOCK_SIZE as u64);
    json!({
        "name": record.name,
        "uuid": record.uuid.to_string(),
        "bytes": bytes,
        "layout": layout::text(&record.layout),
        "grows-to": grows_to(record),
        "epoch": record.epoch().0,
        "health": health(record),
        "holder": holder,
        "mirrors": mirrors,
    })
}

/// How many bytes it is to have, if that has not happened.
fn grows_to(record: &Record) -> Option<u64> {
    growth::is_under_way(record).then(|| {
        let parts = std::iter::once(&record.layout).chain(&record.append);
        let blocks: u64 = parts.filter_map(growth::reach).sum();
        blocks.saturating_mul(BLOCK_SIZE as u64)
    })
}

fn describe_copy(copy: &MirrorCopy) -> Value {
    let state = match copy.state {
        CopyState::InSync => "in-sync",
        CopyState::Stale { .. } => "stale",
        CopyState::Suspended { .. } => "suspended",
        CopyState::Removed => "removed",
    };
    json!({
        "on": layout::text(&copy.on),
        "state": state,
        "full-resync": copy.state.is_full(),
        "since-epoch": copy.since.0,
    })
}

fn health(record: &Record) -> &'static str {
    let mirrors = record.layout.mirrors();
    let mut copies = mirrors.iter().flat_map(|(_, copies)| copies.iter());
    let is_fine = |copy: &MirrorCopy| copy.state.is_in_sync() || copy.state == CopyState::Removed;
    match () {
        () if mirrors.is_empty() => "without copies",
        () if copies.all(is_fine) => "whole",
        () => "degraded",
    }
}

pub(super) fn status(coordinator: &dyn Coordinator, name: &str, as_json: bool) -> Result<()> {
    let (record, _) = register::read(coordinator, name)?;
    let holder = coordinator.holder(name).map_err(volumes::unanswered)?;
    let volume = describe(&record, holder.as_deref());
    if as_json {
        return print::line(format!("{volume:#}"));
    }
    let mut text = String::new();
    let size = Size(volume["bytes"].as_u64().unwrap_or_default());
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{name}: volume of {size}, {}", health(&record));
    if let Some(bytes) = volume["grows-to"].as_u64() {
        let part = record.append.as_ref().map(|part| format!(", with {}", layout::text(part)));
        let part = part.unwrap_or_default();
        let _ = writeln!(text, "  growing    it is to have {}{part}", Size(bytes));
    }
    let _ = writeln!(text, "  uuid       {}", record.uuid);
    let _ = writeln!(text, "  epoch      {}", record.epoch().0);
    let _ = writeln!(text, "  in use by  {}", holder.as_deref().unwrap_or("nobody"));
    let _ = writeln!(text, "  layout     {}", layout::text(&record.layout));
    for (_, copies) in record.layout.mirrors() {
        for copy in copies.iter().filter(|copy| copy.state != CopyState::Removed) {
            let on = layout::text(&copy.on);
            let _ = writeln!(text, "  copy       {on}: {}", state_text(copy));
        }
    }
    for opening in record.openings.iter().rev().take(OPENINGS_SHOWN) {
        let (when, who) = (date::seconds(opening.seconds), &opening.holder);
        let _ = writeln!(text, "  opened     {when}, {}, by {who}", opening.epoch);
    }
    print::line(text.trim_end())
}

fn state_text(copy: &MirrorCopy) -> String {
    let state = match copy.state {
        CopyState::InSync => "in sync".to_owned(),
        CopyState::Stale { full: false } => "stale; what it lacks is to be copied".to_owned(),
        CopyState::Stale { full: true } => "stale; everything is to be copied".to_owned(),
        CopyState::Suspended { .. } => {
            "suspended; `gabion volume resume` brings it back".to_owned()
        }
        CopyState::Removed => "taken out".to_owned(),
    };
    match (copy.wish, copy.state) {
        (Wish::Suspend, CopyState::Suspended { .. }) | (Wish::Use, _) => state,
        (Wish::Suspend, _) => format!("{state}; is to be suspended"),
        (Wish::Remove, _) | (Wish::Replace { .. }, CopyState::Removed) => {
            format!("{state}; is to be taken out")
        }
        (Wish::Replace { .. }, _) => format!("{state}; leaves when the new copy is in sync"),
    }
}
