//! `gabion volume grow`: a volume becomes longer, also while it is in use.
//!
//! 1. What is to come behind the end is made fit; or the members are measured, and those that have
//!    become longer are to be used up to their ends. What is wanted goes into the record.
//! 2. Whoever has the volume open does it, and is waited for. If nobody has, it is opened here.
//! 3. With `--resizefs` the filesystem uses the new length, by whoever has it in use.
//!
//! A part that nobody could append within some seconds is taken out of the record again.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::Disk;
use gabion_block::coordinator::Coordinator;
use gabion_block::growth::{self, Lengths};
use gabion_block::record::{Layout, Member, Record};
use gabion_volume::create::{Content, prepare_part};
use gabion_volume::member::length_of;
use gabion_volume::register;
use gabion_volume::surroundings::Surroundings;
use gabion_volume::volume::Volume;

use super::create::not_created;
use super::layouts::parsed;
use super::occupied;
use crate::args::volumes::VolumeGrow;
use crate::cmd::grow as filesystem;
use crate::cmd::status;
use crate::failure::{Failure, Result};
use crate::print;
use crate::size::Size;
use crate::volumes::{self, Place};

/// How long whoever has the volume may take for a part that is appended, or to say that something
/// has happened.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked.
const GLANCE: Duration = Duration::from_millis(200);

pub(super) fn grow(args: &VolumeGrow, given: Option<&str>) -> Result<()> {
    let name = &args.name;
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let coordinator = &*surroundings.coordinator;
    let (record, _) = register::read(coordinator, name)?;
    let before = record.layout.blocks().unwrap_or_default();
    let wanted = match &args.url {
        Some(text) => append(&record, text, args, &surroundings)?,
        None => measure(&record, coordinator)?,
    };
    let holder = coordinator.holder(name).map_err(volumes::unanswered)?;
    if wanted == before && !growth::is_under_way(&record) {
        print::line(format!("{name}: no member has become longer that could make the volume so"))?;
        if !args.resizefs {
            return Ok(());
        }
    }
    match holder {
        None => grow_here(args, before, &surroundings),
        Some(_) if !await_user(name, args, coordinator)? => {
            let then = if args.resizefs {
                format!(", and then: gabion grow {name}")
            } else {
                String::new()
            };
            print::line(format!(
                "{name}: it is still growing, and goes on with that by itself. To see how far it \
                 is: gabion volume status {name}{then}"
            ))
        }
        Some(_) => {
            tell(name, before, wanted)?;
            if args.resizefs { grow_used_filesystem(name, wanted) } else { Ok(()) }
        }
    }
}

/// Has a part wanted behind the end; gives the blocks that there are to be.
fn append(
    record: &Record,
    text: &str,
    args: &VolumeGrow,
    surroundings: &Surroundings,
) -> Result<u64> {
    let name = &args.name;
    let is_growing = || {
        Failure::new(format!("volume {name} is growing already"))
            .next(format!("To see how far it is: gabion volume status {name}"))
    };
    if record.append.is_some() {
        return Err(is_growing());
    }
    let content = if args.equal { Content::Equal } else { Content::Unknown };
    let part = prepare_part(record, parsed(text)?, content, occupied(args.force), surroundings)
        .map_err(|error| not_created("grow", name, &error))?;
    register::change(&*surroundings.coordinator, name, |record| {
        if record.append.is_some() {
            return Err(is_growing());
        }
        record.append = Some(part.clone());
        Ok(reach(record))
    })
}

fn reach(record: &Record) -> u64 {
    let parts = std::iter::once(&record.layout).chain(&record.append);
    parts.filter_map(growth::reach).fold(0, u64::saturating_add)
}

/// Looks how long the members are by now, and has what is more of them used where that is possible.
/// Gives the blocks that there are to be.
fn measure(record: &Record, coordinator: &dyn Coordinator) -> Result<u64> {
    let lengths = lengths(&record.layout.members());
    register::change(coordinator, &record.name, |record| {
        let mut longer = record.layout.clone();
        growth::lengthen(&mut longer, &lengths);
        if growth::reach(&longer) > growth::reach(&record.layout) {
            record.layout = longer;
        }
        Ok(reach(record))
    })
}

/// The lengths of all members that answer; of those that do not, people are told.
fn lengths(members: &[&Member]) -> Lengths {
    let measured: Vec<_> = thread::scope(|scope| {
        let measure = |member: &&Member| {
            let url = member.url.clone();
            scope.spawn(move || length_of(&url))
        };
        let threads: Vec<_> = members.iter().map(measure).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut lengths = Lengths::new();
    for (member, measured) in members.iter().zip(measured) {
        match measured {
            Ok(Ok(blocks)) => drop(lengths.insert(member.uuid, blocks)),
            Ok(Err(error)) => eprintln!("gabion: {} stays as long as it is: {error}", member.url),
            Err(_) => eprintln!("gabion: {} stays as long as it is", member.url),
        }
    }
    lengths
}

fn tell(name: &str, before: u64, now: u64) -> Result<()> {
    let size = |blocks: u64| Size(blocks.saturating_mul(BLOCK_SIZE as u64));
    if now == before {
        return Ok(());
    }
    print::line(format!("{name}: the volume grew from {} to {}", size(before), size(now)))
}

/// Nobody has the volume: it is opened, grows, and is closed again.
fn grow_here(args: &VolumeGrow, before: u64, surroundings: &Surroundings) -> Result<()> {
    let name = &args.name;
    let volume = Arc::new(volumes::open(name, surroundings)?);
    let grown = await_growth(name, &volume);
    let filesystem = match (&grown, args.resizefs) {
        (Ok(()), true) => {
            let disk = Arc::clone(&volume) as Arc<dyn Disk>;
            Some(filesystem::on_disk(name, disk, None, None))
        }
        _ => None,
    };
    let now = volume.blocks();
    volume.close().map_err(|error| Failure::of(format!("cannot close volume {name}"), &error))?;
    if grown.is_err() && args.url.is_some() {
        withdraw(name, &*surroundings.coordinator)?;
    }
    grown?;
    tell(name, before, now)?;
    filesystem.map_or(Ok(()), |grown| filesystem::tell(&grown?))
}

/// Waits as long as something happens.
fn await_growth(name: &str, volume: &Volume) -> Result<()> {
    let (mut progress, mut seen) = (Instant::now(), (0, 0));
    while volume.has_to_grow() {
        let now = (volume.blocks(), volume.growth_left());
        if now != seen {
            (progress, seen) = (Instant::now(), now);
        }
        let cannot = |reason: &str| Failure::new(format!("volume {name} does not grow: {reason}"));
        if let Some(reason) = volume.why_not_grown() {
            return Err(cannot(&reason));
        }
        if progress.elapsed() >= PATIENCE {
            let reason = format!("nothing has happened for {} s", PATIENCE.as_secs());
            return Err(cannot(&reason).next("To see why: gabion events"));
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// Waits until whoever has the volume has done what is wanted. Says whether that came soon.
fn await_user(name: &str, args: &VolumeGrow, coordinator: &dyn Coordinator) -> Result<bool> {
    let began = Instant::now();
    let (mut record, mut revision) = register::read(coordinator, name)?;
    while growth::is_under_way(&record) {
        if began.elapsed() >= PATIENCE {
            if args.url.is_some() && withdraw(name, coordinator)? {
                let text = format!("whoever has volume {name} in use could not append the part");
                return Err(Failure::new(text).next("To see why: gabion events"));
            }
            return Ok(false);
        }
        // A coordinator without an answer is asked again, for as long as there is patience.
        match coordinator.changed(name, revision, GLANCE * 5) {
            Ok(Some(_)) => (record, revision) = register::read(coordinator, name)?,
            Ok(None) => {}
            Err(_) => thread::sleep(GLANCE),
        }
    }
    Ok(true)
}

/// Takes back the wish for a part, if it was not fulfilled. Says whether it was taken back.
fn withdraw(name: &str, coordinator: &dyn Coordinator) -> Result<bool> {
    register::change(coordinator, name, |record| {
        let part: Option<Layout> = record.append.take();
        Ok(part.is_some())
    })
}

/// Has the filesystem grow by its daemon or server. The volume may be a moment later than its
/// record.
fn grow_used_filesystem(name: &str, blocks: u64) -> Result<()> {
    let place = Place::of_volume(name)?;
    let Some(user) = status::user(&place)? else {
        let text = format!("no filesystem on volume {name} is in use on this machine");
        return Err(Failure::new(text).next("Where it is mounted: gabion grow MOUNTPOINT"));
    };
    let wanted = blocks.saturating_mul(BLOCK_SIZE as u64);
    let (began, mut first) = (Instant::now(), None);
    loop {
        let mut grown = filesystem::of_user(&user, None)?;
        let from = *first.get_or_insert(grown.from_bytes);
        let is_all = grown.to_bytes >= wanted || grown.to_bytes == grown.most_bytes;
        if is_all || began.elapsed() >= PATIENCE {
            grown.from_bytes = from;
            return filesystem::tell(&grown);
        }
        thread::sleep(GLANCE);
    }
}
