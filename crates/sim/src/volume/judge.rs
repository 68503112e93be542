//! What may be read, given what was written, acknowledged and made durable.
//!
//! For each block there are its writes, each with the moments between which it happened. A write
//! is *known* once it was acknowledged, or once somebody has read it after it had ended.
//!
//! 1. A read may give what a write has written that began before the read ended, unless there is a
//!    known one that began after that write had ended, and was known before the read began.
//! 2. A flush makes durable what was known before it began; FUA what it writes itself.
//! 3. When the volume is opened again, what is not durable may have happened or not. But whichever
//!    it is, it stays so: once a block was read, no other of its old writes is ever seen again.
//! 4. Zeros are a write, too, which cannot be told from others of their kind: nothing follows from
//!    reading them but that there may be zeros. After a discard anything may be read, until there
//!    is a write that began after it had ended.
//! 5. Nothing that was asked under an older epoch after that is acknowledged.

use std::collections::BTreeMap;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};

/// Which write a block is from; 0 if it was never written.
pub type Stamp = u64;

/// The content of block `addr` after write `stamp`.
pub(super) fn content(addr: u64, stamp: Stamp) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_SIZE];
    if stamp != 0 {
        bytes[..8].copy_from_slice(&stamp.to_le_bytes());
        bytes[8..16].copy_from_slice(&addr.to_le_bytes());
        bytes[BLOCK_SIZE - 8..].copy_from_slice(&stamp.to_le_bytes());
    }
    bytes
}

pub(super) fn slice(addr: u64, count: u64, stamp: Stamp) -> BlockSlice {
    let bytes: Vec<u8> = (addr..addr + count).flat_map(|addr| content(addr, stamp)).collect();
    BlockSlice::new(Blocks::from_bytes(&bytes))
}

/// What stands in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// What a write has left there.
    Whole(Stamp),
    /// The beginning of one and the end of another: a power cut in the middle of a block.
    Torn(Stamp, Stamp),
    /// Nothing that was ever written there.
    Strange,
}

/// What `bytes` at block `addr` are.
pub(super) fn seen(addr: u64, bytes: &[u8]) -> Seen {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let (head, tail) = (word(0), word(BLOCK_SIZE - 8));
    let expected = if head == 0 { 0 } else { addr };
    match word(8) == expected {
        false => Seen::Strange,
        true if head == tail => Seen::Whole(head),
        // Stamps count from 1, and there are not so many.
        true if tail > 1 << 32 => Seen::Strange,
        true => Seen::Torn(head, tail),
    }
}

/// What a change leaves in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// What its stamp says.
    Data,
    Zeros,
    /// The block was discarded.
    Anything,
    /// Half of each of two, which it is from now on.
    Torn(Stamp, Stamp),
}

#[derive(Clone, Debug)]
struct Write {
    stamp: Stamp,
    left: Left,
    epoch: u64,
    start: u64,
    /// When it had been answered, somehow.
    end: Option<u64>,
    known: Option<u64>,
    durable: bool,
}

/// Remembers, and says what is wrong.
#[derive(Default)]
pub(super) struct Judge {
    clock: u64,
    /// The latest opening that was completed, and when.
    epoch: u64,
    opened: u64,
    blocks: BTreeMap<u64, Vec<Write>>,
}

impl Write {
    /// Whether it can have left what is seen.
    fn can_leave(&self, seen: Seen) -> bool {
        match self.left {
            Left::Data => seen == Seen::Whole(self.stamp),
            Left::Zeros => seen == Seen::Whole(0),
            Left::Anything => true,
            Left::Torn(head, tail) => seen == Seen::Torn(head, tail),
        }
    }

    /// Whether it can have left a block that begins like write `stamp`.
    fn can_begin(&self, stamp: Stamp) -> bool {
        match self.left {
            Left::Torn(head, _) => head == stamp,
            _ => self.can_leave(Seen::Whole(stamp)),
        }
    }

    /// Whether it can have left a block that ends like write `stamp`.
    fn can_end(&self, stamp: Stamp) -> bool {
        match self.left {
            Left::Torn(_, tail) => tail == stamp,
            _ => self.can_leave(Seen::Whole(stamp)),
        }
    }
}

impl Judge {
    /// A moment, later than all before.
    pub(super) fn moment(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The latest opening.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn opened(&mut self, epoch: u64) {
        let now = self.moment();
        (self.epoch, self.opened) = (epoch, now);
        for writes in self.blocks.values_mut() {
            for write in writes.iter_mut() {
                write.end.get_or_insert(now);
                if !write.durable {
                    write.known = None;
                }
            }
            forget_superseded(writes);
        }
    }

    pub(super) fn write_begins(
        &mut self,
        epoch: u64,
        (addr, count, stamp): (u64, u64, Stamp),
        left: Left,
    ) {
        let start = self.moment();
        for block in addr..addr + count {
            let (end, known, durable) = (None, None, false);
            let write = Write { stamp, left, epoch, start, end, known, durable };
            self.blocks.entry(block).or_insert_with(unwritten).push(write);
        }
    }

    /// Write `stamp` was answered; `durable` is whether success means that it is.
    pub(super) fn write_ends(
        &mut self,
        (addr, count, stamp): (u64, u64, Stamp),
        succeeded: bool,
        durable: bool,
    ) {
        let now = self.moment();
        for block in addr..addr + count {
            let Some(writes) = self.blocks.get_mut(&block) else { continue };
            for write in writes.iter_mut().filter(|write| write.stamp == stamp) {
                if write.epoch != self.epoch {
                    continue;
                }
                write.end = Some(now);
                if succeeded {
                    write.known = Some(now);
                    write.durable = durable;
                }
            }
        }
    }

    /// Something was acknowledged to the opener of `epoch`, who asked at `asked`.
    pub(super) fn acknowledged(&self, epoch: u64, asked: u64) -> Result<(), String> {
        match epoch < self.epoch && asked > self.opened {
            true => Err(format!("epoch {epoch} goes on after epoch {} was opened", self.epoch)),
            false => Ok(()),
        }
    }

    /// A flush that was asked for at `asked` has succeeded.
    pub(super) fn flushed(&mut self, epoch: u64, asked: u64) {
        if epoch != self.epoch {
            return;
        }
        for writes in self.blocks.values_mut() {
            for write in writes.iter_mut() {
                write.durable |= write.known.is_some_and(|known| known < asked);
            }
        }
    }

    /// Block `addr` was read by the opener of `epoch`, who asked at `asked`.
    pub(super) fn read(
        &mut self,
        epoch: u64,
        asked: u64,
        addr: u64,
        bytes: &[u8],
    ) -> Result<(), String> {
        if epoch != self.epoch {
            return Ok(());
        }
        let now = self.moment();
        let opened = self.opened;
        let writes = self.blocks.entry(addr).or_insert_with(unwritten);
        let found = seen(addr, bytes);
        let superseded = |write: &Write| {
            let end = write.end.unwrap_or(u64::MAX);
            let later = |other: &&Write| {
                other.start > end && other.known.is_some_and(|known| known < asked)
            };
            writes.iter().find(later).map(|other| other.stamp)
        };
        let can_be: Vec<_> = writes.iter().filter(|write| write.can_leave(found)).collect();
        let valid: Vec<_> = can_be.iter().filter(|write| superseded(write).is_none()).collect();
        // What was torn once may be torn once more.
        let half = |can_leave: &dyn Fn(&Write) -> bool| {
            let mut halves = writes.iter().filter(|write| can_leave(write));
            halves.find(|write| superseded(write).is_none()).cloned()
        };
        match (found, can_be.first(), valid.is_empty()) {
            (_, Some(_), false) => {}
            (Seen::Strange, ..) => {
                return Err(format!("block {addr} has what nobody wrote there"));
            }
            (Seen::Torn(head, tail), ..) => {
                let begins = half(&|write| write.can_begin(head));
                let ends = half(&|write| write.can_end(tail));
                let (Some(one), Some(other)) = (begins, ends) else {
                    return Err(format!(
                        "block {addr} is torn between {head} and {tail}, which cannot be: there \
                         are {writes:?}"
                    ));
                };
                if one.start.max(other.start) < opened {
                    // What was found at the opening was made durable by it.
                    let left = Left::Torn(head, tail);
                    writes.retain(|write| write.start > opened);
                    writes.insert(0, Write { left, known: Some(now), durable: true, ..one });
                }
                return Ok(());
            }
            (Seen::Whole(stamp), None, _) => {
                return Err(format!(
                    "block {addr} has write {stamp}, which cannot be: there are {writes:?}"
                ));
            }
            (Seen::Whole(stamp), Some(first), _) => {
                let later = superseded(first);
                return Err(format!(
                    "block {addr} has write {stamp}, older than {later:?}: {writes:?}"
                ));
            }
        }
        if valid.iter().any(|write| write.left == Left::Anything) {
            return Ok(());
        }
        let [start] = valid.iter().map(|write| write.start).collect::<Vec<_>>()[..] else {
            return Ok(());
        };
        let Some(write) = writes.iter_mut().find(|write| write.start == start) else {
            return Ok(());
        };
        if write.end.is_none() {
            return Ok(());
        }
        write.known.get_or_insert(now);
        if start < opened {
            // What was found at the opening was made durable by it.
            write.durable = true;
            writes.retain(|write| write.start == start || write.start > opened);
        }
        Ok(())
    }

    /// Block `addr` has gone on all copies; anything may be read there until it is written.
    pub(super) fn lose(&mut self, epoch: u64, addr: u64) {
        let start = self.moment();
        let (stamp, left, end) = (0, Left::Anything, Some(start));
        let write = Write { stamp, left, epoch, start, end, known: end, durable: true };
        self.blocks.entry(addr).or_insert_with(unwritten).push(write);
    }

    /// Whether a discard is the last that is known of block `addr`.
    pub(super) fn is_discarded(&self, addr: u64) -> bool {
        let Some(writes) = self.blocks.get(&addr) else { return false };
        let mut discards = writes.iter().filter(|write| write.left == Left::Anything);
        discards.any(|discard| {
            let end = discard.end.unwrap_or(u64::MAX);
            !writes.iter().any(|write| write.start > end && write.known.is_some())
        })
    }
}

fn unwritten() -> Vec<Write> {
    let (end, known) = (Some(0), Some(0));
    vec![Write { stamp: 0, left: Left::Zeros, epoch: 0, start: 0, end, known, durable: true }]
}

/// What ended before something began that is durable is never seen again.
fn forget_superseded(writes: &mut Vec<Write>) {
    let durable = writes.iter().filter(|write| write.durable).map(|write| write.start).max();
    let Some(durable) = durable else { return };
    writes.retain(|write| write.end.is_none_or(|end| end >= durable));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrote(judge: &mut Judge, stamp: Stamp) {
        judge.write_begins(1, (5, 1, stamp), Left::Data);
        judge.write_ends((5, 1, stamp), true, false);
    }

    fn read(judge: &mut Judge, stamp: Stamp) -> Result<(), String> {
        let (epoch, asked) = (judge.epoch, judge.moment());
        judge.read(epoch, asked, 5, &content(5, stamp))
    }

    #[test]
    fn what_was_written_is_read_until_something_else_was() {
        let mut judge = Judge::default();
        judge.opened(1);
        read(&mut judge, 0).unwrap();
        wrote(&mut judge, 1);
        wrote(&mut judge, 2);
        read(&mut judge, 2).unwrap();
        read(&mut judge, 1).unwrap_err();
        read(&mut judge, 3).unwrap_err();
        judge.write_begins(1, (5, 1, 4), Left::Data);
        read(&mut judge, 4).unwrap();
        read(&mut judge, 2).unwrap();
        judge.write_ends((5, 1, 4), false, false);
        read(&mut judge, 4).unwrap();
        read(&mut judge, 2).unwrap_err();
        judge.read(1, judge.clock, 6, &content(5, 2)).unwrap_err();
    }

    #[test]
    fn zeros_and_discards_end_what_was_there() {
        let mut judge = Judge::default();
        judge.opened(1);
        wrote(&mut judge, 1);
        judge.write_begins(1, (5, 1, 2), Left::Zeros);
        read(&mut judge, 1).unwrap();
        judge.write_ends((5, 1, 2), true, false);
        read(&mut judge, 0).unwrap();
        read(&mut judge, 1).unwrap_err();
        judge.write_begins(1, (5, 1, 3), Left::Anything);
        judge.write_ends((5, 1, 3), true, false);
        assert!(judge.is_discarded(5));
        read(&mut judge, 1).unwrap();
        read(&mut judge, 0).unwrap();
        wrote(&mut judge, 4);
        read(&mut judge, 0).unwrap_err();
        assert!(!judge.is_discarded(5));
    }

    #[test]
    fn a_crash_may_tear_a_block_that_was_not_flushed_and_it_stays_torn() {
        let torn = |head, tail| {
            let mut bytes = content(5, head);
            bytes[2048..].copy_from_slice(&content(5, tail)[2048..]);
            bytes
        };
        let mut judge = Judge::default();
        judge.opened(1);
        wrote(&mut judge, 1);
        let asked = judge.moment();
        judge.flushed(1, asked);
        wrote(&mut judge, 2);
        let look = |judge: &mut Judge, head, tail| {
            let (epoch, asked) = (judge.epoch, judge.moment());
            judge.read(epoch, asked, 5, &torn(head, tail))
        };
        look(&mut judge, 2, 1).unwrap_err();
        judge.opened(2);
        look(&mut judge, 3, 1).unwrap_err();
        look(&mut judge, 2, 0).unwrap_err();
        look(&mut judge, 2, 1).unwrap();
        read(&mut judge, 2).unwrap_err();
        look(&mut judge, 1, 2).unwrap_err();
        judge.opened(3);
        look(&mut judge, 2, 1).unwrap();
        // Of what was torn a part is torn away.
        wrote(&mut judge, 4);
        judge.opened(4);
        look(&mut judge, 1, 4).unwrap_err();
        look(&mut judge, 2, 4).unwrap();
        look(&mut judge, 4, 1).unwrap_err();
        judge.opened(5);
        wrote(&mut judge, 5);
        judge.opened(6);
        look(&mut judge, 5, 2).unwrap_err();
        look(&mut judge, 5, 4).unwrap();
    }

    #[test]
    fn a_crash_may_lose_what_was_not_flushed_once() {
        let mut judge = Judge::default();
        judge.opened(1);
        wrote(&mut judge, 1);
        let asked = judge.moment();
        wrote(&mut judge, 2);
        judge.flushed(1, asked);
        wrote(&mut judge, 3);
        judge.opened(2);
        read(&mut judge, 0).unwrap_err();
        read(&mut judge, 2).unwrap();
        for lost in [0, 1, 3] {
            read(&mut judge, lost).unwrap_err();
        }
        judge.opened(3);
        read(&mut judge, 3).unwrap_err();
        judge.acknowledged(2, judge.clock + 1).unwrap_err();
    }
}
