//! `gabion up`: from nothing to a filesystem that is mounted twice, and back with Ctrl-C.
//!
//! ```text
//!   DATA/a.img <- target a --.                                        .-- MOUNTPOINT
//!                            |-- volume "up", a mirror -- server -----|
//!   DATA/b.img <- target b --'                                        '-- MOUNTPOINT-2
//!   DATA/state                   the volume's record, its events, and who had it mounted
//!   DATA/ready                   there when all of that was made
//! ```
//!
//! Targets, server and mounts are processes of their own, which stand for machines: this one makes
//! what they use, starts them, and ends them in the order mounts, server, targets. It touches no
//! mount, but for taking away what killed ones have left.
//!
//! With `--single`, or where an earlier version has made `DATA/gabion.img`, the filesystem is in
//! that one image, and is mounted once, by this process.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use gabion_base::BLOCK_SIZE;
use gabion_block::record::Layout;
use gabion_host::file_disk::create_image;
use gabion_host::signals::{Signals, Wake};
use gabion_map::MapError;
use gabion_map::layout::BLOCKS_MIN;
use gabion_volume::create::{Content, Occupied, create};
use gabion_volume::layout::{self, Kind};
use gabion_volume::register;
use rustix::process::{Signal, geteuid};

use super::mkfs;
use super::mount;
use crate::args;
use crate::failure::{Failure, Result, chain};
use crate::frugality;
use crate::mounts::{self, Life};
use crate::options::Settings;
use crate::places;
use crate::print;
use crate::supervisor::{Supervised, Until};
use crate::targets::Targets;
use crate::volumes::{self, Place};

/// The image's name in its folder, if there is one only.
const IMAGE: &str = "gabion.img";
/// The volume's name.
const VOLUME: &str = "up";
/// What target, member and mirror keep at the heads of an image, in bytes.
const OWN_BYTES: u64 = 3 << 20;
/// After how much silence a mount is taken for gone. Nothing is lost on the way here, and who tries
/// what happens when the server is killed does not want to wait.
const SESSION_SECONDS: &str = "5";

/// Runs the command.
pub fn run(args: &args::Up) -> Result<()> {
    let [has_one, has_two] = [IMAGE, "a.img"].map(|name| args.data.join(name).exists());
    if args.single && has_two && !has_one {
        let data = args.data.display();
        return Err(Failure::new(format!("{data} has a filesystem with two copies already"))
            .next("Leave --single out to use it, or name another folder: --data DIR"));
    }
    check(args)?;
    if args.single || has_one {
        frugality::restart(frugality::Keep::Nothing);
        let signals = mount::signals()?;
        make_data(&args.data)?;
        return single(args, &signals);
    }
    let signals = mount::signals()?;
    make_data(&args.data)?;
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
    let server = serve(&state)?;
    let mountpoints = mountpoints(args)?;
    let start = |mountpoint: &PathBuf| mount(server.said(), mountpoint, &signals);
    let mounts = mountpoints.iter().map(start).collect::<Result<Vec<_>>>()?;
    // If nobody reads it the mounts are there all the same.
    let told = print::line(welcome(args, is_new, &targets, &server, &mountpoints));
    await_end(&mounts, &signals)?;
    drop(mounts);
    mountpoints.iter().try_for_each(|mountpoint| clean_up(mountpoint))?;
    server.end()?;
    drop(targets);
    told?;
    let (mountpoints, data) = (listed(&mountpoints), args.data.display());
    print::line(unmounted(&mountpoints, &format!("{data}/a.img and {data}/b.img")))
}

/// Fails before anything is made if that could be used for nothing.
fn check(args: &args::Up) -> Result<()> {
    let blocks = args.size.0 / BLOCK_SIZE as u64;
    if blocks < BLOCKS_MIN {
        let error = MapError::TooSmall { blocks, minimum: BLOCKS_MIN };
        return Err(Failure::of(format!("{} cannot be the size", args.size), &error));
    }
    let mountpoints = if args.single { vec![args.mountpoint.clone()] } else { mountpoints(args)? };
    for mountpoint in mountpoints {
        // What is mounted there may hang, or be dead.
        if mounts::at(&mountpoint)?.is_none()
            && fs::metadata(&mountpoint).is_ok_and(|found| !found.is_dir())
        {
            return Err(Failure::new(format!("{} is not a directory", mountpoint.display()))
                .next("Name another place to mount at: gabion up MOUNTPOINT"));
        }
    }
    Ok(())
}

/// What was made, and what to try.
fn welcome(
    args: &args::Up,
    is_new: bool,
    targets: &Targets,
    server: &Supervised,
    mountpoints: &[PathBuf],
) -> String {
    let data = args.data.display();
    let (first, last) = (mountpoints[0].display(), mountpoints[mountpoints.len() - 1].display());
    let made = match is_new {
        true => format!(
            "Made a filesystem with a copy in each of {data}/a.img and {data}/b.img: sparse, it \
             can grow to {}.\n",
            args.size
        ),
        false => String::new(),
    };
    let [a, b] = targets.processes();
    let all = match mountpoints.len() {
        1 => "it",
        2 => "both",
        _ => "all",
    };
    format!(
        "{made}The copies are at two targets, the processes {a} and {b}.\n\
         Process {server} serves it at {uri}, and the mounts are its clients.\n\
         Mounted it at {listed}. Ctrl-C unmounts {all}.\n\
         \n\
         Try in another terminal, in this folder:\n    \
         echo hello > {first}/file; cat {last}/file\n    \
         cp -r /usr/include/linux {first}/; ls {last}/linux\n    \
         {set}\n    \
         gabion status {last}\n    \
         gabion clients {VOLUME}; gabion leases {VOLUME}\n    \
         gabion scrub {VOLUME}\n    \
         kill -9 {b}; date > {first}/date; sync {first}/date\n    \
         gabion events --since 1",
        set = setting(&args.data),
        server = server.process(),
        uri = server.said(),
        listed = listed(mountpoints),
    )
}

/// What makes other commands find the volume, and this program if a shell would not find it.
fn setting(data: &Path) -> String {
    let state = match data.is_absolute() {
        true => format!("export GABION_STATE=\"{}/state\"", data.display()),
        false => format!("export GABION_STATE=\"$PWD/{}/state\"", data.display()),
    };
    match missing_folder() {
        Some(folder) => format!("{state} PATH=\"$PATH:{}\"", folder.display()),
        None => state,
    }
}

/// The folder of this program, if a shell would not find it there.
fn missing_folder() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let folders = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&folders).map(|folder| folder.join("gabion"));
    let found = found.find(|path| path.is_file()).and_then(|path| path.canonicalize().ok());
    (found.as_ref() != Some(&own)).then(|| own.parent().map(Path::to_owned)).flatten()
}

/// Serves the volume, at any port that is free, and the same one again after it was killed.
fn serve(state: &Path) -> Result<Supervised> {
    let what = "the server".to_owned();
    let cannot = |error: io::Error| Failure::of("cannot start the server", &error);
    let (program, state) = (std::env::current_exe().map_err(cannot)?, state.to_owned());
    let command = move |said: &str| {
        let address = said.strip_prefix("gabion://").and_then(|said| said.strip_suffix('/'));
        let mut command = Command::new(&program);
        command.args(["serve", "--with-parent", "--session-seconds", SESSION_SECONDS]);
        command.args(["--listen", address.unwrap_or("127.0.0.1:0"), VOLUME]);
        command.env("GABION_STATE", &state).env_remove("GABION_COORDINATOR");
        command
    };
    Supervised::start(what, Until::Asked, command, None)
}

/// Mounts what is served.
fn mount(uri: &str, mountpoint: &Path, signals: &Signals) -> Result<Supervised> {
    // A dead mount at the mountpoint is there, but cannot be looked at.
    if mounts::at(mountpoint)?.is_none() {
        make_folder(mountpoint)?;
    }
    let what = format!("the mount at {}", mountpoint.display());
    let cannot = |error: io::Error| Failure::of(format!("cannot start {what}"), &error);
    let program = std::env::current_exe().map_err(cannot)?;
    let (uri, mountpoint) = (uri.to_owned(), mountpoint.to_owned());
    let command = move |_: &str| {
        let mut command = Command::new(&program);
        command.args(["mount", "--foreground", "--with-parent", "--", &uri]).arg(&mountpoint);
        command
    };
    Supervised::start(what, Until::Done, command, Some(signals.waker()))
}

/// Passes on what asks for the end, until nothing is mounted any more. Whoever is in use says so
/// and stays, and knows what it means to be asked again.
fn await_end(mounts: &[Supervised], signals: &Signals) -> Result<()> {
    while mounts.iter().any(|mount| !mount.is_over()) {
        let wake = signals.wait();
        let signal = match wake.map_err(|error| Failure::of("cannot wait for signals", &error))? {
            Wake::Woken => continue,
            Wake::Interrupt => Signal::INT,
            Wake::Terminate | Wake::HangUp => Signal::TERM,
        };
        mounts.iter().for_each(|mount| mount.ask(signal));
    }
    Ok(())
}

/// Takes away what a mount has left that was killed just now.
fn clean_up(mountpoint: &Path) -> Result<()> {
    match mounts::at(mountpoint)?.filter(mounts::is_gabion) {
        Some(mount) if mounts::life(&mount) == Life::Dead => mounts::bury(&mount),
        _ => Ok(()),
    }
}

/// Where it is mounted: MOUNTPOINT, and beside that MOUNTPOINT-2 and so on.
fn mountpoints(args: &args::Up) -> Result<Vec<PathBuf>> {
    let given = &args.mountpoint;
    let first = match given.file_name() {
        // Without a slash at its end.
        Some(_) => given.components().collect::<PathBuf>(),
        None => given
            .canonicalize()
            .map_err(|error| Failure::of(format!("cannot mount at {}", given.display()), &error))?,
    };
    let name = |number| {
        let mut name = first.as_os_str().to_owned();
        if number > 1 {
            name.push(format!("-{number}"));
        }
        PathBuf::from(name)
    };
    Ok((1..=args.mounts).map(name).collect())
}

fn listed(mountpoints: &[PathBuf]) -> String {
    let names: Vec<_> = mountpoints.iter().map(|path| path.display().to_string()).collect();
    match names.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => names.concat(),
    }
}

fn unmounted(mountpoints: &str, kept_in: &str) -> String {
    format!("Unmounted {mountpoints}. All of it is in {kept_in}; `gabion up` brings it back.")
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
    // A dead mount at the mountpoint is there, but cannot be looked at.
    if mounts::at(&args.mountpoint)?.is_none() {
        make_folder(&args.mountpoint)?;
    }
    let place = Place { path: image.clone(), volume: None };
    let plan = mount::plan_at(place, &args.mountpoint, Settings::new(mount::users()))?;
    mount::in_foreground(plan, signals, || print::line(told))?;
    print::line(unmounted(&mountpoint.to_string(), &image.display().to_string()))
}

/// The folder of the volume's record, by a path that holds wherever a daemon works.
fn state(data: &Path) -> Result<PathBuf> {
    let state = data.join("state");
    let cannot = |error: io::Error| Failure::of(format!("cannot make {}", state.display()), &error);
    places::own(&state).map_err(cannot)?;
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

/// Makes the folder of the images. Where others could put links in place of them, those would be
/// written over.
fn make_data(data: &Path) -> Result<()> {
    let failed = |error: io::Error| {
        Failure::of(format!("cannot make the folder {}", data.display()), &error)
    };
    match DirBuilder::new().mode(0o755).create(data) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let found = fs::metadata(data).map_err(failed)?;
    if found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
        let what = format!("{} is not a folder that only you write to", data.display());
        return Err(Failure::new(what)
            .next("Make it yours (chown, chmod go-w), or name another folder: --data DIR"));
    }
    Ok(())
}

fn make_folder(folder: &Path) -> Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|error| {
            Failure::of(format!("cannot make the folder {}", folder.display()), &error)
        }),
    }
}
