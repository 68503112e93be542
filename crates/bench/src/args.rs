//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Gabion's figures beside those of ext4 and of a FUSE passthrough, from one run. As root.
#[derive(Debug, Parser)]
#[command(name = "gabion-bench", max_term_width = 100)]
pub struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub command: Command,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mounted filesystems, through system calls
    Mount(Mount),
    /// The engine in this process, without FUSE
    Engine(Engine),
    /// NBD servers, by fio
    #[command(name = "nbd")]
    Targets(Targets),
    /// One filesystem mounted twice, beside others that several machines can share
    Link(Link),
    /// Backups of a mount, beside restic
    Backup(Backup),
    /// Snapshots of a filesystem that is written to, beside btrfs
    Snapshots(Snapshots),
    /// The process on the second mount; `link` starts it
    #[command(hide = true)]
    Agent,
}

/// Arguments of `gabion-bench mount`.
#[derive(Debug, Args)]
pub struct Mount {
    /// Rounds: each measures everything on every system once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Where the images are made, on the disk to be measured
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Only these workloads; "list" lists them
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only these systems: ext4, passthrough, gabion, mirror; all but the last if not given
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub systems: Vec<String>,
    /// The binary of Gabion; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    pub gabion: Option<PathBuf>,
    /// Options of `gabion mount`
    #[arg(long, value_name = "OPTIONS")]
    pub options: Option<String>,
    /// A passthrough filesystem: libfuse's passthrough_ll or passthrough_hp; the former is compiled
    /// from the examples of libfuse3-dev if not given
    #[arg(long, value_name = "FILE")]
    pub passthrough: Option<PathBuf>,
    /// The tree of real files that is unpacked
    #[arg(long, value_name = "DIR")]
    pub tree: Option<PathBuf>,
    /// Length of each image in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub image: u64,
    /// Length of the file that is streamed, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub stream: u64,
    /// Leave out the run of Gabion with little memory
    #[arg(long)]
    pub no_small_cache: bool,
}

/// Arguments of `gabion-bench engine`.
#[derive(Debug, Args)]
pub struct Engine {
    /// Rounds: each measures everything on both systems once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Where the images are made, on the disk to be measured
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Files that each thread makes
    #[arg(long, default_value_t = 6000)]
    pub files: usize,
    /// Only Gabion, for profilers
    #[arg(long)]
    pub alone: bool,
    /// Only these phases, and what they need, for profilers
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
}

/// Arguments of `gabion-bench nbd`.
#[derive(Debug, Args)]
pub struct Targets {
    /// Rounds: each measures everything on every server once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How long each measurement takes
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub seconds: u32,
    /// Where the image on a disk is made
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Length of the image in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub image: u64,
    /// The binary of Gabion; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    pub gabion: Option<PathBuf>,
    /// Leave out the image in memory
    #[arg(long)]
    pub no_memory: bool,
    /// Volumes instead of servers: a mirror of two targets, and a volume of one
    #[arg(long)]
    pub volumes: bool,
    /// Servers with clients that encrypt, in memory only
    #[arg(long, conflicts_with_all = ["volumes", "no_memory"])]
    pub tls: bool,
    /// Leave out the image on a disk
    #[arg(long)]
    pub no_disk: bool,
}

/// Arguments of `gabion-bench link`.
#[derive(Debug, Args)]
pub struct Link {
    /// Rounds: each measures everything on every system once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How much is done: "small" shows that all works, "full" gives figures
    #[arg(long, value_enum, default_value = "full")]
    pub size: Size,
    /// Only these beside Gabion: ext4, moosefs, gluster, cephfs, sshfs, juicefs; all that are
    /// installed if not given
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Only these workloads; "list" lists them
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Where the figures of all rounds are written, too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where all data lies, on the disk to be measured
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub data: PathBuf,
    /// The binary of Gabion; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    pub gabion: Option<PathBuf>,
}

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// So little that figures mean nothing.
    Small,
    /// What figures are made with.
    Full,
}

/// Arguments of `gabion-bench backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// Where everything is made, on the disk to be measured
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// The binary of Gabion; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    pub gabion: Option<PathBuf>,
    /// How much is done: "small" shows that all works, "full" gives figures
    #[arg(long, value_enum, default_value = "full")]
    pub size: Size,
    /// Only these cases: mixed, many, large; all if not given
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Gabion does not encrypt: what a passphrase costs is left out
    #[arg(long)]
    pub plain: bool,
}

/// Arguments of `gabion-bench snapshots`.
#[derive(Debug, Args)]
pub struct Snapshots {
    /// Where everything is made, on the disk to be measured
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Where streams go, best on another disk
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub streams: PathBuf,
    /// The binary of Gabion; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    pub gabion: Option<PathBuf>,
    /// How much is done: "small" shows that all works, "full" gives figures
    #[arg(long, value_enum, default_value = "full")]
    pub size: Size,
}
