//! A volume that becomes longer while it is open: what its record wants is done, in this order.
//!
//! 1. Members that the record has as longer are measured, and their new blocks used; then their
//!    headers say so, too. Stripes and linear devices become longer with their parts.
//! 2. Mirrors whose copies have all become longer are told to grow, inner ones first. They tell
//!    the record when they have.
//! 3. The part that is to be appended is connected and gets headers of this opening. Then the
//!    record has it as a part, and only then its blocks can be used.
//!
//! Between any two of these steps everybody may die: whoever opens the volume next does what is
//! left. What cannot be done is told once, and tried again as long as the record wants it.
//!
//! All this is done on a thread of its own, as members that do not answer take their time.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::{Disk, DiskError};
use gabion_base::event::VolumeEvent;
use gabion_base::ids::Uuid;
use gabion_base::sync::{self, Mutex};
use gabion_base::window::Window;
use gabion_block::format::header::{Header, MEMBER_DATA_START};
use gabion_block::growth;
use gabion_block::mirror::Order;
use gabion_block::opening;
use gabion_block::record::{Layout, Member, Record};
use gabion_block::spread::Linear;

use crate::assembly::Assembly;
use crate::keeper::{Behind, Keeper};
use crate::look::Looked;
use crate::member::{self, Head};
use crate::mirror_disk::{MirrorDisk, Recorded};
use crate::register::RegisterError;
use crate::surroundings::ONLY_PATIENCE;
use crate::volume::{take_states, wanted_members};

/// How far growing is.
#[derive(Default)]
pub(crate) struct Growing {
    /// Somebody is at it.
    busy: AtomicBool,
    /// Why it did not go on, which was told.
    refusal: Mutex<Option<String>>,
}

impl Growing {
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.lock().clone()
    }
}

/// A part that is connected.
struct Connected {
    layout: Layout,
    disk: Arc<dyn Disk>,
    mirrors: Vec<Arc<MirrorDisk>>,
}

impl Keeper {
    /// Begins with what the record wants, unless somebody is at it.
    pub(crate) fn go_on_growing(self: &Arc<Self>, root: &Arc<Linear>) {
        if !self.has_to_grow(root) || self.growing.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let (keeper, root) = (Arc::clone(self), Arc::downgrade(root));
        let work = move || {
            if let Some(root) = root.upgrade()
                && let Err(reason) = keeper.grow(&root)
            {
                keeper.not_grown(&reason);
            }
            keeper.growing.busy.store(false, Ordering::Release);
        };
        if sync::spawn("volume growth", work).is_err() {
            // It is tried again when the record is next looked at.
            self.growing.busy.store(false, Ordering::Release);
        }
    }

    /// Whether the record wants something that has not happened.
    pub(crate) fn has_to_grow(&self, root: &Arc<Linear>) -> bool {
        let record = self.register.record();
        growth::is_under_way(&record)
            || parts(&record.layout).len() > root.count()
            || record.layout.members().iter().any(|member| self.short(member).is_some())
    }

    /// What is used of a member, if that is less than the record has of it.
    fn short(&self, member: &Member) -> Option<Arc<Window>> {
        let data = self.member_data(member.uuid)?;
        (data.blocks() < member.blocks - MEMBER_DATA_START).then_some(data)
    }

    fn grow(self: &Arc<Self>, root: &Arc<Linear>) -> Result<(), String> {
        let (record, before) = (self.register.record(), root.blocks());
        let mut first_failure = Ok(());
        for member in record.layout.members() {
            let Some(data) = self.short(member) else { continue };
            let lengthened = self.lengthen_member(&record, member, &data);
            first_failure = first_failure.and(lengthened);
        }
        if root.blocks() > before {
            self.tell_length();
        }
        first_failure?;
        let mut is_waiting = false;
        for (uuid, blocks) in growth::wanted(&record.layout) {
            is_waiting = true;
            let mirrors = self.mirrors();
            let Some(mirror) = mirrors.iter().find(|mirror| mirror.uuid() == uuid) else {
                continue;
            };
            // A copy that is away and has a mirror in it becomes longer when it is back.
            let fits = growth::fits(&record.layout, uuid, blocks);
            if fits && mirror.connected_blocks() >= blocks {
                mirror.order(Order::Grow(blocks));
            }
        }
        // A part is put behind the end, and that must not move afterwards.
        if is_waiting {
            return Ok(());
        }
        self.append_parts(root)
    }

    fn lengthen_member(
        &self,
        record: &Record,
        member: &Member,
        data: &Window,
    ) -> Result<(), String> {
        let url = &member.url;
        let failed = |error: DiskError| format!("{url}: {error}");
        let found = data.disk().remeasure().map_err(failed)?;
        if found < member.blocks {
            let bytes = found.saturating_mul(BLOCK_SIZE as u64);
            return Err(format!("{url} has only {bytes} bytes where it is used"));
        }
        data.lengthen(member.blocks - MEMBER_DATA_START);
        let head = member::read_head(&**data.disk()).map_err(failed)?;
        let Head::Header(before) = head else { return Err(format!("{url} has lost its header")) };
        let header = Header {
            sequence: before.sequence + 1,
            blocks: member.blocks,
            openings: record.openings.clone(),
            ..before
        };
        member::write_header(&**data.disk(), &header).map_err(failed)
    }

    /// Puts all parts behind the end that are in the record and not there, and then the one that
    /// somebody wants.
    fn append_parts(self: &Arc<Self>, root: &Arc<Linear>) -> Result<(), String> {
        let record = self.register.record();
        for part in parts(&record.layout).iter().skip(root.count()) {
            let connected = self.connect_part(part)?;
            self.use_part(root, connected)?;
        }
        let Some(part) = &record.append else { return Ok(()) };
        if !growth::has_its_end(&record.layout, root.blocks()) {
            return Err("its present length is not the one that its record has".to_owned());
        }
        let connected = self.connect_part(part)?;
        let (epoch, wanted) = (self.register.epoch(), part);
        let mut is_wanted = false;
        let changed = self.register.change(|record| {
            // Somebody may have called it off, or may want what is there to be longer first.
            is_wanted = record.append.as_ref() == Some(wanted)
                && growth::has_its_end(&record.layout, root.blocks());
            if is_wanted {
                record.append = None;
                let mut part = connected.layout.clone();
                opening::take_part(&mut part, epoch);
                growth::append(&mut record.layout, part);
            }
        });
        match changed {
            Ok(()) if is_wanted => self.use_part(root, connected),
            Ok(()) => Ok(()),
            // What the record says is looked at again.
            Err(error) => Err(error.to_string()),
        }
    }

    /// Connects to a part, whose members get headers of this opening.
    fn connect_part(self: &Arc<Self>, part: &Layout) -> Result<Connected, String> {
        let mut asked = Vec::new();
        wanted_members(part, ONLY_PATIENCE, &mut asked);
        let Looked { findings, mut devices, .. } = self.look(&asked);
        self.connected();
        let record = self.register.record();
        // What was prepared before an opening that came to its end is not old for that.
        let of_part = Record { completed: Default::default(), layout: part.clone(), ..record };
        let mut layout = opening::plan(&of_part, &findings).map_err(|error| error.to_string())?;
        let members: Vec<_> = opening::in_use(&layout).into_iter().cloned().collect();
        devices.retain(|uuid, _| members.iter().any(|member| member.uuid == *uuid));
        let members: Vec<_> = members.iter().collect();
        let text = |error: DiskError| error.to_string();
        self.write_headers(&of_part, &members, &findings, &devices).map_err(text)?;
        let mut assembly = Assembly {
            name: &of_part.name,
            devices: &devices,
            owner: Arc::new(Behind(Arc::clone(self))),
            options: self.surroundings.options,
            mirrors: Vec::new(),
            members: Vec::new(),
        };
        let disk = assembly.device(&mut layout).map_err(text)?;
        self.take_on(&assembly);
        Ok(Connected { layout, disk, mirrors: assembly.mirrors })
    }

    /// The record has the part: its blocks can be used.
    fn use_part(&self, root: &Linear, part: Connected) -> Result<(), String> {
        let changed = self.register.change(|record| {
            take_states(&mut record.layout, &part.layout);
        });
        changed.map_err(|error| error.to_string())?;
        for mirror in &part.mirrors {
            mirror.start().map_err(|error| error.to_string())?;
        }
        root.append(part.disk);
        self.tell_length();
        Ok(())
    }

    pub(crate) fn record_length(&self, mirror: Uuid, blocks: u64) -> Recorded {
        let mut fits = false;
        let changed = self.register.change(|record| {
            fits = growth::fits(&record.layout, mirror, blocks);
            if fits
                && let Some(Layout::Mirror { blocks: used, grows_to, .. }) =
                    record.layout.find_mirror(mirror)
            {
                *used = (*used).max(blocks);
                *grows_to = (*grows_to).max(*used);
            }
        });
        match changed {
            Ok(()) if fits => Recorded::Done,
            // Nobody could open a volume of such a record.
            Ok(()) => Recorded::Unknown,
            Err(error @ RegisterError::Fenced(_)) => Recorded::Fenced(error.to_string()),
            Err(_) => Recorded::Unknown,
        }
    }

    /// Tells how long the volume is by now.
    pub(crate) fn tell_length(&self) {
        let blocks = self.register.record().layout.blocks().unwrap_or_default();
        let bytes = blocks.saturating_mul(BLOCK_SIZE as u64);
        *self.growing.refusal.lock() = None;
        self.publish_volume(VolumeEvent::Grown { bytes });
    }

    /// Tells why the volume does not become longer; the same reason once.
    pub(crate) fn not_grown(&self, reason: &dyn Display) {
        let reason = reason.to_string();
        let mut told = self.growing.refusal.lock();
        if told.as_ref() != Some(&reason) {
            *told = Some(reason.clone());
            drop(told);
            self.publish_volume(VolumeEvent::NotGrown { reason });
        }
    }
}

/// What lies one behind the other.
fn parts(layout: &Layout) -> &[Layout] {
    match layout {
        Layout::Linear(parts) => parts,
        other => std::slice::from_ref(other),
    }
}
