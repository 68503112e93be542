//! The answers of the pieces, until there is one for the whole.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::disk::{Completion, DiskError, DiskResult, Ticket};
use gabion_base::sync::Mutex;

/// The pieces of one request, until the last one has completed.
pub(super) struct Gathering(Mutex<Gathered>);

struct Gathered {
    left: usize,
    blocks: Option<Blocks>,
    error: Option<DiskError>,
    /// Taken with the last piece.
    completion: Option<Completion>,
}

impl Gathering {
    pub fn start(pieces: usize, blocks: Option<Blocks>) -> (Ticket, Arc<Self>) {
        let (ticket, completion) = match pieces {
            0 => (Ticket::ready(Ok(blocks.clone())), None),
            _ => {
                let (ticket, completion) = Ticket::pair();
                (ticket, Some(completion))
            }
        };
        let gathered = Gathered { left: pieces, blocks, error: None, completion };
        (ticket, Arc::new(Self(Mutex::new(gathered))))
    }

    /// A piece has completed, whose blocks are these of the request.
    pub fn arrived(&self, outcome: DiskResult, stretches: impl Iterator<Item = (usize, usize)>) {
        let mut gathered = self.0.lock();
        match outcome {
            Ok(piece) => {
                if let (Some(piece), Some(whole)) = (&piece, &mut gathered.blocks) {
                    place(piece, whole, stretches);
                }
            }
            Err(error) => {
                let fenced = matches!(error, DiskError::Fenced { .. });
                if fenced || gathered.error.is_none() {
                    gathered.error = Some(error);
                }
            }
        }
        gathered.left -= 1;
        if gathered.left > 0 {
            return;
        }
        let (error, blocks) = (gathered.error.take(), gathered.blocks.take());
        let completion = gathered.completion.take();
        // Whoever is told may ask for more at once.
        drop(gathered);
        if let Some(completion) = completion {
            completion.complete(error.map_or(Ok(blocks), Err));
        }
    }
}

fn place(piece: &Blocks, whole: &mut Blocks, stretches: impl Iterator<Item = (usize, usize)>) {
    let mut from = 0;
    for (start, length) in stretches {
        let (start, bytes) = (start * BLOCK_SIZE, length * BLOCK_SIZE);
        let to = &mut whole.bytes_mut()[start..start + bytes];
        to.copy_from_slice(&piece.bytes()[from..from + bytes]);
        from += bytes;
    }
}
