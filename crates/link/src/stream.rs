//! Every message once and in order, whatever becomes of connections.
//!
//! Each side numbers its messages from 1 and keeps them until the other side has said that they
//! arrived. When a connection is replaced by another one, both say how far they have come, and
//! what is missing is sent again.
//!
//! ```text
//!   push --> [ 5 6 7 ] --> connection --> accept: 5, 6, 7; again 6: a repetition; 9: a gap
//!              ^ arrived(6): [ 7 ]
//! ```
//!
//! Absent: bytes on sockets, and any limit but the one on how much may be kept, which the owner
//! enforces by [`Outgoing::bytes`].

use std::collections::VecDeque;
use std::sync::Arc;

use thiserror::Error;

/// What the other side said cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// A message is missing before this one.
    #[error("message {number} came when {expected} was due")]
    Gap {
        /// The one that came.
        number: u64,
        /// The one that was due.
        expected: u64,
    },
    /// It has got what was never sent, or no longer knows what it had got.
    #[error("the other side claims to have {received} messages; it was sent {sent} and had {had}")]
    Impossible {
        /// Its claim.
        received: u64,
        /// What was sent.
        sent: u64,
        /// What it had before.
        had: u64,
    },
}

/// A message's bytes. Whoever sends them again need not copy them.
pub type Payload = Arc<Vec<u8>>;

/// A message with its number.
pub type Numbered = (u64, Payload);

/// Messages to the other side.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Those that may not have arrived.
    kept: VecDeque<Payload>,
    /// How many have arrived: all up to this number.
    arrived: u64,
    bytes: usize,
}

impl Outgoing {
    /// Takes a message and gives it its number.
    pub fn push(&mut self, payload: Payload) -> u64 {
        self.bytes += payload.len();
        self.kept.push_back(payload);
        self.sent()
    }

    /// The number of the last message.
    pub fn sent(&self) -> u64 {
        self.arrived + self.kept.len() as u64
    }

    /// How many have arrived, by the other side's word.
    pub fn arrived_so_far(&self) -> u64 {
        self.arrived
    }

    /// The other side says that all up to `received` have arrived.
    pub fn arrived(&mut self, received: u64) -> Result<(), StreamError> {
        let (sent, had) = (self.sent(), self.arrived);
        if received > sent {
            return Err(StreamError::Impossible { received, sent, had });
        }
        while self.arrived < received {
            let gone = self.kept.pop_front().expect("it was sent and is kept");
            self.bytes -= gone.len();
            self.arrived += 1;
        }
        Ok(())
    }

    /// The messages that a new connection begins with, when the other side has said how far it
    /// has come. It cannot have lost what it had.
    pub fn again(&mut self, received: u64) -> Result<Vec<Numbered>, StreamError> {
        let (sent, had) = (self.sent(), self.arrived);
        if received < had {
            return Err(StreamError::Impossible { received, sent, had });
        }
        self.arrived(received)?;
        let numbers = self.arrived + 1..;
        Ok(numbers.zip(self.kept.iter().cloned()).collect())
    }

    /// Memory that is kept for messages that may not have arrived.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What has come from the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    received: u64,
}

impl Incoming {
    /// All up to `received` have come.
    pub fn at(received: u64) -> Self {
        Self { received }
    }

    /// Whether message `number` is new: a repetition is not, and is to be ignored.
    pub fn accept(&mut self, number: u64) -> Result<bool, StreamError> {
        if number <= self.received {
            return Ok(false);
        }
        let expected = self.received + 1;
        if number != expected {
            return Err(StreamError::Gap { number, expected });
        }
        self.received = number;
        Ok(true)
    }

    /// All up to this number have come.
    pub fn received(&self) -> u64 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn impossible_claims_are_refused() {
        let mut out = Outgoing::default();
        out.push(Arc::new(vec![1]));
        assert!(out.arrived(2).is_err());
        out.arrived(1).unwrap();
        assert_eq!(out.bytes(), 0);
        assert!(out.again(0).is_err());
        assert_eq!(Incoming::default().accept(2), Err(StreamError::Gap { number: 2, expected: 1 }));
    }

    proptest! {
        #[test]
        fn every_message_arrives_once_and_in_order(
            // Each connection lets this many messages through, and as many arrivals back.
            connections in prop::collection::vec((0..6_u64, 0..6_usize, any::<bool>()), 1..20),
        ) {
            let (mut out, mut into) = (Outgoing::default(), Incoming::default());
            let mut seen = Vec::new();
            for (pushed, through, tells) in connections {
                for _ in 0..pushed {
                    let next = out.sent() + 1;
                    prop_assert_eq!(out.push(Arc::new(next.to_le_bytes().to_vec())), next);
                }
                let again = out.again(into.received()).unwrap();
                for (number, payload) in again.into_iter().take(through) {
                    prop_assert!(into.accept(number).unwrap());
                    prop_assert!(!into.accept(number).unwrap());
                    seen.push(u64::from_le_bytes(payload[..].try_into().unwrap()));
                }
                if tells {
                    out.arrived(into.received()).unwrap();
                }
            }
            prop_assert!(seen.iter().copied().eq(1..=seen.len() as u64));
        }
    }
}
