//! How far a read or a write has come.
//!
//! The kernel may move fewer bytes than it was asked to. Both cursors then go on from the last
//! whole block, because direct I/O must start at one. They are the same for a thread that calls
//! `pread` and for a ring that completes later, so short transfers are understood in one place:
//!
//! | moved           | read                                      | write                   |
//! |-----------------|-------------------------------------------|-------------------------|
//! | everything      | done                                      | done                    |
//! | whole blocks    | go on                                     | go on                   |
//! | less than one   | at the end of an image: the rest is zeros | error                   |
//! |                 | anywhere else: error                      |                         |

use std::io;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::ids::BlockAddr;

/// The most bytes that one call is asked to move; the kernel's own limit is just under 2 GiB.
const CALL_BYTES: usize = 1 << 30;
/// The most parts that one call is given: the kernel's `UIO_MAXIOV`.
const CALL_PARTS: usize = 1024;

/// Whether a transfer needs another call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    More,
}

/// A read into one buffer, which is passed in with each step.
#[derive(Debug)]
pub(super) struct ReadCursor {
    start: u64,
    filled: usize,
}

impl ReadCursor {
    pub(super) fn new(addr: BlockAddr) -> Self {
        Self { start: addr.byte_offset(), filled: 0 }
    }

    /// The offset on the device of the next call.
    pub(super) fn offset(&self) -> u64 {
        self.start + self.filled as u64
    }

    /// The part of `buffer` that the next call is to fill.
    pub(super) fn rest<'a>(&self, buffer: &'a mut [u8]) -> &'a mut [u8] {
        let end = buffer.len().min(self.filled + CALL_BYTES);
        &mut buffer[self.filled..end]
    }

    /// Takes note that a call has read `count` bytes. `is_end` tells whether an offset is at or
    /// behind the end of an image file.
    pub(super) fn advance(
        &mut self,
        buffer: &mut [u8],
        count: usize,
        is_end: impl FnOnce(u64) -> bool,
    ) -> io::Result<Progress> {
        let got = self.filled + count;
        assert!(got <= buffer.len(), "read {got} bytes into {}", buffer.len());
        if got == buffer.len() {
            return Ok(Progress::Done);
        }
        if count >= BLOCK_SIZE {
            self.filled = got - got % BLOCK_SIZE;
            return Ok(Progress::More);
        }
        if !is_end(self.start + got as u64) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        buffer[got..].fill(0);
        Ok(Progress::Done)
    }
}

/// A write of parts side by side.
///
/// Holds addresses into the parts' memory: whoever owns it owns the parts for as long.
#[derive(Debug)]
pub(super) struct WriteCursor {
    offset: u64,
    parts: Vec<libc::iovec>,
    first: usize,
}

// SAFETY: the addresses are only read from, and point into buffers that may be shared between
// threads; that they live as long is the owner's duty on any thread.
unsafe impl Send for WriteCursor {}

impl WriteCursor {
    pub(super) fn new(addr: BlockAddr, parts: &[BlockSlice]) -> Self {
        let vector = |bytes: &[u8]| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let parts = parts.iter().flat_map(|part| part.bytes().chunks(CALL_BYTES)).map(vector);
        Self { offset: addr.byte_offset(), parts: parts.collect(), first: 0 }
    }

    /// The offset on the device of the next call.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// What the next call is to write.
    pub(super) fn rest(&self) -> &[libc::iovec] {
        let end = self.parts.len().min(self.first + CALL_PARTS);
        &self.parts[self.first..end]
    }

    /// Takes note that a call has written `count` bytes.
    pub(super) fn advance(&mut self, count: usize) -> io::Result<Progress> {
        let mut left = count - count % BLOCK_SIZE;
        if left == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        self.offset += left as u64;
        while left > 0 {
            let part = self.parts.get_mut(self.first).expect("no more is written than was given");
            let step = left.min(part.iov_len);
            part.iov_base = part.iov_base.wrapping_byte_add(step);
            part.iov_len -= step;
            left -= step;
            if part.iov_len == 0 {
                self.first += 1;
            }
        }
        Ok(if self.first == self.parts.len() { Progress::Done } else { Progress::More })
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::buffer::Blocks;

    use super::*;

    #[test]
    fn a_short_read_goes_on_at_a_whole_block() {
        let mut buffer = vec![1; 4 * BLOCK_SIZE];
        let mut cursor = ReadCursor::new(BlockAddr(10));
        let step = cursor.advance(&mut buffer, BLOCK_SIZE + 512, |_| false).unwrap();
        assert_eq!(step, Progress::More);
        assert_eq!(cursor.offset(), 11 * BLOCK_SIZE as u64);
        assert_eq!(cursor.rest(&mut buffer).len(), 3 * BLOCK_SIZE);
        let step = cursor.advance(&mut buffer, 3 * BLOCK_SIZE, |_| false).unwrap();
        assert_eq!(step, Progress::Done);
    }

    #[test]
    fn a_read_at_the_end_is_filled_with_zeros_and_elsewhere_fails() {
        let mut buffer = vec![1; 2 * BLOCK_SIZE];
        let end = 100;
        let mut cursor = ReadCursor::new(BlockAddr(0));
        assert!(cursor.advance(&mut buffer, 100, |offset| offset > end).is_err());
        let step = cursor.advance(&mut buffer, 100, |offset| offset >= end).unwrap();
        assert_eq!(step, Progress::Done);
        assert!(buffer[..100].iter().all(|byte| *byte == 1));
        assert!(buffer[100..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_short_write_goes_on_within_the_right_part() {
        let parts = [1, 2, 1].map(|count| BlockSlice::new(Blocks::zeroed(count)));
        let mut cursor = WriteCursor::new(BlockAddr(5), &parts);
        assert_eq!(cursor.advance(2 * BLOCK_SIZE + 1).unwrap(), Progress::More);
        assert_eq!(cursor.offset(), 7 * BLOCK_SIZE as u64);
        let rest = cursor.rest();
        assert_eq!(rest.len(), 2);
        assert_eq!(rest[0].iov_base as usize, parts[1].bytes()[BLOCK_SIZE..].as_ptr() as usize);
        assert_eq!(rest[0].iov_len, BLOCK_SIZE);
        assert!(cursor.advance(BLOCK_SIZE - 1).is_err());
        assert_eq!(cursor.advance(2 * BLOCK_SIZE).unwrap(), Progress::Done);
    }

    #[test]
    fn more_parts_than_one_call_takes_are_split() {
        let block = BlockSlice::new(Blocks::zeroed(1));
        let parts = vec![block; CALL_PARTS + 1];
        let mut cursor = WriteCursor::new(BlockAddr(0), &parts);
        assert_eq!(cursor.rest().len(), CALL_PARTS);
        assert_eq!(cursor.advance(CALL_PARTS * BLOCK_SIZE).unwrap(), Progress::More);
        assert_eq!(cursor.rest().len(), 1);
        assert_eq!(cursor.advance(BLOCK_SIZE).unwrap(), Progress::Done);
    }
}
