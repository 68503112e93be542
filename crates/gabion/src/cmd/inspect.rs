//! `gabion inspect`: the structures on a device as text, from its last commit, read past the map.
//!
//! Scripts and tests read this text, so lines keep their form: `name value`, one fact a line, or
//! one structure a line. Damage is shown where it is found and does not end the command, so that
//! what is left can be seen. Nothing is written and the journal is not replayed.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::result::Result as StdResult;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::codec::{DecodeError, Reader};
use gabion_base::disk::Disk;
use gabion_base::ids::{BlockAddr, Ino, SubvolId};
use gabion_base::time::Timestamp;
use gabion_fs::format::dirent::Dirents;
use gabion_fs::format::inode::Inode;
use gabion_map::error::MapError;
use gabion_map::format::alloc::{PageCopy, PageRef, decode_table, page_checksum};
use gabion_map::format::item::{FileData, SubvolRecord, decode_file};
use gabion_map::format::node::NodePtr;
use gabion_map::format::superblock::Superblock;
use gabion_map::journal;
use gabion_map::layout::{Layout, TABLE_ENTRIES};
use gabion_map::open::superblocks;
use gabion_map::store::NodeCache;
use gabion_map::tree::{Root, Tree, Visit, Visitor};
use gabion_map::{FileId, Key, Kind};

use crate::args::{Inspect, Structure};
use crate::date;
use crate::failure::{Exit, Failure, Result};
use crate::target::{Stillness, open_anyhow};

/// Memory for tree nodes, in bytes.
const NODE_CACHE: u64 = 16 << 20;
/// The subvolume that lists the others.
const FOREST: SubvolId = SubvolId(0);
/// Items of one object are read in steps of so many.
const SCAN_STEP: usize = 256;
/// Bytes of a value that are shown.
const SHOWN_MAX: usize = 32;

/// Whether a text could be finished.
type Shown = StdResult<(), Stop>;

/// Why a text could not be finished.
enum Stop {
    Output(io::Error),
    Map(MapError),
    /// There is none of what was asked for.
    Absent(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<MapError> for Stop {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Runs the command.
pub fn run(args: &Inspect) -> Result<()> {
    let (disk, stillness) = open_anyhow(&args.target)?;
    if stillness == Stillness::Moving {
        eprintln!("gabion: {} is in use: this is a moving picture", args.target.display());
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let shown = show(&disk, args.structure.unwrap_or_default(), &mut out);
    match shown.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => Ok(()),
        // Whoever reads has seen enough.
        Err(Stop::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Stop::Output(error)) => Err(Failure::of("cannot print", &error)),
        Err(Stop::Absent(what)) => Err(Failure::new(format!("{}: {what}", args.target.display()))
            .next("What a commit has not written yet is not there; sync(1) makes one.")),
        Err(Stop::Map(error)) => {
            let exit = match error {
                MapError::Corrupt { .. } | MapError::BadItem { .. } => Exit::Damaged,
                _ => Exit::Failed,
            };
            let what = format!("cannot inspect {}", args.target.display());
            Err(Failure::of(what, &error).exit(exit))
        }
    }
}

fn show(disk: &Arc<dyn Disk>, structure: Structure, out: &mut dyn Write) -> Shown {
    if structure == Structure::Superblock {
        return show_superblocks(&**disk, out);
    }
    let superblock = newest(&**disk)?;
    let layout = superblock.layout()?;
    let image = Image {
        nodes: NodeCache::new(Arc::clone(disk), superblock.uuid, NODE_CACHE),
        disk: &**disk,
        superblock,
        layout,
    };
    match structure {
        Structure::Superblock => Ok(()),
        Structure::Tree => image.show_trees(out),
        Structure::Inode { number } => image.show_inode(Ino(number), out),
        Structure::Alloc => image.show_alloc(out),
        Structure::Journal => image.show_journal(out),
    }
}

fn newest(disk: &dyn Disk) -> StdResult<Superblock, MapError> {
    let newest = superblocks(disk)?.into_iter().rev().find_map(|slot| slot.content.ok());
    newest.ok_or_else(|| MapError::NotGabion {
        device: disk.name().to_string(),
        reason: "no valid superblock was found".to_owned(),
    })
}

fn show_superblocks(disk: &dyn Disk, out: &mut dyn Write) -> Shown {
    let slots = superblocks(disk)?;
    for slot in &slots {
        match &slot.content {
            Ok(superblock) => writeln!(out, "slot at {}: {}", slot.addr, superblock.txg)?,
            Err(reason) => writeln!(out, "slot at {}: {reason}", slot.addr)?,
        }
    }
    let newest = newest(disk)?;
    writeln!(out)?;
    writeln!(out, "uuid {}", newest.uuid)?;
    writeln!(out, "label {:?}", newest.label)?;
    writeln!(out, "created {}", date::seconds(newest.created))?;
    writeln!(out, "blocks {}", newest.blocks)?;
    if let Some(laid_out) = newest.laid_out {
        let (blocks, journal) = (laid_out.blocks, laid_out.journal_blocks);
        writeln!(out, "laid-out {blocks} journal-blocks {journal}")?;
    }
    writeln!(out, "free-blocks {}", newest.free_blocks)?;
    writeln!(out, "txg {}", newest.txg.0)?;
    writeln!(out, "features compatible {:#x}", newest.compatible)?;
    writeln!(out, "features read-only-compatible {:#x}", newest.read_only_compatible)?;
    writeln!(out, "features incompatible {:#x}", newest.incompatible)?;
    writeln!(out, "forest {}", root_text(newest.forest, newest.forest_level))?;
    writeln!(out, "alloc {}", page_text(&newest.alloc))?;
    let start = newest.journal;
    writeln!(out, "journal at {} sequence {}", start.position, start.sequence)?;
    writeln!(out, "next-subvolume {}", newest.next_subvol.0)?;
    Ok(())
}

/// A filesystem as of its last commit.
struct Image<'a> {
    disk: &'a dyn Disk,
    nodes: NodeCache,
    superblock: Superblock,
    layout: Layout,
}

impl Image<'_> {
    fn forest(&self) -> Tree<'_> {
        let root = Root { ptr: self.superblock.forest, level: self.superblock.forest_level };
        Tree::new(&self.nodes, root, FOREST)
    }

    fn subvolumes(&self) -> StdResult<Vec<(SubvolId, SubvolRecord)>, MapError> {
        let mut found = Vec::new();
        let mut cursor = self.forest().cursor(Key::first(FOREST))?;
        while let Some((key, value)) = cursor.item() {
            if key.kind == Kind::SUBVOLUME {
                let bad = |source| MapError::BadItem { key, source };
                let id = u32::try_from(key.ino.0);
                let id = id.map_err(|_| bad(DecodeError::Invalid("subvolume id")))?;
                found.push((SubvolId(id), SubvolRecord::decode(value).map_err(bad)?));
            }
            cursor.advance()?;
        }
        Ok(found)
    }

    fn show_trees(&self, out: &mut dyn Write) -> Shown {
        writeln!(out, "forest")?;
        show_tree(&self.forest(), out)?;
        for (id, record) in self.subvolumes()?.into_iter().filter(|(_, it)| it.is_there()) {
            let root = Root { ptr: record.root, level: record.level };
            writeln!(out, "{id}: {} nodes, next inode {}", record.nodes, record.next_ino)?;
            show_tree(&Tree::new(&self.nodes, root, id), out)?;
        }
        Ok(())
    }

    fn show_inode(&self, ino: Ino, out: &mut dyn Write) -> Shown {
        let Some((id, record)) = self.subvolumes()?.into_iter().next() else {
            writeln!(out, "there are no subvolumes")?;
            return Ok(());
        };
        let tree = Tree::new(&self.nodes, Root { ptr: record.root, level: record.level }, id);
        let file = FileId::new(id, ino);
        let last = file.key(Kind(u8::MAX), u64::MAX);
        let mut from = Some(file.key(Kind(0), 0));
        let mut count = 0;
        while let Some(first) = from {
            let items = tree.scan(first, last, SCAN_STEP)?;
            for (key, value) in &items {
                writeln!(out, "{:?}@{} {}", key.kind, key.at, item_text(*key, value))?;
            }
            count += items.len();
            let behind = items.last().filter(|_| items.len() == SCAN_STEP);
            from = behind.and_then(|(key, _)| key.successor()).filter(|key| *key <= last);
        }
        if count == 0 {
            return Err(Stop::Absent(format!("{id} has no {ino} in {}", self.superblock.txg)));
        }
        Ok(())
    }

    /// Table pages from the highest down, then one line a group.
    fn show_alloc(&self, out: &mut dyn Write) -> Shown {
        let mut refs = vec![self.superblock.alloc];
        for level in (0..self.layout.tables.len()).rev() {
            let below = match level {
                0 => self.layout.groups,
                level => self.layout.table_pages(level - 1),
            };
            let mut children = Vec::new();
            for (index, page) in refs.iter().enumerate() {
                let first = index as u64 * TABLE_ENTRIES;
                let count = (below - first).min(TABLE_ENTRIES) as usize;
                let table = self.table(level, index as u64, page, count);
                match table {
                    Ok(table) => children.extend(table),
                    Err(reason) => {
                        writeln!(out, "table {level}.{index}: damaged: {reason}")?;
                        children.extend(vec![PageRef::default(); count]);
                    }
                }
            }
            refs = children;
        }
        writeln!(out, "groups {}", self.layout.groups)?;
        writeln!(out, "free-blocks {}", self.superblock.free_blocks)?;
        for (group, page) in refs.iter().enumerate() {
            let group = group as u64;
            let (blocks, at) = (self.layout.group_blocks(group), self.layout.bitmap_page(group).0);
            writeln!(out, "group {group}: {blocks} blocks, bitmap at {at}, {}", page_text(page))?;
        }
        Ok(())
    }

    /// The children of table page `index` of `level`.
    fn table(
        &self,
        level: usize,
        index: u64,
        page: &PageRef,
        count: usize,
    ) -> StdResult<Vec<PageRef>, String> {
        let Some(addr) = page.current(self.layout.table_page(level, index)) else {
            return Ok(vec![PageRef::default(); count]);
        };
        let mut block = Blocks::zeroed(1);
        self.disk.read(addr, block.bytes_mut()).map_err(|error| error.to_string())?;
        if page_checksum(self.superblock.uuid, addr, block.bytes()) != page.checksum {
            return Err(format!("{addr} does not match its checksum"));
        }
        decode_table(block.bytes(), level as u8 + 1, count).map_err(|error| error.to_string())
    }

    fn show_journal(&self, out: &mut dyn Write) -> Shown {
        let (at, blocks) = (self.layout.journal.0, self.layout.journal_blocks);
        writeln!(out, "ring at {at}, {blocks} blocks")?;
        let start = self.superblock.journal;
        writeln!(out, "start at {} sequence {}", start.position, start.sequence)?;
        let mut text = String::new();
        let mut batches = 0_u64;
        let uuid = self.superblock.uuid;
        let end = journal::replay(self.disk, uuid, &self.layout, start, |batch| {
            batches += 1;
            // To a string, as the callback's errors are the map's.
            let _ = writeln!(
                text,
                "batch {batches}: {} items, {} ranges of bytes, {} dropped, {} runs allocated, \
                 {} freed",
                batch.items.len(),
                batch.bytes.len(),
                batch.dropped.len(),
                batch.allocated.len(),
                batch.freed.len(),
            );
            for (key, value) in &batch.items {
                let _ = match value {
                    Some(value) => writeln!(text, "  put {key:?} {}", item_text(*key, value)),
                    None => writeln!(text, "  remove {key:?}"),
                };
            }
            Ok(())
        })?;
        out.write_all(text.as_bytes())?;
        writeln!(out, "end at {} sequence {}, {batches} batches", end.position, end.sequence)?;
        Ok(())
    }
}

fn show_tree(tree: &Tree<'_>, out: &mut dyn Write) -> Shown {
    let mut printer = Printer { out, failed: None };
    let walked = tree.walk(&mut printer);
    match printer.failed {
        Some(error) => Err(Stop::Output(error)),
        None => Ok(walked?),
    }
}

/// Prints what a walk meets, a step to the right for each level below the root.
struct Printer<'a> {
    out: &'a mut dyn Write,
    failed: Option<io::Error>,
}

impl Printer<'_> {
    fn line(&mut self, text: std::fmt::Arguments<'_>) -> StdResult<(), MapError> {
        self.out.write_fmt(format_args!("{text}\n")).map_err(|error| {
            self.failed = Some(error);
            // Ends the walk; the reason is kept beside it.
            MapError::ReadOnly
        })
    }
}

impl Visitor for Printer<'_> {
    fn node(&mut self, ptr: NodePtr, level: u8) -> StdResult<Visit, MapError> {
        self.line(format_args!("  node {}", root_text(Some(ptr), level))).map(|()| Visit::Enter)
    }

    fn item(&mut self, key: Key, value: &[u8]) -> StdResult<(), MapError> {
        self.line(format_args!("    {key:?} {}", item_text(key, value)))
    }

    fn damage(&mut self, ptr: NodePtr, level: u8, error: MapError) -> StdResult<(), MapError> {
        self.line(format_args!("  damaged {}: {error}", root_text(Some(ptr), level)))
    }
}

fn root_text(ptr: Option<NodePtr>, level: u8) -> String {
    match ptr {
        None => "empty".to_owned(),
        Some(NodePtr { addr, birth, checksum }) => {
            format!("at {} level {level} born {} checksum {checksum:016x}", addr.0, birth.0)
        }
    }
}

fn page_text(page: &PageRef) -> String {
    let copy = match page.copy {
        PageCopy::Unwritten => return "never written".to_owned(),
        PageCopy::A => "copy A",
        PageCopy::B => "copy B",
    };
    format!("{copy}, {} free, checksum {:016x}", page.free, page.checksum)
}

fn item_text(key: Key, value: &[u8]) -> String {
    let text = match key.kind {
        Kind::INODE => Inode::decode(value).map(|inode| inode_text(&inode)),
        Kind::FILE => {
            decode_file(value).map(|file| format!("size {} blocks {}", file.size, file.blocks))
        }
        Kind::DIRENT => dirent_text(value),
        Kind::DATA => FileData::decode(value).map(|data| extent_text(&data)),
        Kind::ORPHAN => Ok("orphan".to_owned()),
        Kind::SUBVOLUME => SubvolRecord::decode(value).map(|record| {
            let SubvolRecord { access, root, level, extended, .. } = record;
            format!("{access:?}, root {}, {extended:?}", root_text(root, level))
        }),
        _ => Ok(bytes_text(value)),
    };
    text.unwrap_or_else(|error| format!("damaged: {error}: {}", bytes_text(value)))
}

fn inode_text(inode: &Inode) -> String {
    let time = |time: Timestamp| format!("{}.{:09}", time.seconds, time.nanos);
    format!(
        "mode {:06o} links {} owner {}:{} rdev {} generation {:016x} parent {} length {} change {} \
         flags {:#x} atime {} mtime {} ctime {} btime {}",
        inode.mode(),
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        inode.generation,
        inode.parent.0,
        inode.length,
        inode.change,
        inode.flags.0,
        time(inode.atime),
        time(inode.mtime),
        time(inode.ctime),
        time(inode.btime),
    )
}

fn dirent_text(value: &[u8]) -> StdResult<String, DecodeError> {
    let mut entries = Dirents::decode(value)?;
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry()? {
        let name = entry.name.escape_ascii();
        names.push(format!("\"{name}\" -> {} ({:?})", entry.ino.0, entry.file_type));
    }
    Ok(names.join(", "))
}

fn extent_text(data: &FileData) -> String {
    let run = |addr: BlockAddr, count: usize| {
        format!("at {} {count} blocks ({} bytes)", addr.0, count * BLOCK_SIZE)
    };
    match data {
        FileData::Inline(bytes) => format!("inline {} bytes", bytes.len()),
        FileData::Extent(extent) => {
            let place = run(extent.addr, extent.checksums.len());
            format!("extent {place} born {} {:?}", extent.birth.0, extent.sharing)
        }
        FileData::Unwritten(set_aside) => {
            let place = run(set_aside.addr, set_aside.count as usize);
            format!("unwritten {place} born {} {:?}", set_aside.birth.0, set_aside.sharing)
        }
    }
}

fn bytes_text(value: &[u8]) -> String {
    let mut text = format!("{} bytes:", value.len());
    let mut reader = Reader::new(&value[..value.len().min(SHOWN_MAX)]);
    while let Ok(byte) = reader.u8() {
        let _ = write!(text, " {byte:02x}");
    }
    if value.len() > SHOWN_MAX {
        text.push_str(" ...");
    }
    text
}
