//! Arguments of the commands that limit subvolumes and bring back what was in their snapshots.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cmd::quota::Limit;

/// Arguments of `gabion quota`.
#[derive(Debug, Args)]
pub struct Quota {
    /// What to do.
    #[command(subcommand)]
    pub command: QuotaCommand,
}

/// What `gabion quota` does.
#[derive(Debug, Subcommand)]
pub enum QuotaCommand {
    /// Limit how much a subvolume may refer to
    Set {
        /// A mountpoint, a subvolume below one, a block device, an image file or a volume, or a
        /// subvolume in it as in disk.img:/home
        #[arg(value_name = "PATH|TARGET")]
        subject: PathBuf,
        /// The most bytes, or none for as many as there is room for
        #[arg(value_name = "SIZE|none")]
        limit: Limit,
        /// The most files, directories and other objects; as many as there is room for if not given
        #[arg(long, value_name = "NUMBER")]
        objects: Option<u64>,
    },
    /// Show the subvolumes with a quota, and what they refer to
    List {
        /// A mountpoint, a folder below one, a block device, an image file or a volume; all mounts
        /// if not given
        #[arg(value_name = "PATH|TARGET")]
        subject: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `gabion undelete`.
#[derive(Debug, Args)]
pub struct Undelete {
    /// What is gone: a file or a folder below a mountpoint, or TARGET:/PATH
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// The snapshot to take it from; the newest that has it if not given
    #[arg(long, value_name = "SNAPSHOT")]
    pub from: Option<String>,
    /// Where it is to be; where it was if not given
    #[arg(long, value_name = "PATH")]
    pub to: Option<PathBuf>,
    /// Show which snapshots have it, the newest first, and restore nothing
    #[arg(long, conflicts_with_all = ["from", "to"])]
    pub list: bool,
    /// Print JSON
    #[arg(long, requires = "list")]
    pub json: bool,
}
