//! Arguments of the commands that save and restore.

use std::path::PathBuf;

use clap::Args;

use crate::size::Size;

/// What opens a stream that is encrypted.
#[derive(Debug, Args)]
pub struct Secrets {
    /// Encrypt, or open what is encrypted, with the first line of this file as passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    pub passphrase_file: Option<PathBuf>,
    /// The same with all bytes of this file, at least 32
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Arguments of `gabion backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// Save only what has changed since the last backup to the same place
    #[arg(long)]
    pub incremental: bool,
    /// Read at most so much in a second
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    pub rate: Option<Size>,
    #[command(flatten)]
    pub secrets: Secrets,
    /// What to save: a mountpoint, a subvolume, a block device, an image file or a volume, or a
    /// subvolume in it as in disk.img:/home
    #[arg(value_name = "PATH|TARGET")]
    pub subject: PathBuf,
    /// Where to: a folder, a file, s3://BUCKET/PREFIX, gabion://HOST/FOLDER; - for standard output
    pub to: PathBuf,
}

fn rate(text: &str) -> Result<Size, String> {
    match text.parse()? {
        Size(0) => Err("nothing would ever be read; leave it out for as fast as possible".into()),
        rate => Ok(rate),
    }
}

/// Arguments of `gabion restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// Restore this backup, by its number or the beginning of it; the newest if not given
    #[arg(long, value_name = "BACKUP")]
    pub at: Option<String>,
    /// Restore only this file or directory, by its path in the backup
    #[arg(long, value_name = "SUBPATH")]
    pub only: Option<PathBuf>,
    /// Restore to a filesystem that is not Gabion
    #[arg(long)]
    pub to_directory: bool,
    #[command(flatten)]
    pub secrets: Secrets,
    /// A backup, or a place with some: a folder, s3://BUCKET/PREFIX, gabion://HOST/FOLDER; or -
    pub from: PathBuf,
    /// What to make: a path where nothing is, or an empty directory; or TARGET:/PATH
    pub path: PathBuf,
}

/// Arguments of `gabion verify`.
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pub secrets: Secrets,
    /// A backup, or a place with some: a folder, s3://BUCKET/PREFIX, gabion://HOST/FOLDER; or -
    pub from: PathBuf,
}

/// Arguments of `gabion backups`.
#[derive(Debug, Args)]
pub struct Backups {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// A backup, or a place with some: a folder, s3://BUCKET/PREFIX, gabion://HOST/FOLDER
    pub from: PathBuf,
}
