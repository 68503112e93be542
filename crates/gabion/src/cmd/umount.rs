//! `gabion umount`: unmounts, and returns when everything is on the disk and the disk is free.
//!
//! 1. Find the mount in the kernel's list. One whose daemon is gone is just taken away.
//! 2. Connect to the daemon before the mount goes, and ask to be told of its end.
//! 3. Unmount. If somebody uses the mount, nothing has changed, and is said who. What the same
//!    daemon has just put in its place goes, too.
//! 4. Wait for the end of the daemon's process: only then are its locks gone, too. It does not come
//!    while the filesystem is mounted in another mount namespace; then that is said.
//!
//! A daemon that does not answer keeps the mount of a block device, as unmounting would wait for
//! it. One that cannot be asked otherwise, for any reason but that we may not, is told as a
//! failure: the mount is gone, but nobody knows whether all of it is on the disk.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant};

use gabion_fuse::mount::{MountError, Unmount, unmount};
use gabion_fuse::mountinfo::{self, Mount};

use crate::args;
use crate::control::client::Connection;
use crate::control::folder;
use crate::control::wire::{Reply, Request};
use crate::failure::{Failure, Result};
use crate::mounts::{self, Life};
use crate::patience;

/// How long a daemon may take to write all that it holds.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long it is waited before the cause is looked for elsewhere.
const GLANCE: Duration = Duration::from_secs(1);
/// How long a daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// Runs the command.
pub fn run(args: &args::Umount) -> Result<()> {
    let mount = find(&args.mountpoint)?;
    check_ours(&mount)?;
    if mounts::life(&mount) == Life::Dead {
        mounts::bury(&mount)?;
        eprintln!(
            "gabion: the daemon of {} was gone already; the mount is cleaned up",
            mount.mountpoint.display()
        );
        return Ok(());
    }
    let daemon = Daemon::of(&mount);
    if let Err(error) = &daemon
        && error.kind() == ErrorKind::WouldBlock
        && mount.fstype.starts_with("fuseblk")
    {
        return Err(silent(&mount));
    }
    unmount(&mount.mountpoint, Unmount::Plain).map_err(|error| not_unmounted(&mount, &error))?;
    match daemon {
        Ok(daemon) => daemon.await_end(&mount),
        // Not ours to talk to; the kernel has unmounted it all the same.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(not_awaited(&mount, &error)),
    }
}

fn find(mountpoint: &Path) -> Result<Mount> {
    let name = mountpoint.display();
    match mounts::at(mountpoint)? {
        Some(mount) if mounts::is_gabion(&mount) => Ok(mount),
        Some(mount) => {
            let kind = mount.fstype;
            Err(Failure::new(format!("{name} is not a Gabion mount: it is of type {kind}"))
                .next(format!("To unmount it: umount {name}")))
        }
        None => Err(Failure::new(format!("nothing is mounted at {name}"))
            .next("To see what is mounted: gabion status")),
    }
}

/// Fails if the kernel would not have us unmount it.
fn check_ours(mount: &Mount) -> Result<()> {
    let (user, owner) = (rustix::process::geteuid(), folder::owner(mount));
    if user.is_root() || user.as_raw() == owner {
        return Ok(());
    }
    let name = mount.mountpoint.display();
    let owner = if owner == 0 { "root".to_owned() } else { format!("user {owner}") };
    Err(Failure::new(format!("{name} was mounted by {owner}, who alone can unmount it, and root"))
        .next(format!("As root: gabion umount {name}")))
}

/// The daemon of a mount that is going to end.
struct Daemon {
    connection: Connection,
    pid: u32,
    end: patience::End,
}

impl Daemon {
    fn of(mount: &Mount) -> io::Result<Self> {
        let mut connection = Connection::open(mount)?;
        connection.ask(Request::Status, ANSWER)?;
        let pid = match connection.reply()? {
            Reply::Status(status) => status.mount.map(|mount| mount.pid),
            _ => None,
        };
        let pid = pid.ok_or_else(|| io::Error::other("it does not say which process it is"))?;
        let end = patience::End::of(pid);
        let end = end.ok_or_else(|| io::Error::other(format!("there is no process {pid}")))?;
        connection.ask(Request::AwaitEnd, ANSWER)?;
        // From here on it will not end without a word.
        connection.reply()?;
        Ok(Self { connection, pid, end })
    }

    /// What the same daemon has mounted in its place since.
    fn other_mount(&self, mount: &Mount) -> Option<Mount> {
        let other = mounts::at(&mount.mountpoint).ok()??;
        let is_other = mounts::is_gabion(&other) && other.device != mount.device;
        let process = Connection::at(&folder::socket_of(&other)).ok().filter(|_| is_other)?.peer();
        (process.and_then(|process| u32::try_from(process).ok()) == Some(self.pid)).then_some(other)
    }

    fn await_end(mut self, mount: &Mount) -> Result<()> {
        let name = mount.mountpoint.display();
        let mut mount = mount.clone();
        let began = Instant::now();
        loop {
            // It may just have been exchanged for another one, and then that was what stood in
            // for it meanwhile.
            while let Some(other) = self.other_mount(&mount) {
                unmount(&other.mountpoint, Unmount::Plain)
                    .map_err(|error| not_unmounted(&other, &error))?;
                mount = other;
            }
            if self.end.within(GLANCE) {
                break;
            }
            if let Some(user) = mounts::user_elsewhere(&mount) {
                let text = format!(
                    "{name} is unmounted here, but {user} has it in a mount namespace of its own"
                );
                return Err(Failure::new(text).next(format!(
                    "Everything goes on there. End it, and process {} will end, too.",
                    self.pid
                )));
            }
            if began.elapsed() < PATIENCE {
                continue;
            }
            let (pid, seconds) = (self.pid, PATIENCE.as_secs());
            let text = format!("{name} is unmounted, but its daemon still writes");
            return Err(Failure::new(text)
                .next(format!("Wait for process {pid} to end; it has not in {seconds} s.")));
        }
        match self.connection.reply() {
            Ok(Reply::Ended(ended)) => match ended.problem {
                None => Ok(()),
                Some(problem) => Err(Failure::new(format!(
                    "{name} is unmounted, but not all of it could be written: {problem}"
                ))),
            },
            _ => Err(Failure::new(format!("{name} is unmounted, but its daemon was killed"))
                .next("What had been synced is safe: the next mount replays the journal.")),
        }
    }
}

/// The kernel waits for the daemon of a block device without an end, and nothing could stop that.
fn silent(mount: &Mount) -> Failure {
    let name = mount.mountpoint.display();
    let process = Connection::open(mount).ok().and_then(|connection| connection.peer());
    let process = process.map_or_else(String::new, |pid| format!(" {pid}"));
    let text = format!("the daemon of {name} does not answer: it is not unmounted");
    Failure::new(text).next(format!(
        "It hangs, or was stopped: see to process{process} and to its disk. When it was killed, \
         gabion umount {name} cleans up; what had been synced is safe."
    ))
}

fn not_awaited(mount: &Mount, error: &io::Error) -> Failure {
    let name = mount.mountpoint.display();
    let socket = folder::socket_of(mount);
    let text = format!(
        "{name} is unmounted, but the end of its daemon could not be awaited: no answer at {}",
        socket.display()
    );
    let log = socket.with_file_name(folder::LOG);
    Failure::of(text, error).next(format!(
        "It may still be writing. The next mount waits for that; what fails is told in {}.",
        log.display()
    ))
}

fn not_unmounted(mount: &Mount, error: &MountError) -> Failure {
    let failure = Failure::new(crate::failure::chain(error));
    if let Ok(Some(below)) = mountinfo::below(&mount.mountpoint) {
        let below = below.mountpoint.display();
        return failure.next(format!("Another filesystem is mounted below, at {below}."));
    }
    match mounts::users(&mount.mountpoint).as_slice() {
        [] => failure,
        users => failure.next(format!("It is in use by {}.", users.join(", "))),
    }
}
