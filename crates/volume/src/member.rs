//! Members of a volume as disks: where they are, their headers, and connecting to them.
//!
//! ```text
//!   a path        a file or device of this machine; held by a lock as long as it is open
//!   nbd://...     an export. A Gabion target is told the epoch, and keeps older ones out; another
//!                 server knows no epochs, so that only the claim with the coordinator protects it
//! ```

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskError, Durability};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::window::Window;
use gabion_block::format::header::{Header, MEMBER_DATA_START, is_header};
use gabion_block::opening::Found;
use gabion_host::file_disk::{FileDisk, OpenMode};
use gabion_nbd::address::Uri;
use gabion_nbd::client::{Client, ClientOptions, Epoch};
use thiserror::Error;

use crate::surroundings::COPY_PATIENCE;

/// Where a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// On this machine.
    Path(PathBuf),
    /// At a server.
    Export(Uri),
}

impl FromStr for Location {
    type Err = gabion_nbd::address::AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.contains("://") {
            true => Ok(Self::Export(text.parse()?)),
            false => Ok(Self::Path(text.into())),
        }
    }
}

/// Why a member cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemberError {
    /// There is no answer, or not the right one.
    #[error("{0}")]
    Unreachable(String),
    /// Somebody with a higher epoch has it.
    #[error("{0}")]
    Fenced(String),
    /// There is something else than the member, which is left alone.
    #[error("{0}")]
    Foreign(String),
}

/// As whom a member is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// The number that targets compare.
    pub fence: u64,
    /// Different for every opening.
    pub holder: String,
}

/// How long members may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For one request, reconnecting and all.
    pub deadline: Duration,
    /// Without a connection.
    pub lost: Duration,
}

/// How members are reached.
pub trait Connector: Send + Sync {
    /// Connects to what is at `url`, keeping out whoever has a lower fence; nobody without a right.
    fn connect(
        &self,
        url: &str,
        right: Option<&Right>,
        patience: Patience,
    ) -> Result<Arc<dyn Disk>, MemberError>;

    /// The newest fence that whoever serves a member knows of; 0 if it knows of none.
    fn fence_of(&self, url: &str, patience: Patience) -> Result<u64, MemberError>;
}

/// Paths of this machine, and exports of NBD servers.
pub struct Outside;

impl Connector for Outside {
    fn connect(
        &self,
        url: &str,
        right: Option<&Right>,
        patience: Patience,
    ) -> Result<Arc<dyn Disk>, MemberError> {
        connect(url, right, patience)
    }

    fn fence_of(&self, url: &str, patience: Patience) -> Result<u64, MemberError> {
        fence_of(url, patience)
    }
}

fn connect(
    url: &str,
    right: Option<&Right>,
    patience: Patience,
) -> Result<Arc<dyn Disk>, MemberError> {
    let location = url.parse().map_err(unreachable)?;
    let uri = match location {
        Location::Path(path) => return open_path(&path),
        Location::Export(uri) => uri,
    };
    let mut options = ClientOptions::default();
    (options.deadline, options.lost_patience) = (patience.deadline, patience.lost);
    let plain = Client::open(&uri, options.clone()).map_err(unreachable)?;
    let (Some(right), Some(_)) = (right, plain.medium()) else {
        if right.is_some() && plain.is_read_only() {
            return Err(MemberError::Unreachable(format!("{uri} is read-only")));
        }
        return Ok(Arc::new(plain));
    };
    drop(plain);
    options.epoch = Some(Epoch { number: right.fence, holder: right.holder.clone() });
    match Client::open(&uri, options) {
        Ok(client) if client.is_read_only() => {
            Err(MemberError::Unreachable(format!("{uri} is read-only")))
        }
        Ok(client) => Ok(Arc::new(client)),
        Err(error @ gabion_nbd::client::OpenError::Fenced { .. }) => {
            Err(MemberError::Fenced(error.to_string()))
        }
        Err(error) => Err(unreachable(error)),
    }
}

fn unreachable(error: impl std::error::Error) -> MemberError {
    MemberError::Unreachable(error.to_string())
}

fn open_path(path: &Path) -> Result<Arc<dyn Disk>, MemberError> {
    let disk = FileDisk::open(path, OpenMode::ReadWrite).map_err(|error| {
        // The reason is in the error's source, which people need.
        let source = std::error::Error::source(&error);
        let text = source.map_or(error.to_string(), |source| format!("{error}: {source}"));
        MemberError::Unreachable(text)
    })?;
    Ok(Arc::new(disk))
}

/// What stands at the head of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// A member's header.
    Header(Header),
    /// Zeros.
    Blank,
    /// Headers that were destroyed.
    Broken,
    /// Something that is not a volume's.
    Other,
}

/// Connects to a member of `volume` for writing, if what it holds is wanted. Who has something else
/// there is not kept out of it: that is looked at before anything is taken. It may be this very
/// opener, at another place.
pub(crate) fn take(
    connector: &dyn Connector,
    (url, volume): (&str, Uuid),
    right: &Right,
    patience: Patience,
    is_wanted: impl Fn(&Head) -> bool,
) -> Result<(Head, Arc<dyn Disk>), MemberError> {
    let look = |disk: &dyn Disk| {
        let head = read_head(disk).map_err(unreachable)?;
        match &head {
            wanted if is_wanted(wanted) => Ok(head),
            Head::Header(header) if header.volume == volume => {
                Err(MemberError::Foreign(format!("{url} is another member of this volume")))
            }
            Head::Header(_) => {
                Err(MemberError::Foreign(format!("{url} belongs to another volume")))
            }
            _ => {
                let text = format!("{url} holds something that is not a volume's");
                Err(MemberError::Foreign(text))
            }
        }
    };
    look(&*connector.connect(url, None, patience)?)?;
    let disk = connector.connect(url, Some(right), patience)?;
    // Somebody may have come between.
    Ok((look(&*disk)?, disk))
}

/// Reads what stands at the head of a disk.
pub fn read_head(disk: &dyn Disk) -> Result<Head, DiskError> {
    let mut blocks = vec![0; MEMBER_DATA_START.min(disk.blocks()) as usize * BLOCK_SIZE];
    disk.read(BlockAddr(0), &mut blocks)?;
    Ok(match Header::newest(&blocks) {
        Some(header) => Head::Header(header),
        None if blocks.iter().all(|byte| *byte == 0) => Head::Blank,
        None if blocks.chunks(BLOCK_SIZE).take(2).any(is_header) => Head::Broken,
        None => Head::Other,
    })
}

impl From<Head> for Found {
    fn from(head: Head) -> Self {
        match head {
            Head::Header(header) => Self::Header(header),
            Head::Blank | Head::Broken | Head::Other => Self::Blank,
        }
    }
}

/// Writes a header, durably, to the place whose turn it is.
pub fn write_header(disk: &dyn Disk, header: &Header) -> Result<(), DiskError> {
    let block = BlockSlice::new(header.encode());
    disk.write(BlockAddr(header.place()), block, Durability::Fua)
}

/// The part of a member that is not its header's.
pub fn data(disk: Arc<dyn Disk>, blocks: u64) -> Window {
    Window::new(disk, MEMBER_DATA_START, blocks - MEMBER_DATA_START)
}

/// How many blocks what is at `url` has by now, with a member's header. Whoever uses it is not
/// disturbed.
pub fn length_of(url: &str) -> Result<u64, MemberError> {
    if let Location::Path(path) = url.parse().map_err(unreachable)? {
        let measured = FileDisk::open(&path, OpenMode::ReadOnlyShared);
        return measured.map(|disk| disk.blocks()).map_err(unreachable);
    }
    Ok(connect(url, None, COPY_PATIENCE)?.blocks())
}

fn fence_of(url: &str, patience: Patience) -> Result<u64, MemberError> {
    let Location::Export(uri) = url.parse().map_err(unreachable)? else { return Ok(0) };
    let mut options = ClientOptions::default();
    (options.deadline, options.lost_patience) = (patience.deadline, patience.lost);
    let client = Client::open(&uri, options).map_err(unreachable)?;
    Ok(client.medium().map_or(0, |medium| medium.epoch))
}
