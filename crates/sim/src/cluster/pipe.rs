//! One side of a session on whatever connection it has just now: numbers, and sending again.
//!
//! As in the product's own, what was sent is kept until the other side has it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gabion_link::stream::{Incoming, Outgoing, StreamError};
use gabion_link::wire::{FrameKind, HEADER_BYTES, Header, WireError, encode_frame};

use super::network::{ConnectionId, Network, Side};

#[derive(Default)]
struct State {
    out: Outgoing,
    connection: Option<ConnectionId>,
    received: u64,
}

/// One side of a session.
pub struct Pipe {
    network: Arc<Network>,
    side: Side,
    state: Mutex<State>,
}

impl Pipe {
    /// Without a connection.
    pub fn new(network: Arc<Network>, side: Side) -> Self {
        Self { network, side, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message and gives its number.
    pub fn send(&self, payload: Vec<u8>) -> u64 {
        let mut state = self.state();
        let payload = Arc::new(payload);
        let number = state.out.push(Arc::clone(&payload));
        if let Some(connection) = state.connection {
            let frame = encode_frame(&Header::message(number, state.received, &payload), &payload);
            self.network.send(connection, self.side, frame);
        }
        number
    }

    /// The number of the last message.
    pub fn sent(&self) -> u64 {
        self.state().out.sent()
    }

    /// How many messages the other side has, by its own word.
    pub fn arrived(&self) -> u64 {
        self.state().out.arrived_so_far()
    }

    /// Messages that have arrived.
    pub fn received(&self) -> u64 {
        self.state().received
    }

    /// Goes on with another connection, of which the other side says that `received` messages had
    /// arrived before.
    pub fn attach(&self, connection: ConnectionId, received: u64) -> Result<(), StreamError> {
        let mut state = self.state();
        self.drop_connection(&mut state);
        let again = state.out.again(received)?;
        state.connection = Some(connection);
        for (number, payload) in again {
            let frame = encode_frame(&Header::message(number, state.received, &payload), &payload);
            self.network.send(connection, self.side, frame);
        }
        Ok(())
    }

    /// Begins again, in a new session.
    pub fn reset(&self) {
        let mut state = self.state();
        self.drop_connection(&mut state);
        state.out = Outgoing::default();
        state.received = 0;
    }

    /// Closes the connection, if it is still this one.
    pub fn detach(&self, connection: ConnectionId) {
        let mut state = self.state();
        if state.connection == Some(connection) {
            self.drop_connection(&mut state);
        }
    }

    /// Closes whatever connection there is.
    pub fn close(&self) {
        self.drop_connection(&mut self.state());
    }

    fn drop_connection(&self, state: &mut State) {
        if let Some(connection) = state.connection.take() {
            self.network.close(connection);
        }
    }

    /// Takes a frame. Nothing: it was there before.
    pub fn take(&self, frame: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let (header, payload) = open(frame).map_err(|error| error.to_string())?;
        if header.kind != FrameKind::Message {
            return Err("a message was due".to_owned());
        }
        let mut state = self.state();
        let told = |error: StreamError| error.to_string();
        state.out.arrived(header.received).map_err(told)?;
        let mut incoming = Incoming::at(state.received);
        let is_new = incoming.accept(header.number).map_err(told)?;
        state.received = incoming.received();
        Ok(is_new.then(|| payload.to_vec()))
    }
}

/// A frame's parts.
pub fn open(frame: &[u8]) -> Result<(Header, &[u8]), WireError> {
    let (head, payload) = frame.split_first_chunk::<HEADER_BYTES>().expect("frames come whole");
    let header = Header::decode(head)?;
    header.check_payload(payload)?;
    Ok((header, payload))
}

/// A frame that begins a connection.
pub fn greeting(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    encode_frame(&Header::greeting(kind, payload), payload)
}
