//! Members put together as a record says: devices over devices, mirrors not yet started.

use std::collections::BTreeMap;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::{Disk, DiskError};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::window::Window;
use gabion_block::geometry::{Geometry, METADATA_BLOCKS};
use gabion_block::mirror::{Loaded, Mirror};
use gabion_block::opening::keep_one;
use gabion_block::record::{CopyState, Layout};
use gabion_block::spread::{Linear, Stripe};

use crate::member;
use crate::mirror_disk::{MirrorDisk, Owner};

/// Connected members by their identities.
pub(crate) type Devices = BTreeMap<Uuid, Arc<dyn Disk>>;

/// What is being put together.
pub(crate) struct Assembly<'a> {
    pub(crate) name: &'a str,
    pub(crate) devices: &'a Devices,
    pub(crate) owner: Arc<dyn Owner>,
    pub(crate) options: gabion_block::mirror::Options,
    /// The mirrors, inner ones first.
    pub(crate) mirrors: Vec<Arc<MirrorDisk>>,
    /// What is used of each member, without its header.
    pub(crate) members: Vec<(Uuid, Arc<Window>)>,
}

impl Assembly<'_> {
    /// The device that `layout` describes. Copies that turn out not to be trusted, because their
    /// bitmaps cannot be read or a write may have been under way, are stale in it afterwards.
    pub(crate) fn device(&mut self, layout: &mut Layout) -> Result<Arc<dyn Disk>, DiskError> {
        let parts = |assembly: &mut Self, parts: &mut [Layout]| {
            parts.iter_mut().map(|part| assembly.device(part)).collect::<Result<Vec<_>, _>>()
        };
        Ok(match layout {
            Layout::Member(member) => {
                let disk = &self.devices[&member.uuid];
                // What is read from now on must not be gone after the next power cut.
                disk.flush()?;
                let data = Arc::new(member::data(Arc::clone(disk), member.blocks));
                self.members.push((member.uuid, Arc::clone(&data)));
                data
            }
            Layout::Linear(all) => {
                let all = parts(self, all)?;
                Arc::new(Linear::new(self.name.into(), all))
            }
            Layout::Stripe { chunk_blocks, parts: all } => {
                let all = parts(self, all)?;
                Arc::new(Stripe::new(self.name.into(), *chunk_blocks, all))
            }
            Layout::Mirror { .. } => self.mirror(layout)?,
        })
    }

    fn mirror(&mut self, layout: &mut Layout) -> Result<Arc<dyn Disk>, DiskError> {
        let Layout::Mirror { uuid, blocks, copies, .. } = layout else { unreachable!("a mirror") };
        let geometry = Geometry::of_copies(*blocks).expect("its record was checked");
        let mut disks: Vec<Option<Arc<dyn Disk>>> = Vec::new();
        let mut loaded = Loaded::empty(geometry);
        let mut failure = None;
        for copy in copies.iter_mut() {
            if !copy.state.is_in_sync() {
                disks.push(None);
                continue;
            }
            let mut area = vec![0; METADATA_BLOCKS as usize * BLOCK_SIZE];
            let read = self
                .device(&mut copy.on)
                .and_then(|disk| disk.read(BlockAddr(0), &mut area).map(|()| disk));
            match read {
                Ok(disk) => {
                    loaded.add(*uuid, &area);
                    disks.push(Some(disk));
                }
                Err(error) => {
                    failure = Some(error);
                    copy.state = CopyState::Stale { full: false };
                    disks.push(None);
                }
            }
        }
        if let (Some(error), true) = (failure, disks.iter().all(Option::is_none)) {
            return Err(error);
        }
        if loaded.is_unclean() {
            keep_one(copies);
            for (copy, disk) in copies.iter().zip(&mut disks) {
                if !copy.state.is_in_sync() {
                    *disk = None;
                }
            }
        }
        let states: Vec<_> = copies.iter().map(|copy| copy.state).collect();
        let name: Arc<str> = self.name.into();
        let mirror = Mirror::new(Arc::clone(&name), *uuid, geometry, &states, loaded, self.options);
        let owner = Arc::clone(&self.owner);
        let mirror = Arc::new(MirrorDisk::new(name, *uuid, mirror, disks, owner));
        self.mirrors.push(Arc::clone(&mirror));
        Ok(mirror)
    }
}
