//! Segments that were read last: files that are neighbours share them.

use std::collections::VecDeque;
use std::sync::Arc;

use gabion_base::sync::Mutex;

use super::Unmade;
use crate::backup::chain::Chain;
use crate::backup::streams::of_stream;

/// So many are kept.
const KEPT: usize = 16;

/// The number of a stream in the chain, and of a segment in it.
type Key = (u16, u32);

/// The segments of a chain.
pub struct Segments<'c> {
    chain: &'c Chain,
    kept: Mutex<VecDeque<(Key, Arc<Segment>)>>,
}

/// The bytes of a segment, once somebody has read them. Whoever needs them meanwhile waits.
#[derive(Default)]
struct Segment(Mutex<Option<Arc<Vec<u8>>>>);

impl<'c> Segments<'c> {
    /// None was read yet.
    pub fn new(chain: &'c Chain) -> Self {
        Self { chain, kept: Mutex::new(VecDeque::new()) }
    }

    /// The bytes of a segment of the stream that is the `stream`th of the chain.
    pub fn get(&self, stream: u16, number: u32) -> Result<Arc<Vec<u8>>, Unmade> {
        let segment = self.slot((stream, number));
        let mut bytes = segment.0.lock();
        if let Some(bytes) = &*bytes {
            return Ok(Arc::clone(bytes));
        }
        let (path, of) = &self.chain.streams[usize::from(stream)];
        let read = of.segment(number);
        let read = read.map_err(|error| Unmade::Stream(of_stream(path, &error)))?;
        Ok(Arc::clone(bytes.insert(Arc::new(read))))
    }

    fn slot(&self, key: Key) -> Arc<Segment> {
        let mut kept = self.kept.lock();
        if let Some((_, segment)) = kept.iter().find(|(found, _)| *found == key) {
            return Arc::clone(segment);
        }
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        let segment = Arc::<Segment>::default();
        kept.push_back((key, Arc::clone(&segment)));
        segment
    }
}
