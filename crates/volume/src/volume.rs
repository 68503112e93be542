//! A volume in use: from its opening to its end.
//!
//! Opening goes through the steps in [`gabion_block::opening`]. While it is open a thread watches
//! the record, because that is where administrators of whatever machine leave their wishes: a copy
//! to be suspended, taken out or put in, a comparison of all copies, or that the volume becomes
//! longer.
//!
//! The outermost device is always a linear one, of one part at first, so that others can be put
//! behind it.
//!
//! The same thread sees to the claim. One that was lost, as while etcd was away for longer than its
//! lease, is taken again as soon as the coordinator gives it. Until then the volume goes on: what
//! keeps it from being written to by two are epochs, and a claim only spares it from being taken
//! away. Whoever has been fenced lets go of the claim.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskError, DiskRequest, Repair, Ticket};
use gabion_base::event::{ResyncEvent, VolumeEvent};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::{self, Mutex, now};
use gabion_block::coordinator::{Claim, CoordinatorError};
use gabion_block::copies::CopyIndex;
use gabion_block::epoch::{Epoch, Opening, holder, remember};
use gabion_block::mirror::{Compared, CopyStatus, Order};
use gabion_block::opening::{self, OpeningError};
use gabion_block::record::{CopyState, Layout, Member, MirrorCopy, Record, Wish};
use gabion_block::spread::Linear;
use gabion_block::wishes;
use thiserror::Error;

use crate::assembly::Assembly;
use crate::keeper::{Behind, Keeper};
use crate::look::Looked;
use crate::member::{MemberError, Patience};
use crate::mirror_disk::MirrorDisk;
use crate::register::{self, Register, RegisterError};
use crate::surroundings::{COPY_PATIENCE, ONLY_PATIENCE, Surroundings, now_seconds};
use crate::tenure::Tenure;

/// How often the record is looked at, and progress is told.
const WATCH: Duration = Duration::from_secs(1);
/// How often progress becomes an event.
const PROGRESS: Duration = Duration::from_secs(5);

/// Why a volume cannot be opened.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// Its record cannot be had.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// Its members do not allow it.
    #[error("{source}")]
    Opening {
        /// The volume.
        volume: String,
        /// Why.
        source: OpeningError,
    },
    /// A member does not allow it.
    #[error("{source}")]
    Member {
        /// The volume.
        volume: String,
        /// Why.
        source: MemberError,
    },
    /// A disk has failed.
    #[error("{source}")]
    Disk {
        /// The volume.
        volume: String,
        /// Why.
        source: DiskError,
    },
    /// The system has no thread for it.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

impl From<CoordinatorError> for VolumeError {
    fn from(error: CoordinatorError) -> Self {
        Self::Register(error.into())
    }
}

/// A volume that this process, and no other, has open.
pub struct Volume {
    root: Arc<Linear>,
    keeper: Arc<Keeper>,
    ended: Arc<AtomicBool>,
    // The last one, as others may come when it goes.
    claim: HeldClaim,
}

/// A claim that ends with its volume, whoever looks at it meanwhile.
struct HeldClaim(SharedClaim);

pub(crate) type SharedClaim = Arc<Mutex<Option<Box<dyn Claim>>>>;

impl HeldClaim {
    fn release(&self) {
        // Letting go may take time, and is nothing that others wait for.
        let claim = self.0.lock().take();
        drop(claim);
    }
}

impl Drop for HeldClaim {
    fn drop(&mut self) {
        self.release();
    }
}

impl Volume {
    /// Opens a volume for reading and writing, and keeps everybody else out.
    pub fn open(name: &str, surroundings: Surroundings) -> Result<Self, VolumeError> {
        let coordinator = Arc::clone(&surroundings.coordinator);
        let claim = Arc::new(Mutex::new(Some(coordinator.claim(name, &surroundings.holder)?)));
        let held = HeldClaim(Arc::clone(&claim));
        let (mut record, revision) = register::read(&*coordinator, name)?;
        let opening = Opening {
            epoch: Epoch(record.epoch().0 + 1),
            nonce: (surroundings.random)(),
            seconds: now_seconds(),
            holder: holder(&surroundings.holder),
        };
        remember(&mut record.openings, opening);
        let revision = coordinator.replace(name, revision, &record.encode())?;
        let sink = Arc::clone(&surroundings.sink);
        let register = Register::new(coordinator, sink, record, revision);
        let keeper = Arc::new(Keeper::new(surroundings, register));
        let (root, mirrors) = put_together(&keeper, name)?;
        let (epoch, holder) = (keeper.register.epoch().0, keeper.surroundings.holder.clone());
        keeper.publish_volume(VolumeEvent::Opened { epoch, holder });
        // Before they start, so that news of copies that have caught up come after this.
        let (working, members) = in_sync(&keeper.register.record().layout);
        if working < members {
            keeper.publish_volume(VolumeEvent::Degraded { working, members });
        }
        for mirror in &mirrors {
            mirror.start()?;
        }
        let ended = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            keeper: Arc::clone(&keeper),
            root: Arc::downgrade(&root),
            ended: Arc::clone(&ended),
            compare: keeper.register.record().compare,
            told: now(),
            claim,
            is_claim_lost: false,
        };
        sync::spawn("volume watcher", move || watcher.run())?;
        Ok(Self { root, keeper, ended, claim: held })
    }

    /// Begins to watch whether it stays this opener's, for who answers for it from memory.
    pub fn tenure(&self) -> io::Result<Arc<Tenure>> {
        Tenure::watch(&self.keeper, &self.claim.0, &self.ended)
    }

    /// The record as it was known last.
    pub fn record(&self) -> Record {
        self.keeper.register.record()
    }

    /// How the copies of each mirror are.
    pub fn status(&self) -> BTreeMap<Uuid, Vec<CopyStatus>> {
        let mirrors = self.keeper.mirrors();
        mirrors.iter().map(|mirror| (mirror.uuid(), mirror.status())).collect()
    }

    /// The mirrors in use, inner ones first as far as they were there at the opening.
    pub fn mirror_uuids(&self) -> Vec<Uuid> {
        self.keeper.mirrors().iter().map(|mirror| mirror.uuid()).collect()
    }

    /// Whether a copy is about to leave, as the one that replaces it is in sync.
    pub fn is_replacing(&self) -> bool {
        let record = self.record();
        let mirrors = record.layout.mirrors();
        let copies = mirrors.iter().flat_map(|(_, copies)| copies.iter());
        let mut replaced = copies.filter(|copy| matches!(copy.wish, Wish::Replace { .. }));
        let is_taken_out = |order: &Order| matches!(order, Order::TakeOut(_));
        replaced.next().is_some()
            && self.keeper.mirrors().iter().any(|one| orders(&record, one).iter().any(is_taken_out))
    }

    /// Whether the record wants it to be longer than it is by now.
    pub fn has_to_grow(&self) -> bool {
        self.keeper.has_to_grow(&self.root)
    }

    /// Blocks behind the ends of mirrors that were not looked at yet, of all mirrors that grow.
    pub fn growth_left(&self) -> u64 {
        self.keeper.mirrors().iter().filter_map(|mirror| mirror.growth_left()).sum()
    }

    /// Why the volume does not become longer, if that was told since it last did.
    pub fn why_not_grown(&self) -> Option<String> {
        self.keeper.growing.refusal()
    }

    /// Has all copies in sync compared; [`Volume::compared`] tells how far that is.
    pub fn compare(&self) {
        self.keeper.mirrors().iter().for_each(|mirror| mirror.order(Order::Compare));
    }

    /// Blocks that comparing has found to differ since the volume was opened.
    pub fn differences(&self) -> u64 {
        self.keeper.differences.load(Ordering::Acquire)
    }

    /// How far comparing is, of each mirror that is not done.
    pub fn compared(&self) -> Vec<Compared> {
        self.keeper.mirrors().iter().filter_map(|mirror| mirror.compared()).collect()
    }

    /// Has everything written to all copies, so that the next opening finds nothing to be done, and
    /// lets others have it. To be called when nobody writes any more.
    pub fn close(&self) -> Result<(), DiskError> {
        let record = self.record();
        let mut mirrors = self.keeper.mirrors();
        // What an outer one has written at last is to be settled by the inner ones.
        let outer_first: Vec<_> = record.layout.mirrors().iter().map(|(uuid, _)| *uuid).collect();
        mirrors.sort_by_key(|mirror| outer_first.iter().position(|uuid| *uuid == mirror.uuid()));
        for mirror in &mirrors {
            mirror.settle()?;
        }
        self.root.flush()?;
        let epoch = self.keeper.register.epoch().0;
        self.keeper.publish_volume(VolumeEvent::Closed { epoch });
        // Whoever comes now takes nothing away.
        self.ended.store(true, Ordering::Release);
        self.claim.release();
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Disk for Volume {
    fn name(&self) -> Arc<str> {
        self.root.name()
    }

    fn blocks(&self) -> u64 {
        self.root.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        self.root.submit(request)
    }

    fn copies(&self) -> usize {
        self.root.copies()
    }

    fn submit_copy(&self, copy: usize, addr: BlockAddr, count: usize) -> Ticket {
        self.root.submit_copy(copy, addr, count)
    }

    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        self.root.repair_copy(copy, addr, bad, good)
    }
}

type Assembled = (Arc<Linear>, Vec<Arc<MirrorDisk>>);

/// Steps 2 to 5 of an opening.
fn put_together(keeper: &Arc<Keeper>, name: &str) -> Result<Assembled, VolumeError> {
    let volume = || name.to_owned();
    let record = keeper.register.record();
    let mut asked = Vec::new();
    wanted_members(&record.layout, ONLY_PATIENCE, &mut asked);
    let Looked { findings, mut devices, refusals } = keeper.look(&asked);
    keeper.connected();
    let trusted = opening::in_use(&record.layout);
    let mut refused = trusted.iter().filter_map(|member| refusals.get(&member.uuid));
    if let Some(source) = refused.find(|error| matches!(error, MemberError::Fenced(_))) {
        return Err(VolumeError::Member { volume: volume(), source: source.clone() });
    }
    let mut layout = opening::plan(&record, &findings).map_err(|source| {
        if let OpeningError::Apart { record, member, .. } = &source {
            let (one, other) = (record.clone(), member.clone());
            keeper.publish_volume(VolumeEvent::SplitBrain { one, other });
        }
        VolumeError::Opening { volume: volume(), source }
    })?;
    // What is not in use is let go of, so that it can be connected again when it is attached.
    let used: Vec<_> = opening::in_use(&layout).iter().map(|member| member.uuid).collect();
    devices.retain(|uuid, _| used.contains(uuid));
    let failed = |source| VolumeError::Disk { volume: volume(), source };
    let mut assembly = Assembly {
        name,
        devices: &devices,
        owner: Arc::new(Behind(Arc::clone(keeper))),
        options: keeper.surroundings.options,
        mirrors: Vec::new(),
        members: Vec::new(),
    };
    let parts = match &mut layout {
        Layout::Linear(parts) => parts.iter_mut().map(|part| assembly.device(part)).collect(),
        other => assembly.device(other).map(|device| vec![device]),
    };
    let root = Arc::new(Linear::new(name.into(), parts.map_err(failed)?));
    keeper.take_on(&assembly);
    let mirrors = assembly.mirrors;
    let members = opening::in_use(&layout);
    keeper.write_headers(&record, &members, &findings, &devices).map_err(failed)?;
    keeper.register.change(|record| {
        take_states(&mut record.layout, &layout);
        opening::complete(record);
    })?;
    Ok((root, mirrors))
}

/// The members to be connected, with how long each may take.
pub(crate) fn wanted_members(
    layout: &Layout,
    patience: Patience,
    wanted: &mut Vec<(Member, Patience)>,
) {
    match layout {
        Layout::Member(member) => wanted.push((member.clone(), patience)),
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            parts.iter().for_each(|part| wanted_members(part, patience, wanted));
        }
        Layout::Mirror { copies, .. } => {
            let is_wanted = |copy: &&MirrorCopy| {
                matches!(copy.state, CopyState::InSync | CopyState::Stale { .. })
            };
            for copy in copies.iter().filter(is_wanted) {
                wanted_members(&copy.on, COPY_PATIENCE, wanted);
            }
        }
    }
}

/// How many copies of all mirrors are in sync, and how many there are.
fn in_sync(layout: &Layout) -> (u64, u64) {
    let mirrors = layout.mirrors();
    let copies = mirrors.iter().flat_map(|(_, copies)| copies.iter());
    let there: Vec<_> = copies.filter(|copy| copy.state != CopyState::Removed).collect();
    let working = there.iter().filter(|copy| copy.state.is_in_sync()).count();
    (working as u64, there.len() as u64)
}

/// What `mirror` is to be told, as administrators want it.
fn orders(record: &Record, mirror: &MirrorDisk) -> Vec<Order> {
    let mirrors = record.layout.mirrors();
    let copies = mirrors.iter().find(|(uuid, _)| *uuid == mirror.uuid());
    let copies = copies.map_or(&[][..], |(_, copies)| copies);
    let trust: Vec<_> = mirror.status().iter().map(|copy| copy.trust).collect();
    wishes::orders(copies, &trust)
}

/// Takes over the states of all copies, and leaves what administrators may have changed meanwhile.
pub(crate) fn take_states(into: &mut Layout, from: &Layout) {
    for (uuid, copies) in from.mirrors() {
        let Some(told) = into.mirror_mut(uuid) else { continue };
        for (told, copy) in told.iter_mut().zip(copies) {
            told.state = copy.state;
        }
    }
}

/// Looks at the record for as long as the volume is open.
struct Watcher {
    keeper: Arc<Keeper>,
    root: Weak<Linear>,
    ended: Arc<AtomicBool>,
    /// How often a comparison had been asked for.
    compare: u64,
    /// When progress was last told.
    told: Duration,
    /// Nothing, once the volume is at its end.
    claim: SharedClaim,
    is_claim_lost: bool,
}

impl Watcher {
    fn run(mut self) {
        let coordinator = Arc::clone(&self.keeper.surroundings.coordinator);
        let volume = self.keeper.volume();
        self.fulfil(&self.keeper.register.record());
        while !self.ended.load(Ordering::Acquire) {
            let known = self.keeper.register.revision();
            match coordinator.changed(&volume, known, WATCH) {
                // A copy that has come in sync may be what another one has waited for.
                Ok(None) => self.fulfil(&self.keeper.register.record()),
                Ok(Some(_)) => match self.keeper.register.refresh() {
                    Ok(record) => {
                        self.fulfil(&record);
                        self.compare = record.compare;
                    }
                    Err(RegisterError::Fenced(_)) if self.ended.load(Ordering::Acquire) => return,
                    Err(RegisterError::Fenced(by)) => {
                        let reason: Arc<str> = RegisterError::Fenced(by).to_string().into();
                        self.keeper.was_taken(&reason);
                        let claim = self.claim.lock().take();
                        drop(claim);
                        return;
                    }
                    Err(_) => sync::sleep(WATCH),
                },
                // Who asks at once again would only keep a processor busy.
                Err(_) => sync::sleep(WATCH),
            }
            self.see_to_claim();
            self.tell_progress();
        }
    }

    /// Tells of a claim that was lost, and takes it again if nobody else has it.
    fn see_to_claim(&mut self) {
        let is_held = match &*self.claim.lock() {
            Some(claim) => claim.is_held(),
            None => return,
        };
        if is_held {
            return;
        }
        let epoch = self.keeper.register.epoch().0;
        if !std::mem::replace(&mut self.is_claim_lost, true) {
            self.keeper.publish_volume(VolumeEvent::ClaimLost { epoch });
        }
        let Surroundings { coordinator, holder, .. } = &self.keeper.surroundings;
        // Nobody waits for that: it is asked for without the lock.
        let Ok(new) = coordinator.claim(self.keeper.register.volume(), holder) else { return };
        // Somebody may have had the volume meanwhile, and have left it: the next look tells.
        if self.keeper.register.refresh().is_err() {
            return drop(new);
        }
        let old = match &mut *self.claim.lock() {
            Some(claim) => std::mem::replace(claim, new),
            // The volume has ended meanwhile.
            None => return drop(new),
        };
        drop(old);
        self.is_claim_lost = false;
        self.keeper.publish_volume(VolumeEvent::ClaimBack { epoch });
    }

    fn each(&self, act: impl Fn(&MirrorDisk)) {
        self.keeper.mirrors().iter().for_each(|mirror| act(mirror));
    }

    /// Does what administrators want and is not so.
    fn fulfil(&self, record: &Record) {
        self.each(|mirror| {
            orders(record, mirror).into_iter().for_each(|order| mirror.order(order));
            if record.compare != self.compare {
                mirror.order(Order::Compare);
            }
        });
        if let Some(root) = self.root.upgrade() {
            self.keeper.go_on_growing(&root);
        }
    }

    fn tell_progress(&mut self) {
        if now() - self.told < PROGRESS {
            return;
        }
        self.told = now();
        let totals = self.keeper.catching_up.lock().clone();
        self.each(|mirror| {
            for (number, copy) in mirror.status().iter().enumerate() {
                let index = CopyIndex(number as u8);
                let Some(total) = totals.get(&(mirror.uuid(), index)) else { continue };
                let bytes = |blocks: u64| blocks * BLOCK_SIZE as u64;
                let done = bytes(total.saturating_sub(copy.missing_blocks));
                let event = ResyncEvent::Progress { done, total: bytes(*total) };
                self.keeper.publish_resync(mirror.uuid(), index, event);
            }
        });
    }
}
