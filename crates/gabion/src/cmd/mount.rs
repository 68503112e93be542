//! `gabion mount`, and `mount.gabion` as mount(8) calls it.
//!
//! In the background, the order of steps is what makes errors reach the user:
//!
//! 1. What killed daemons have left at the mountpoint or of the target is taken away.
//! 2. The process forks; the child opens, mounts, and reports, with the reason if it cannot.
//! 3. The parent asks the mount for its statistics, and ends with success when that is answered.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use gabion_host::daemon::{self, Launch, Outcome};
use gabion_host::signals::Signals;
use rustix::process::Signal;

use crate::args;
use crate::control::folder;
use crate::failure::{Exit, Failure, Result};
use crate::frugality::{self, Keep};
use crate::mount::Users;
use crate::mounts::{self, Life};
use crate::options::Settings;
use crate::print;
use crate::remote::RemoteTarget;
use crate::serve::{Daemon, Plan, Target};
use crate::supervisor;
use crate::volumes::{self, Place};

/// Whether the command returns when the mount is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ground {
    Fore,
    Back,
    /// In front, and for the process that has started this one: it is told when the mount is there.
    Child,
}

/// Runs the command.
pub fn run(args: &args::Mount) -> Result<()> {
    let mut settings = Settings::new(users());
    args.options.iter().try_for_each(|options| settings.apply(options))?;
    settings.insecure |= args.insecure;
    settings.set_tls_files([&args.tls_cert, &args.tls_key, &args.tls_ca])?;
    let ground = match (args.foreground, args.with_parent) {
        (true, true) => Ground::Child,
        (true, false) => Ground::Fore,
        (false, _) => Ground::Back,
    };
    mount(&args.target, &args.mountpoint, settings, ground)
}

/// Runs `mount.gabion TARGET MOUNTPOINT [-sfnvrw] [-N namespace] [-t type] [-o options]`.
pub fn run_for_mount8(arguments: &[OsString]) -> Result<()> {
    let call = Call::parse(arguments).map_err(|failure| failure.exit(Exit::Failed))?;
    if call.fake {
        return Ok(());
    }
    mount(&call.target, &call.mountpoint, call.settings, Ground::Back)
        .map_err(|failure| failure.exit(Exit::MountFailed))
}

/// What mount(8) asks for.
#[derive(Debug)]
struct Call {
    target: PathBuf,
    mountpoint: PathBuf,
    settings: Settings,
    fake: bool,
}

impl Call {
    fn parse(arguments: &[OsString]) -> Result<Self> {
        let mut settings = Settings::new(users());
        let mut places = Vec::new();
        let mut fake = false;
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.to_str() {
                Some("-o") => {
                    let options = rest.next().and_then(|options| options.to_str());
                    settings.apply(options.ok_or_else(|| usage("-o lacks its options"))?)?;
                }
                Some("-N" | "-t") => {
                    rest.next().ok_or_else(|| usage("an argument lacks its value"))?;
                }
                Some("-r") => settings.apply("ro")?,
                Some(flags) if flags.len() > 1 && flags.starts_with('-') => {
                    fake |= flags.contains('f');
                    // Verbose, without mtab, sloppy, read-write: nothing to do about those.
                    if let Some(unknown) = flags[1..].chars().find(|flag| !"fnsvw".contains(*flag))
                    {
                        return Err(usage(&format!("there is no option -{unknown}")));
                    }
                }
                _ => places.push(PathBuf::from(argument)),
            }
        }
        match <[PathBuf; 2]>::try_from(places) {
            Ok([target, mountpoint]) => Ok(Self { target, mountpoint, settings, fake }),
            Err(_) => Err(usage("a target and a mountpoint are needed")),
        }
    }
}

fn usage(what: &str) -> Failure {
    Failure::new(what).next("Usage: mount.gabion TARGET MOUNTPOINT [-fnsvrw] [-o OPTIONS]")
}

/// Who may use a mount if nothing is said about it.
pub fn users() -> Users {
    if rustix::process::geteuid().is_root() { Users::Everybody } else { Users::Owner }
}

fn mount(target: &Path, mountpoint: &Path, settings: Settings, ground: Ground) -> Result<()> {
    frugality::restart(match RemoteTarget::of(target) {
        Some(_) => Keep::Messages,
        None => Keep::Nothing,
    });
    let plan = plan(target, mountpoint, settings)?;
    match ground {
        Ground::Fore => in_foreground(plan, &signals()?, || Ok(())),
        Ground::Child => {
            // What is on a disk of this machine ends in order; for what is not there is no time.
            supervisor::end_with_parent(match plan.target {
                Target::Here(_) => Signal::TERM,
                Target::Remote(_) => Signal::KILL,
            })?;
            let mountpoint = plan.mountpoint.display().to_string();
            in_foreground(plan, &signals()?, || print::line(mountpoint))
        }
        Ground::Back => in_background(plan),
    }
}

/// The same, once it was found out what is to be mounted.
pub fn mount_in_background(target: &Path, mountpoint: &Path, settings: Settings) -> Result<()> {
    in_background(plan(target, mountpoint, settings)?)
}

/// Checks both places, after taking away what killed daemons have left there.
pub fn plan(target: &Path, mountpoint: &Path, settings: Settings) -> Result<Plan> {
    match RemoteTarget::of(target) {
        Some(target) => plan_remote(target?, mountpoint, settings),
        None => plan_at(Place::of(target)?, mountpoint, settings),
    }
}

fn plan_remote(target: RemoteTarget, mountpoint: &Path, settings: Settings) -> Result<Plan> {
    while let Some(mount) = mounts::at(mountpoint)?.filter(mounts::is_gabion) {
        if mounts::life(&mount) == Life::Serving {
            break;
        }
        mounts::bury(&mount)?;
    }
    let mountpoint = free_folder(&target.name(), mountpoint)?;
    Ok(Plan { target: Target::Remote(target), mountpoint, settings })
}

/// The same for a target that is known already.
pub fn plan_at(mut place: Place, mountpoint: &Path, settings: Settings) -> Result<Plan> {
    let target = place.name();
    mounts::bury_dead(&place.path, mountpoint)?;
    let found = place.path.canonicalize();
    place.path = found.map_err(|error| {
        volumes::or_volume(Failure::of(format!("cannot mount {target}"), &error), &place, &error)
    })?;
    let mountpoint = free_folder(&target, mountpoint)?;
    Ok(Plan { target: Target::Here(place), mountpoint, settings })
}

/// The folder, absolute, if none of our filesystems is mounted there.
fn free_folder(target: &str, mountpoint: &Path) -> Result<PathBuf> {
    if let Some(mount) = mounts::at(mountpoint)?.filter(mounts::is_gabion) {
        let (name, source) = (mountpoint.display(), Path::new(&mount.source).display());
        return Err(Failure::new(format!("{name} is a mountpoint already, of {source}"))
            .next(format!("To unmount it: gabion umount {name}")));
    }
    let folder = mountpoint.canonicalize().map_err(|error| {
        Failure::of(format!("cannot mount {target}: {}", mountpoint.display()), &error)
    })?;
    match folder.is_dir() {
        true => Ok(folder),
        false => Err(Failure::new(format!("{} is not a directory", mountpoint.display()))),
    }
}

/// Keeps the signals that ask for the end; before any thread is started, as threads inherit that.
pub fn signals() -> Result<Signals> {
    Signals::block().map_err(|error| Failure::of("cannot prepare for signals", &error))
}

/// Mounts and serves until the mount is gone. `up` is called when it is there.
pub fn in_foreground(plan: Plan, signals: &Signals, up: impl FnOnce() -> Result<()>) -> Result<()> {
    let daemon = Daemon::start(plan)?;
    // Nobody reads it; the mount is there all the same.
    let told = up();
    daemon.run(signals).and(told)
}

fn in_background(plan: Plan) -> Result<()> {
    let cannot = |error: &std::io::Error| Failure::of("cannot go to the background", error);
    let log = folder::log().map_err(|error| cannot(&error))?;
    let mountpoint = plan.mountpoint.clone();
    match daemon::detach(Some(&log)).map_err(|error| cannot(&error))? {
        Launch::Parent(Outcome::Ready) => await_answer(&mountpoint),
        Launch::Parent(Outcome::Failed { message, exit_code }) => {
            let exit = match exit_code {
                2 => Exit::Usage,
                _ => Exit::Failed,
            };
            Err(Failure::new(message).exit(exit))
        }
        Launch::Parent(Outcome::Died(status)) => {
            Err(Failure::new(format!("the daemon died while it mounted: {status}"))
                .next(format!("Its last words may be in {}", log.display())))
        }
        Launch::Child(readiness) => {
            let signals = Signals::block();
            let started = signals
                .map_err(|error| Failure::of("cannot prepare for signals", &error))
                .and_then(|signals| Ok((Daemon::start(plan)?, signals)));
            let reported = match started {
                Ok((daemon, signals)) => {
                    readiness.ready().map_err(|error| cannot(&error))?;
                    return daemon.run(&signals);
                }
                Err(failure) => readiness.failed(&failure.to_string(), failure.code().code()),
            };
            // The parent prints it; this process only ends with the same code.
            reported.map_err(|error| cannot(&error))?;
            std::process::exit(i32::from(Exit::Failed.code()))
        }
    }
}

fn await_answer(mountpoint: &Path) -> Result<()> {
    rustix::fs::statvfs(mountpoint).map(drop).map_err(|error| {
        let what = format!("{} is mounted, but does not answer", mountpoint.display());
        Failure::of(what, &error)
    })
}

/// Whether the program was started under the name that mount(8) uses.
pub fn is_called_by_mount8(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new("mount.gabion"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Call> {
        let arguments: Vec<_> = line.split(' ').map(OsString::from).collect();
        Call::parse(&arguments)
    }

    #[test]
    fn what_mount8_says_is_understood() {
        let call = parse("/dev/sdb1 /mnt -n -o rw,noatime,cache=32M -s -N 12 -v").unwrap();
        assert_eq!(call.target, Path::new("/dev/sdb1"));
        assert_eq!(call.mountpoint, Path::new("/mnt"));
        assert_eq!(call.settings.atime(), gabion_fs::AtimeRules::NONE);
        assert!(!call.fake);
        assert!(parse("a b -fn").unwrap().fake);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in ["a", "a b c", "a b -o", "a b -x", "a b -o frobnicate"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_name_of_the_program_decides() {
        assert!(is_called_by_mount8(OsStr::new("/sbin/mount.gabion")));
        assert!(!is_called_by_mount8(OsStr::new("/usr/bin/gabion")));
    }
}
