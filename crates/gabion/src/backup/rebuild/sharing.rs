//! Parts that more than one place in files has: written once, and shared from there on, where the
//! filesystem can.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use gabion_backup::Tree;
use gabion_backup::tree::Part;
use gabion_base::sync::{Condvar, Mutex};

use super::Unmade;
use crate::backup::place::Site;

/// Shorter parts are written again rather than shared.
const SHARED_MIN: u32 = 4096;

/// Stream, segment and place in it.
type Key = (u16, u32, u32);

/// The parts that are shared.
pub struct Sharing<'c> {
    site: &'c Site,
    shared: HashSet<Key>,
    written: Mutex<HashMap<Key, Written>>,
    changed: Condvar,
}

/// What is known of the first place of a part.
enum Written {
    /// Somebody writes it, and waits for nobody meanwhile.
    Now,
    /// It is in this file, at this offset, and so long.
    At(PathBuf, u64, u32),
}

impl<'c> Sharing<'c> {
    /// What a tree's files share, which are made at `site`.
    pub fn new(tree: &Tree, site: &'c Site) -> Self {
        let (shared, written) = (tree.shared(), Mutex::new(HashMap::new()));
        Self { site, shared, written, changed: Condvar::new() }
    }

    /// Puts a part to its place in a file: by `write`, or without if its blocks can be shared.
    pub fn put(
        &self,
        part: &Part,
        (file, path, at): (&File, &Path, u64),
        write: impl FnOnce() -> Result<(), Unmade>,
    ) -> Result<(), Unmade> {
        let key = (part.stream, part.segment, part.at);
        if part.length < SHARED_MIN || !self.shared.contains(&key) {
            return write();
        }
        if let Some((first, from, length)) = self.first(key) {
            let is_shared =
                length >= part.length && self.share(&first, from, (file, at), part.length);
            return if is_shared { Ok(()) } else { write() };
        }
        let done = write();
        let mut written = self.written.lock();
        match done {
            Ok(()) => written.insert(key, Written::At(path.to_owned(), at, part.length)),
            Err(_) => written.remove(&key),
        };
        self.changed.notify_all();
        done
    }

    /// Where a part is. Nothing: who has asked is the one to write it.
    fn first(&self, key: Key) -> Option<(PathBuf, u64, u32)> {
        let mut written = self.written.lock();
        loop {
            match written.get(&key) {
                Some(Written::At(path, at, length)) => return Some((path.clone(), *at, *length)),
                Some(Written::Now) => self.changed.wait(&mut written),
                None => {
                    written.insert(key, Written::Now);
                    return None;
                }
            }
        }
    }

    /// Lets a file share what is in another one, and says whether that worked.
    fn share(
        &self,
        first: &Path,
        mut from: u64,
        (file, mut to): (&File, u64),
        length: u32,
    ) -> bool {
        let Ok(source) = self.site.reach(first).and_then(File::open) else { return false };
        let end = to + u64::from(length);
        while to < end {
            let left = (end - to) as usize;
            let copied =
                rustix::fs::copy_file_range(&source, Some(&mut from), file, Some(&mut to), left);
            if !matches!(copied, Ok(count) if count > 0) {
                return false;
            }
        }
        true
    }
}
