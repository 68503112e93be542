//! The command line. The text here is what `--help` prints.

pub mod backup;
pub mod keeping;
pub mod sharing;
pub mod snapshots;
pub mod volumes;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::backup::{Backup, Backups, Restore, Verify};
use self::sharing::{Clients, Evict, Invite, Join, Leases, Locks, Serve};
use self::snapshots::{Clone, Snapshot, Subvolume};
use self::volumes::{Target, Volume};
use crate::cmd::events::Since;
use crate::size::Size;

/// A filesystem that never needs fsck.
#[derive(Debug, Parser)]
#[command(name = "gabion", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 4 damage found.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a mirrored filesystem if there is none yet and mount it here twice, until Ctrl-C
    Up(Up),
    /// Make a filesystem on a block device or in an image file
    Mkfs(Mkfs),
    /// Mount a filesystem
    Mount(Mount),
    /// Unmount a filesystem and wait until all of it is on the disk
    Umount(Umount),
    /// Show what is mounted, or what is on a device or in an image
    Status(Status),
    /// Read everything and compare it with its checksums
    Scrub(Scrub),
    /// Make a filesystem use a disk that became longer
    Grow(Grow),
    /// Make, show, compare and remove snapshots
    Snapshot(Snapshot),
    /// Save a filesystem while it is in use
    Backup(Backup),
    /// Show the backups that are kept at a place
    Backups(Backups),
    /// Make a tree of files of a backup
    Restore(Restore),
    /// Read a backup and compare it with its checksums
    Verify(Verify),
    /// Make a subvolume that begins as a snapshot is, and shares its blocks
    Clone(Clone),
    /// Make, show and remove subvolumes
    Subvolume(Subvolume),
    /// Limit how much subvolumes may refer to, and show what they do
    Quota(keeping::Quota),
    /// Bring back from a snapshot what is gone
    Undelete(keeping::Undelete),
    /// Show what has happened to volumes, members and filesystems
    Events(Events),
    /// Show the structures on a device or in an image, for people who debug
    Inspect(Inspect),
    /// Print what a shell needs to complete these commands
    Completions(Completions),
    /// Let other machines mount a filesystem, until Ctrl-C
    Serve(Serve),
    /// Let another machine join what is served here: print a line for it
    Invite(Invite),
    /// Use an invitation to what another machine serves, and mount it
    Join(Join),
    /// Show who has mounted what is served here
    Clients(Clients),
    /// Show what the clients of what is served here may cache
    Leases(Leases),
    /// Show which advisory locks the clients of what is served here have
    Locks(Locks),
    /// End the session of a client of what is served here
    Evict(Evict),
    /// Offer files and devices to NBD clients, until Ctrl-C
    Target(Target),
    /// Make and tend volumes: disks of several machines as one
    Volume(Volume),
}

/// Arguments of `gabion up`.
#[derive(Debug, Args)]
pub struct Up {
    /// The folder of the images
    #[arg(long, value_name = "DIR", default_value = "gabion-data")]
    pub data: PathBuf,
    /// How large a new filesystem can grow
    #[arg(long, value_name = "SIZE", default_value = "64G")]
    pub size: Size,
    /// Keep one copy in an image file, instead of one at each of two targets
    #[arg(long)]
    pub single: bool,
    /// How many times to mount it, as so many machines would
    #[arg(long, value_name = "N", default_value = "2", conflicts_with = "single",
          value_parser = clap::value_parser!(u8).range(1..=16))]
    pub mounts: u8,
    /// Where to mount; the second time at MOUNTPOINT-2, and so on
    #[arg(value_name = "MOUNTPOINT", default_value = "gabion-mnt")]
    pub mountpoint: PathBuf,
}

/// Arguments of `gabion mkfs`.
#[derive(Debug, Args)]
pub struct Mkfs {
    /// Length of the filesystem; makes an image file of this length if there is none
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Size>,
    /// A name for people, at most 64 bytes
    #[arg(long, value_name = "LABEL", default_value = "", hide_default_value = true)]
    pub label: String,
    /// The identity; a random one if not given
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<String>,
    /// Overwrite what is there
    #[arg(long)]
    pub force: bool,
    /// A block device or an image file
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
}

/// Arguments of `gabion mount`.
#[derive(Debug, Args)]
pub struct Mount {
    /// Options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Stay in the foreground, until Ctrl-C
    #[arg(long)]
    pub foreground: bool,
    /// End when the process ends that has started this one
    #[arg(long, hide = true, requires = "foreground")]
    pub with_parent: bool,
    /// Talk to a server without encryption, as by -o insecure
    #[arg(long, conflicts_with = "tls_cert")]
    pub insecure: bool,
    /// Show a server the certificate in this PEM file, instead of that of gabion join
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The authority of the server's certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// A block device, an image file, a volume, or gabion://HOST:PORT/
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
    /// Where to mount
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// Arguments of `gabion umount`.
#[derive(Debug, Args)]
pub struct Umount {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// Arguments of `gabion status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// A mountpoint, a block device, an image file or a volume; all mounts if not given
    #[arg(value_name = "MOUNTPOINT|TARGET")]
    pub subject: Option<PathBuf>,
}

/// Arguments of `gabion scrub`.
#[derive(Debug, Args)]
pub struct Scrub {
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Compare the map of blocks in use with what is reachable, too; commits wait meanwhile
    #[arg(long)]
    pub allocation: bool,
    /// A mountpoint, a block device, an image file or a volume
    #[arg(value_name = "MOUNTPOINT|TARGET")]
    pub subject: PathBuf,
}

/// Arguments of `gabion grow`.
#[derive(Debug, Args)]
pub struct Grow {
    /// Length of the filesystem afterwards; makes an image file longer if it is shorter than that.
    /// All of the disk if not given
    #[arg(long, value_name = "SIZE")]
    pub to: Option<Size>,
    /// A mountpoint, a block device, an image file or a volume
    #[arg(value_name = "MOUNTPOINT|TARGET")]
    pub subject: PathBuf,
}

/// Arguments of `gabion events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Wait for more, until Ctrl-C
    #[arg(long)]
    pub follow: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Begin here: a number, a time like 2026-11-22T13:45 or a span like 2h; otherwise all that is
    /// kept is shown, and with --follow nothing of it
    #[arg(long, value_name = "TIME|NUMBER")]
    pub since: Option<Since>,
}

/// Arguments of `gabion inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A block device or an image file
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
    /// What to show; the superblocks if not given
    #[command(subcommand)]
    pub structure: Option<Structure>,
}

/// What `gabion inspect` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Subcommand)]
pub enum Structure {
    /// The superblock ring and the newest superblock
    #[default]
    Superblock,
    /// The nodes and items of all trees
    Tree,
    /// One object's items
    Inode {
        /// Its inode number, in the first subvolume
        number: u64,
    },
    /// The allocation groups
    Alloc,
    /// The journal's records since the last commit
    Journal,
}

/// Arguments of `gabion completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// For which shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Shells that complete commands.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// Fish.
    Fish,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_declaration_makes_sense() {
        Cli::command().debug_assert();
    }

    #[test]
    fn inspect_takes_its_target_before_the_structure() {
        let parse = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Inspect(inspect) => inspect.structure.unwrap_or_default(),
            other => panic!("{other:?}"),
        };
        assert_eq!(parse("gabion inspect disk.img"), Structure::Superblock);
        assert_eq!(parse("gabion inspect disk.img inode 7"), Structure::Inode { number: 7 });
        assert_eq!(parse("gabion inspect disk.img alloc"), Structure::Alloc);
    }
}
