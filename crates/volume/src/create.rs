//! Making volumes, and making disks fit to be members.

use std::sync::Arc;

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, Durability};
use gabion_base::ids::BlockAddr;
use gabion_base::window::Window;
use gabion_block::coordinator::{CoordinatorError, Revision};
use gabion_block::epoch::{Epoch, Opening, holder};
use gabion_block::format::header::{Header, MEMBER_DATA_START};
use gabion_block::geometry::Geometry;
use gabion_block::mirror::blank_pages;
use gabion_block::record::{CopyState, Layout, Member, Record};
use gabion_block::spread::{Linear, Stripe};
use thiserror::Error;

use crate::assembly::Devices;
use crate::member::{self, Head, MemberError, Right};
use crate::surroundings::{COPY_PATIENCE, Surroundings, now_seconds};

/// Whether the disks of a new volume hold the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// They may hold anything: one copy is trusted, and the others are made equal to it.
    Unknown,
    /// They hold the same, as empty files do.
    Equal,
}

/// What is done with disks that hold something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupied {
    /// They are refused.
    Refuse,
    /// What they hold is destroyed.
    Overwrite,
}

/// Why a volume was not made.
#[derive(Debug, Error)]
pub enum CreateError {
    /// A member cannot be used.
    #[error("cannot use {url}: {reason}")]
    Member {
        /// Where it is.
        url: String,
        /// Why.
        reason: String,
    },
    /// A member holds something.
    #[error("{url} {holds}")]
    Occupied {
        /// Where it is.
        url: String,
        /// What is there.
        holds: String,
    },
    /// Members do not fit together.
    #[error("the members are too small, or no volume can be made of them in this way")]
    Layout,
    /// A disk has failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The record could not be kept.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
}

/// Makes a volume of what is at the places that `layout` names.
pub fn create(
    name: &str,
    mut layout: Layout,
    content: Content,
    occupied: Occupied,
    surroundings: &Surroundings,
) -> Result<Record, CreateError> {
    let coordinator = &surroundings.coordinator;
    if coordinator.read(name)?.is_some() {
        return Err(CoordinatorError::Conflict { volume: name.to_owned() }.into());
    }
    let mut newest = Epoch(0);
    look_at_epochs(&layout, &mut newest, surroundings)?;
    let opening = Opening {
        epoch: Epoch(newest.0 + 1),
        nonce: (surroundings.random)(),
        seconds: now_seconds(),
        holder: holder(&surroundings.holder),
    };
    let right = right_of(&opening);
    let mut devices = Devices::new();
    prepare(&mut layout, &right, occupied, surroundings, &mut devices)?;
    finish_layout(&mut layout, content, opening.epoch, surroundings)?;
    layout.blocks().ok_or(CreateError::Layout)?;
    let record = Record {
        name: name.to_owned(),
        uuid: surroundings.random_uuid(),
        completed: opening.epoch,
        openings: vec![opening],
        compare: 0,
        layout,
        append: None,
    };
    for member in record.layout.members() {
        write_first_header(&record, member, &*devices[&member.uuid])?;
    }
    write_blank_pages(&record.layout, &devices)?;
    coordinator.replace(name, Revision::ABSENT, &record.encode())?;
    Ok(record)
}

/// Makes what is at the places that `layout` names fit to be a further part of the volume of
/// `record`, or a further copy, which its owner then brings up to date.
pub fn prepare_part(
    record: &Record,
    mut layout: Layout,
    content: Content,
    occupied: Occupied,
    surroundings: &Surroundings,
) -> Result<Layout, CreateError> {
    // A record without an opening is none that was kept.
    let newest = record.openings.last().ok_or(CreateError::Layout)?;
    let (right, epoch) = (right_of(newest), newest.epoch);
    let known: Vec<_> = [Some(&record.layout), record.append.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(present)
        .collect();
    for member in layout.members() {
        if known.contains(&member.url.as_str()) {
            let reason = format!("it is a member of volume {} already", record.name);
            return Err(CreateError::Member { url: member.url.clone(), reason });
        }
    }
    let mut devices = Devices::new();
    prepare(&mut layout, &right, occupied, surroundings, &mut devices)?;
    finish_layout(&mut layout, content, epoch, surroundings)?;
    layout.blocks().ok_or(CreateError::Layout)?;
    for member in layout.members() {
        write_first_header(record, member, &*devices[&member.uuid])?;
    }
    write_blank_pages(&layout, &devices)?;
    Ok(layout)
}

/// Takes the header off a member of a volume that is no more, so that its disk can be used for
/// something else. A disk that is not the member any more is left alone.
pub fn release_member(
    record: &Record,
    member: &Member,
    surroundings: &Surroundings,
) -> Result<(), CreateError> {
    let url = &member.url;
    let refused =
        |error: MemberError| CreateError::Member { url: url.clone(), reason: error.to_string() };
    let nonce = (surroundings.random)();
    let right = Right {
        fence: Epoch(record.epoch().0 + 1).fence(0),
        holder: format!("{} ({nonce:016x})", surroundings.holder),
    };
    let is_it = |head: &Head| {
        let ours = |header: &Header| header.volume == record.uuid && header.member == member.uuid;
        matches!(head, Head::Header(header) if ours(header))
    };
    let at = (&**url, record.uuid);
    let (_, disk) = member::take(&*surroundings.connector, at, &right, COPY_PATIENCE, is_it)
        .map_err(refused)?;
    Ok(blank_head(&*disk)?)
}

/// Where the members are, but for those of copies that were taken out.
fn present(layout: &Layout) -> Vec<&str> {
    match layout {
        Layout::Member(member) => vec![&member.url],
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            parts.iter().flat_map(present).collect()
        }
        Layout::Mirror { copies, .. } => {
            let there = copies.iter().filter(|copy| copy.state != CopyState::Removed);
            there.flat_map(|copy| present(&copy.on)).collect()
        }
    }
}

fn right_of(opening: &Opening) -> Right {
    let holder = format!("{} ({:016x})", opening.holder, opening.nonce);
    Right { fence: opening.epoch.fence(0), holder }
}

/// The newest epoch that a target knows of: a new volume must begin above it.
fn look_at_epochs(
    layout: &Layout,
    newest: &mut Epoch,
    surroundings: &Surroundings,
) -> Result<(), CreateError> {
    let connector = &surroundings.connector;
    for member in layout.members() {
        let epoch = connector.fence_of(&member.url, COPY_PATIENCE).map_err(|error| {
            CreateError::Member { url: member.url.clone(), reason: error.to_string() }
        })?;
        *newest = (*newest).max(Epoch::of_fence(epoch));
    }
    Ok(())
}

fn prepare(
    layout: &mut Layout,
    right: &Right,
    occupied: Occupied,
    surroundings: &Surroundings,
    devices: &mut Devices,
) -> Result<(), CreateError> {
    match layout {
        Layout::Member(member) => {
            let disk = prepare_one(member, right, occupied, surroundings)?;
            devices.insert(member.uuid, disk);
        }
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            for part in parts {
                prepare(part, right, occupied, surroundings, devices)?;
            }
        }
        Layout::Mirror { copies, .. } => {
            for copy in copies {
                prepare(&mut copy.on, right, occupied, surroundings, devices)?;
            }
        }
    }
    Ok(())
}

fn prepare_one(
    member: &mut Member,
    right: &Right,
    occupied: Occupied,
    surroundings: &Surroundings,
) -> Result<Arc<dyn Disk>, CreateError> {
    let url = member.url.clone();
    let connect = |right| {
        let connected = surroundings.connector.connect(&url, right, COPY_PATIENCE);
        connected
            .map_err(|error| CreateError::Member { url: url.clone(), reason: error.to_string() })
    };
    // Nobody is kept out of a disk that is not going to be ours.
    let disk = connect(None)?;
    if disk.blocks() <= MEMBER_DATA_START + gabion_block::geometry::METADATA_BLOCKS {
        let reason = "it is too small".to_owned();
        return Err(CreateError::Member { url, reason });
    }
    let holds = match member::read_head(&*disk)? {
        Head::Blank => None,
        Head::Header(header) => Some(format!("is a member of the volume {}", header.volume)),
        Head::Broken => Some("was a member of a volume".to_owned()),
        Head::Other => Some("holds something".to_owned()),
    };
    drop(disk);
    if let (Some(holds), Occupied::Refuse) = (&holds, occupied) {
        return Err(CreateError::Occupied { url, holds: holds.clone() });
    }
    let disk = connect(Some(right))?;
    if holds.is_some() {
        blank_head(&*disk)?;
    }
    (member.uuid, member.blocks) = (surroundings.random_uuid(), disk.blocks());
    Ok(disk)
}

fn blank_head(disk: &dyn Disk) -> Result<(), DiskError> {
    let zeros = BlockSlice::new(Blocks::zeroed(MEMBER_DATA_START as usize));
    disk.write(BlockAddr(0), zeros, Durability::Fua)
}

/// Gives mirrors their identities and sizes, from the innermost outwards.
fn finish_layout(
    layout: &mut Layout,
    content: Content,
    epoch: Epoch,
    surroundings: &Surroundings,
) -> Result<(), CreateError> {
    match layout {
        Layout::Member(_) => {}
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            for part in parts {
                finish_layout(part, content, epoch, surroundings)?;
            }
        }
        Layout::Mirror { uuid, blocks, grows_to, copies } => {
            let mut least = u64::MAX;
            for (number, copy) in copies.iter_mut().enumerate() {
                finish_layout(&mut copy.on, content, epoch, surroundings)?;
                least = least.min(copy.on.blocks().ok_or(CreateError::Layout)?);
                copy.since = epoch;
                copy.state = match content {
                    Content::Unknown if number > 0 => CopyState::Stale { full: true },
                    _ => CopyState::InSync,
                };
            }
            (*uuid, *blocks, *grows_to) = (surroundings.random_uuid(), least, least);
        }
    }
    Ok(())
}

fn write_first_header(record: &Record, member: &Member, disk: &dyn Disk) -> Result<(), DiskError> {
    let header = Header {
        volume: record.uuid,
        member: member.uuid,
        sequence: 1,
        blocks: member.blocks,
        openings: record.openings.clone(),
    };
    member::write_header(disk, &header)
}

/// Gives all copies of all mirrors empty bitmaps; the outer mirrors' lie in the inner ones' data,
/// on each copy of them.
fn write_blank_pages(layout: &Layout, devices: &Devices) -> Result<(), CreateError> {
    match layout {
        Layout::Member(_) => {}
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            for part in parts {
                write_blank_pages(part, devices)?;
            }
        }
        Layout::Mirror { uuid, blocks, copies, .. } => {
            let geometry = Geometry::of_copies(*blocks).ok_or(CreateError::Layout)?;
            for copy in copies {
                write_blank_pages(&copy.on, devices)?;
                for disk in replicas(&copy.on, devices) {
                    for (addr, block) in blank_pages(geometry, *uuid) {
                        disk.write(addr, block, Durability::Cached)?;
                    }
                    disk.flush()?;
                }
            }
        }
    }
    Ok(())
}

/// The device that `layout` describes, as often as there are copies of it.
fn replicas(layout: &Layout, devices: &Devices) -> Vec<Arc<dyn Disk>> {
    let combine = |parts: &[Layout], together: &dyn Fn(Vec<Arc<dyn Disk>>) -> Arc<dyn Disk>| {
        let parts: Vec<_> = parts.iter().map(|part| replicas(part, devices)).collect();
        let most = parts.iter().map(Vec::len).max().unwrap_or_default();
        let nth = |n: usize| parts.iter().map(|part| Arc::clone(&part[n % part.len()])).collect();
        (0..most).map(|n| together(nth(n))).collect()
    };
    match layout {
        Layout::Member(member) => {
            vec![Arc::new(member::data(Arc::clone(&devices[&member.uuid]), member.blocks))]
        }
        Layout::Linear(parts) => {
            combine(parts, &|disks| Arc::new(Linear::new("new".into(), disks)))
        }
        Layout::Stripe { chunk_blocks, parts } => {
            combine(parts, &|disks| Arc::new(Stripe::new("new".into(), *chunk_blocks, disks)))
        }
        Layout::Mirror { blocks, copies, .. } => {
            let data = gabion_block::geometry::METADATA_BLOCKS;
            let all = copies.iter().flat_map(|copy| replicas(&copy.on, devices));
            let data = |disk| Window::new(disk, data, *blocks - data);
            all.map(|disk| Arc::new(data(disk)) as Arc<dyn Disk>).collect()
        }
    }
}
