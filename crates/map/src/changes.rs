//! What an operation changes, collected until it is applied as one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::ids::{BlockAddr, SubvolId, Txg};

use crate::error::MapError;
use crate::file::FileState;
use crate::file::dirty::{InJournal, STRIPE_BLOCKS, Segment};
use crate::format::item::{Access, FileData, decode_file};
use crate::format::journal::{Batch, FreedRun, JournaledBytes, Run};
use crate::journal::{DataOnDisk, Position};
use crate::key::{FileId, Kind};
use crate::map::LocalMap;
use crate::quota;
use crate::txn::Value;
use crate::view::Overlay;

/// Collected changes.
#[derive(Default)]
pub(crate) struct Changes {
    /// Items put or removed.
    pub(crate) items: Overlay,
    /// Everything of the batch but the items.
    pub(crate) batch: Batch,
    /// New sizes of files, whose accepted bytes must know.
    pub(crate) sizes: Vec<(FileId, u64)>,
    /// Bytes of `batch` that are in the file's state already: only marked as journaled.
    pub(crate) journaled: Vec<(Arc<FileState>, Segment)>,
    /// Blocks of `batch.allocated` that go back if the operation does not come to its end.
    pub(crate) set_aside: Vec<Run>,
    /// Whether blocks of `batch.allocated` were written but not flushed.
    pub(crate) unflushed: bool,
    /// The birth that the items give to blocks of `batch.allocated`.
    pub(crate) birth: Option<Txg>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
            && self.batch == Batch::default()
            && self.sizes.is_empty()
            && self.journaled.is_empty()
    }

    /// `run` of `file` is no longer used.
    pub(crate) fn free(&mut self, file: FileId, run: Run, birth: Txg) {
        self.batch.freed.push(FreedRun { subvol: file.subvol, run, birth });
    }
}

impl LocalMap {
    /// Applies changes as one. The caller holds the locks of all objects they touch.
    pub(crate) fn apply(&self, mut changes: Changes) -> Result<Position, MapError> {
        self.check_writable()?;
        for freed in &changes.batch.freed {
            self.alloc.check_in_use(freed.run)?;
        }
        changes.batch.items = std::mem::take(&mut changes.items).into_iter().collect();
        // Bytes that are in their file's state already ride in the journal's copy only.
        let marked = changes.journaled.iter().map(|(state, segment)| {
            let offset = segment.block * BLOCK_SIZE as u64;
            let length = segment.slice.bytes().len() as u64;
            let length = length.min(state.size().saturating_sub(offset)).max(1) as usize;
            let bytes = segment.slice.bytes()[..length].to_vec();
            JournaledBytes { file: state.file, offset, bytes }
        });
        let inserted = changes.batch.bytes.len();
        changes.batch.bytes.extend(marked);

        let _gate = self.gate.read();
        self.check_all_changeable(&changes.batch)?;
        let view = self.view.load();
        let txg = view.active.txg();
        if changes.birth.is_some_and(|birth| birth != txg) {
            give_birth(&mut changes.batch, txg)?;
        }
        let measured = self.measure(changes.batch.items.iter().map(|(key, value)| (key, value)))?;
        let outcome = self.apply_to_blocks(&changes.batch, txg);
        if let Err(failure) = outcome {
            // Part of the batch is in the allocation map now: memory and disk have parted.
            self.stop(&failure);
            return Err(failure);
        }
        quota::note(measured);
        self.apply_to_bytes(&changes.batch, inserted, &changes.sizes)?;
        view.active.apply(&changes.batch.items);
        let data = if changes.unflushed { DataOnDisk::Unflushed } else { DataOnDisk::Flushed };
        let position = self.journal.append(&changes.batch, data);
        for (state, segment) in &changes.journaled {
            self.count_journaled(segment);
            state.dirty.mark_journaled(segment);
        }
        Ok(position)
    }

    /// Fails unless there is such a subvolume, and it is no snapshot.
    pub(crate) fn check_changeable(&self, subvol: SubvolId) -> Result<(), MapError> {
        let subvols = self.subvols.read();
        let found = subvols.get(&subvol).map(|subvol| &subvol.record);
        match found {
            Some(record) if record.access == Access::Writable && record.is_there() => Ok(()),
            _ => Err(MapError::ReadOnly),
        }
    }

    /// The same for all subvolumes of a batch. Nobody passes the gate that is closed when a
    /// subvolume ends.
    fn check_all_changeable(&self, batch: &Batch) -> Result<(), MapError> {
        let items = batch.items.iter().map(|(key, _)| key.subvol);
        let bytes = batch.bytes.iter().map(|part| part.file.subvol);
        let mut checked = None;
        for subvol in items.chain(bytes) {
            if checked.replace(subvol) != Some(subvol) {
                self.check_changeable(subvol)?;
            }
        }
        Ok(())
    }

    /// Applies a batch that the journal holds already.
    pub(crate) fn apply_replayed(&self, changes: Changes) -> Result<(), MapError> {
        let batch = changes.batch;
        let view = self.view.load();
        quota::note(self.measure(batch.items.iter().map(|(key, value)| (key, value)))?);
        self.apply_to_blocks(&batch, view.active.txg())?;
        let files = batch.items.iter().filter(|(key, _)| key.kind == Kind::FILE);
        let sizes = files.map(|(key, value)| {
            let size = match value {
                None => 0,
                Some(value) => {
                    let bad = |source| MapError::BadItem { key: *key, source };
                    decode_file(value).map_err(bad)?.size
                }
            };
            Ok((key.file(), size))
        });
        let sizes = sizes.collect::<Result<Vec<_>, MapError>>()?;
        self.apply_to_bytes(&batch, batch.bytes.len(), &sizes)?;
        view.active.apply(&batch.items);
        Ok(())
    }

    fn apply_to_blocks(&self, batch: &Batch, txg: Txg) -> Result<(), MapError> {
        for run in &batch.allocated {
            self.alloc.own(*run, txg)?;
        }
        for freed in &batch.freed {
            self.bury(self.fate(freed), *freed, txg)?;
        }
        Ok(())
    }

    /// Brings the accepted bytes of files in line with the batch. Its first `inserted` bytes are
    /// new, all others are there already.
    fn apply_to_bytes(
        &self,
        batch: &Batch,
        inserted: usize,
        sizes: &[(FileId, u64)],
    ) -> Result<(), MapError> {
        for range in &batch.dropped {
            if let Some(state) = self.files.find(range.file) {
                let to = range.to.div_ceil(BLOCK_SIZE as u64);
                let from = range.from / BLOCK_SIZE as u64;
                let removed = state.dirty.remove(from, to);
                self.settle_dirty(&state, removed);
                state.owed.forget(from, to);
            }
        }
        for (key, change) in batch.items.iter().filter(|(key, _)| key.kind == Kind::FILE) {
            if let Some(state) = self.files.find(key.file()) {
                let size = match change {
                    None => 0,
                    Some(value) => {
                        decode_file(value)
                            .map_err(|source| MapError::BadItem { key: *key, source })?
                            .size
                    }
                };
                state.set_item_size(size);
            }
        }
        for (file, size) in sizes {
            if let Some(state) = self.files.find(*file) {
                state.resize(*size);
            }
        }
        for part in &batch.bytes[..inserted] {
            let size = self.item_extent(part.file)?.size;
            let size = batch
                .items
                .iter()
                .find(|(key, _)| *key == part.file.key(Kind::FILE, 0))
                .and_then(|(_, value)| value.as_ref())
                .and_then(|value| decode_file(value).ok())
                .map_or(size, |file| file.size);
            let state = self.files.enter(part.file, size);
            let slice = BlockSlice::new(Blocks::from_bytes(&part.bytes));
            self.space.promise(slice.count() as u64);
            self.accept(&state, part.offset / BLOCK_SIZE as u64, &slice, InJournal::Yes);
        }
        Ok(())
    }

    /// Takes `slice` as the bytes of a file from `block` on. Its blocks are promised until they are
    /// written, or were replaced before.
    pub(crate) fn accept(
        &self,
        state: &FileState,
        block: u64,
        slice: &BlockSlice,
        journaled: InJournal,
    ) {
        let count = slice.count() as u64;
        self.dirty_blocks.fetch_add(count, Ordering::AcqRel);
        state.account(count, 0);
        let mut replaced = 0;
        let mut done = 0;
        while done < count {
            let at = block + done;
            let part = (STRIPE_BLOCKS - at % STRIPE_BLOCKS).min(count - done);
            let slice = slice.part(done as usize, part as usize);
            let segment = Segment { block: at, slice, journaled };
            if journaled == InJournal::Yes {
                self.count_journaled(&segment);
            }
            replaced += state.dirty.insert(segment);
            done += part;
        }
        self.settle_dirty(state, replaced);
    }

    /// `blocks` of a file no longer wait.
    pub(crate) fn settle_dirty(&self, state: &FileState, blocks: u64) {
        state.account(0, blocks);
        self.dirty_blocks.fetch_sub(blocks, Ordering::AcqRel);
        self.space.settle(blocks);
    }

    fn count_journaled(&self, segment: &Segment) {
        let bytes = segment.slice.bytes().len() as u64;
        self.journaled_bytes.fetch_add(bytes, Ordering::AcqRel);
    }
}

/// Makes blocks that are new in `batch` be born in `txg`: a commit has begun since the operation
/// looked at the time, and no snapshot that it makes has them.
fn give_birth(batch: &mut Batch, txg: Txg) -> Result<(), MapError> {
    let is_new = |addr: BlockAddr| {
        let holds = |run: &Run| (run.addr..run.addr.plus(u64::from(run.count))).contains(&addr);
        batch.allocated.iter().any(holds)
    };
    for (key, value) in batch.items.iter_mut().filter(|(key, _)| key.kind == Kind::DATA) {
        let Some(bytes) = value else { continue };
        let bad = |source| MapError::BadItem { key: *key, source };
        let mut data = FileData::decode(bytes).map_err(bad)?;
        match &mut data {
            FileData::Extent(extent) if is_new(extent.addr) => extent.birth = txg,
            FileData::Unwritten(run) if is_new(run.addr) => run.birth = txg,
            _ => continue,
        }
        *value = Some(Value::from(data.encode()));
    }
    Ok(())
}
