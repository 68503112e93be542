//! What can be kept of a stream that was cut off.
//!
//! It is read from its head, segment by segment, as long as all are whole. What comes after the
//! last RECORDS segment is given up: bytes of files that no record tells of, and an index that was
//! begun.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::format::header::Header;
use crate::format::index::{Entry, Totals};
use crate::format::record::{Content, Record};
use crate::format::segment::Kind;
use crate::pieces::Pieces;
use crate::reader::{Opening, ReadAt, records_of};
use crate::seal::{Key, Secret};

/// The good part of a stream.
pub struct Kept {
    /// Its header.
    pub header: Header,
    /// How long it is, in bytes.
    pub length: u64,
    /// Objects that everything is known of.
    pub complete: HashSet<u64>,
    /// Files of which everything up to this byte is known, from their beginning.
    pub begun: HashMap<u64, u64>,
    /// What it has in all.
    pub totals: Totals,
    pub(crate) entries: Vec<Entry>,
    pub(crate) pieces: Pieces,
    pub(crate) key: Option<Key>,
    pub(crate) header_digest: [u8; 32],
}

/// Finds out what of a stream can be kept. Fails if its header cannot be read or opened.
pub fn scan<R: ReadAt + ?Sized>(source: &R, secret: Option<&Secret>) -> Result<Kept> {
    let mut opening = Opening::open(source, secret)?;
    let mut kept = Kept {
        header: opening.header.clone(),
        length: opening.start,
        complete: HashSet::new(),
        begun: HashMap::new(),
        totals: Totals::default(),
        entries: Vec::new(),
        pieces: Pieces::default(),
        key: None,
        header_digest: opening.digest,
    };
    let mut entries = Vec::new();
    let mut at = opening.start;
    while let Ok((entry, raw)) = opening.next(source, at, entries.len() as u32) {
        at = entry.offset + opening.length_of(&entry);
        match entry.kind {
            Kind::Data => entries.push(entry),
            Kind::Records => {
                entries.push(entry);
                let number = entries.len() as u32 - 1;
                let mut records = Vec::new();
                let read = records_of(&raw, entry.offset, number, &entries, &mut |record| {
                    records.push(record);
                    Ok(())
                });
                if read.is_err() {
                    break;
                }
                records.into_iter().for_each(|record| kept.take(record));
                kept.entries.extend_from_slice(&entries[kept.entries.len()..]);
                kept.length = at;
            }
            Kind::Index | Kind::End => break,
        }
    }
    kept.key = opening.key.take();
    Ok(kept)
}

impl Kept {
    fn take(&mut self, record: Record) {
        match record {
            Record::Object(object) => {
                self.begun.remove(&object.ino);
                if object.content == Content::Fresh {
                    self.begun.insert(object.ino, 0);
                }
            }
            Record::Pieces { ino, pieces } => {
                for piece in pieces {
                    let end = piece.offset + u64::from(piece.length);
                    if let Some(known) = self.begun.get_mut(&ino) {
                        *known = end.max(*known);
                    }
                    self.totals.bytes += u64::from(piece.length);
                    self.pieces.add(&piece);
                }
            }
            Record::Complete { ino } => {
                self.totals.objects += 1;
                self.begun.remove(&ino);
                self.complete.insert(ino);
            }
            _ => {}
        }
    }
}
