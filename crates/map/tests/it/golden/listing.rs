//! All that is in a filesystem, as text.

use std::fmt::Write;

use gabion_base::checksum::crc64;
use gabion_base::ids::{Ino, SubvolId};

use gabion_map::tree::{Root, Tree, Visit, Visitor};
use gabion_map::{FileId, Key, Kind, LocalMap, MapError, Txn};

/// Values up to this length are listed byte for byte.
const SHORT: usize = 64;

struct Items<'a>(&'a mut String);

impl Visitor for Items<'_> {
    fn node(
        &mut self,
        ptr: gabion_map::format::node::NodePtr,
        level: u8,
    ) -> Result<Visit, MapError> {
        let (addr, birth) = (ptr.addr.0, ptr.birth.0);
        writeln!(self.0, "  node at {addr}, level {level}, born {birth}").expect("memory");
        Ok(Visit::Enter)
    }

    fn item(&mut self, key: Key, value: &[u8]) -> Result<(), MapError> {
        let text = match value.len() {
            0 => "empty".to_string(),
            1..=SHORT => hex(value),
            _ => summary(value),
        };
        let (ino, kind, at) = (key.ino.0, key.kind, key.at);
        writeln!(self.0, "    {ino} {kind:?} {at:#x}: {text}").expect("memory");
        Ok(())
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn summary(bytes: &[u8]) -> String {
    format!("{} bytes, crc64 {:016x}", bytes.len(), crc64(bytes))
}

/// The superblock, all trees, and all files as they read with the journal replayed.
pub fn of(map: &LocalMap) -> String {
    let mut text = String::new();
    let superblock = map.superblock();
    writeln!(text, "{superblock:#?}").expect("memory");
    let pin = map.pin();
    let mut tree = |name: &str, tree: Tree<'_>| {
        writeln!(text, "{name}").expect("memory");
        if tree.root() != Root::EMPTY {
            tree.walk(&mut Items(&mut text)).expect("a whole image");
        }
    };
    tree("forest", pin.tree(SubvolId(0)));
    for subvol in pin.subvolumes() {
        tree(&subvol.to_string(), pin.tree(subvol));
    }
    for subvol in pin.subvolumes() {
        for ino in 0..12 {
            object(map, FileId::new(subvol, Ino(ino)), &mut text);
        }
    }
    text
}

fn object(map: &LocalMap, file: FileId, text: &mut String) {
    let (from, to) = (file.key(Kind(0), 0), file.key(Kind(u8::MAX), u64::MAX));
    let items = map.transact(|txn| txn.scan(from, to, 1000)).expect("readable");
    if items.is_empty() {
        return;
    }
    let extent = map.transact(|txn| txn.file(file)).expect("readable");
    let mut bytes = vec![0; extent.size as usize];
    map.transact(|txn| txn.read(file, 0, &mut bytes)).expect("readable");
    let (size, blocks) = (extent.size, extent.blocks);
    let count = items.len();
    let bytes = summary(&bytes);
    writeln!(text, "object {file:?}: {count} items, size {size}, blocks {blocks}, {bytes}")
        .expect("memory");
}
