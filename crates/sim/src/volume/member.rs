//! A member: a disk with a volatile cache, its power, and who may write to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{DiskError, DiskRequest, DiskResult, Durability};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::rng::Rng;
use gabion_block::format::header::{Header, MEMBER_DATA_START};
use gabion_block::geometry::Geometry;
use gabion_block::mirror::blank_pages;

/// What a connection was granted: the fence, whose, and which connection of the holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) fence: u64,
    pub(super) nonce: u64,
    pub(super) connection: u64,
}

/// All that a disk keeps: what a backup has, too.
pub(super) type Image = BTreeMap<u64, BlockSlice>;

pub(super) struct Member {
    /// Which disk it is, wherever it is.
    pub(super) uuid: Uuid,
    pub(super) blocks: u64,
    durable: Image,
    /// Versions of blocks that are not durable, oldest first.
    cache: BTreeMap<u64, Vec<BlockSlice>>,
    granted: Grant,
    pub(super) powered: bool,
    /// Nothing is done before this.
    pub(super) frozen: Duration,
    /// The longest that a request takes on its way.
    pub(super) latency: Duration,
    /// Counts power cuts: what was on its way to an earlier boot is gone.
    pub(super) boot: u32,
    /// Blocks that cannot be read until they are written.
    pub(super) unreadable: BTreeSet<u64>,
    /// How many of the next writes fail.
    pub(super) failing_writes: u32,
    /// Flushes are acknowledged and do nothing.
    pub(super) ignores_flushes: bool,
    /// Whoever comes may write.
    pub(super) ignores_fences: bool,
    /// Discarded blocks keep what they had.
    pub(super) keeps_discarded: bool,
    /// Zeros are acknowledged and not written.
    pub(super) forgets_zeros: bool,
    /// Discards take one more block with them.
    pub(super) discards_more: bool,
    /// What cannot be read is read as zeros.
    pub(super) invents_zeros: bool,
    /// A power cut takes half of a block that was durable.
    pub(super) tears_what_is_durable: bool,
}

impl Member {
    pub(super) fn new(uuid: Uuid, boot: u32) -> Self {
        Self {
            uuid,
            blocks: super::MEMBER_BLOCKS,
            durable: Image::new(),
            cache: BTreeMap::new(),
            granted: Grant::default(),
            powered: true,
            frozen: Duration::ZERO,
            latency: Duration::from_millis(2),
            boot,
            unreadable: BTreeSet::new(),
            failing_writes: 0,
            ignores_flushes: false,
            ignores_fences: false,
            keeps_discarded: false,
            forgets_zeros: false,
            discards_more: false,
            invents_zeros: false,
            tears_what_is_durable: false,
        }
    }

    /// Gives it empty bitmaps.
    pub(super) fn format(&mut self, geometry: Geometry) {
        for (addr, block) in blank_pages(geometry, super::MIRROR) {
            self.durable.insert(addr.0 + MEMBER_DATA_START, block);
        }
    }

    /// Has it hold something from the start, at a block of the disk.
    pub(super) fn put(&mut self, number: u64, block: BlockSlice) {
        self.durable.insert(number, block);
    }

    pub(super) fn answers(&self, now: Duration) -> bool {
        self.powered && self.frozen <= now
    }

    /// Lets the holder of `grant` write and nobody who came before; or says that somebody came
    /// later.
    pub(super) fn claim(&mut self, grant: Grant) -> Result<(), DiskError> {
        let now = self.granted;
        let is_newer = grant.fence > now.fence
            || grant.fence == now.fence
                && grant.nonce == now.nonce
                && grant.connection > now.connection;
        if !is_newer && !self.ignores_fences {
            return Err(fenced("claim"));
        }
        self.granted = grant;
        Ok(())
    }

    /// The newest fence.
    pub(super) fn fence(&self) -> u64 {
        self.granted.fence
    }

    /// Whether the holder of `grant` may write.
    pub(super) fn is_granted(&self, grant: Grant) -> bool {
        self.granted == grant
    }

    /// Whether nobody has come since this fence was granted.
    pub(super) fn is_held_by(&self, fence: u64) -> bool {
        self.granted.fence == fence || self.ignores_fences
    }

    /// Does `request`, whose addresses are those of the disk.
    pub(super) fn execute(&mut self, request: &DiskRequest, grant: Grant) -> DiskResult {
        if self.granted != grant && !self.ignores_fences {
            let is_same = (self.granted.fence, self.granted.nonce) == (grant.fence, grant.nonce);
            return match is_same {
                true => Err(failure(request, io::ErrorKind::ConnectionReset)),
                false => Err(fenced(request.operation())),
            };
        }
        self.perform(request)
    }

    /// Does `request` for somebody who holds the grant.
    pub(super) fn perform(&mut self, request: &DiskRequest) -> DiskResult {
        match request {
            DiskRequest::Read { addr, count } => {
                let mut blocks = Blocks::zeroed(*count);
                let range = addr.0..addr.0 + *count as u64;
                if self.unreadable.range(range.clone()).next().is_some() {
                    if self.invents_zeros {
                        return Ok(Some(blocks));
                    }
                    return Err(failure(request, io::ErrorKind::InvalidData));
                }
                let mut place = |number: u64, block: &BlockSlice| {
                    let start = (number - addr.0) as usize * BLOCK_SIZE;
                    blocks.bytes_mut()[start..start + BLOCK_SIZE].copy_from_slice(block.bytes());
                };
                self.durable.range(range.clone()).for_each(|(number, it)| place(*number, it));
                for (number, versions) in self.cache.range(range) {
                    versions.last().into_iter().for_each(|it| place(*number, it));
                }
                return Ok(Some(blocks));
            }
            DiskRequest::Flush => self.flush(),
            DiskRequest::Write { addr, parts, durability } => {
                if self.failing_writes > 0 {
                    self.failing_writes -= 1;
                    return Err(failure(request, io::ErrorKind::InvalidData));
                }
                let mut number = addr.0;
                for part in parts {
                    for index in 0..part.count() {
                        self.write(number, part.part(index, 1), *durability);
                        number += 1;
                    }
                }
            }
            DiskRequest::Discard { .. } if self.keeps_discarded => {}
            DiskRequest::WriteZeroes { .. } if self.forgets_zeros => {}
            DiskRequest::WriteZeroes { addr, count } | DiskRequest::Discard { addr, count } => {
                let zeros = BlockSlice::new(Blocks::zeroed(1));
                let is_discard = matches!(request, DiskRequest::Discard { .. });
                let more = u64::from(self.discards_more && is_discard);
                for number in addr.0..addr.0 + count + more {
                    self.write(number, zeros.clone(), Durability::Cached);
                }
            }
        }
        Ok(None)
    }

    fn write(&mut self, number: u64, block: BlockSlice, durability: Durability) {
        self.unreadable.remove(&number);
        if durability == Durability::Fua && !self.ignores_flushes {
            self.cache.remove(&number);
            self.durable.insert(number, block);
        } else {
            self.cache.entry(number).or_default().push(block);
        }
    }

    pub(super) fn flush(&mut self) {
        if self.ignores_flushes {
            return;
        }
        for (number, mut versions) in std::mem::take(&mut self.cache) {
            self.durable.extend(versions.pop().map(|newest| (number, newest)));
        }
    }

    /// The power goes: of what was not durable any part is lost.
    pub(super) fn cut_power(&mut self, rng: &mut Rng) {
        self.powered = false;
        self.boot += 1;
        for (number, mut versions) in std::mem::take(&mut self.cache) {
            let kept = rng.below(versions.len() as u64 + 1) as usize;
            let next = versions.get(kept).cloned();
            if kept > 0 {
                self.durable.insert(number, versions.swap_remove(kept - 1));
            }
            if let Some(next) = next.filter(|_| rng.chance(1, 4)) {
                self.tear(number, &next, rng);
            }
        }
        if self.tears_what_is_durable && !self.durable.is_empty() {
            let chosen = rng.below(self.durable.len() as u64) as usize;
            let number = self.durable.keys().nth(chosen).copied().unwrap_or_default();
            self.tear(number, &super::growth::rubbish(), rng);
        }
    }

    /// The power has gone while this was being written.
    pub(super) fn be_interrupted(&mut self, request: &DiskRequest, rng: &mut Rng) {
        let DiskRequest::Write { addr, parts, .. } = request else { return };
        let blocks = parts.iter().flat_map(|part| (0..part.count()).map(|at| part.part(at, 1)));
        for (number, block) in (addr.0..).zip(blocks) {
            match rng.below(3) {
                0 => {}
                1 => self.tear(number, &block, rng),
                _ => drop(self.durable.insert(number, block)),
            }
        }
    }

    /// Some sectors at the beginning, or at the end, of a block are those of `block`.
    fn tear(&mut self, number: u64, block: &BlockSlice, rng: &mut Rng) {
        let mut torn = Blocks::zeroed(1);
        if let Some(before) = self.durable.get(&number) {
            torn.bytes_mut().copy_from_slice(before.bytes());
        }
        let at = 512 * (1 + rng.below(7) as usize);
        let range = if rng.chance(1, 2) { 0..at } else { at..BLOCK_SIZE };
        torn.bytes_mut()[range.clone()].copy_from_slice(&block.bytes()[range]);
        self.durable.insert(number, BlockSlice::new(torn));
    }

    /// A block is not what was written any more. Says whether it was one.
    pub(super) fn rot(&mut self, number: u64) -> bool {
        let can = self.durable.contains_key(&number) && !self.cache.contains_key(&number);
        if can {
            self.durable.insert(number, super::growth::rubbish());
        }
        can
    }

    /// What a backup would keep.
    pub(super) fn image(&self) -> Image {
        let mut image = self.durable.clone();
        for (number, versions) in &self.cache {
            image.extend(versions.last().map(|newest| (*number, newest.clone())));
        }
        image
    }

    /// Whether it holds just that.
    pub(super) fn holds(&self, image: &Image) -> bool {
        let own = self.image();
        own.len() == image.len()
            && own
                .iter()
                .zip(image)
                .all(|((at, one), (there, other))| at == there && one.bytes() == other.bytes())
    }

    /// Somebody puts a disk with `image` here. What was granted on the old one counts no more.
    pub(super) fn restore(&mut self, image: Image) {
        self.granted = Grant::default();
        self.durable = image;
        self.cache.clear();
        self.unreadable.clear();
    }

    pub(super) fn header(&mut self) -> Option<Header> {
        let request = DiskRequest::Read { addr: BlockAddr(0), count: 2 };
        let blocks = self.perform(&request).ok()??;
        Header::newest(blocks.bytes())
    }

    pub(super) fn write_header(&mut self, header: &Header) -> DiskResult {
        let parts = vec![BlockSlice::new(header.encode())];
        let (addr, durability) = (BlockAddr(header.place()), Durability::Fua);
        self.perform(&DiskRequest::Write { addr, parts, durability })
    }

    /// A block behind the header, as it is read at this moment.
    pub(super) fn block(&self, addr: u64) -> Option<&BlockSlice> {
        let number = addr + MEMBER_DATA_START;
        let cached = self.cache.get(&number).and_then(|versions| versions.last());
        cached.or_else(|| self.durable.get(&number))
    }
}

/// The same request behind the member's header.
pub(super) fn behind_header(mut request: DiskRequest) -> DiskRequest {
    match &mut request {
        DiskRequest::Read { addr, .. }
        | DiskRequest::Write { addr, .. }
        | DiskRequest::Discard { addr, .. }
        | DiskRequest::WriteZeroes { addr, .. } => *addr = addr.plus(MEMBER_DATA_START),
        DiskRequest::Flush => {}
    }
    request
}

pub(super) fn failure(request: &DiskRequest, kind: io::ErrorKind) -> DiskError {
    let (addr, _) = request.extent();
    let (device, source) = (Arc::from("member"), Arc::new(kind.into()));
    DiskError::Io { device, operation: request.operation(), addr, source }
}

pub(super) fn fenced(operation: &'static str) -> DiskError {
    DiskError::Fenced { device: Arc::from("member"), operation, reason: Arc::from("a later one") }
}
