//! A disk with a header at its head, which remembers who may write to it.
//!
//! ```text
//!   block 0, 1        header, in two places (`format`)
//!   block 2 .. 255    zero
//!   block 256 ..      the data, which is what clients see
//! ```
//!
//! Whoever means to be the only writer takes an *epoch*: a number that somebody else sees to it
//! that nobody had before, and a text that says who it is. The medium knows the highest epoch that
//! was ever taken, and lets only its holder write:
//!
//! 1. A claim of a lower epoch, or of the same one by another holder, is refused.
//! 2. A claim of a higher one waits until no write is in flight, makes the new epoch durable, and
//!    is granted then. No write of a lower epoch takes effect after that, ever.
//! 3. A claim of the same epoch by the same holder is a new connection. If it has a higher number
//!    than those before, they can no longer write: what they left behind must not overtake what
//!    is sent again. It is refused if it has a lower number.
//!
//! As long as nobody has taken an epoch anybody may write. An epoch is never given back.
//!
//! Invariant: a write to the data happens between `Medium::enter` and the drop of what it gives,
//! which is the reader's side of a lock; a claim is granted under the writer's side. Looking costs
//! a reader's lock that is not shared between processors.
//!
//! A claim whose header could not be written is not granted, but may be found to have been taken
//! after the next start. That fences the holder before it, and nobody else.

pub mod format;

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::codec::DecodeError;
use gabion_base::disk::{Disk, DiskError, Durability};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::ReadMostly;
use gabion_base::window::Window;
use thiserror::Error;

use self::format::{DATA_START, HOLDER_BYTES_MAX, Header, HeaderError, PLACES};
use crate::wire::name::Claim;

/// A disk with a header.
pub struct Medium {
    disk: Arc<dyn Disk>,
    data: Arc<Window>,
    uuid: Uuid,
    fence: ReadMostly<Fence>,
}

struct Fence {
    header: Header,
    /// The highest number of a connection of this epoch.
    connection: u64,
}

/// What a connection was granted, which the medium compares with what is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    epoch: u64,
    connection: u64,
}

impl Grant {
    /// The epoch; 0 if it is worth nothing once somebody has taken one.
    pub(crate) fn epoch(self) -> u64 {
        self.epoch
    }
}

/// Why a disk cannot be used as a medium.
#[derive(Debug, Error)]
pub enum MediumError {
    /// It has no room for a header and a block.
    #[error("{blocks} blocks of 4096 bytes are too few, it takes {} at least", DATA_START + 1)]
    TooShort {
        /// Its length.
        blocks: u64,
    },
    /// There is something else.
    #[error("it has no header of a medium, and its first MiB is not empty")]
    Foreign,
    /// Both places of the header are broken.
    #[error("its header is damaged: {0}")]
    Damaged(DecodeError),
    /// Another program has made it.
    #[error("its header has version {0}, of which this program knows nothing")]
    Version(u32),
    /// It fails.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a claim is refused.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Somebody else may write, and the claimer never again.
    #[error("{0}")]
    Fenced(String),
    /// The header could not be written.
    #[error("the epoch cannot be made durable: {0}")]
    Disk(DiskError),
}

impl Medium {
    /// The medium on `disk`; nothing if its first MiB is zero and a header can be made there.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Option<Self>, MediumError> {
        let blocks = disk.blocks();
        if blocks <= DATA_START {
            return Err(MediumError::TooShort { blocks });
        }
        let mut head = Blocks::zeroed(DATA_START as usize);
        disk.read(BlockAddr(0), head.bytes_mut())?;
        let places = (0..PLACES).zip(head.bytes().chunks(BLOCK_SIZE));
        let found: Vec<_> = places.map(|(place, bytes)| Header::decode(bytes, place)).collect();
        let intact = found.iter().flatten().max_by_key(|header| header.sequence).cloned();
        let errors = || found.iter().filter_map(|header| header.as_ref().err());
        // A header that only another program understands may be newer than the one beside it.
        if let Some(version) = errors().find_map(|error| match error {
            HeaderError::Version(version) => Some(*version),
            _ => None,
        }) {
            return Err(MediumError::Version(version));
        }
        if let Some(header) = intact {
            return Ok(Some(Self::of(disk, header)));
        }
        if let Some(reason) = errors().find_map(|error| match error {
            HeaderError::Damaged(reason) => Some(*reason),
            _ => None,
        }) {
            return Err(MediumError::Damaged(reason));
        }
        match head.bytes().iter().all(|byte| *byte == 0) {
            true => Ok(None),
            false => Err(MediumError::Foreign),
        }
    }

    /// Makes a header on a disk of which [`Medium::open`] has said that there is room for it.
    pub fn create(disk: Arc<dyn Disk>, uuid: Uuid) -> Result<Self, MediumError> {
        let header = Header { uuid, sequence: 0, epoch: 0, holder: String::new() };
        let header = write_header(&*disk, header)?;
        Ok(Self::of(disk, header))
    }

    fn of(disk: Arc<dyn Disk>, header: Header) -> Self {
        let data = Arc::new(Window::from(Arc::clone(&disk), DATA_START));
        let uuid = header.uuid;
        Self { disk, data, uuid, fence: ReadMostly::new(Fence { header, connection: 0 }) }
    }

    /// Its identity.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The highest epoch that was taken, and by whom; 0 and nobody at first.
    pub fn epoch(&self) -> (u64, String) {
        let fence = self.fence.read();
        (fence.header.epoch, fence.header.holder.clone())
    }

    /// Its data, to read, or to write between `Medium::enter` and the drop of what that gives.
    pub(crate) fn data(&self) -> &Arc<Window> {
        &self.data
    }

    /// Looks how long the disk is by now, and has all of it used; gives the blocks of data.
    pub(crate) fn remeasure(&self) -> Result<u64, DiskError> {
        let blocks = self.disk.remeasure()?.saturating_sub(DATA_START);
        self.data.lengthen(blocks);
        Ok(self.data.blocks())
    }

    /// Lets a claimer write, and nobody of a lower epoch from then on. Waits for writes in flight.
    pub fn claim(&self, claim: &Claim) -> Result<Grant, ClaimError> {
        assert!(claim.holder.len() <= HOLDER_BYTES_MAX, "checked when it was decoded");
        // Whoever has lost is told at once, however long others' writes take.
        self.fence.read().check(claim)?;
        let mut fence = self.fence.write();
        fence.check(claim)?;
        if claim.epoch > fence.header.epoch {
            let (epoch, holder) = (claim.epoch, claim.holder.clone());
            let mut header = Header { epoch, holder, ..fence.header };
            header.sequence += 1;
            fence.header = write_header(&*self.disk, header).map_err(ClaimError::Disk)?;
        }
        fence.connection = claim.connection;
        Ok(Grant { epoch: claim.epoch, connection: claim.connection })
    }

    /// Whether `claim` would be granted now, without granting it.
    pub fn check(&self, claim: &Claim) -> Result<(), ClaimError> {
        self.fence.read().check(claim)
    }

    /// Begins a write to the data, which must end before what this gives is dropped. Fails with
    /// words for people if `grant` is worth nothing any more.
    pub(crate) fn enter(&self, grant: Grant) -> Result<impl Sized + '_, String> {
        let fence = self.fence.read();
        if fence.header.epoch != grant.epoch {
            return Err(fence.words());
        }
        if fence.connection != grant.connection {
            return Err("a later connection of the same holder has taken over".to_owned());
        }
        Ok(fence)
    }
}

/// Writes a header to its place, and when it is durable once more to the other one, so that the
/// loss of one does not bring an older epoch back. Gives the newer of both.
fn write_header(disk: &dyn Disk, mut header: Header) -> Result<Header, DiskError> {
    for place in 0..PLACES {
        header.sequence += u64::from(place.min(1));
        let block = BlockSlice::new(header.encode());
        disk.write(BlockAddr(u64::from(header.place())), block, Durability::Fua)?;
    }
    Ok(header)
}

impl Fence {
    fn check(&self, claim: &Claim) -> Result<(), ClaimError> {
        let header = &self.header;
        let is_other = claim.epoch == header.epoch && claim.holder != header.holder;
        if claim.epoch < header.epoch || is_other {
            return Err(ClaimError::Fenced(self.words()));
        }
        if claim.epoch == header.epoch && claim.connection < self.connection {
            let words = "a later connection of the same holder has taken over";
            return Err(ClaimError::Fenced(words.to_owned()));
        }
        Ok(())
    }

    fn words(&self) -> String {
        let Header { epoch, holder, .. } = &self.header;
        format!("it belongs to epoch {epoch} since {holder} has taken it")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use gabion_base::disk::MemDisk;

    use super::*;

    fn disk() -> Arc<MemDisk> {
        Arc::new(MemDisk::new(300))
    }

    fn medium(disk: &Arc<MemDisk>) -> Medium {
        Medium::create(disk.clone(), Uuid([7; 16])).unwrap()
    }

    fn claim(epoch: u64, holder: &str, connection: u64) -> Claim {
        Claim { epoch, holder: holder.to_owned(), connection }
    }

    #[test]
    fn an_epoch_is_kept_though_one_header_is_lost() {
        let disk = disk();
        assert!(Medium::open(disk.clone()).unwrap().is_none(), "nothing but zeros");
        let medium = medium(&disk);
        for epoch in [3, 4, 9] {
            medium.claim(&claim(epoch, "a", 0)).unwrap();
            let again = Medium::open(disk.clone()).unwrap().unwrap();
            assert_eq!((again.uuid(), again.epoch()), (Uuid([7; 16]), (epoch, "a".to_owned())));
        }
        assert_eq!(medium.data().blocks(), 44);
        // One of them rots, or is torn when the next one is written.
        disk.write(BlockAddr(0), BlockSlice::new(Blocks::from_bytes(&[9; 99])), Durability::Fua)
            .unwrap();
        let again = Medium::open(disk.clone()).unwrap().unwrap();
        assert_eq!(again.epoch().0, 9);
        let other = BlockSlice::new(Blocks::from_bytes(b"GABIONMD"));
        disk.write(BlockAddr(1), other, Durability::Fua).unwrap();
        assert!(matches!(Medium::open(disk), Err(MediumError::Damaged(_))));
    }

    #[test]
    fn what_is_something_else_is_left_alone() {
        let open = |image: Vec<u8>| Medium::open(Arc::new(MemDisk::from_image(image)));
        let mut image = vec![0; 257 * BLOCK_SIZE];
        assert!(open(image.clone()).unwrap().is_none());
        image[256 * BLOCK_SIZE] = 1;
        assert!(open(image.clone()).unwrap().is_none(), "the data may be anything");
        image[256 * BLOCK_SIZE - 1] = 1;
        assert!(matches!(open(image.clone()), Err(MediumError::Foreign)));
        image.truncate(256 * BLOCK_SIZE);
        assert!(matches!(open(image), Err(MediumError::TooShort { blocks: 256 })));
    }

    #[test]
    fn the_highest_epoch_has_one_holder() {
        let medium = medium(&disk());
        let old = medium.claim(&claim(5, "a", 0)).unwrap();
        for (epoch, holder) in [(4, "a"), (5, "b"), (0, "")] {
            let error = medium.claim(&claim(epoch, holder, 9)).unwrap_err().to_string();
            assert!(error.contains("epoch 5 since a"), "{error}");
        }
        assert!(medium.enter(Grant::default()).is_err(), "nobody's writes");
        drop(medium.enter(old).unwrap());
        let new = medium.claim(&claim(6, "b", 0)).unwrap();
        assert!(medium.enter(old).err().unwrap().contains("epoch 6 since b"));
        drop(medium.enter(new).unwrap());
    }

    #[test]
    fn a_later_connection_of_the_holder_takes_over() {
        let medium = medium(&disk());
        let first = medium.claim(&claim(5, "a", 10)).unwrap();
        let second = medium.claim(&claim(5, "a", 11)).unwrap();
        assert!(medium.enter(first).err().unwrap().contains("later connection"));
        drop(medium.enter(second).unwrap());
        assert!(medium.claim(&claim(5, "a", 10)).is_err(), "it was under way for too long");
        medium.claim(&claim(6, "a", 1)).unwrap();
    }

    #[test]
    fn a_claim_waits_for_writes_in_flight() {
        let medium = medium(&disk());
        let writing = medium.enter(Grant::default()).unwrap();
        let (sender, granted) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| sender.send(medium.claim(&claim(1, "a", 0)).is_ok()).unwrap());
            for _ in 0..1000 {
                thread::yield_now();
            }
            assert!(granted.try_recv().is_err(), "a write is in flight");
            drop(writing);
            assert_eq!(granted.recv(), Ok(true));
        });
        assert!(medium.enter(Grant::default()).is_err());
    }
}
