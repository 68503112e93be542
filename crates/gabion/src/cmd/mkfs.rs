//! `gabion mkfs`: makes a filesystem, and never over another one by accident.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::result::Result as StdResult;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::Disk;
use gabion_base::ids::Uuid;
use gabion_base::time::Timestamp;
use gabion_fs::{Caller, Changes, Context, ROOT};
use gabion_host::file_disk::{FileDisk, Kind, OpenMode, create_image};
use gabion_host::{clock, random};
use gabion_map::format::superblock::{LABEL_LENGTH_MAX, Superblock};
use gabion_map::layout::BLOCKS_MIN;
use gabion_map::open::{FormatOptions, superblocks};
use gabion_map::{FileId, Limits, LocalMap, MapError};
use gabion_volume::volume::Volume;
use rustix::process::{getegid, geteuid};

use crate::args::Mkfs;
use crate::failure::{Exit, Failure, Result, chain};
use crate::print;
use crate::size::Size;
use crate::target::not_opened;
use crate::volumes::{self, Place};

/// Memory that giving the root directory to its user may use, in bytes.
const MEMORY: u64 = 16 << 20;

/// What to do about data that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existing {
    Keep,
    Overwrite,
}

/// Runs the command.
pub fn run(args: &Mkfs) -> Result<()> {
    let uuid = identity(args.uuid.as_deref())?;
    if args.label.len() > LABEL_LENGTH_MAX {
        let length = args.label.len();
        let text = format!("the label has {length} bytes; {LABEL_LENGTH_MAX} are possible");
        return Err(Failure::new(text).exit(Exit::Usage));
    }
    let existing = if args.force { Existing::Overwrite } else { Existing::Keep };
    let superblock = make(&args.target, args.size, &args.label, uuid, existing)?;
    let size = Size(superblock.blocks * BLOCK_SIZE as u64);
    let target = args.target.display();
    print::line(format!("{target}: made a Gabion filesystem of {size}, {}", superblock.uuid))
}

/// Makes an image with a filesystem where there is nothing.
pub fn make_image(target: &Path, size: Size) -> Result<Superblock> {
    let uuid = Uuid::from_random(random::bytes());
    make(target, Some(size), "", uuid, Existing::Keep)
}

fn identity(given: Option<&str>) -> Result<Uuid> {
    match given {
        None => Ok(Uuid::from_random(random::bytes())),
        Some(text) => Uuid::parse(text).ok_or_else(|| {
            let wrong = format!("{text:?} is not a UUID of 32 hexadecimal digits");
            Failure::new(wrong).exit(Exit::Usage)
        }),
    }
}

fn make(
    target: &Path,
    size: Option<Size>,
    label: &str,
    uuid: Uuid,
    existing: Existing,
) -> Result<Superblock> {
    let cannot = |cause: &dyn Error| {
        Failure::of(format!("cannot make a filesystem on {}", target.display()), cause)
    };
    let occupied = |found: &str| {
        let target = target.display();
        Failure::new(format!("{target} is not empty: it holds {found}"))
            .next(format!("If nobody needs that any more: gabion mkfs --force {target}"))
    };
    if let Some(name) = Place::of(target)?.volume {
        let volume = volumes::open(&name, &volumes::surroundings(None, "gabion mkfs")?)?;
        let found = found_superblock(&volume).map_err(|error| cannot(&error))?;
        if let (Some(found), Existing::Keep) = (found, existing) {
            return Err(occupied(&found));
        }
        check_length(target, volume.blocks() * BLOCK_SIZE as u64, size)?;
        return on_volume(volume, size, label, uuid, &cannot);
    }
    let disk = open(target, size, existing)?;
    let found = found(&disk).map_err(|error| cannot(&*error))?;
    match (found, existing) {
        (None, _) => {}
        (Some(_), Existing::Overwrite) => {
            disk.wipe().map_err(|error| cannot(&error))?;
        }
        (Some(found), Existing::Keep) => return Err(occupied(&found)),
    }
    format(Arc::new(disk), size, label, uuid, &cannot)
}

fn on_volume(
    volume: Volume,
    size: Option<Size>,
    label: &str,
    uuid: Uuid,
    cannot: &dyn Fn(&dyn Error) -> Failure,
) -> Result<Superblock> {
    let volume = Arc::new(volume);
    let disk = Arc::clone(&volume) as Arc<dyn Disk>;
    let superblock = format(disk, size, label, uuid, cannot)?;
    volume.close().map_err(|error| cannot(&error))?;
    Ok(superblock)
}

/// Makes a filesystem on a new volume, whatever is on it.
pub fn make_on_volume(volume: Volume) -> Result<Superblock> {
    let uuid = Uuid::from_random(random::bytes());
    let cannot = |cause: &dyn Error| Failure::of("cannot make a filesystem", cause);
    on_volume(volume, None, "", uuid, &cannot)
}

fn format(
    disk: Arc<dyn Disk>,
    size: Option<Size>,
    label: &str,
    uuid: Uuid,
    cannot: &dyn Fn(&dyn Error) -> Failure,
) -> Result<Superblock> {
    let created = clock::now().seconds;
    let seed = random::bytes();
    let name_seed = u64::from_le_bytes(*seed.first_chunk().expect("16 bytes hold 8"));
    let blocks = size.map(|size| size.0 / BLOCK_SIZE as u64);
    let label = label.to_owned();
    let options = FormatOptions { uuid, label, name_seed, created, blocks };
    let superblock = gabion_node::format_filesystem(Arc::clone(&disk), &options)
        .map_err(|error| cannot(&error))?;
    if !geteuid().is_root() {
        give_to_user(disk, &superblock).map_err(|error| cannot(&error))?;
    }
    Ok(superblock)
}

/// Makes an ordinary user the owner of the root directory: nobody else could write there.
fn give_to_user(disk: Arc<dyn Disk>, superblock: &Superblock) -> gabion_fs::Result<()> {
    let map = LocalMap::open(disk, gabion_map::OpenMode::ReadWrite, Limits::within(MEMORY))?;
    let ctx = Context {
        seed: superblock.name_seed,
        now: Timestamp::new(superblock.created, 0),
        caller: Caller::superuser(),
    };
    let (uid, gid) = (Some(geteuid().as_raw()), Some(getegid().as_raw()));
    let changes = Changes { uid, gid, ..Changes::default() };
    for (subvol, _) in map.subvolumes() {
        let root = FileId::new(subvol, ROOT);
        map.transact(|txn| gabion_fs::setattr(txn, &ctx, root, &changes))?;
    }
    map.sync()?;
    Ok(())
}

/// What is on the disk, in words.
pub fn found(disk: &FileDisk) -> StdResult<Option<String>, Box<dyn Error>> {
    if let Some(signature) = disk.signature()? {
        return Ok(Some(signature.to_string()));
    }
    Ok(found_superblock(disk)?)
}

fn found_superblock(disk: &dyn Disk) -> StdResult<Option<String>, MapError> {
    // A superblock in any slot is a filesystem, even where the first slot was never written.
    let slots = superblocks(disk)?;
    let newest = slots.into_iter().rev().find_map(|slot| slot.content.ok());
    Ok(newest.map(|superblock| match superblock.label.as_str() {
        "" => format!("a Gabion filesystem ({})", superblock.uuid),
        label => format!("a Gabion filesystem {label:?} ({})", superblock.uuid),
    }))
}

/// Fails if a disk that nobody can lengthen has fewer bytes than are wanted.
fn check_length(target: &Path, length: u64, wanted: Option<Size>) -> Result<()> {
    let Some(wanted) = wanted.filter(|wanted| wanted.0 > length) else { return Ok(()) };
    let length = Size(length);
    Err(Failure::new(format!("{} has {length} only, not {wanted}", target.display()))
        .next("Leave --size out to use all of it."))
}

/// Opens the target; makes or lengthens an image if a size is given.
fn open(target: &Path, size: Option<Size>, existing: Existing) -> Result<FileDisk> {
    let cannot = format!("cannot make a filesystem on {}", target.display());
    let wanted = size.map(|size| size.0 / BLOCK_SIZE as u64);
    if let Some(blocks) = wanted.filter(|blocks| *blocks < BLOCKS_MIN) {
        // Before an image is made that nobody needs.
        return Err(Failure::of(cannot, &MapError::TooSmall { blocks, minimum: BLOCKS_MIN }));
    }
    match (fs::metadata(target), size) {
        (Err(error), Some(size)) if error.kind() == io::ErrorKind::NotFound => {
            create_image(target, size.0).map_err(|error| Failure::new(chain(&error)))?;
        }
        (Err(error), None) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("{} does not exist", target.display());
            let step = format!("To make an image: gabion mkfs --size 10G {}", target.display());
            return Err(Failure::new(text).next(step));
        }
        (Err(error), _) => return Err(Failure::of(cannot, &error)),
        (Ok(_), _) => {}
    }
    let disk = FileDisk::open(target, OpenMode::ReadWrite)
        .map_err(|error| not_opened(&cannot, target, &error))?;
    let Some(size) = size.filter(|size| size.0 > disk.bytes()) else { return Ok(disk) };
    if disk.kind() == Kind::Device {
        check_length(target, disk.bytes(), Some(size))?;
    }
    let is_free = || found(&disk).is_ok_and(|found| found.is_none());
    if existing == Existing::Overwrite || is_free() {
        let longer = fs::File::options().write(true).open(target);
        longer
            .and_then(|image| image.set_len(size.0))
            .map_err(|error| Failure::of(cannot.as_str(), &error))?;
        // The length is that of the opening.
        drop(disk);
        return FileDisk::open(target, OpenMode::ReadWrite)
            .map_err(|error| not_opened(&cannot, target, &error));
    }
    Ok(disk)
}
