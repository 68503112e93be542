//! Memory for the data of requests, which is used again.
//!
//! To make memory costs a pass over it, and the system's work for each of its pages; for requests
//! of a mebibyte that is as much as to copy them. A connection keeps what its requests had, as
//! most clients ask for the same lengths again and again.
//!
//! What comes out of a pool holds what stood in it before: it must be overwritten in whole before
//! anybody sees any of it. A pool belongs to one connection, so that no mistake could show one
//! client's data to another.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::sync::Mutex;

/// Bytes that a connection keeps: its requests in flight, if they are of one mebibyte at most.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// Buffers that a connection keeps: as many as it has requests in flight.
const KEPT_MAX: usize = 16;

/// The memory of one connection.
#[derive(Default)]
pub(super) struct Pool(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    buffers: Vec<Blocks>,
    bytes: usize,
}

/// Memory that goes back to its pool.
pub(super) struct Buffer {
    /// Nothing only while it is dropped.
    blocks: Option<Blocks>,
    pool: Arc<Pool>,
}

impl Pool {
    /// Memory of `count` blocks, of unknown content.
    pub(super) fn take(self: &Arc<Self>, count: usize) -> Buffer {
        let kept = {
            let mut kept = self.0.lock();
            let found = kept.buffers.iter().rposition(|blocks| blocks.count() == count);
            found.map(|at| {
                kept.bytes -= count * BLOCK_SIZE;
                kept.buffers.swap_remove(at)
            })
        };
        let blocks = kept.unwrap_or_else(|| Blocks::zeroed(count));
        Buffer { blocks: Some(blocks), pool: Arc::clone(self) }
    }
}

impl Buffer {
    /// Memory from elsewhere, which goes to a pool.
    pub(super) fn adopt(blocks: Blocks, pool: &Arc<Pool>) -> Self {
        Self { blocks: Some(blocks), pool: Arc::clone(pool) }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.blocks.as_ref().map_or(&[], Blocks::bytes)
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.blocks.as_mut().map_or(&mut [], Blocks::bytes_mut)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(blocks) = self.blocks.take() else { return };
        let bytes = blocks.bytes().len();
        if bytes > KEPT_BYTES_MAX {
            return;
        }
        let mut kept = self.pool.0.lock();
        // Lengths that are no longer asked for must not stand in the way for ever.
        while kept.bytes + bytes > KEPT_BYTES_MAX || kept.buffers.len() >= KEPT_MAX {
            kept.bytes -= kept.buffers.remove(0).bytes().len();
        }
        kept.bytes += bytes;
        kept.buffers.push(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_same_length_is_used_again_and_never_too_much_is_kept() {
        let pool = Arc::new(Pool::default());
        let mut first = pool.take(2);
        first.bytes_mut().fill(7);
        drop(first);
        assert_eq!(pool.take(1).bytes(), [0; BLOCK_SIZE], "of another length");
        assert_eq!(pool.take(2).bytes(), [7; 2 * BLOCK_SIZE]);
        for count in 1..200 {
            let both = (pool.take(count), pool.take(count));
            drop(both);
            let kept = pool.0.lock();
            let bytes: usize = kept.buffers.iter().map(|blocks| blocks.bytes().len()).sum();
            assert_eq!(kept.bytes, bytes);
            assert!(bytes <= KEPT_BYTES_MAX && kept.buffers.len() <= KEPT_MAX);
        }
        drop(pool.take(KEPT_BYTES_MAX / BLOCK_SIZE + 1));
        assert!(pool.0.lock().bytes <= KEPT_BYTES_MAX);
    }
}
