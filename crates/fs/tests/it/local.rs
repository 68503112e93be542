//! The local map on a disk in memory, to see that the rules of files and the real map fit.

use std::sync::Arc;

use gabion_base::disk::{Disk, MemDisk};
use gabion_base::ids::Uuid;
use gabion_fs::{Error, Result};
use gabion_map::audit::audit;
use gabion_map::open::{FormatOptions, format};
use gabion_map::{Limits, LocalMap, OpenMode, Txn};

use crate::world::{Backend, SUBVOL};

/// 64 MiB.
const BLOCKS: u64 = 16_384;

pub struct Local {
    disk: Arc<dyn Disk>,
    map: LocalMap,
}

impl Local {
    pub fn new() -> Self {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new(BLOCKS));
        let options = FormatOptions {
            uuid: Uuid([7; 16]),
            label: "test".into(),
            name_seed: 0,
            created: 0,
            blocks: None,
        };
        format(&disk, &options).expect("a large enough disk");
        let map = open(&disk);
        assert_eq!(map.create_subvolume().expect("writable"), SUBVOL);
        Self { disk, map }
    }

    /// Makes everything durable and forgets what is in memory.
    pub fn reopen(&mut self) {
        self.map.sync().expect("a working disk");
        self.map = open(&self.disk);
    }
}

fn open(disk: &Arc<dyn Disk>) -> LocalMap {
    LocalMap::open(Arc::clone(disk), OpenMode::ReadWrite, Limits::within(4 << 20))
        .expect("a whole filesystem")
}

impl Backend for Local {
    fn run<R>(&mut self, operation: impl Fn(&mut dyn Txn) -> Result<R>) -> Result<R> {
        loop {
            match self.map.transact(|txn| operation(txn)) {
                Err(Error::UnwrittenBytes(file)) => self.map.flush_file(file)?,
                outcome => return outcome,
            }
        }
    }

    fn check(&self, _seed: u64) {
        self.map.sync().expect("a working disk");
        let audit = audit(&self.map).expect("readable");
        assert!(audit.is_exact(), "{audit:?}");
    }
}
