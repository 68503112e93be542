//! What stands behind the mirrors of an open volume: its record, its members, its events.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use gabion_base::BLOCK_SIZE;
use gabion_base::event::{BlockEvent, Event, MemberEvent, ResyncEvent, VolumeEvent};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::Mutex;
use gabion_base::window::Window;
use gabion_block::copies::CopyIndex;
use gabion_block::format::header::Header;
use gabion_block::mirror::Notice;
use gabion_block::opening::{self, Findings, Found, OpeningError};
use gabion_block::record::{CopyState, Layout, Member, MirrorCopy, Record};
use gabion_block::wishes;

use crate::assembly::{Assembly, Devices};
use crate::growth::Growing;
use crate::look::Looked;
use crate::member::{self, MemberError, Right};
use crate::mirror_disk::{Attachment, MirrorDisk, Owner, Recorded};
use crate::register::{Register, RegisterError};
use crate::surroundings::{COPY_PATIENCE, Surroundings};
use crate::tenure::Taken;
use crate::volume::{take_states, wanted_members};

/// The owner of all mirrors of a volume.
pub(crate) struct Keeper {
    pub(crate) surroundings: Surroundings,
    pub(crate) register: Register,
    /// Connections that were made in this epoch, so that each fences those before it.
    attachments: AtomicU64,
    right_holder: String,
    /// Blocks that were found to differ.
    pub(crate) differences: AtomicU64,
    /// Blocks that copies lacked when they began to catch up.
    pub(crate) catching_up: Mutex<BTreeMap<(Uuid, CopyIndex), u64>>,
    /// The mirrors in use, also those in copies that were attached later.
    mirrors: Mutex<Vec<Weak<MirrorDisk>>>,
    /// What is used of each member that is connected.
    members: Mutex<BTreeMap<Uuid, Weak<Window>>>,
    pub(crate) growing: Growing,
    pub(crate) taken: Taken,
}

impl Keeper {
    pub(crate) fn new(surroundings: Surroundings, register: Register) -> Self {
        let record = register.record();
        let nonce = record.openings.last().map_or(0, |opening| opening.nonce);
        let right_holder = format!("{} ({nonce:016x})", surroundings.holder);
        Self {
            surroundings,
            register,
            attachments: AtomicU64::new(0),
            right_holder,
            differences: AtomicU64::new(0),
            catching_up: Mutex::default(),
            mirrors: Mutex::default(),
            members: Mutex::default(),
            growing: Growing::default(),
            taken: Taken::default(),
        }
    }

    pub(crate) fn volume(&self) -> String {
        self.register.volume().to_owned()
    }

    /// The right to connect to members next.
    pub(crate) fn right(&self) -> Right {
        let fence = self.register.epoch().fence(self.attachments.load(Ordering::Acquire));
        Right { fence, holder: self.right_holder.clone() }
    }

    /// Some members are connected: later connections fence these.
    pub(crate) fn connected(&self) {
        self.attachments.fetch_add(1, Ordering::AcqRel);
    }

    /// What was put together is in use from now on.
    pub(crate) fn take_on(&self, assembly: &Assembly<'_>) {
        let mut mirrors = self.mirrors.lock();
        mirrors.retain(|mirror| mirror.strong_count() > 0);
        mirrors.extend(assembly.mirrors.iter().map(Arc::downgrade));
        drop(mirrors);
        let mut members = self.members.lock();
        members.extend(assembly.members.iter().map(|(uuid, data)| (*uuid, Arc::downgrade(data))));
    }

    /// The mirrors in use.
    pub(crate) fn mirrors(&self) -> Vec<Arc<MirrorDisk>> {
        self.mirrors.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// What is used of a member, if it is connected.
    pub(crate) fn member_data(&self, member: Uuid) -> Option<Arc<Window>> {
        self.members.lock().get(&member)?.upgrade()
    }

    /// Somebody else has the volume: nothing is written any more.
    pub(crate) fn was_taken(&self, reason: &Arc<str>) {
        self.taken.note(reason);
        self.mirrors().iter().for_each(|mirror| mirror.fence(reason));
    }

    pub(crate) fn publish(&self, event: Event) {
        self.surroundings.sink.publish(event);
    }

    pub(crate) fn publish_volume(&self, event: VolumeEvent) {
        self.publish(Event::Volume { volume: self.volume(), event });
    }

    fn publish_member(&self, mirror: Uuid, copy: CopyIndex, event: MemberEvent) {
        let member = self.copy_name(mirror, copy);
        self.publish(Event::Member { volume: self.volume(), member, event });
    }

    pub(crate) fn publish_resync(&self, mirror: Uuid, copy: CopyIndex, event: ResyncEvent) {
        let member = self.copy_name(mirror, copy);
        self.publish(Event::Resync { volume: self.volume(), member, event });
    }

    fn copy_name(&self, mirror: Uuid, copy: CopyIndex) -> String {
        let copy = self.register.copy(mirror, copy.at());
        copy.map_or_else(String::new, |copy| crate::layout::text(&copy.on))
    }

    /// Says how many copies of a volume's mirrors are in sync, if that has changed.
    fn publish_health(&self, before: &Record, after: &Record) {
        let count = |record: &Record| {
            let mirrors = record.layout.mirrors();
            let copies = || mirrors.iter().flat_map(|(_, copies)| copies.iter());
            let there = copies().filter(|copy| copy.state != CopyState::Removed).count() as u64;
            (copies().filter(|copy| copy.state.is_in_sync()).count() as u64, there)
        };
        let ((was, _), (working, members)) = (count(before), count(after));
        if was == working {
            return;
        }
        self.publish_volume(match working == members {
            true => VolumeEvent::Whole { members },
            false => VolumeEvent::Degraded { working, members },
        });
    }

    /// Writes the record's openings into the headers of `members`.
    pub(crate) fn write_headers(
        &self,
        record: &Record,
        members: &[&Member],
        findings: &Findings,
        devices: &Devices,
    ) -> Result<(), gabion_base::disk::DiskError> {
        for member in members {
            let before = match findings.get(&member.uuid) {
                Some(Found::Header(header)) => header.sequence,
                _ => 0,
            };
            let header = Header {
                volume: record.uuid,
                member: member.uuid,
                sequence: before + 1,
                blocks: member.blocks,
                openings: record.openings.clone(),
            };
            member::write_header(&*devices[&member.uuid], &header)?;
        }
        Ok(())
    }

    fn attach_copy(
        self: &Arc<Self>,
        mirror: Uuid,
        copy: CopyIndex,
    ) -> Result<Attachment, MemberError> {
        let away = |reason: &dyn std::fmt::Display| MemberError::Unreachable(reason.to_string());
        let told = self.register.copy(mirror, copy.at());
        let told = told.ok_or_else(|| away(&"it is not in the record"))?;
        let mut asked = Vec::new();
        wanted_members(&told.on, COPY_PATIENCE, &mut asked);
        let Looked { findings, mut devices, mut refusals } = self.look(&asked);
        self.connected();
        // Whoever has fenced a stale copy has not got the volume while the record is ours.
        let mut reasons = refusals.values();
        if let Some(MemberError::Fenced(reason)) =
            reasons.find(|error| matches!(error, MemberError::Fenced(_)))
        {
            return Err(match self.register.refresh() {
                Err(RegisterError::Fenced(_)) => MemberError::Fenced(reason.clone()),
                _ => MemberError::Unreachable(reason.clone()),
            });
        }
        let record = self.register.record();
        let plan = opening::plan_copy(&record, &told, &findings).map_err(|error| {
            if let OpeningError::Apart { record, member, .. } = &error {
                let (one, other) = (record.clone(), member.clone());
                self.publish_volume(VolumeEvent::SplitBrain { one, other });
            }
            away(&error)
        })?;
        // Copies within this one may be away.
        match refusals.pop_first() {
            Some((_, error)) if plan.is_none() => Err(error),
            Some((_, error @ MemberError::Foreign(_))) => Err(error),
            _ => self.attach_found((mirror, copy, &told), plan, &findings, &mut devices),
        }
    }

    /// The members of a copy that can be used are there.
    fn attach_found(
        self: &Arc<Self>,
        (mirror, copy, told): (Uuid, CopyIndex, &MirrorCopy),
        plan: Option<Layout>,
        findings: &Findings,
        devices: &mut Devices,
    ) -> Result<Attachment, MemberError> {
        let away = |reason: &dyn std::fmt::Display| MemberError::Unreachable(reason.to_string());
        let full = told.state.is_full();
        if plan.is_none() && !full {
            // The record must know that before the disk looks like one that is known.
            return Ok(Attachment { disk: None, full: true });
        }
        let record = self.register.record();
        let mut on = plan.unwrap_or_else(|| told.on.clone());
        if !opening::begin_anew(&mut on) {
            return Err(away(&"a mirror in it has no copy that could be used"));
        }
        let members: Vec<_> = opening::in_use(&on).into_iter().cloned().collect();
        devices.retain(|uuid, _| members.iter().any(|member| member.uuid == *uuid));
        let wanted: Vec<_> = members.iter().collect();
        self.write_headers(&record, &wanted, findings, devices).map_err(|error| away(&error))?;
        let mut assembly = Assembly {
            name: &record.name,
            devices,
            owner: Arc::new(Behind(Arc::clone(self))),
            options: self.surroundings.options,
            mirrors: Vec::new(),
            members: Vec::new(),
        };
        let disk = assembly.device(&mut on).map_err(|error| away(&error))?;
        let blocks = record.layout.blocks_of_copies(mirror).unwrap_or_default();
        if disk.blocks() < blocks.0 {
            return Err(away(&"it is smaller than the other copies"));
        }
        let epoch = self.register.epoch();
        let changed = self.register.change(|record| {
            let Some(copies) = record.layout.mirror_mut(mirror) else { return };
            let Some(told) = copies.get_mut(copy.at()) else { return };
            told.since = epoch;
            // Whoever comes next must not trust a copy within this one that is not trusted here.
            take_states(&mut told.on, &on);
            opening::take_part(&mut told.on, epoch);
        });
        changed.map_err(|error| away(&error))?;
        for inner in &assembly.mirrors {
            inner.start().map_err(|error| away(&error))?;
        }
        self.take_on(&assembly);
        Ok(Attachment { disk: Some(disk), full })
    }
}

/// The [`Keeper`] as mirrors see it.
pub(crate) struct Behind(pub(crate) Arc<Keeper>);

impl Keeper {
    fn tell_record(&self, mirror: Uuid, states: &[CopyState]) -> Recorded {
        let before = self.register.record();
        let epoch = self.register.epoch();
        let changed = self.register.change(|record| {
            let Some(copies) = record.layout.mirror_mut(mirror) else { return };
            for (copy, state) in copies.iter_mut().zip(states) {
                if *state == CopyState::Removed {
                    wishes::leave(copy);
                    continue;
                }
                if state.is_in_sync() && !copy.state.is_in_sync() {
                    copy.since = epoch;
                }
                copy.state = *state;
            }
        });
        match changed {
            Ok(()) => {
                self.publish_health(&before, &self.register.record());
                Recorded::Done
            }
            Err(error @ RegisterError::Fenced(_)) => Recorded::Fenced(error.to_string()),
            Err(_) => Recorded::Unknown,
        }
    }

    fn tell(&self, mirror: Uuid, notice: Notice) {
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_SIZE as u64);
        match notice {
            Notice::Stale { copy, reason } => {
                self.catching_up.lock().remove(&(mirror, copy));
                self.publish_member(mirror, copy, MemberEvent::Stale { reason: (*reason).into() });
            }
            Notice::LastCopyFails { reason, .. } => {
                self.publish_volume(VolumeEvent::Unavailable { reason: (*reason).into() });
            }
            Notice::SyncStarted { copy, blocks } => {
                self.catching_up.lock().insert((mirror, copy), blocks);
                let event = ResyncEvent::Started { bytes: bytes(blocks) };
                self.publish_resync(mirror, copy, event);
            }
            Notice::SyncFinished { copy } => {
                let blocks = self.catching_up.lock().remove(&(mirror, copy)).unwrap_or_default();
                let event = ResyncEvent::Finished { bytes: bytes(blocks) };
                self.publish_resync(mirror, copy, event);
            }
            Notice::Rewritten { copy, addr, .. } => {
                let copy = self.copy_name(mirror, copy);
                let event = BlockEvent::ReadErrorRepaired { address: addr, copy };
                self.publish(Event::Block { device: self.volume(), event });
            }
            Notice::Unreadable { copy, addr, wanted_by: Some(wanted_by) } => {
                let copy = self.copy_name(mirror, copy);
                let reason = format!(
                    "{addr} cannot be read from {copy}, and no other copy has it; it is \
                     tried again, and is good as soon as it is written anew"
                );
                self.publish_resync(mirror, wanted_by, ResyncEvent::Interrupted { reason });
            }
            Notice::Unreadable { addr, wanted_by: None, .. } => {
                let event = BlockEvent::ChecksumLost { address: addr };
                self.publish(Event::Block { device: self.volume(), event });
            }
            Notice::Different { copy, blocks, .. } => {
                self.differences.fetch_add(blocks, Ordering::AcqRel);
                let event = ResyncEvent::DifferencesFound { blocks };
                self.publish_resync(mirror, copy, event);
            }
            Notice::Compared { .. } => {}
            Notice::Grown { .. } => self.tell_length(),
            Notice::NotGrown { reason } => self.not_grown(&reason),
            Notice::Fenced { reason } => {
                self.taken.note(&reason);
                let by = self.surroundings.coordinator.read(&self.volume()).ok().flatten();
                let by = by.and_then(|stored| Record::decode(&stored.text).ok());
                let by = by.map_or(0, |record| record.epoch().0);
                let epoch = self.register.epoch().0;
                self.publish_volume(VolumeEvent::Fenced { epoch, by });
            }
        }
    }
}

impl Owner for Behind {
    fn lengthen(&self, mirror: Uuid, blocks: u64) -> Recorded {
        self.0.record_length(mirror, blocks)
    }

    fn record(&self, mirror: Uuid, states: &[CopyState]) -> Recorded {
        self.0.tell_record(mirror, states)
    }

    fn attach(&self, mirror: Uuid, copy: CopyIndex) -> Result<Attachment, MemberError> {
        self.0.attach_copy(mirror, copy)
    }

    fn not_attached(&self, mirror: Uuid, copy: CopyIndex, reason: &MemberError) {
        let reason_text = reason.to_string();
        let event = match reason {
            MemberError::Foreign(_) => MemberEvent::Foreign { found: reason_text },
            _ => MemberEvent::Unreachable { reason: reason_text },
        };
        self.0.publish_member(mirror, copy, event);
    }

    fn repaired(&self, mirror: Uuid, copy: CopyIndex, addr: BlockAddr) {
        let copy = self.0.copy_name(mirror, copy);
        let event = BlockEvent::ChecksumRepaired { address: addr, copy };
        self.0.publish(Event::Block { device: self.0.volume(), event });
    }

    fn notice(&self, mirror: Uuid, notice: Notice) {
        self.0.tell(mirror, notice);
    }
}
