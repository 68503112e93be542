//! Connections between the clients and the server.
//!
//! - Each direction keeps its order; each frame takes a time of its own, by seed.
//! - A connection that breaks delivers a part of what was on its way, and then its end.
//! - A client that is cut off reaches nobody: what is on its way waits until it is not any more.
//!
//! Nobody stands still with the lock of this.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gabion_base::rng::Rng;

use super::baton::Baton;

/// How long one frame takes at most, in microseconds, mostly and rarely.
const DELAY_MICROS: u64 = 2_000;
const DELAY_MICROS_MAX: u64 = 200_000;
/// Where some clients are far away, each of so many connections is slow.
const SLOW_SHARE: u64 = 3;
/// How long a connecting client waits for an answer.
pub const CONNECT_PATIENCE: Duration = Duration::from_millis(600);
/// Where the server waits for clients.
const ARRIVALS: usize = 1;
/// The place of the first connection.
const PLACES: usize = 1000;

/// Names a connection.
pub type ConnectionId = usize;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Client,
    /// The one that was connected to.
    Server,
}

#[derive(Default)]
struct Lane {
    frames: VecDeque<(Duration, Vec<u8>)>,
    last: Duration,
}

struct Connection {
    client: usize,
    /// How long a frame takes at most, mostly, in microseconds.
    delay: u64,
    /// What is on its way to the client, and to the server.
    lanes: [Lane; 2],
    is_broken: bool,
}

struct State {
    rng: Rng,
    /// Whether some clients are far away.
    has_slow: bool,
    connections: BTreeMap<ConnectionId, Connection>,
    last: ConnectionId,
    cut_off: BTreeSet<usize>,
    is_listening: bool,
    arrivals: VecDeque<ConnectionId>,
}

/// All connections.
pub struct Network {
    baton: Arc<Baton>,
    state: Mutex<State>,
}

fn to(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Server => 1,
    }
}

fn place(id: ConnectionId) -> usize {
    PLACES + id
}

impl Network {
    /// Without connections, and with nobody who listens.
    pub fn new(baton: Arc<Baton>, seed: u64, has_slow: bool) -> Self {
        let state = State {
            rng: Rng::new(seed ^ 0x0e70_0000),
            has_slow,
            connections: BTreeMap::new(),
            last: 0,
            cut_off: BTreeSet::new(),
            is_listening: false,
            arrivals: VecDeque::new(),
        };
        Self { baton, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client connects. Nothing: nobody listens, or it is cut off.
    pub fn connect(&self, client: usize) -> Option<ConnectionId> {
        let is_cut_off = self.state().cut_off.contains(&client);
        if is_cut_off {
            self.baton.sleep(CONNECT_PATIENCE);
            return None;
        }
        let mut state = self.state();
        if !state.is_listening {
            return None;
        }
        state.last += 1;
        let id = state.last;
        let is_slow = state.has_slow && state.rng.chance(1, SLOW_SHARE);
        let delay = if is_slow { DELAY_MICROS_MAX } else { DELAY_MICROS };
        let connection = Connection { client, delay, lanes: Default::default(), is_broken: false };
        state.connections.insert(id, connection);
        state.arrivals.push_back(id);
        drop(state);
        self.baton.wake(ARRIVALS);
        Some(id)
    }

    /// The server waits for the next client.
    pub fn accept(&self) -> ConnectionId {
        loop {
            if let Some(id) = self.state().arrivals.pop_front() {
                return id;
            }
            self.baton.wait(ARRIVALS, Duration::from_secs(3600));
        }
    }

    /// Sends a frame from `side`, without waiting for anybody.
    pub fn send(&self, id: ConnectionId, side: Side, frame: Vec<u8>) {
        let other = if side == Side::Client { Side::Server } else { Side::Client };
        let now = self.baton.now();
        let mut state = self.state();
        let is_late = state.rng.chance(1, 50);
        let State { rng, connections, .. } = &mut *state;
        let usual = connections.get(&id).map_or(DELAY_MICROS, |connection| connection.delay);
        let delay = rng.below(if is_late { DELAY_MICROS_MAX } else { usual });
        let delay = Duration::from_micros(delay);
        let Some(connection) = connections.get_mut(&id) else { return };
        if connection.is_broken {
            return;
        }
        let lane = &mut connection.lanes[to(other)];
        lane.last = lane.last.max(now + delay);
        lane.frames.push_back((lane.last, frame));
        drop(state);
        self.baton.wake(place(id));
    }

    /// The next frame for `side`. Nothing: the connection is broken, or nothing came for
    /// `patience`.
    pub fn receive(&self, id: ConnectionId, side: Side, patience: Duration) -> Option<Vec<u8>> {
        let until = self.baton.now() + patience;
        loop {
            let now = self.baton.now();
            let mut next = until;
            let mut state = self.state();
            let State { connections, cut_off, .. } = &mut *state;
            let connection = connections.get_mut(&id)?;
            if !cut_off.contains(&connection.client) {
                let lane = &mut connection.lanes[to(side)];
                match lane.frames.front() {
                    Some((due, _)) if *due <= now => {
                        return lane.frames.pop_front().map(|(_, frame)| frame);
                    }
                    Some((due, _)) => next = next.min(*due),
                    None if connection.is_broken => return None,
                    None => {}
                }
            }
            drop(state);
            if now >= until {
                return None;
            }
            self.baton.wait(place(id), next - now);
        }
    }

    /// Breaks a connection. The other side gets a part of what is on its way.
    pub fn close(&self, id: ConnectionId) {
        let mut state = self.state();
        let State { connections, rng, .. } = &mut *state;
        if let Some(connection) = connections.get_mut(&id) {
            break_off(connection, rng);
        }
        drop(state);
        self.baton.wake(place(id));
    }

    /// Breaks all connections of a client.
    pub fn close_client(&self, client: usize) {
        self.close_all(|connection| connection.client == client);
    }

    /// The server can be reached, or not any more.
    pub fn listen(&self, is_listening: bool) {
        let mut state = self.state();
        state.is_listening = is_listening;
        state.arrivals.clear();
        drop(state);
        if !is_listening {
            self.close_all(|_| true);
        }
    }

    fn close_all(&self, which: impl Fn(&Connection) -> bool) {
        let mut state = self.state();
        let State { connections, rng, .. } = &mut *state;
        let mut broken = Vec::new();
        for (id, connection) in connections.iter_mut().filter(|(_, found)| which(found)) {
            break_off(connection, rng);
            broken.push(*id);
        }
        drop(state);
        broken.into_iter().for_each(|id| self.baton.wake(place(id)));
    }

    /// Nothing of the client reaches anybody from now on, and nothing reaches it.
    pub fn cut_off(&self, client: usize) {
        self.state().cut_off.insert(client);
    }

    /// What is on its way to and from the client goes on.
    pub fn heal(&self, client: usize) {
        let mut state = self.state();
        state.cut_off.remove(&client);
        let own = state.connections.iter().filter(|(_, found)| found.client == client);
        let ids: Vec<ConnectionId> = own.map(|(id, _)| *id).collect();
        drop(state);
        ids.into_iter().for_each(|id| self.baton.wake(place(id)));
    }
}

fn break_off(connection: &mut Connection, rng: &mut Rng) {
    if connection.is_broken {
        return;
    }
    connection.is_broken = true;
    for lane in &mut connection.lanes {
        let kept = rng.below(lane.frames.len() as u64 + 1) as usize;
        lane.frames.truncate(kept);
    }
}
