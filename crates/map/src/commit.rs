//! A commit: all changes of a transaction group become durable at once.
//!
//! 1. Write back accepted bytes, while operations go on. What does not make it is in a later
//!    commit: nobody was promised otherwise.
//! 2. Freeze: close the gate for a moment, give the map a new memtable, divide the journal, and
//!    copy bytes that only the journal holds to its new part.
//! 3. Merge the frozen memtable into the trees of its subvolumes, and their new roots into the
//!    forest. Every changed node gets a new place.
//! 4. Write the nodes, the changed allocation pages, and what the new part of the journal must
//!    hold.
//! 5. Flush. Write the superblock with FUA into the next slot of the ring: the commit point.
//! 6. Show the new trees to readers; let freed blocks be discarded and used again.
//!
//! A crash before 5 leaves commit N - 1 and the journal; after it, commit N and the new part of the
//! journal. A failure after 2 stops the map: what is on disk stays as it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{DiskRequest, Durability};
use gabion_base::ids::{BlockAddr, SubvolId, Txg, Uuid};
use gabion_base::sync::Mutex;

use crate::alloc::Purpose;
use crate::catalogue::Roots;
use crate::edits::{Edited, ForestChange, apply_edits};
use crate::error::MapError;
use crate::file::dirty::InJournal;
use crate::forest::{Draft, node_run};
use crate::format::item::SubvolRecord;
use crate::format::journal::{Batch, FreedRun, JournaledBytes};
use crate::format::node::{NODE_BLOCKS, Node, NodePtr};
use crate::format::superblock::{LAID_OUT, LONG_RECORDS, QUOTAS, Superblock};
use crate::journal::{DataOnDisk, Position};
use crate::key::{Key, Kind};
use crate::layout::Layout;
use crate::map::LocalMap;
use crate::memtable::{Change, Memtable};
use crate::removal::{Reached, Work, list_key};
use crate::subvolumes::Fate;
use crate::tree::{NodeWriter, Root, Tree};
use crate::view::View;

/// Threads that merge: as many as the smallest machine has cores.
const MERGE_THREADS: usize = 2;
/// Nodes that become one write: 1 MiB.
const WRITE_NODES_MAX: usize = 64;
/// Nodes of a commit that wait in memory (8 MiB) before they are written: a merge may touch far
/// more nodes than memory should hold.
const HELD_NODES_MAX: usize = 512;
/// Runs shorter than this many blocks (64 KiB) are not worth a discard.
const DISCARD_BLOCKS_MIN: u32 = 16;

/// The forest's own id, as owner of its nodes and in its keys.
pub(crate) const FOREST: SubvolId = SubvolId(0);

type Records = BTreeMap<SubvolId, SubvolRecord>;

/// What a freeze hands to the rest of the commit.
struct Frozen {
    txg: Txg,
    table: Arc<Memtable>,
    /// Subvolumes that can have changed, as this commit writes them, but for their roots.
    subvols: Records,
    /// The same as the frozen operations saw them.
    before: Records,
    edited: Edited,
    work: Option<Work>,
    required: Position,
}

/// What a commit does besides making durable what operations did.
pub(crate) enum Besides {
    /// Nothing.
    Nothing,
    /// It changes the list of subvolumes.
    Forest(ForestChange),
    /// It gives the filesystem this layout.
    Growth(Layout),
}

impl LocalMap {
    /// Makes everything that completed before durable, but for accepted bytes that could not be
    /// written for lack of space. Returns the last durable transaction group.
    pub fn commit(&self) -> Result<Txg, MapError> {
        let wanted = self.view.load().active.txg();
        let mut superblock = self.superblock.lock();
        if superblock.txg >= wanted || self.is_committed() {
            return Ok(superblock.txg);
        }
        self.commit_locked(&mut superblock, Besides::Nothing)?;
        Ok(superblock.txg)
    }

    /// Whether the last commit holds everything already.
    fn is_committed(&self) -> bool {
        let view = self.view.load();
        // What a failed commit froze stays frozen.
        view.active.is_empty()
            && view.frozen.is_none()
            && !self.forest_changed.load(Ordering::Acquire)
            && self.files.unsettled().is_empty()
    }

    /// Makes a commit, whether there is anything to commit or not.
    pub(crate) fn commit_locked(
        &self,
        superblock: &mut Superblock,
        besides: Besides,
    ) -> Result<(), MapError> {
        self.check_writable()?;
        match self.write_back_all(&|_| true) {
            // Blocks that this commit frees may be what is missing: let it come first.
            Ok(()) | Err(MapError::NoSpace) => {}
            Err(error) => return Err(error),
        }
        self.forest_changed.store(false, Ordering::Release);
        let (change, grown) = match besides {
            Besides::Nothing => (ForestChange::default(), None),
            Besides::Forest(change) => (change, None),
            Besides::Growth(grown) => (ForestChange::default(), Some(grown)),
        };
        let frozen = self.freeze(change);
        let outcome = self.write_commit(superblock, frozen, grown);
        if let Err(failure) = &outcome {
            self.stop(failure);
        }
        outcome
    }

    /// Step 2.
    fn freeze(&self, change: ForestChange) -> Frozen {
        let _gate = self.gate.write();
        let view = self.view.load_full();
        assert!(view.frozen.is_none(), "one commit at a time");
        let txg = view.active.txg();
        let mut subvols = self.subvols.write();
        let before: Records = subvols
            .writable()
            .map(|(id, subvol)| {
                let next_ino = subvol.next_ino.load(Ordering::Acquire);
                let mut record = SubvolRecord { next_ino, ..subvol.record.clone() };
                if let (Some(quota), Some(usage)) = (&mut record.extended.quota, &subvol.usage) {
                    quota.count = usage.count();
                }
                (id, record)
            })
            .collect();
        for (id, record) in &before {
            if let Some(subvol) = subvols.get_mut(*id) {
                subvol.record.next_ino = record.next_ino;
                subvol.record.extended.quota = record.extended.quota;
            }
        }
        let edited = apply_edits(&mut subvols, txg, &change.edits);
        let mut written = before.clone();
        for id in &edited.ids {
            written.insert(*id, subvols[id].record.clone());
        }
        drop(subvols);
        self.view.store(Arc::new(View {
            active: Arc::new(Memtable::new(txg.next())),
            frozen: Some(Arc::clone(&view.active)),
            roots: Arc::clone(&view.roots),
        }));
        self.journal.divide();
        let required = self.carry_over();
        let (table, work) = (Arc::clone(&view.active), change.work);
        Frozen { txg, table, subvols: written, before, edited, work, required }
    }

    /// Bytes that only the journal holds go into its new part. Where newer ones have taken their
    /// place in memory these go there, as far as the file reaches by its items.
    fn carry_over(&self) -> Position {
        let mut carried = 0;
        for state in self.files.unsettled() {
            if self.check_changeable(state.file.subvol).is_err() {
                continue;
            }
            let mut batch = Batch::default();
            for segment in state.dirty.all() {
                let offset = segment.block * BLOCK_SIZE as u64;
                let mut bytes = segment.slice.bytes();
                match segment.journaled {
                    InJournal::No => continue,
                    InJournal::Yes => {}
                    InJournal::Older => {
                        let length = state.item_size().saturating_sub(offset);
                        bytes = &bytes[..bytes.len().min(length as usize)];
                    }
                }
                if !bytes.is_empty() {
                    carried += segment.slice.bytes().len() as u64;
                    let (file, bytes) = (state.file, bytes.to_vec());
                    batch.bytes.push(JournaledBytes { file, offset, bytes });
                }
            }
            if !batch.bytes.is_empty() {
                self.journal.append(&batch, DataOnDisk::Flushed);
            }
        }
        self.journaled_bytes.store(carried, Ordering::Release);
        self.journal.require_before_seal()
    }

    /// Steps 3 to 6.
    fn write_commit(
        &self,
        superblock: &mut Superblock,
        frozen: Frozen,
        grown: Option<Layout>,
    ) -> Result<(), MapError> {
        let txg = frozen.txg;
        let required = frozen.required;
        let (roots, mut records) = self.merge_subvolumes(&frozen)?;
        let forest = self.merge_forest(superblock, &frozen, &mut records)?;
        self.write_held(0)?;
        if let Some(grown) = &grown {
            self.alloc.free_end(grown, txg)?;
        }
        let map = self.alloc.capture(txg, grown.as_ref())?;
        let start = self.journal.seal(required)?;
        self.disk.flush()?;

        let mut next = superblock.clone();
        next.txg = txg;
        next.forest = forest.ptr;
        next.forest_level = forest.level;
        next.alloc = map.top;
        next.free_blocks = map.free;
        next.journal = start;
        if records.values().any(SubvolRecord::is_long) {
            next.incompatible |= LONG_RECORDS;
        }
        if records.values().any(SubvolRecord::has_attachments) {
            next.incompatible |= QUOTAS;
        }
        if let Some(grown) = &grown {
            next.blocks = grown.blocks;
            next.incompatible |= LAID_OUT;
            next.laid_out = Some(grown.laid_out());
        }
        let addr = self.alloc.layout().slot(txg.0 % Layout::slots());
        let block = BlockSlice::new(next.encode(addr));
        self.disk.write(addr, block, Durability::Fua)?;

        *superblock = next;
        self.committed.store(txg.0, Ordering::Release);
        self.journal.unseal(start, required);
        self.publish(roots, &frozen, &records);
        if let Some(grown) = grown {
            // In this order there is no moment with less to be had than before.
            self.alloc.publish(grown.clone());
            self.space.follow(&grown);
        }
        self.release(txg)
    }

    /// Step 3 for the subvolumes: their new roots, and the records of those that changed.
    fn merge_subvolumes(&self, frozen: &Frozen) -> Result<(Roots, Records), MapError> {
        let view = self.view.load_full();
        let mut roots = (*view.roots).clone();
        let mut records = frozen.subvols.clone();
        let changes = frozen.table.sorted();
        for part in changes.chunk_by(|a, b| a.0.subvol == b.0.subvol) {
            let id = part[0].0.subvol;
            let record = records.get_mut(&id).ok_or(MapError::Corrupt {
                structure: "subvolume",
                addr: BlockAddr(0),
                reason: "items of a subvolume that does not exist",
            })?;
            let (root, nodes) = self.merge_tree(frozen, id, roots.root(id), part)?;
            record.root = root.ptr;
            record.level = root.level;
            // Only a count that was wrong on disk can pass its ends.
            record.nodes = record.nodes.saturating_add_signed(nodes);
            roots.insert(id, root);
        }
        for (snapshot, of) in &frozen.edited.snapshots {
            let source = records[of].clone();
            let record = records.get_mut(snapshot).expect("made at the freeze");
            (record.root, record.level, record.nodes) = (source.root, source.level, source.nodes);
            roots.insert(*snapshot, roots.root(*of));
        }
        for (id, tree) in &frozen.edited.roots {
            match tree {
                Some((root, nodes)) => {
                    if let Some(record) = records.get_mut(id) {
                        (record.root, record.level, record.nodes) = (root.ptr, root.level, *nodes);
                    }
                    roots.insert(*id, *root);
                }
                None => roots.remove(*id),
            }
        }
        Ok((roots, records))
    }

    /// Merges changes into one tree; its new root and by how many nodes it grew.
    fn merge_tree(
        &self,
        frozen: &Frozen,
        owner: SubvolId,
        root: Root,
        changes: &[(Key, Change)],
    ) -> Result<(Root, i64), MapError> {
        let writer = CommitWriter {
            map: self,
            txg: frozen.txg,
            grown: AtomicI64::new(0),
            released: Mutex::default(),
        };
        let tree = Tree::new(&self.nodes, root, owner);
        let root = tree.merge(&writer, changes, MERGE_THREADS)?;
        let grown = writer.grown.load(Ordering::Relaxed);
        for ptr in writer.released.into_inner() {
            let run = node_run(ptr.addr);
            let freed = FreedRun { subvol: owner, run, birth: ptr.birth };
            let fate = frozen.before.get(&owner).map_or(Fate::Free, |of| of.fate(ptr.birth));
            self.bury(fate, freed, frozen.txg)?;
        }
        Ok((root, grown))
    }

    /// What has left a tree is free, or waits for those that need it.
    pub(crate) fn bury(&self, fate: Fate, freed: FreedRun, txg: Txg) -> Result<(), MapError> {
        match fate {
            Fate::Free => self.alloc.retire(freed.run, txg),
            Fate::Dead(snapshot) => {
                self.dead.lock().entry(txg).or_default().push((snapshot, freed));
                Ok(())
            }
            Fate::Another => Ok(()),
        }
    }

    /// Step 3 for the forest, with the work that is to be done for a removal. What that brings to
    /// its end is no longer among the records.
    fn merge_forest(
        &self,
        superblock: &Superblock,
        frozen: &Frozen,
        records: &mut Records,
    ) -> Result<Root, MapError> {
        let root = Root { ptr: superblock.forest, level: superblock.forest_level };
        let mut draft = Draft::new(Tree::new(&self.nodes, root, FOREST));
        let dead = self.dead.lock().remove(&frozen.txg).unwrap_or_default();
        for (snapshot, freed) in dead {
            draft.put_dead(snapshot, freed.run, freed.birth)?;
        }
        if let Some(work) = &frozen.work {
            match self.do_work(work, frozen.txg, &mut draft)? {
                Reached::Stage(removal) => {
                    if let Some(record) = records.get_mut(&work.of) {
                        record.extended.removal = removal;
                    }
                }
                Reached::End => {
                    records.remove(&work.of);
                    draft.delete(subvol_key(work.of));
                }
            }
        }
        for (id, record) in &*records {
            draft.put_record(subvol_key(*id), record)?;
        }
        let changes = draft.into_changes();
        self.merge_tree(frozen, FOREST, root, &changes).map(|(root, _)| root)
    }

    /// Step 4 for the nodes, if more than `allowed` wait in memory.
    fn write_held(&self, allowed: usize) -> Result<(), MapError> {
        if self.nodes.held_count() <= allowed {
            return Ok(());
        }
        let _one_at_a_time = self.writing_nodes.lock();
        let nodes = self.nodes.held();
        self.write_nodes(&nodes)?;
        self.nodes.settle(&nodes);
        Ok(())
    }

    /// Writes nodes, which are in the order of their addresses.
    fn write_nodes(&self, nodes: &[Arc<Node>]) -> Result<(), MapError> {
        let follows =
            |a: &Arc<Node>, b: &Arc<Node>| a.ptr().addr.plus(NODE_BLOCKS as u64) == b.ptr().addr;
        let mut tickets = Vec::new();
        for neighbours in nodes.chunk_by(follows) {
            for write in neighbours.chunks(WRITE_NODES_MAX) {
                let parts = write.iter().map(|node| node.blocks().clone()).collect();
                tickets.push(self.disk.submit(DiskRequest::Write {
                    addr: write[0].ptr().addr,
                    parts,
                    durability: Durability::Cached,
                }));
            }
        }
        for ticket in tickets {
            ticket.wait()?;
        }
        Ok(())
    }

    /// Step 6: readers see the new trees.
    fn publish(&self, roots: Roots, frozen: &Frozen, records: &Records) {
        let mut subvols = self.subvols.write();
        if let Some(work) = frozen.work.as_ref().filter(|work| !records.contains_key(&work.of)) {
            subvols.remove(work.of);
        }
        for (id, record) in records {
            if let Some(subvol) = subvols.get_mut(*id) {
                subvol.record.root = record.root;
                subvol.record.level = record.level;
                subvol.record.nodes = record.nodes;
                subvol.record.extended.removal = record.extended.removal;
            }
        }
        let nodes = subvols.writable().map(|(_, subvol)| subvol.record.nodes).sum();
        self.tree_nodes.store(nodes, Ordering::Relaxed);
        drop(subvols);
        let view = self.view.load_full();
        let active = Arc::clone(&view.active);
        self.view.store(Arc::new(View { active, frozen: None, roots: Arc::new(roots) }));
        let mut subvols = self.subvols.write();
        frozen.edited.snapshots.iter().for_each(|(id, _)| subvols.name(*id));
    }

    /// Step 6: blocks that no root on disk references any more can be used again.
    fn release(&self, txg: Txg) -> Result<(), MapError> {
        for retired in self.alloc.retired_until(txg) {
            if self.is_pinned(retired) {
                break;
            }
            let mut tickets = Vec::new();
            for run in self.alloc.retired_runs(retired) {
                if run.count >= DISCARD_BLOCKS_MIN {
                    let count = u64::from(run.count);
                    let request = DiskRequest::Discard { addr: run.addr, count };
                    tickets.push(self.disk.submit(request));
                }
            }
            // A discard that fails only wastes space below: the block is free all the same.
            tickets.into_iter().for_each(|ticket| drop(ticket.wait()));
            self.alloc.release(retired)?;
        }
        self.alloc.rewind();
        self.alloc.trim();
        Ok(())
    }
}

/// Where a subvolume's record stands in the forest.
pub(crate) fn subvol_key(id: SubvolId) -> Key {
    list_key(id, Kind::SUBVOLUME, 0)
}

/// Gives nodes their places and keeps them until they are written.
struct CommitWriter<'a> {
    map: &'a LocalMap,
    txg: Txg,
    grown: AtomicI64,
    released: Mutex<Vec<NodePtr>>,
}

impl NodeWriter for CommitWriter<'_> {
    fn allocate(&self) -> Result<BlockAddr, MapError> {
        let run = self.map.alloc.allocate(Purpose::Node)?;
        self.map.alloc.own(run, self.txg)?;
        self.grown.fetch_add(1, Ordering::Relaxed);
        Ok(run.addr)
    }

    fn write(&self, _ptr: NodePtr, node: Node) -> Result<(), MapError> {
        self.map.nodes.hold(node);
        self.map.write_held(HELD_NODES_MAX)
    }

    fn release(&self, ptr: NodePtr) {
        self.grown.fetch_sub(1, Ordering::Relaxed);
        self.map.nodes.abandon(ptr);
        self.released.lock().push(ptr);
    }

    fn birth(&self) -> Txg {
        self.txg
    }

    fn uuid(&self) -> Uuid {
        self.map.uuid
    }
}
