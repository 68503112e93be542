//! The command line. The text here is what `--help` prints.

pub mod backup;
pub mod keeping;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use gabion_nbd::address::Address;

use self::backup::{Backup, Backups, Restore, Verify};
use crate::cmd::events::Since;
use crate::cmd::invite::Lifetime;
use crate::cmd::snapshot::schedule::Keep;
use crate::cmd::target::Offer;
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
    #[arg(long, value_name = "LABEL", default_value = "")]
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
    /// A mountpoint, a block device or an image file; all mounts if not given
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
    /// A mountpoint, a block device or an image file
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

/// Arguments of `gabion snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// What to do.
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

/// What `gabion snapshot` does.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Make a snapshot of a filesystem as it is now
    Create {
        /// A mountpoint, a block device, an image file or a volume
        #[arg(value_name = "MOUNTPOINT|TARGET")]
        subject: PathBuf,
        /// What it is to be called
        name: String,
    },
    /// Show all snapshots, oldest first
    List {
        /// A mountpoint, a block device, an image file or a volume
        #[arg(value_name = "MOUNTPOINT|TARGET")]
        subject: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove snapshots; their space becomes free in the background
    Delete {
        /// A mountpoint, a block device, an image file or a volume
        #[arg(value_name = "MOUNTPOINT|TARGET")]
        subject: PathBuf,
        /// The snapshots
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
    /// Show what was added (+), removed (-), changed (M) and renamed (R) between two snapshots
    Diff {
        /// A mountpoint, a block device, an image file or a volume
        #[arg(value_name = "MOUNTPOINT|TARGET")]
        subject: PathBuf,
        /// The older snapshot
        from: String,
        /// The newer one
        to: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a filesystem or subvolume what it was; what it is becomes a snapshot
    Rollback {
        /// A block device, an image file or a volume
        #[arg(value_name = "TARGET")]
        subject: PathBuf,
        /// The snapshot
        name: String,
    },
    /// Have snapshots made by themselves and old ones removed, or show which are
    Schedule {
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume
        #[arg(value_name = "PATH|TARGET")]
        subject: PathBuf,
        /// How many to keep: hourly=N, daily=N, weekly=N, monthly=N; or none
        #[arg(value_name = "CLASS=N|none")]
        keep: Vec<Keep>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep a snapshot from being removed
    Hold {
        /// A mountpoint, a block device, an image file or a volume
        #[arg(value_name = "MOUNTPOINT|TARGET")]
        subject: PathBuf,
        /// The snapshot
        name: String,
    },
    /// Let a snapshot be removed again
    Release {
        /// A mountpoint, a block device, an image file or a volume
        #[arg(value_name = "MOUNTPOINT|TARGET")]
        subject: PathBuf,
        /// The snapshot
        name: String,
    },
}

/// Arguments of `gabion clone`.
#[derive(Debug, Args)]
pub struct Clone {
    /// A snapshot, as in MOUNTPOINT/.snapshots/NAME
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: PathBuf,
    /// Where the clone is to be, in the same mount
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// Arguments of `gabion subvolume`.
#[derive(Debug, Args)]
pub struct Subvolume {
    /// What to do.
    #[command(subcommand)]
    pub command: SubvolumeCommand,
}

/// What `gabion subvolume` does.
#[derive(Debug, Subcommand)]
pub enum SubvolumeCommand {
    /// Make an empty subvolume
    Create {
        /// Where, in a mounted filesystem
        path: PathBuf,
    },
    /// Show all subvolumes but the first
    List {
        /// A mountpoint, or a folder below one
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Move a subvolume, with all that is in it
    Rename {
        /// Where it is
        from: PathBuf,
        /// Where it shall be, in the same mount
        to: PathBuf,
    },
    /// Remove a subvolume with all that is in it, and all its snapshots
    Delete {
        /// Where it is
        path: PathBuf,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
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

/// Arguments of `gabion serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7777")]
    pub listen: String,
    /// Let everybody in who reaches it, without encryption
    #[arg(long)]
    pub insecure: bool,
    /// Show the certificate in this PEM file, instead of one by the filesystem's own authority
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The authority of the clients' certificates
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// Refuse to change anything
    #[arg(long)]
    pub read_only: bool,
    /// What may be mounted, and how; may be given several times. Options, separated by commas: ro,
    /// rw, root_squash, no_root_squash, all_squash, anonuid=N, anongid=N, trusted, and
    /// clients=CLIENT[+CLIENT]... with addresses, ADDRESS/BITS or names of certificates
    #[arg(long = "export", value_name = "PATH[:OPTIONS]")]
    pub exports: Vec<String>,
    /// After how many seconds of silence a machine is taken for gone
    #[arg(long, value_name = "N", default_value = "10",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub session_seconds: u64,
    /// End when the process ends that has started this one
    #[arg(long, hide = true)]
    pub with_parent: bool,
    /// Options, separated by commas: cache, commit
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// A block device, an image file or a volume
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
}

/// Arguments of `gabion invite`.
#[derive(Debug, Args)]
pub struct Invite {
    /// After what time the invitation ends: 90s, 15m, 1h, 7d
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub expires: Lifetime,
    /// Where the machine will find this one; its own addresses if not given; may be given several
    /// times
    #[arg(long, value_name = "HOST[:PORT]")]
    pub address: Vec<String>,
    /// What is served, as `gabion serve` was told
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
}

/// Arguments of `gabion join`.
#[derive(Debug, Args)]
pub struct Join {
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// What this machine is to be called there; its host name if not given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What `gabion invite` printed; `-` to read it from standard input
    #[arg(value_name = "LINE")]
    pub invitation: String,
    /// Where to mount
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// Arguments of `gabion clients`.
#[derive(Debug, Args)]
pub struct Clients {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// What is served, as `gabion serve` was told
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
}

/// Arguments of `gabion leases`.
#[derive(Debug, Args)]
pub struct Leases {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// What is served, as `gabion serve` was told
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
    /// Only what is leased of the object at this path in the filesystem
    #[arg(value_name = "PATH")]
    pub path: Option<String>,
}

/// Arguments of `gabion locks`.
#[derive(Debug, Args)]
pub struct Locks {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// What is served, as `gabion serve` was told
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
    /// Only the locks on the file at this path in the filesystem
    #[arg(value_name = "PATH")]
    pub path: Option<String>,
}

/// Arguments of `gabion evict`.
#[derive(Debug, Args)]
pub struct Evict {
    /// Take the machine's certificate back, too: it has to be invited again
    #[arg(long)]
    pub revoke: bool,
    /// What is served, as `gabion serve` was told
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
    /// The client's session, its name or its machine, as `gabion clients` shows them
    #[arg(value_name = "CLIENT")]
    pub client: String,
}

/// Arguments of `gabion target`.
#[derive(Debug, Args)]
pub struct Target {
    /// Where to listen, HOST:PORT or unix:PATH; may be given several times
    #[arg(long, value_name = "ADDR", default_value = "[::1]:10809")]
    pub listen: Vec<Address>,
    /// Refuse to write
    #[arg(long)]
    pub read_only: bool,
    /// Offer all of it as it is, without a header and hence without epochs
    #[arg(long)]
    pub raw: bool,
    /// Encrypt, with the certificate in this PEM file; clients that do not are refused
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Refuse clients without a certificate by the authority in this PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// End when the process ends that has started this one
    #[arg(long, hide = true)]
    pub with_parent: bool,
    /// What to offer, and the name that clients use for it
    #[arg(value_name = "NAME=PATH", required = true)]
    pub exports: Vec<Offer>,
}

/// Arguments of `gabion volume`.
#[derive(Debug, Args)]
pub struct Volume {
    /// Who keeps the records: a folder, or etcd[s]://[USER@]HOST[:PORT][,HOST[:PORT]]...
    #[arg(long, value_name = "COORDINATOR", global = true)]
    pub coordinator: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: VolumeCommand,
}

/// What `gabion volume` does.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(VolumeCreate),
    /// Show all volumes
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a volume, its copies and who had it open
    Status {
        /// The volume
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a copy to a mirror; it is filled while the volume is in use
    Add {
        /// The volume
        name: String,
        /// Where the copy is to be: a path, an nbd:// URI, or stripe(A,B) and so on
        url: String,
        /// A copy of the mirror that is meant, if the volume has several
        #[arg(long, value_name = "COPY")]
        beside: Option<String>,
        /// Destroy what is there
        #[arg(long)]
        force: bool,
    },
    /// Take a copy out of a mirror for good
    Remove {
        /// The volume
        name: String,
        /// Where the copy is
        url: String,
    },
    /// Add a copy to a mirror, and take another one out when it is in sync
    Replace {
        /// The volume
        name: String,
        /// Where the copy is
        old: String,
        /// Where a copy is to be
        new: String,
        /// Destroy what is there
        #[arg(long)]
        force: bool,
    },
    /// Leave a copy alone for a while
    Suspend {
        /// The volume
        name: String,
        /// Where the copy is
        url: String,
    },
    /// Use a copy again, and bring it up to date
    Resume {
        /// The volume
        name: String,
        /// Where the copy is
        url: String,
    },
    /// Lengthen a volume, also while it is in use
    Grow(VolumeGrow),
    /// Bring all copies up to date, if the volume is not in use
    Resync {
        /// The volume
        name: String,
        /// Compare all copies that are in sync, too
        #[arg(long)]
        verify: bool,
    },
    /// Offer a volume to NBD clients, until Ctrl-C
    Export {
        /// The volume
        name: String,
        /// Where to listen, HOST:PORT or unix:PATH; may be given several times
        #[arg(long, value_name = "ADDR", default_value = "[::1]:10809")]
        listen: Vec<Address>,
    },
    /// Forget a volume, and free its members
    Delete {
        /// The volume
        name: String,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// Arguments of `gabion volume grow`.
#[derive(Debug, Args)]
pub struct VolumeGrow {
    /// The volume
    pub name: String,
    /// What comes behind its end: a path, an nbd:// URI, or mirror(A,B) and so on. Without it,
    /// members that have become longer are used up to their ends
    pub url: Option<String>,
    /// Have the filesystem use what there is more, too
    #[arg(short = 'r', long)]
    pub resizefs: bool,
    /// Destroy what is on the new members
    #[arg(long)]
    pub force: bool,
    /// The new members hold the same, as fresh disks of zeros do: copy nothing at first
    #[arg(long)]
    pub equal: bool,
}

/// Arguments of `gabion volume create`.
#[derive(Debug, Args)]
pub struct VolumeCreate {
    /// Its name: letters, digits, '-', '_' and '.'
    pub name: String,
    /// The same on all of these: paths, nbd:// URIs, or stripe(A,B) and so on
    #[arg(long, value_name = "URL", num_args = 1..)]
    pub mirror: Vec<String>,
    /// One of these after the other
    #[arg(long, value_name = "URL", num_args = 1..)]
    pub linear: Vec<String>,
    /// In turns on these
    #[arg(long, value_name = "URL", num_args = 1..)]
    pub stripe: Vec<String>,
    /// Destroy what is on the members
    #[arg(long)]
    pub force: bool,
    /// The copies hold the same, as fresh disks of zeros do: copy nothing at first
    #[arg(long)]
    pub equal: bool,
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
