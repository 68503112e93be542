//! A disk's content as a sparse list of blocks, and a disk over it that counts its requests.
//!
//! Copying an image copies no bytes, so every case of a test starts from its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::disk::{Disk, DiskRequest, Ticket};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::Mutex;

/// Requests after which whoever uses the disk goes round in circles: some hundred times what the
/// sample image takes.
const REQUESTS_MAX: u64 = 400_000;

/// What a disk of some length holds; absent blocks are zeros.
#[derive(Clone)]
pub struct Image {
    /// Length in blocks.
    pub blocks: u64,
    content: BTreeMap<u64, Arc<[u8]>>,
}

impl Image {
    /// A disk of zeros.
    pub fn zeroed(blocks: u64) -> Self {
        Self { blocks, content: BTreeMap::new() }
    }

    /// The bytes of `count` blocks.
    pub fn read(&self, addr: BlockAddr, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count * BLOCK_SIZE];
        for (block, part) in self.content.range(addr.0..addr.0 + count as u64) {
            let at = (block - addr.0) as usize * BLOCK_SIZE;
            bytes[at..at + BLOCK_SIZE].copy_from_slice(part);
        }
        bytes
    }

    /// Puts whole blocks in place.
    pub fn write(&mut self, addr: BlockAddr, bytes: &[u8]) {
        for (index, part) in bytes.chunks(BLOCK_SIZE).enumerate() {
            assert_eq!(part.len(), BLOCK_SIZE, "whole blocks");
            if part.iter().all(|byte| *byte == 0) {
                self.content.remove(&(addr.0 + index as u64));
            } else {
                self.content.insert(addr.0 + index as u64, Arc::from(part));
            }
        }
    }

    /// Blocks that are not zeros, in order.
    pub fn written(&self) -> Vec<BlockAddr> {
        self.content.keys().map(|block| BlockAddr(*block)).collect()
    }
}

/// A disk that starts as an image.
pub struct ImageDisk {
    state: Mutex<(Image, u64)>,
}

impl ImageDisk {
    pub fn new(image: Image) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((image, 0)) })
    }

    /// Puts something else on it.
    pub fn replace(&self, image: Image) {
        self.state.lock().0 = image;
    }

    /// Makes the disk longer.
    pub fn lengthen(&self, blocks: u64) {
        let image = &mut self.state.lock().0;
        assert!(blocks >= image.blocks, "{blocks} of {} blocks", image.blocks);
        image.blocks = blocks;
    }

    /// What is on it now.
    pub fn image(&self) -> Image {
        self.state.lock().0.clone()
    }
}

impl Disk for ImageDisk {
    fn name(&self) -> Arc<str> {
        Arc::from("image")
    }

    fn blocks(&self) -> u64 {
        self.state.lock().0.blocks
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.name(), self.blocks()) {
            return Ticket::ready(Err(error));
        }
        let (addr, count) = request.extent();
        let (image, requests) = &mut *self.state.lock();
        *requests += 1;
        assert!(*requests < REQUESTS_MAX, "no end of requests");
        Ticket::ready(Ok(match request {
            DiskRequest::Read { .. } => Some(Blocks::from_bytes(&image.read(addr, count as usize))),
            DiskRequest::Write { parts, .. } => {
                let mut at = addr;
                for part in parts {
                    image.write(at, part.bytes());
                    at = at.plus(part.count() as u64);
                }
                None
            }
            DiskRequest::WriteZeroes { .. } => {
                (0..count).for_each(|index| image.write(addr.plus(index), &[0; BLOCK_SIZE]));
                None
            }
            DiskRequest::Flush | DiskRequest::Discard { .. } => None,
        }))
    }
}
