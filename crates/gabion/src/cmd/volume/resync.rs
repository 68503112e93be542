//! `gabion volume resync`: brings copies up to date, and compares them.
//!
//! 1. If somebody has the volume open, that one does it; a comparison is asked for in the record.
//! 2. Otherwise it is opened, and copies are waited for. One that cannot be connected to for a
//!    moment is not there. Blocks that no copy can give are tried again for some seconds.
//! 3. If `--verify` is given and all are in sync, they are compared.
//! 4. The volume is closed, also if something went wrong before.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_block::mirror::Trust;
use gabion_volume::register;
use gabion_volume::volume::Volume;
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::{Exit, Failure, Result};
use crate::print;
use crate::volumes;

/// How often a progress bar moves.
const GLANCE: Duration = Duration::from_millis(200);
/// Copies that do not answer for this long are not there.
const PRESENCE: Duration = Duration::from_secs(2);
/// Blocks that no copy could give for this long, while nothing else was left to be copied, are
/// lost unless somebody writes them. A copy looks at them every two seconds at first.
const LOST: Duration = Duration::from_secs(10);
/// Nothing is waited for if nothing has been copied for this long.
const STANDSTILL: Duration = Duration::from_secs(60);
/// What a progress bar shows.
const BYTES: &str =
    "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

pub(super) fn resync(name: &str, verify: bool, given: Option<&str>) -> Result<()> {
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = Arc::clone(&surroundings.coordinator);
    let holder = coordinator.holder(name).map_err(volumes::unanswered)?;
    if let Some(holder) = holder {
        if verify {
            register::change(&*coordinator, name, |record| {
                record.compare += 1;
                Ok::<_, Failure>(())
            })?;
        }
        let next = "to see how it goes: gabion events --follow";
        return print::line(format!("{name} is in use by {holder}, which does it; {next}"));
    }
    let volume = volumes::open(name, &surroundings)?;
    let synced = bring_up_to_date(name, &volume);
    let different = match (&synced, verify) {
        (Ok(()), true) => compare(&volume),
        _ => 0,
    };
    volume.close().map_err(|error| Failure::of(format!("cannot close volume {name}"), &error))?;
    synced?;
    match different {
        0 if verify => print::line(format!("{name}: all copies are equal")),
        0 => print::line(format!("{name}: all copies are in sync")),
        blocks => {
            let text = format!("{name}: {blocks} blocks differ between copies that are in sync");
            Err(Failure::new(text)
                .next("A filesystem repairs what it reads from its checksums: gabion scrub")
                .exit(Exit::Damaged))
        }
    }
}

/// Waits until all copies that can be reached are in sync.
fn bring_up_to_date(name: &str, volume: &Volume) -> Result<()> {
    let bar = bar();
    let mut total = 0;
    let mut waiting = None;
    let (mut least, mut progress, mut lost) = (u64::MAX, Instant::now(), 0);
    loop {
        let copies: Vec<_> = volume.status().into_values().flatten().collect();
        let is_over =
            |trust: Trust| matches!(trust, Trust::InSync | Trust::Suspended | Trust::Removed);
        if copies.iter().all(|copy| is_over(copy.trust)) && !volume.is_replacing() {
            bar.finish_and_clear();
            return Ok(());
        }
        let missing: u64 = copies.iter().map(|copy| copy.missing_blocks).sum();
        total = total.max(missing);
        bar.set_length(total * BLOCK_SIZE as u64);
        bar.set_position((total - missing) * BLOCK_SIZE as u64);
        if missing < least {
            (least, progress, lost) = (missing, Instant::now(), 0);
        }
        // While they are looked at again they are not known to be lost.
        lost = lost.max(copies.iter().map(|copy| copy.unreadable_blocks).sum());
        let standing = progress.elapsed();
        if standing >= STANDSTILL || (lost > 0 && standing >= LOST) {
            bar.finish_and_clear();
            return Err(stands_still(name, lost));
        }
        if copies.iter().all(|copy| is_over(copy.trust) || copy.trust == Trust::Stale) {
            // Connecting is tried at once; who is not there after a moment is not there.
            if waiting.get_or_insert_with(Instant::now).elapsed() >= PRESENCE {
                bar.finish_and_clear();
                return Err(Failure::new(format!("some copies of {name} cannot be reached"))
                    .next(format!("To see them: gabion volume status {name}")));
            }
        } else {
            waiting = None;
        }
        thread::sleep(GLANCE);
    }
}

/// Why there is no more to be waited for.
fn stands_still(name: &str, lost: u64) -> Failure {
    if lost == 0 {
        let text = format!("copies of {name} did not catch up for {} s", STANDSTILL.as_secs());
        return Failure::new(text).next("To see why: gabion events");
    }
    let blocks = if lost == 1 { "block" } else { "blocks" };
    let text = format!(
        "{lost} {blocks} of {name} cannot be read from any copy in sync; the other copies have all \
         the rest, and stay stale"
    );
    Failure::new(text)
        .next(
            "gabion events tells which blocks. They are good again when they are written: find \
             their files by gabion scrub, and restore those.",
        )
        .exit(Exit::Damaged)
}

fn compare(volume: &Volume) -> u64 {
    let bar = bar();
    bar.set_length(volumes::bytes(volume));
    volume.compare();
    loop {
        let compared = volume.compared();
        if compared.is_empty() {
            bar.finish_and_clear();
            return volume.differences();
        }
        let done: u64 = compared.iter().map(|one| one.done).sum();
        bar.set_position(done * BLOCK_SIZE as u64);
        thread::sleep(GLANCE);
    }
}

fn bar() -> ProgressBar {
    // Hidden by itself where standard error is no terminal.
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(BYTES).expect("the template is constant"));
    bar
}
