//! A member as a disk: what carries requests to it, and does not give up when a connection is lost.
//!
//! It behaves as `gabion_nbd`'s client does, with a thread of its host that takes the answers:
//! everything unanswered is sent again on the next connection, after what was acknowledged and not
//! flushed, as the member may have lost that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gabion_base::disk::{Completion, Disk, DiskError, DiskRequest, DiskResult, Durability, Ticket};
use gabion_base::sync::{Mutex, spawn};
use gabion_volume::member::{Connector, MemberError, Patience, Right};

use super::super::Sabotage;
use super::super::member::{Grant, fenced};
use super::World;
use super::ether::{COURIER, LineId, NoLine, gone};
use super::places::number_of;

/// How long a line that is lost waits before it tries to connect again, at most.
const BACKOFF_MICROS: u64 = 100_000;
/// How often a line looks at the time.
const GLANCE: Duration = Duration::from_millis(500);

/// How a host in one of its lives reaches members, which are named by letters.
pub(super) struct Wire {
    pub(super) world: Arc<World>,
    pub(super) host: usize,
    pub(super) life: u64,
    pub(super) sabotage: Sabotage,
}

impl Connector for Wire {
    fn connect(
        &self,
        url: &str,
        right: Option<&Right>,
        patience: Patience,
    ) -> Result<Arc<dyn Disk>, MemberError> {
        let (world, member) = (&self.world, number_of(url));
        world.sleep_up_to(Duration::from_millis(20));
        let nonce = |holder: &str| {
            holder
                .bytes()
                .fold(7, |sum: u64, byte| sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte))
        };
        let grant = right.map(|right| Grant {
            fence: right.fence,
            nonce: nonce(&right.holder),
            connection: world.next_connection(),
        });
        let is_late = world.has_volume[self.host].load(Ordering::Relaxed) > 0;
        if self.sabotage == Sabotage::NeverAttach && is_late {
            return Err(MemberError::Unreachable(format!("{url} is not wanted")));
        }
        if !world.is_alive(self.host, self.life) {
            return Err(MemberError::Unreachable(format!("{url}: the host is down")));
        }
        let line = world.ether.connect(world.baton.now(), self.host, member, grant);
        let line = line.map_err(|error| match error {
            NoLine::Unreachable => MemberError::Unreachable(format!("{url} does not answer")),
            NoLine::Fenced => MemberError::Fenced(format!("{url} has a later one")),
        });
        if matches!(line, Err(MemberError::Unreachable(_))) {
            world.baton.sleep(Duration::from_millis(300));
        }
        let line = line?;
        let blocks = world.ether.member(member, |it, _| it.blocks);
        let shared = Arc::new(Shared {
            world: Arc::clone(world),
            name: url.into(),
            blocks: AtomicU64::new(blocks),
            alive: (self.host, self.life),
            line,
            patience,
            state: Mutex::default(),
        });
        let own = Arc::clone(&shared);
        spawn("line", move || own.run()).expect("the simulator has threads");
        Ok(Arc::new(Line { shared }))
    }

    fn fence_of(&self, url: &str, _patience: Patience) -> Result<u64, MemberError> {
        Ok(self.world.ether.member(number_of(url), |member, _| member.fence()))
    }
}

/// The host's end of a line.
struct Line {
    shared: Arc<Shared>,
}

struct Shared {
    world: Arc<World>,
    name: Arc<str>,
    blocks: AtomicU64,
    /// The host and its life.
    alive: (usize, u64),
    line: LineId,
    patience: Patience,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Since when there is no connection.
    down: Option<Duration>,
    is_closed: bool,
    is_fenced: bool,
    next: u64,
    pending: BTreeMap<u64, Pending>,
    acknowledged: u64,
    unflushed: Vec<(u64, DiskRequest)>,
}

struct Pending {
    request: DiskRequest,
    completion: Completion,
    until: Duration,
    /// How much had been acknowledged when it was sent.
    acknowledged: u64,
}

type Completed = Vec<(Completion, DiskResult)>;

impl Disk for Line {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.shared.name)
    }

    fn blocks(&self) -> u64 {
        self.shared.blocks.load(Ordering::Relaxed)
    }

    fn remeasure(&self) -> Result<u64, DiskError> {
        let shared = &self.shared;
        let found = shared.world.ether.length(shared.world.baton.now(), shared.line);
        let found = found.ok_or_else(|| gone(&DiskRequest::Flush))?;
        shared.blocks.fetch_max(found, Ordering::Relaxed);
        Ok(self.blocks())
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let shared = &self.shared;
        if let Err(error) = request.check(&shared.name, self.blocks()) {
            return Ticket::ready(Err(error));
        }
        let (host, life) = shared.alive;
        if !shared.world.is_alive(host, life) {
            return Ticket::ready(Err(gone(&request)));
        }
        let now = shared.world.baton.now();
        let mut state = shared.state.lock();
        if let Some(error) = shared.refusal(&state, now, &request) {
            return Ticket::ready(Err(error));
        }
        let (ticket, completion) = Ticket::pair();
        let cookie = state.next;
        state.next += 1;
        let (until, acknowledged) = (now + shared.patience.deadline, state.acknowledged);
        let pending = Pending { request: request.clone(), completion, until, acknowledged };
        state.pending.insert(cookie, pending);
        if state.down.is_none() {
            shared.send(cookie, request);
        }
        ticket
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.state.lock().is_closed = true;
        self.shared.world.ether.hang_up(self.shared.line);
        self.shared.world.baton.wake(self.shared.place());
    }
}

impl Shared {
    /// Where the line's thread waits.
    fn place(&self) -> usize {
        COURIER + 1 + self.line
    }

    fn send(&self, cookie: u64, request: DiskRequest) {
        self.world.ether.send(self.world.baton.now(), self.line, cookie, request);
        self.world.baton.wake(COURIER);
    }

    /// Why a request fails at once.
    fn refusal(&self, state: &State, now: Duration, request: &DiskRequest) -> Option<DiskError> {
        if state.is_fenced {
            return Some(fenced(request.operation()));
        }
        let is_lost = state.down.is_some_and(|since| now - since >= self.patience.lost);
        (state.is_closed || is_lost).then(|| gone(request))
    }

    fn run(&self) {
        loop {
            let (answers, is_lost) = self.world.ether.receive(self.line);
            let now = self.world.baton.now();
            let mut state = self.state.lock();
            let mut completed = self.take(&mut state, answers);
            let wait = if state.is_closed || state.is_fenced {
                completed.extend(self.fail(&mut state, |_| true));
                GLANCE
            } else {
                if is_lost {
                    state.down.get_or_insert(now);
                }
                let wait = self.try_again(&mut state, now);
                completed.extend(self.fail_what_is_late(&mut state, now));
                wait
            };
            let is_over = state.is_closed;
            drop(state);
            for (completion, result) in completed {
                completion.complete(result);
            }
            if is_over {
                return;
            }
            self.world.baton.wait(self.place(), wait);
        }
    }

    /// Takes note of what was answered.
    fn take(&self, state: &mut State, answers: Vec<(u64, DiskResult)>) -> Completed {
        let mut completed = Vec::new();
        for (cookie, result) in answers {
            let Some(pending) = state.pending.remove(&cookie) else { continue };
            match (&pending.request, &result) {
                (DiskRequest::Flush, Ok(_)) => {
                    state.unflushed.retain(|(number, _)| *number > pending.acknowledged);
                }
                (_, Err(DiskError::Fenced { .. })) => state.is_fenced = true,
                (DiskRequest::Read { .. } | DiskRequest::Flush, _) | (_, Err(_)) => {}
                (request, Ok(_)) => {
                    state.acknowledged += 1;
                    let durable =
                        matches!(request, DiskRequest::Write { durability: Durability::Fua, .. });
                    if !(durable && state.unflushed.is_empty()) {
                        state.unflushed.push((state.acknowledged, pending.request));
                    }
                }
            }
            completed.push((pending.completion, result));
        }
        completed
    }

    /// Connects again, if that is to be done now. Gives how long to wait.
    fn try_again(&self, state: &mut State, now: Duration) -> Duration {
        if state.down.is_none() {
            return GLANCE;
        }
        let again: Vec<_> = state.unflushed.iter().map(|(_, request)| request.clone()).collect();
        match self.world.ether.reconnect(now, self.line, &again) {
            Ok(()) => {
                state.down = None;
                for (cookie, pending) in &state.pending {
                    self.send(*cookie, pending.request.clone());
                }
                GLANCE
            }
            Err(NoLine::Fenced) => {
                state.is_fenced = true;
                Duration::ZERO
            }
            Err(NoLine::Unreachable) => {
                let wait = self.world.baton.draw(BACKOFF_MICROS);
                Duration::from_micros(20_000 + wait)
            }
        }
    }

    fn fail_what_is_late(&self, state: &mut State, now: Duration) -> Completed {
        let is_hopeless = state.down.is_some_and(|since| now - since >= self.patience.lost);
        let late = self.fail(state, |pending| is_hopeless || pending.until <= now);
        if !late.is_empty() && state.down.is_none() {
            // Whatever is said now, it could not be told whose answer it is.
            self.world.ether.hang_up(self.line);
            state.down = Some(now);
        }
        late
    }

    fn fail(&self, state: &mut State, which: impl Fn(&Pending) -> bool) -> Completed {
        let late: Vec<_> =
            state.pending.iter().filter(|(_, it)| which(it)).map(|it| *it.0).collect();
        let late = late.into_iter().filter_map(|cookie| state.pending.remove(&cookie));
        late.map(|pending| {
            let error = match state.is_fenced {
                true => fenced(pending.request.operation()),
                false => gone(&pending.request),
            };
            (pending.completion, Err(error))
        })
        .collect()
    }
}
