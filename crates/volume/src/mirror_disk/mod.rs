//! A mirror that is running: the machine of [`gabion_block::mirror`] with disks, time and threads.
//!
//! ```text
//!   any caller      request -> machine -> sends to the copies
//!   copies' threads answer  -> machine -> completes requests; what is to be sent goes to...
//!   sender          sends that follow from answers: a copy's thread must not wait for its copy
//!   clock           ticks
//!   recorder        tells the record and the events what has happened, in this order
//!   attacher        connects to stale copies, and closes what was given up
//! ```
//!
//! The machine is behind one lock, which is never held while anything is sent or completed. The
//! threads are in `running` and `attacher`; here is the disk that they make.

mod attacher;
mod running;

use std::io;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, DiskRequest, Repair, Ticket};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::{Mutex, Queue};
use gabion_block::copies::CopyIndex;
use gabion_block::geometry::METADATA_BLOCKS;
use gabion_block::mirror::{Compared, CopyStatus, Input, Mirror, Notice, Order, Trust};
use gabion_block::record::CopyState;

use self::running::{Shared, Thread};
use crate::gate::{Gate, not_connected};
use crate::member::MemberError;

/// What a running mirror wants from the volume that it is part of. Calls may take some seconds.
pub trait Owner: Send + Sync {
    /// Makes the record say this of the copies.
    fn record(&self, mirror: Uuid, states: &[CopyState]) -> Recorded;

    /// Makes the record say that so many blocks of each copy are used.
    fn lengthen(&self, mirror: Uuid, blocks: u64) -> Recorded;

    /// Connects to a stale copy.
    fn attach(&self, mirror: Uuid, copy: CopyIndex) -> Result<Attachment, MemberError>;

    /// A copy cannot be connected; told once for each reason.
    fn not_attached(&self, mirror: Uuid, copy: CopyIndex, reason: &MemberError);

    /// A block of a copy was wrong and is right again.
    fn repaired(&self, mirror: Uuid, copy: CopyIndex, addr: BlockAddr);

    /// Somebody should know.
    fn notice(&self, mirror: Uuid, notice: Notice);
}

/// What became of the wish to change the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It says so.
    Done,
    /// That is not known.
    Unknown,
    /// Somebody else has opened the volume.
    Fenced(String),
}

/// A copy that has been connected.
pub struct Attachment {
    /// The copy; nothing if it may lack anything and the record does not say so yet. Then it is to
    /// be attached again when the record does.
    pub disk: Option<Arc<dyn Disk>>,
    /// Whether it may lack anything.
    pub full: bool,
}

/// Where a copy is that callers count.
enum Place {
    /// It is a copy of the mirror.
    Own(CopyIndex),
    /// It is a copy within this copy of the mirror, which is in sync.
    Within(Arc<Gate>, usize, CopyIndex),
    /// There are not as many, as what is connected has changed.
    Nowhere,
}

/// A mirror in use.
pub struct MirrorDisk {
    shared: Arc<Shared>,
    /// Whether the threads are started.
    started: Mutex<bool>,
}

impl MirrorDisk {
    /// A mirror of `copies`, those in sync. It works only half before [`MirrorDisk::start`].
    pub fn new(
        name: Arc<str>,
        uuid: Uuid,
        mirror: Mirror,
        copies: Vec<Option<Arc<dyn Disk>>>,
        owner: Arc<dyn Owner>,
    ) -> Self {
        let shared = Shared::new(name, uuid, mirror, copies, owner);
        Self { shared, started: Mutex::new(false) }
    }

    /// Starts the threads. They end when the mirror is dropped.
    pub fn start(&self) -> io::Result<()> {
        match std::mem::replace(&mut *self.started.lock(), true) {
            false => self.shared.start(),
            true => Ok(()),
        }
    }

    /// Names the mirror in the record.
    pub fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    /// How each copy is.
    pub fn status(&self) -> Vec<CopyStatus> {
        self.shared.state.lock().mirror.copies()
    }

    /// How far comparing is, while it is under way.
    pub fn compared(&self) -> Option<Compared> {
        self.shared.state.lock().mirror.compared()
    }

    /// The administrator wants something.
    pub fn order(&self, order: Order) {
        if let Order::PutIn(copy) = order {
            let mut state = self.shared.state.lock();
            while state.gates.len() <= copy.at() {
                state.gates.push(None);
            }
        }
        self.shared.feed(Input::Order(order), Thread::Own);
    }

    /// Blocks that were not looked at yet, while it grows.
    pub fn growth_left(&self) -> Option<u64> {
        self.shared.state.lock().mirror.growth_left()
    }

    /// Blocks that all copies have that are connected, with the mirror's own.
    pub fn connected_blocks(&self) -> u64 {
        let state = self.shared.state.lock();
        let gates = state.gates.iter().flatten();
        gates.map(|gate| gate.blocks()).min().unwrap_or_default()
    }

    fn gates(&self) -> Vec<Option<Arc<Gate>>> {
        self.shared.state.lock().gates.clone()
    }

    /// Finds what callers count as copy `copy`.
    fn place(&self, mut copy: usize) -> Place {
        for (number, gate) in self.gates().into_iter().enumerate() {
            let (index, count) = (CopyIndex(number as u8), kept(&gate));
            if copy >= count {
                copy -= count;
                continue;
            }
            let is_in_sync = || {
                let status = self.status();
                status.get(number).is_some_and(|copy| copy.trust == Trust::InSync)
            };
            return match gate {
                Some(gate) if count > 1 && is_in_sync() => Place::Within(gate, copy, index),
                _ => Place::Own(index),
            };
        }
        Place::Nowhere
    }

    /// Somebody else has the volume.
    pub fn fence(&self, reason: &Arc<str>) {
        self.shared.feed(Input::Fenced { reason: Arc::clone(reason) }, Thread::Own);
    }

    /// Has everything written to all copies, so that the next opening finds nothing to be done.
    pub fn settle(&self) -> Result<(), DiskError> {
        self.flush()?;
        self.shared.settle();
        Ok(())
    }
}

impl Drop for MirrorDisk {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Disk for MirrorDisk {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.shared.name)
    }

    fn blocks(&self) -> u64 {
        self.shared.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.shared.name, self.shared.blocks()) {
            return Ticket::ready(Err(error));
        }
        if !matches!(request, DiskRequest::Flush) && request.extent().1 == 0 {
            return Ticket::ready(Ok(None));
        }
        self.shared.request(|state, id| {
            let (ticket, completion) = Ticket::pair();
            state.requests.insert(id, completion);
            (Input::Request { id, request }, ticket)
        })
    }

    /// Each copy counts as many times as it keeps copies itself.
    fn copies(&self) -> usize {
        self.gates().iter().map(kept).sum()
    }

    fn submit_copy(&self, copy: usize, addr: BlockAddr, count: usize) -> Ticket {
        let read = DiskRequest::Read { addr, count };
        if let Err(error) = read.check(&self.shared.name, self.shared.blocks()) {
            return Ticket::ready(Err(error));
        }
        let (ticket, completion) = Ticket::pair();
        match self.place(copy) {
            Place::Own(copy) => self.shared.request(|state, id| {
                state.requests.insert(id, completion);
                (Input::ReadCopy { id, copy, addr, count }, ())
            }),
            Place::Within(gate, within, _) => {
                gate.read_copy((within, on_copies(addr), count), |outcome| {
                    completion.complete(outcome);
                });
            }
            Place::Nowhere => completion.complete(Err(not_connected(self.name(), "read", addr))),
        }
        ticket
    }

    /// A copy within a copy is put right by the mirror that it is of, and what is in no mirror
    /// there by this one.
    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        assert!(bad.len() == BLOCK_SIZE, "{} B", bad.len());
        let copy = match self.place(copy) {
            Place::Own(copy) => copy,
            Place::Within(gate, within, copy) => {
                let (addr, good) = (on_copies(addr), good.clone());
                let repair = |disk: &dyn Disk| disk.repair_copy(within, addr, bad, good);
                match gate.pass(repair).unwrap_or(Ok(Repair::Changed)) {
                    Ok(Repair::Impossible) => copy,
                    done => return done,
                }
            }
            Place::Nowhere => return Ok(Repair::Changed),
        };
        let bad = BlockSlice::new(Blocks::from_bytes(bad));
        let outcome = self.shared.request(|state, id| {
            let answer = Arc::new(Queue::default());
            state.repairs.insert(id, Arc::clone(&answer));
            (Input::RepairCopy { id, copy, addr, bad, good }, answer)
        });
        let outcome = outcome.take();
        if let Ok(Repair::Repaired) = outcome {
            self.shared.owner.repaired(self.shared.uuid, copy, addr);
        }
        outcome
    }
}

/// How many copies there are of what is behind a gate. Of one that is not connected nobody knows.
fn kept(gate: &Option<Arc<Gate>>) -> usize {
    gate.as_ref().map_or(1, |gate| gate.copies())
}

/// Where copies have a block of the mirror.
fn on_copies(addr: BlockAddr) -> BlockAddr {
    addr.plus(METADATA_BLOCKS)
}
