//! Arguments of the commands about targets and volumes.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use gabion_host::file_disk::Caching;
use gabion_nbd::address::Address;

use crate::cmd::target::Offer;

/// Arguments of `gabion target`.
#[derive(Debug, Args)]
pub struct Target {
    /// Where, and how.
    #[command(flatten)]
    pub offering: Offering,
    /// Refuse to write
    #[arg(long)]
    pub read_only: bool,
    /// Offer all of it as it is, without a header and hence without epochs
    #[arg(long)]
    pub raw: bool,
    /// Where writes wait for a flush
    #[arg(long, value_enum, default_value_t)]
    pub cache: Cache,
    /// End when the process ends that has started this one
    #[arg(long, hide = true)]
    pub with_parent: bool,
    /// What to offer, and the name that clients use for it
    #[arg(value_name = "NAME=PATH", required = true)]
    pub exports: Vec<Offer>,
}

/// Where writes to a target wait for a flush, by the names that are usual for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// In the disk itself at most: past the page cache, where the filesystem below allows that
    #[default]
    None,
    /// In the page cache of this machine
    Writeback,
}

impl From<Cache> for Caching {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::None => Self::None,
            Cache::Writeback => Self::Writeback,
        }
    }
}

/// Where NBD clients are served, and whether they encrypt.
#[derive(Debug, Args)]
pub struct Offering {
    /// Where to listen, HOST:PORT or unix:PATH; may be given several times
    #[arg(long, value_name = "ADDR", default_value = "[::1]:10809")]
    pub listen: Vec<Address>,
    /// Encrypt, with the certificate in this PEM file; clients that do not are refused
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Refuse clients without a certificate by the authority in this PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
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
        /// Where, and how.
        #[command(flatten)]
        offering: Offering,
    },
    /// Forget a volume, and free its members
    Delete {
        /// The volume
        name: String,
        /// Do it, without asking
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
