//! `gabion up`: from nothing to a mounted filesystem, and back with Ctrl-C.
//!
//! ```text
//!   DATA/a.img <- target a --.
//!                            |-- volume "up", a mirror -- filesystem -- MOUNTPOINT
//!   DATA/b.img <- target b --'
//!   DATA/state                   the volume's record, and its events
//!   DATA/ready                   there when all of that was made
//! ```
//!
//! With `--single`, or where an earlier version has made `DATA/gabion.img`, the filesystem is in
//! that one image.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use gabion_block::record::Layout;
use gabion_host::file_disk::create_image;
use gabion_host::signals::Signals;
use gabion_volume::create::{Content, Occupied, create};
use gabion_volume::layout::{self, Kind};
use gabion_volume::register;

use super::mkfs;
use super::mount;
use crate::args;
use crate::failure::{Failure, Result, chain};
use crate::frugality;
use crate::options::Settings;
use crate::print;
use crate::targets::Targets;
use crate::volumes::{self, Place};

/// The image's name in its folder, if there is one only.
const IMAGE: &str = "gabion.img";
/// The volume's name.
const VOLUME: &str = "up";
/// What target, member and mirror keep at the heads of an image, in bytes.
const OWN_BYTES: u64 = 3 << 20;

/// Runs the command.
pub fn run(args: &args::Up) -> Result<()> {
    frugality::restart(frugality::Keep::Nothing);
    let signals = mount::signals()?;
    make_folder(&args.data)?;
    if args.single || args.data.join(IMAGE).exists() {
        return single(args, &signals);
    }
    let is_new = !args.data.join("ready").exists();
    for name in Targets::NAMES {
        let image = args.data.join(format!("{name}.img"));
        if !image.exists() {
            create_image(&image, args.size.0 + OWN_BYTES)
                .map_err(|error| Failure::new(chain(&error)))?;
        }
    }
    let targets = Targets::start(&args.data)?;
    let state = state(&args.data)?;
    make_or_find(args, &state, &targets.urls(), is_new)?;
    let stand_in = args.data.join("volume");
    File::options()
        .create(true)
        .append(true)
        .open(&stand_in)
        .map_err(|error| Failure::of(format!("cannot make {}", stand_in.display()), &error))?;
    let place = Place { path: stand_in, volume: Some(VOLUME.to_owned()), state: Some(state) };
    let data = args.data.display();
    let made = match is_new {
        true => format!(
            "Made a filesystem with a copy in each of {data}/a.img and {data}/b.img: sparse, it \
             can grow to {}.\n",
            args.size
        ),
        false => String::new(),
    };
    let [a, b] = targets.processes();
    let told = format!(
        "{made}The copies are at two targets, the processes {a} and {b}.\n\
         Mounted it at {mountpoint}. Ctrl-C unmounts it.\n\
         \n\
         Try in another terminal:\n    \
         cp -r /usr/include {mountpoint}/ && sync\n    \
         kill -9 {b}\n    \
         GABION_STATE={data}/state gabion events --since 1\n    \
         gabion status {mountpoint}\n    \
         gabion scrub {mountpoint}",
        mountpoint = args.mountpoint.display(),
    );
    serve(place, args, &signals, &told, &format!("{data}/a.img and {data}/b.img"))
}

/// The filesystem in one image.
fn single(args: &args::Up, signals: &Signals) -> Result<()> {
    let image = args.data.join(IMAGE);
    let mut made = String::new();
    if !image.exists() {
        mkfs::make_image(&image, args.size)?;
        let (image, size) = (image.display(), args.size);
        made = format!("Made a filesystem in {image}: sparse, it can grow to {size}.\n");
    }
    let mountpoint = args.mountpoint.display();
    let told = format!(
        "{made}\
         Mounted {} at {mountpoint}. Ctrl-C unmounts it.\n\
         \n\
         Try in another terminal:\n    \
         cp -r /usr/include {mountpoint}/ && sync\n    \
         gabion status {mountpoint}\n    \
         gabion scrub {mountpoint}",
        image.display()
    );
    let place = Place { path: image.clone(), volume: None, state: None };
    serve(place, args, signals, &told, &image.display().to_string())
}

fn serve(
    place: Place,
    args: &args::Up,
    signals: &Signals,
    told: &str,
    kept_in: &str,
) -> Result<()> {
    // A dead mount at the mountpoint is there, but cannot be looked at.
    let is_mounted = crate::mounts::at(&args.mountpoint)?.is_some();
    if !is_mounted {
        make_folder(&args.mountpoint)?;
    }
    let plan = mount::plan_at(place, &args.mountpoint, Settings::new(mount::users()))?;
    mount::in_foreground(plan, signals, || print::line(told))?;
    let mountpoint = args.mountpoint.display();
    print::line(format!(
        "Unmounted {mountpoint}. All of it is in {kept_in}; `gabion up` brings it back."
    ))
}

/// The folder of the volume's record, by a path that holds wherever a daemon works.
fn state(data: &Path) -> Result<PathBuf> {
    let state = data.join("state");
    let cannot = |error: io::Error| Failure::of(format!("cannot make {}", state.display()), &error);
    fs::create_dir_all(&state).map_err(cannot)?;
    state.canonicalize().map_err(cannot)
}

/// Makes the volume and the filesystem on it, if that was not done to its end before.
fn make_or_find(args: &args::Up, state: &Path, urls: &[String], is_new: bool) -> Result<()> {
    let surroundings = volumes::surroundings_in(state, "gabion up")?;
    let coordinator = &*surroundings.coordinator;
    let cannot = |what: &str| {
        let what = what.to_owned();
        move |error: &dyn std::error::Error| Failure::of(what.clone(), error)
    };
    if !is_new {
        // Sockets may be elsewhere than the last time.
        return register::change(coordinator, VOLUME, |record| {
            let mut members = urls.iter();
            rename(&mut record.layout, &mut members);
            Ok::<_, Failure>(())
        });
    }
    if let Some(half_made) = coordinator.read(VOLUME).map_err(volumes::unanswered)? {
        coordinator.remove(VOLUME, half_made.revision).map_err(volumes::unanswered)?;
    }
    let parts = urls.iter().map(|url| layout::parse(url)).collect::<std::result::Result<_, _>>();
    let layout =
        layout::of_parts(Kind::Mirror, parts.map_err(|error| cannot("cannot go on")(&error))?);
    create(VOLUME, layout, Content::Equal, Occupied::Overwrite, &surroundings)
        .map_err(|error| cannot("cannot make the volume")(&error))?;
    mkfs::make_on_volume(volumes::open(VOLUME, &surroundings)?)?;
    let ready = args.data.join("ready");
    File::create(&ready)
        .and_then(|file| file.sync_all())
        .and_then(|()| File::open(&args.data)?.sync_all())
        .map_err(|error| cannot("cannot finish the filesystem")(&error))
}

fn rename<'a>(layout: &mut Layout, urls: &mut impl Iterator<Item = &'a String>) {
    match layout {
        Layout::Member(member) => {
            if let Some(url) = urls.next() {
                member.url.clone_from(url);
            }
        }
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            parts.iter_mut().for_each(|part| rename(part, urls));
        }
        Layout::Mirror { copies, .. } => {
            copies.iter_mut().for_each(|copy| rename(&mut copy.on, urls));
        }
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|error| {
            Failure::of(format!("cannot make the folder {}", folder.display()), &error)
        }),
    }
}
