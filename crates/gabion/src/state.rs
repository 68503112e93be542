//! How a filesystem is, for people and for scripts.

use std::fmt::Write as _;
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_map::LocalMap;
use gabion_map::format::superblock::Superblock;
use gabion_node::LocalFs;

use crate::control::wire::{MountStatus, ServedStatus, StandbyStatus, Status};
use crate::date;
use crate::size::Size;

/// The state of an open map. `superblock` is any of its own: the current one can only be had when
/// no commit is under way, and nobody who asks for the state should wait for that.
pub fn of_map(
    map: &LocalMap,
    superblock: &Superblock,
    target: &str,
    mount: Option<MountStatus>,
) -> Status {
    let space = map.space();
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_SIZE as u64);
    Status {
        target: target.to_owned(),
        uuid: superblock.uuid.to_string(),
        label: superblock.label.clone(),
        created: date::seconds(superblock.created),
        total_bytes: bytes(space.total),
        used_bytes: bytes(space.used),
        available_bytes: bytes(space.available),
        txg: map.activity().committed.0,
        subvolumes: map.subvolumes().len() as u64,
        problem: map.stopped(),
        tried_again: false,
        mount,
        served: None,
        standby: None,
    }
}

/// The state of a filesystem in use.
pub fn of_fs(
    fs: &LocalFs,
    superblock: &Superblock,
    target: &str,
    mount: Option<MountStatus>,
) -> Status {
    let status = of_map(fs.map(), superblock, target, mount);
    match fs.refusal().filter(|_| status.problem.is_none()) {
        Some(refusal) => Status { problem: Some(refusal), tried_again: true, ..status },
        None => status,
    }
}

/// The same as some lines of text.
pub fn text(status: &Status) -> String {
    let mut text = String::new();
    if let Some(standby) = &status.standby {
        return standby_text(status, standby);
    }
    let place = status.mount.as_ref().map_or(&status.target, |mount| &mount.mountpoint);
    let label = match status.label.as_str() {
        "" => String::new(),
        label => format!(" {label:?}"),
    };
    let state = match (&status.problem, &status.mount) {
        (Some(_), _) if status.tried_again => "CANNOT WRITE AT PRESENT",
        (Some(_), _) => "STOPPED WRITING",
        (None, Some(mount)) if mount.access == "ro" => "mounted read-only",
        (None, Some(_)) => "mounted",
        (None, None) if status.served.is_some() => "served",
        (None, None) => "not mounted",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{place}: Gabion filesystem{label}, {state}");
    if let Some(problem) = &status.problem {
        let _ = writeln!(text, "  problem    {problem}");
        let next = match status.tried_again {
            true => "it goes on by itself when that is over; what waits is in memory until then",
            false => "unmount it, see to the disk, and mount it again",
        };
        let _ = writeln!(text, "             {next}");
    }
    let _ = writeln!(text, "  target     {}", status.target);
    let _ = match status.created.as_str() {
        "" => writeln!(text, "  uuid       {}", status.uuid),
        created => writeln!(text, "  uuid       {}, made {created}", status.uuid),
    };
    let Status { used_bytes: used, total_bytes: total, available_bytes: available, .. } = *status;
    let _ = writeln!(text, "{}", space_line(used, total, available));
    if let Some(served) = &status.served {
        let ServedStatus { address, pid, clients } = served;
        let clients = if *clients == 1 { "1 client".into() } else { format!("{clients} clients") };
        let _ = writeln!(text, "  server     gabion://{address}/, process {pid}, {clients}");
    }
    let _ = write!(text, "  commits    {} so far", status.txg);
    if let Some(mount) = &status.mount {
        mount_text(mount, &mut text);
    }
    text
}

/// The line that tells how much is in use, in bytes.
pub fn space_line(used: u64, total: u64, available: u64) -> String {
    let percent = 100.0 * used as f64 / (total as f64).max(1.0);
    let (used, total, available) = (Size(used), Size(total), Size(available));
    format!("  space      {used} used of {total} ({percent:.0} %), {available} available")
}

fn standby_text(status: &Status, standby: &StandbyStatus) -> String {
    let StandbyStatus { address, pid, holder } = standby;
    let holder = holder.as_deref().unwrap_or("nobody, as far as is known");
    let mut text = format!("{}: Gabion filesystem, standby\n", status.target);
    // Writing to a string cannot fail.
    if let Some(problem) = &status.problem {
        let _ = writeln!(text, "  problem    {problem}");
    }
    let _ = writeln!(text, "  served by  {holder}");
    let _ = write!(text, "  standby    process {pid}, for gabion://{address}/");
    text
}

fn mount_text(mount: &MountStatus, text: &mut String) {
    let waiting = Size(mount.unwritten_bytes + mount.uncommitted_bytes);
    let _ = writeln!(text, ", {waiting} waiting for the next");
    let _ = writeln!(
        text,
        "  memory     {} resident, aims at {}",
        Size(mount.resident_bytes),
        Size(mount.cache_bytes),
    );
    let since = date::duration(Duration::from_secs(mount.uptime_seconds));
    let _ = writeln!(text, "  daemon     process {}, for {since}", mount.pid);
    let _ = writeln!(text, "  disk       {}", mount.disk);
    let sync = if mount.sync_reaches_daemon {
        "sync(2) reaches the daemon"
    } else {
        "sync(2) does not reach the daemon; fsync(2) and `gabion umount` do"
    };
    let _ = write!(text, "  kernel     {} of {}; {sync}", mount.kind, mount.source);
}
