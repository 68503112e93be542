//! A host that has the volume open: it does what the mirror says, and asks it for things.

use std::collections::BTreeMap;
use std::time::Duration;

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{DiskError, DiskRequest, DiskResult, Durability, Repair};
use gabion_base::ids::BlockAddr;
use gabion_block::copies::CopyIndex;
use gabion_block::mirror::{Input, Mirror, Order, Output, RequestId, Sent, TICK, Trust};
use gabion_block::record::{CopyState, Layout, Record};
use gabion_block::wishes;

use super::attach::Attaching;
use super::client::ClientId;
use super::judge::{self, Left, Stamp};
use super::opening::Opener;
use super::rot::Recoveries;
use super::{Event, Sabotage, World};

/// Requests of a host in flight.
const ASKS_MAX: usize = 12;
/// How long nothing is written after an opening.
const MOUNTING: Duration = Duration::from_millis(250);
/// After how long it goes on to other blocks, so that some regions rest and settle.
const TURN_MS: u64 = 1500;

/// One life of a host, from a start to a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) host: usize,
    pub(super) number: u32,
}

#[derive(Default)]
pub(super) struct Host {
    pub(super) life: u32,
    pub(super) opener: Option<Opener>,
    pub(super) session: Option<Session>,
}

/// A volume that is open.
pub(super) struct Session {
    pub(super) life: Life,
    pub(super) epoch: u64,
    pub(super) nonce: u64,
    pub(super) mirror: Mirror,
    pub(super) clients: Vec<Option<ClientId>>,
    pub(super) attaching: Vec<Attaching>,
    /// How often something was attached.
    pub(super) attachments: u64,
    /// The record as it was known last, and its revision.
    pub(super) record: Record,
    pub(super) revision: u64,
    pub(super) fenced: bool,
    pub(super) recoveries: Recoveries,
    /// When it was opened.
    since: Duration,
    asks: BTreeMap<RequestId, Ask>,
    next: u64,
    ticking: bool,
}

/// A request of the host that is under way.
struct Ask {
    what: What,
    /// When it was made, for the judge and in time.
    moment: u64,
    since: Duration,
}

enum What {
    Change {
        addr: u64,
        count: u64,
        stamp: Stamp,
        left: Left,
        durability: Durability,
    },
    Read {
        addr: u64,
        count: u64,
    },
    Flush,
    ReadCopy {
        copy: CopyIndex,
        addr: u64,
    },
    /// Whether what is there has rotted.
    Look {
        copy: CopyIndex,
        addr: u64,
    },
    Repair,
}

impl Session {
    pub(super) fn new(
        life: Life,
        mirror: Mirror,
        clients: Vec<Option<ClientId>>,
        (record, revision): (Record, u64),
        since: Duration,
    ) -> Self {
        let opening = record.openings.last().expect("it was opened");
        Self {
            life,
            epoch: opening.epoch.0,
            nonce: opening.nonce,
            mirror,
            attaching: clients.iter().map(|_| Attaching::default()).collect(),
            clients,
            attachments: 0,
            record,
            revision,
            fenced: false,
            recoveries: Recoveries::default(),
            since,
            asks: BTreeMap::new(),
            next: 0,
            ticking: false,
        }
    }

    pub(super) fn asks(&self) -> usize {
        self.asks.len()
    }

    pub(super) fn trust(&self, copy: CopyIndex) -> Trust {
        self.mirror.copies()[copy.at()].trust
    }

    /// Begins to look at a block of one copy.
    pub(super) fn look(
        &mut self,
        copy: CopyIndex,
        addr: u64,
        moment: u64,
        since: Duration,
    ) -> RequestId {
        self.ask(Ask { what: What::Look { copy, addr }, moment, since })
    }

    fn ask(&mut self, ask: Ask) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        self.asks.insert(id, ask);
        id
    }
}

/// The copies that the record knows.
pub(super) fn copies_mut(record: &mut Record) -> &mut Vec<gabion_block::record::MirrorCopy> {
    match &mut record.layout {
        Layout::Mirror { copies, .. } => copies,
        _ => unreachable!("the volume is a mirror"),
    }
}

impl World {
    pub(super) fn is_alive(&self, life: Life) -> bool {
        self.hosts[life.host].life == life.number
    }

    pub(super) fn session(&mut self, life: Life) -> Option<&mut Session> {
        let alive = self.is_alive(life);
        self.hosts[life.host].session.as_mut().filter(|_| alive)
    }

    /// A life ends; what it has sent may arrive yet.
    pub(super) fn crash(&mut self, host: usize) {
        self.note(format!("host {host} crashes"));
        let host = &mut self.hosts[host];
        host.life += 1;
        host.opener = None;
        host.session = None;
    }

    /// Tells a mirror something, and does what it says.
    pub(super) fn answer(&mut self, life: Life, input: Input) {
        if !self.is_alive(life) {
            return;
        }
        let Some(mut session) = self.hosts[life.host].session.take() else { return };
        session.mirror.handle(self.now - session.since, input);
        while let Some(output) = session.mirror.poll_output() {
            self.obey(&mut session, output);
        }
        if session.mirror.blocks() > self.longest && !session.fenced {
            self.longest = session.mirror.blocks();
        }
        if let (Some(timeout), false) = (session.mirror.poll_timeout(), session.ticking) {
            session.ticking = true;
            self.schedule(timeout, Event::Tick { life });
        }
        self.hosts[life.host].session = Some(session);
    }

    pub(super) fn tick(&mut self, life: Life) {
        let (now, late) = (self.now, self.options.deadline + TICK * 3);
        let Some(session) = self.session(life) else { return };
        session.ticking = false;
        let silent = session.asks.iter().find(|(_, ask)| now - ask.since > late);
        if let Some((id, ask)) = silent {
            let text = format!("{id:?} has no answer since {:?}", ask.since);
            self.violated(text);
        }
        let growth = self.growth(life);
        for order in self.replacements(life).into_iter().chain(growth) {
            self.order(life, order);
        }
        self.answer(life, Input::Tick);
    }

    fn obey(&mut self, session: &mut Session, output: Output) {
        let life = session.life;
        match output {
            Output::Send { copy, sent, request } => match session.clients[copy.at()] {
                Some(client) => self.send(client, sent, request),
                None => self.answer_gone(life, sent, &request),
            },
            Output::Complete { id, result } => self.complete(session, id, result),
            Output::Repaired { id, result } => self.repaired(session, id, &result),
            Output::Record(states) => {
                self.note(format!("{life:?} records {states:?}"));
                let wait = self.delay(Duration::from_millis(20));
                self.schedule(wait, Event::Record { life, states });
            }
            Output::RecordLength(blocks) => {
                let wait = self.delay(Duration::from_millis(20));
                self.schedule(wait, Event::RecordLength { life, blocks });
            }
            Output::Attach(copy) => {
                let turn = session.attaching[copy.at()].begin();
                let wait = self.delay(Duration::from_millis(100));
                if self.sabotage != Sabotage::NeverAttach {
                    self.schedule(wait, Event::Attach { life, copy, turn });
                }
            }
            Output::Detach(copy) => {
                session.attaching[copy.at()].end();
                if let Some(client) = session.clients[copy.at()].take() {
                    self.disconnect(client);
                }
            }
            Output::Notice(notice) => self.note(format!("{life:?} {notice:?}")),
        }
    }

    fn answer_gone(&mut self, life: Life, sent: Sent, request: &DiskRequest) {
        let result = Err(super::member::failure(request, std::io::ErrorKind::NotConnected));
        self.schedule(Duration::ZERO, Event::Answer { life, sent, result });
    }

    fn complete(&mut self, session: &mut Session, id: RequestId, result: DiskResult) {
        if self.sabotage == Sabotage::LostAnswers && self.rng.chance(1, 20) {
            return;
        }
        let Some(ask) = session.asks.remove(&id) else {
            return self.violated(format!("{id:?} is answered and was not asked"));
        };
        let (epoch, late) = (session.epoch, self.options.deadline + TICK);
        if self.now - ask.since > late {
            self.violated(format!("{id:?} took {:?}", self.now - ask.since));
        }
        if matches!(result, Err(DiskError::Fenced { .. })) {
            session.fenced = true;
        }
        let succeeded = result.is_ok();
        self.count(succeeded);
        let judged = match ask.what {
            What::Change { addr, count, stamp, durability, .. } => {
                let durable = durability == Durability::Fua;
                self.judge.write_ends((addr, count, stamp), succeeded, durable);
                if succeeded { self.judge.acknowledged(epoch, ask.moment) } else { Ok(()) }
            }
            What::Flush if succeeded => {
                self.judge.flushed(epoch, ask.moment);
                Ok(())
            }
            What::Read { addr, count } => match result {
                Ok(Some(blocks)) => {
                    let (life, moment) = (session.life, ask.moment);
                    self.judge_read((life, epoch, moment), addr, count, &blocks)
                }
                _ => Ok(()),
            },
            What::ReadCopy { copy, addr } => match result {
                Ok(Some(blocks)) => {
                    // Whoever repairs does so some time after having looked.
                    let wait = self.delay(Duration::from_millis(30));
                    let (life, content) = (session.life, BlockSlice::new(blocks));
                    self.schedule(wait, Event::Repair { life, copy, addr, content });
                    Ok(())
                }
                _ => Ok(()),
            },
            What::Look { copy, addr } => self.looked(session, (copy, addr), result),
            What::Flush | What::Repair => Ok(()),
        };
        if let Err(reason) = judged {
            self.violated(reason);
        }
    }

    fn judge_read(
        &mut self,
        (life, epoch, asked): (Life, u64, u64),
        addr: u64,
        count: u64,
        blocks: &Blocks,
    ) -> Result<(), String> {
        let bytes = blocks.bytes().chunks(gabion_base::BLOCK_SIZE);
        (addr..addr + count).zip(bytes).try_for_each(|(addr, bytes)| {
            if self.is_rotten(addr, bytes) {
                self.schedule(Duration::ZERO, Event::Recover { life, addr });
                return Ok(());
            }
            self.judge.read(epoch, asked, addr, bytes)
        })
    }

    /// Writes a good block over a bad one.
    pub(super) fn put_right(
        &mut self,
        life: Life,
        copy: CopyIndex,
        addr: u64,
        (bad, good): (BlockSlice, BlockSlice),
    ) {
        let (now, moment) = (self.now, self.judge.moment());
        let Some(session) = self.session(life) else { return };
        let id = session.ask(Ask { what: What::Repair, moment, since: now });
        let addr = BlockAddr(addr);
        self.answer(life, Input::RepairCopy { id, copy, addr, bad, good });
    }

    fn repaired(
        &mut self,
        session: &mut Session,
        id: RequestId,
        result: &Result<Repair, DiskError>,
    ) {
        match session.asks.remove(&id) {
            Some(_) => self.count(result.is_ok()),
            None => self.violated(format!("the repair {id:?} is answered twice")),
        }
    }

    /// A host asks for something, if it has the volume and not too much under way.
    pub(super) fn work(&mut self, life: Life) {
        let now = self.now;
        let Some(session) = self.session(life) else { return };
        if session.asks.len() >= ASKS_MAX {
            return;
        }
        let (copies, since) = (session.clients.len() as u64, session.since);
        let there = session.mirror.blocks();
        let turn = self.now.as_millis() as u64 / TURN_MS + self.rng.below(4);
        let hot = self.hot.iter().chain(&self.later).filter(|addr| **addr + 3 <= there);
        let hot: Vec<_> = hot.copied().collect();
        let addr = hot[(turn % hot.len() as u64) as usize];
        let count = 1 + self.rng.below(3);
        let copy = CopyIndex(self.rng.below(copies) as u8);
        // Who mounts a filesystem reads before anything else.
        let is_mounting = now - since < MOUNTING;
        let choice = if is_mounting { 60 } else { self.rng.below(100) };
        let what = match choice {
            0..50 => {
                let durability = match self.rng.chance(1, 6) {
                    true => Durability::Fua,
                    false => Durability::Cached,
                };
                return self.write(life, addr, count, durability);
            }
            50..54 => return self.change(life, addr, count, Left::Zeros, Durability::Cached),
            54..57 => return self.change(life, addr, count, Left::Anything, Durability::Cached),
            57..82 => What::Read { addr, count },
            82..92 => What::Flush,
            _ => What::ReadCopy { copy, addr },
        };
        self.ask(life, what);
    }

    /// The host writes something that nobody has written before.
    pub(super) fn write(&mut self, life: Life, addr: u64, count: u64, durability: Durability) {
        self.change(life, addr, count, Left::Data, durability);
    }

    fn change(&mut self, life: Life, addr: u64, count: u64, left: Left, durability: Durability) {
        self.stamp += 1;
        self.ask(life, What::Change { addr, count, stamp: self.stamp, left, durability });
    }

    fn ask(&mut self, life: Life, what: What) {
        let (now, moment) = (self.now, self.judge.moment());
        let Some(session) = self.session(life) else { return };
        let epoch = session.epoch;
        let request = match what {
            What::Change { addr, count, stamp, left, durability } => {
                self.judge.write_begins(epoch, (addr, count, stamp), left);
                let at = BlockAddr(addr);
                Some(match left {
                    Left::Data => {
                        let parts = vec![judge::slice(addr, count, stamp)];
                        DiskRequest::Write { addr: at, parts, durability }
                    }
                    Left::Zeros => DiskRequest::WriteZeroes { addr: at, count },
                    Left::Anything => DiskRequest::Discard { addr: at, count },
                    Left::Torn(..) => unreachable!("nobody wants half a block"),
                })
            }
            What::Read { addr, count } => {
                Some(DiskRequest::Read { addr: BlockAddr(addr), count: count as usize })
            }
            What::Flush => Some(DiskRequest::Flush),
            What::ReadCopy { .. } | What::Look { .. } | What::Repair => None,
        };
        let of_copy = match what {
            What::ReadCopy { copy, addr } => Some((copy, BlockAddr(addr))),
            _ => None,
        };
        let Some(session) = self.session(life) else { return };
        let id = session.ask(Ask { what, moment, since: now });
        if let Some(request) = request {
            self.answer(life, Input::Request { id, request });
        } else if let Some((copy, addr)) = of_copy {
            self.answer(life, Input::ReadCopy { id, copy, addr, count: 1 });
        }
    }

    /// Writes to a copy what was read there some time ago, as whoever repairs it would: it must be
    /// left alone if there is something else by now.
    pub(super) fn repair(&mut self, life: Life, copy: CopyIndex, addr: u64, content: BlockSlice) {
        let (now, moment) = (self.now, self.judge.moment());
        if self.sabotage == Sabotage::BlindRepairs {
            let addr = BlockAddr(addr + gabion_block::geometry::METADATA_BLOCKS);
            let parts = vec![content];
            let write = DiskRequest::Write { addr, parts, durability: Durability::Fua };
            // Whatever comes of it: it is not to be done in any case.
            let _ = self.members[copy.at()].perform(&super::member::behind_header(write));
            return;
        }
        let Some(session) = self.session(life) else { return };
        let id = session.ask(Ask { what: What::Repair, moment, since: now });
        let (addr, bad) = (BlockAddr(addr), content.clone());
        self.answer(life, Input::RepairCopy { id, copy, addr, bad, good: content });
    }

    /// Reads all blocks that were ever written; the judge looks at what comes.
    pub(super) fn read_all(&mut self, life: Life) {
        let Some(session) = self.session(life) else { return };
        let there = session.mirror.blocks();
        let hot: Vec<_> = self.hot.iter().chain(&self.later).copied().collect();
        for addr in hot.into_iter().filter(|addr| addr + 3 <= there) {
            self.ask(life, What::Read { addr, count: 3 });
        }
        // As a scrub does, which reads all copies.
        for addr in self.rotten.clone() {
            self.recover(life, addr);
        }
    }

    /// The administrator wants something of whoever has the volume.
    pub(super) fn order(&mut self, life: Life, order: Order) {
        self.note(format!("{life:?} is told {order:?}"));
        self.answer(life, Input::Order(order));
    }

    /// The host changes the record as its mirror wants it.
    pub(super) fn tell_record(&mut self, life: Life, states: &[CopyState]) {
        if self.sabotage == Sabotage::ForgottenRecord && self.rng.chance(1, 2) {
            return self.answer(life, Input::Recorded);
        }
        let change = |record: &mut Record, epoch| {
            for (copy, state) in copies_mut(record).iter_mut().zip(states) {
                if state.is_in_sync() && !copy.state.is_in_sync() {
                    copy.since = epoch;
                }
                if *state != CopyState::Removed || !wishes::leave(copy) {
                    copy.state = *state;
                }
            }
        };
        let input = match self.change_record(life, change) {
            Some(input) => input,
            None => return,
        };
        match input {
            Input::NotRecorded => {
                let wait = self.delay(Duration::from_millis(400));
                self.schedule(wait, Event::NotRecorded { life });
            }
            input => self.answer(life, input),
        }
    }
}
