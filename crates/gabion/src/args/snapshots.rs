//! Arguments of the commands about what a filesystem was and what stands beside it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cmd::snapshot::schedule::Keep;

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
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume, or a
        /// subvolume in it as in disk.img:/home
        #[arg(value_name = "PATH|TARGET")]
        subject: PathBuf,
        /// What it is to be called
        name: String,
    },
    /// Show all snapshots, oldest first
    List {
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume, or a
        /// subvolume in it as in disk.img:/home
        #[arg(value_name = "PATH|TARGET")]
        subject: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove snapshots; their space becomes free in the background
    Delete {
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume, or a
        /// subvolume in it as in disk.img:/home
        #[arg(value_name = "PATH|TARGET")]
        subject: PathBuf,
        /// The snapshots
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Do it, without asking
        #[arg(long)]
        yes: bool,
    },
    /// Show what was added (+), removed (-), changed (M) and renamed (R) between two snapshots
    Diff {
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume, or a
        /// subvolume in it as in disk.img:/home
        #[arg(value_name = "PATH|TARGET")]
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
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume, or a
        /// subvolume in it as in disk.img:/home
        #[arg(value_name = "PATH|TARGET")]
        subject: PathBuf,
        /// The snapshot
        name: String,
    },
    /// Have snapshots made by themselves and old ones removed, or show which are
    Schedule {
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume, or a
        /// subvolume in it as in disk.img:/home
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
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume, or a
        /// subvolume in it as in disk.img:/home
        #[arg(value_name = "PATH|TARGET")]
        subject: PathBuf,
        /// The snapshot
        name: String,
    },
    /// Let a snapshot be removed again
    Release {
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume, or a
        /// subvolume in it as in disk.img:/home
        #[arg(value_name = "PATH|TARGET")]
        subject: PathBuf,
        /// The snapshot
        name: String,
    },
}

/// Arguments of `gabion clone`.
#[derive(Debug, Args)]
pub struct Clone {
    /// A snapshot, as in MOUNTPOINT/.snapshots/NAME, or disk.img:/.snapshots/NAME
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: PathBuf,
    /// Where the clone is to be, in the same mount or image
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
        /// Where, in a mounted filesystem, or as in disk.img:/home
        path: PathBuf,
    },
    /// Show all subvolumes but the first
    List {
        /// A mountpoint, a folder below one, a block device, an image file or a volume
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Move a subvolume, with all that is in it
    Rename {
        /// Where it is
        from: PathBuf,
        /// Where it shall be, in the same mount or image
        to: PathBuf,
    },
    /// Remove a subvolume with all that is in it, and all its snapshots
    Delete {
        /// Where it is
        path: PathBuf,
        /// Do it, without asking
        #[arg(long)]
        yes: bool,
    },
}
