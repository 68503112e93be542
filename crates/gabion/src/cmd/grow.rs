//! `gabion grow`: has a filesystem use a disk that became longer. The daemon does it for what is
//! mounted, the server for what is served; what nobody has in use is opened here.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::disk::Disk;
use gabion_host::file_disk::{FileDisk, OpenMode};
use gabion_map::{Limits, LocalMap};

use super::status::{self, User};
use crate::args::Grow;
use crate::control::wire::{Grown, Reply, Request};
use crate::failure::{Failure, Result};
use crate::growth;
use crate::mounts;
use crate::print;
use crate::size::Size;
use crate::target::not_opened;
use crate::volumes::{self, Place};

/// How long a daemon may take: as long as some commits with all that waits to be written.
const PATIENCE: Duration = Duration::from_secs(600);
/// Memory to work on what is not mounted, in bytes.
const MEMORY: u64 = 32 << 20;

/// Runs the command.
pub fn run(args: &Grow) -> Result<()> {
    let to_bytes = args.to.map(|size| size.0);
    let subject = &args.subject;
    let grown = match mounts::at(subject)?.filter(mounts::is_gabion) {
        Some(mount) => of_user(&User::Mount(mount), to_bytes)?,
        None => of_target(subject, to_bytes)?,
    };
    tell(&grown)
}

/// Says what has become of a filesystem.
pub fn tell(grown: &Grown) -> Result<()> {
    let Grown { target, from_bytes, to_bytes: now, most_bytes } = grown;
    let (from, now, most) = (Size(*from_bytes), Size(*now), Size(*most_bytes));
    if from == now {
        return print::line(format!(
            "{target}: the filesystem has {now} as before: all that there is, or was asked for"
        ));
    }
    print::line(format!("{target}: the filesystem grew from {from} to {now}; it can reach {most}"))
}

/// Has a filesystem grow by whoever has it in use.
pub fn of_user(user: &User, to_bytes: Option<u64>) -> Result<Grown> {
    let ask = || -> io::Result<Reply> {
        let mut connection = user.connect()?;
        connection.ask(Request::Grow { to_bytes }, PATIENCE)?;
        connection.reply()
    };
    match ask() {
        Ok(Reply::Grown(grown)) => Ok(grown),
        Ok(Reply::Error { message }) => {
            Err(Failure::new(format!("cannot grow {}: {message}", user.name())))
        }
        Ok(other) => Err(Failure::new(format!("the daemon answered {other:?}"))),
        Err(error) => Err(user.unreachable(&error)),
    }
}

fn of_target(target: &Path, to_bytes: Option<u64>) -> Result<Grown> {
    let place = Place::of(target)?;
    let name = place.name();
    if place.volume.is_none() {
        let metadata = std::fs::metadata(target)
            .map_err(|error| Failure::of(format!("cannot look at {name}"), &error))?;
        if metadata.is_dir() {
            return Err(Failure::new(format!("no Gabion filesystem is mounted at {name}"))
                .next("To see what is mounted: gabion status"));
        }
    }
    if let Some(user) = status::user(&place)? {
        return of_user(&user, to_bytes);
    }
    let cannot = format!("cannot grow {name}");
    match &place.volume {
        Some(volume) => {
            let volume = volumes::open(volume, &volumes::surroundings(None, "gabion grow")?)?;
            let volume = Arc::new(volume);
            let grown = on_disk(&name, Arc::clone(&volume) as Arc<dyn Disk>, None, to_bytes)?;
            volume.close().map_err(|error| Failure::of(&cannot, &error))?;
            Ok(grown)
        }
        None => {
            let disk = FileDisk::open(target, OpenMode::ReadWrite)
                .map_err(|error| not_opened(&cannot, target, &error))?;
            let disk = Arc::new(disk);
            on_disk(&name, Arc::clone(&disk) as Arc<dyn Disk>, Some(&disk), to_bytes)
        }
    }
}

/// Has the filesystem on a disk grow that nobody else has in use; `file` is the disk if it is one.
pub fn on_disk(
    name: &str,
    disk: Arc<dyn Disk>,
    file: Option<&FileDisk>,
    to_bytes: Option<u64>,
) -> Result<Grown> {
    let cannot = format!("cannot grow {name}");
    let limits = Limits::within(MEMORY);
    let map = LocalMap::open(disk, gabion_map::OpenMode::ReadWrite, limits)
        .map_err(|error| Failure::of(&cannot, &error))?;
    growth::grow(&map, file, name, to_bytes)
        .map_err(|message| Failure::new(format!("{cannot}: {message}")))
}
