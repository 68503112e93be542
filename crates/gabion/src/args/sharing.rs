//! Arguments of the commands that share a filesystem with other machines.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::cmd::invite::Lifetime;

/// Arguments of `gabion serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7777")]
    pub listen: String,
    /// Who keeps the records of volumes: a folder, or etcd[s]://[USER@]HOST[:PORT][,HOST[:PORT]]...
    #[arg(long, value_name = "COORDINATOR")]
    pub coordinator: Option<String>,
    /// Wait as long as another server has the volume, and take its place when it is gone
    #[arg(long, conflicts_with = "read_only")]
    pub standby: bool,
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
    /// What is served, as `gabion serve` was told; what is served here if that is one filesystem
    #[arg(value_name = "TARGET")]
    pub target: Option<PathBuf>,
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
    /// What is served, as `gabion serve` was told; what is served here if that is one filesystem
    #[arg(value_name = "TARGET")]
    pub target: Option<PathBuf>,
}

/// Arguments of `gabion leases`.
#[derive(Debug, Args)]
pub struct Leases {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// What is served, as `gabion serve` was told, or a path in a mount of it on this machine; what
    /// is served here if that is one filesystem
    #[arg(value_name = "TARGET|PATH")]
    pub target: Option<PathBuf>,
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
    /// What is served, as `gabion serve` was told, or a path in a mount of it on this machine; what
    /// is served here if that is one filesystem
    #[arg(value_name = "TARGET|PATH")]
    pub target: Option<PathBuf>,
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
    /// What is served, as `gabion serve` was told; nothing where that is one filesystem
    #[arg(value_name = "TARGET|CLIENT")]
    pub first: OsString,
    /// The client's session, its name or its machine, as `gabion clients` shows them
    #[arg(value_name = "CLIENT")]
    pub second: Option<String>,
}
