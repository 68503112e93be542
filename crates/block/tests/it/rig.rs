//! A mirror on disks in memory that break when they are told to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, DiskRequest, DiskResult, Durability, MemDisk, Repair};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_block::copies::CopyIndex;
use gabion_block::geometry::{Geometry, METADATA_BLOCKS};
use gabion_block::mirror::{
    Input, Loaded, Mirror, Notice, Options, Order, Output, RequestId, Sent, TICK, Trust,
    blank_pages,
};
use gabion_block::record::CopyState;

pub const A: CopyIndex = CopyIndex(0);
pub const B: CopyIndex = CopyIndex(1);
pub const STALE: CopyState = CopyState::Stale { full: false };
pub const FULL: CopyState = CopyState::Stale { full: true };
pub const MIRROR: Uuid = Uuid([7; 16]);

/// What a copy does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Works,
    /// There is no connection.
    Gone,
    /// Writes fail.
    Refuses,
    /// There is no answer until it works again.
    Frozen,
}

/// What the coordinator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coordinator {
    Works,
    /// Nobody knows what became of a change, which has not happened.
    Away,
    /// There is no answer until it works again.
    Silent,
}

/// What was asked of whom, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Read(CopyIndex),
    /// A page of a bitmap was written.
    Page(CopyIndex),
    /// Blocks of data, and how many.
    Write(CopyIndex, u64, u64),
    Flush(CopyIndex),
    Record(Vec<CopyState>),
    Attach(CopyIndex),
    Detach(CopyIndex),
    Answer(u64),
}

pub struct Rig {
    pub mirror: Mirror,
    pub now: Duration,
    pub disks: Vec<Arc<MemDisk>>,
    pub behaviour: Vec<Behaviour>,
    pub coordinator: Coordinator,
    /// What the record says.
    pub record: Vec<CopyState>,
    pub log: Vec<Event>,
    pub notices: Vec<Notice>,
    /// Blocks of data that cannot be read until they are written.
    pub unreadable: BTreeSet<(CopyIndex, u64)>,
    /// Whether copies that are attached count as other disks.
    pub foreign: bool,
    /// Copies that the mirror wants to have attached, and that are not answering.
    wanted: Vec<CopyIndex>,
    held: Vec<(CopyIndex, Sent, DiskRequest)>,
    unrecorded: Option<Vec<CopyState>>,
    /// Blocks of each copy, as the record is told.
    unlengthened: Option<u64>,
    /// What the record says of them; nothing if it was not told.
    pub length: Option<u64>,
    answers: BTreeMap<u64, DiskResult>,
    repairs: BTreeMap<u64, Repair>,
    next: u64,
}

pub fn slice(count: u64, stamp: u8) -> BlockSlice {
    let mut blocks = Blocks::zeroed(count as usize);
    blocks.bytes_mut().fill(stamp);
    BlockSlice::new(blocks)
}

pub fn write(addr: u64, count: u64, stamp: u8) -> DiskRequest {
    let parts = vec![slice(count, stamp)];
    DiskRequest::Write { addr: BlockAddr(addr), parts, durability: Durability::Cached }
}

pub fn read(addr: u64) -> DiskRequest {
    DiskRequest::Read { addr: BlockAddr(addr), count: 1 }
}

impl Rig {
    /// A mirror of `blocks` blocks of data that was never used.
    pub fn new(blocks: u64, states: &[CopyState]) -> Self {
        let geometry = Geometry::of_copies(blocks + METADATA_BLOCKS).expect("some blocks");
        let disk = |_: &CopyState| {
            let disk = MemDisk::new(blocks + METADATA_BLOCKS);
            for (addr, block) in blank_pages(geometry, MIRROR) {
                disk.write(addr, block, Durability::Fua).expect("it is within the disk");
            }
            Arc::new(disk)
        };
        Self::open(states, states.iter().map(disk).collect(), Options::default())
    }

    /// A mirror of disks that were used before.
    pub fn open(states: &[CopyState], disks: Vec<Arc<MemDisk>>, options: Options) -> Self {
        let geometry = Geometry::of_copies(disks[0].blocks()).expect("some blocks");
        let mut loaded = Loaded::empty(geometry);
        for (disk, _) in disks.iter().zip(states).filter(|(_, state)| state.is_in_sync()) {
            loaded.add(MIRROR, &disk.image()[..METADATA_BLOCKS as usize * BLOCK_SIZE]);
        }
        let name = Arc::from("mirror");
        let mut rig = Self {
            mirror: Mirror::new(name, MIRROR, geometry, states, loaded, options),
            now: Duration::ZERO,
            behaviour: vec![Behaviour::Works; disks.len()],
            disks,
            coordinator: Coordinator::Works,
            record: states.to_vec(),
            log: Vec::new(),
            notices: Vec::new(),
            unreadable: BTreeSet::new(),
            foreign: false,
            wanted: Vec::new(),
            held: Vec::new(),
            unrecorded: None,
            unlengthened: None,
            length: None,
            answers: BTreeMap::new(),
            repairs: BTreeMap::new(),
            next: 0,
        };
        rig.run();
        rig
    }

    pub fn tell(&mut self, input: Input) {
        self.mirror.handle(self.now, input);
        self.run();
    }

    pub fn order(&mut self, order: Order) {
        self.tell(Input::Order(order));
    }

    /// Starts a request, whose answer is asked for by the number.
    pub fn ask(&mut self, request: DiskRequest) -> u64 {
        self.next += 1;
        self.tell(Input::Request { id: RequestId(self.next), request });
        self.next
    }

    pub fn repair(&mut self, copy: CopyIndex, addr: u64, bad: u8, good: u8) -> u64 {
        self.next += 1;
        let (id, addr) = (RequestId(self.next), BlockAddr(addr));
        self.tell(Input::RepairCopy { id, copy, addr, bad: slice(1, bad), good: slice(1, good) });
        self.next
    }

    pub fn repaired(&self, id: u64) -> Option<Repair> {
        self.repairs.get(&id).copied()
    }

    /// Whether the request has succeeded (`Some(true)`), failed, or is under way.
    pub fn ended(&self, id: u64) -> Option<bool> {
        self.answers.get(&id).map(Result::is_ok)
    }

    /// The first byte that a read has read.
    pub fn byte(&self, id: u64) -> u8 {
        let blocks = self.answers[&id].as_ref().expect("it succeeds").as_ref();
        blocks.expect("it was a read").bytes()[0]
    }

    pub fn trust(&self, copy: CopyIndex) -> Trust {
        self.mirror.copies()[copy.at()].trust
    }

    pub fn set(&mut self, copy: CopyIndex, behaviour: Behaviour) {
        self.behaviour[copy.at()] = behaviour;
        self.run();
    }

    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            self.tell(Input::Tick);
        }
    }

    /// What was written to the first block of a region of data on a copy.
    pub fn content(&self, copy: CopyIndex, addr: u64) -> u8 {
        let mut block = [0; BLOCK_SIZE];
        let addr = BlockAddr(METADATA_BLOCKS + addr);
        self.disks[copy.at()].read(addr, &mut block).expect("it is within the disk");
        block[0]
    }

    /// The requests that wrote data to `copy` since the log was emptied.
    pub fn written(&self, copy: CopyIndex) -> Vec<(u64, u64)> {
        let write = |event: &Event| match event {
            Event::Write(to, addr, count) if *to == copy => Some((*addr, *count)),
            _ => None,
        };
        self.log.iter().filter_map(write).collect()
    }

    /// Does what the machine says as long as it says something.
    fn run(&mut self) {
        loop {
            let mut inputs = Vec::new();
            while let Some(output) = self.mirror.poll_output() {
                inputs.extend(self.obey(output));
            }
            inputs.extend(self.thaw());
            if inputs.is_empty() {
                return;
            }
            for input in inputs {
                self.mirror.handle(self.now, input);
            }
        }
    }

    fn obey(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Send { copy, sent, request } => self.held.push((copy, sent, request)),
            Output::Complete { id, result } => {
                self.log.push(Event::Answer(id.0));
                assert!(self.answers.insert(id.0, result).is_none(), "{id:?} is answered twice");
            }
            Output::Repaired { id, result } => {
                self.repairs.insert(id.0, result.expect("nothing fails that is repaired"));
            }
            Output::Record(states) => {
                self.log.push(Event::Record(states.clone()));
                assert!(self.unrecorded.replace(states).is_none(), "one change at a time");
            }
            Output::Attach(copy) => {
                self.log.push(Event::Attach(copy));
                self.wanted.push(copy);
            }
            Output::Detach(copy) => {
                self.log.push(Event::Detach(copy));
                self.wanted.retain(|wanted| *wanted != copy);
                self.held.retain(|(to, ..)| *to != copy);
            }
            Output::RecordLength(blocks) => self.unlengthened = Some(blocks),
            Output::Notice(notice) => self.notices.push(notice),
        }
        None
    }

    /// What happens by itself.
    fn thaw(&mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        for (copy, sent, request) in std::mem::take(&mut self.held) {
            match self.execute(copy, &request) {
                Some(result) => inputs.push(Input::Done { sent, result }),
                None => self.held.push((copy, sent, request)),
            }
        }
        let works = self.coordinator == Coordinator::Works;
        let answers = self.coordinator != Coordinator::Silent;
        if let Some(states) = self.unrecorded.take_if(|_| answers) {
            inputs.push(if works { Input::Recorded } else { Input::NotRecorded });
            if works {
                self.record = states;
            }
        }
        if let Some(blocks) = self.unlengthened.take_if(|_| answers) {
            inputs.push(if works { Input::LengthRecorded } else { Input::LengthNotRecorded });
            if works {
                self.length = Some(blocks);
            }
        }
        for copy in std::mem::take(&mut self.wanted) {
            match self.behaviour.get(copy.at()) {
                Some(Behaviour::Works | Behaviour::Refuses) => {
                    inputs.push(Input::Attached { copy, full: self.foreign });
                }
                _ => self.wanted.push(copy),
            }
        }
        inputs
    }

    fn execute(&mut self, copy: CopyIndex, request: &DiskRequest) -> Option<DiskResult> {
        let (addr, count) = request.extent();
        let is_write = matches!(request, DiskRequest::Write { .. });
        let error = |kind: io::ErrorKind| {
            let (device, source) = (Arc::from("copy"), Arc::new(kind.into()));
            Some(Err(DiskError::Io { device, operation: request.operation(), addr, source }))
        };
        match self.behaviour[copy.at()] {
            Behaviour::Frozen => return None,
            Behaviour::Gone => return error(io::ErrorKind::NotConnected),
            Behaviour::Refuses if is_write && addr.0 >= METADATA_BLOCKS => {
                return error(io::ErrorKind::PermissionDenied);
            }
            Behaviour::Refuses | Behaviour::Works => {}
        }
        if addr.0 >= METADATA_BLOCKS {
            let first = addr.0 - METADATA_BLOCKS;
            let range = (copy, first)..(copy, first + count);
            let is_read = matches!(request, DiskRequest::Read { .. });
            if is_read && self.unreadable.range(range.clone()).next().is_some() {
                return error(io::ErrorKind::InvalidData);
            }
            self.unreadable.retain(|bad| is_read || !range.contains(bad));
        }
        self.log.push(match request {
            DiskRequest::Read { .. } => Event::Read(copy),
            DiskRequest::Flush => Event::Flush(copy),
            _ if addr.0 < METADATA_BLOCKS => Event::Page(copy),
            _ => Event::Write(copy, addr.0 - METADATA_BLOCKS, count),
        });
        Some(self.disks[copy.at()].submit(request.clone()).wait())
    }
}
