//! What is open here. The server learns of it before it could matter: with the next message.
//!
//! A server that checks permissions itself checks at the opening, too: what was allowed then stays
//! allowed until the object is closed, whatever becomes of its mode and whoever uses the handle. So
//! it is told of each opening that is another caller's, or to do something else. What is kept of
//! them is told again when a new session begins.

use std::collections::BTreeMap;

use gabion_base::sync::Mutex;
use gabion_fs::format::inode::Inode;
use gabion_fs::{Access, Attributes, Caller, Groups};
use gabion_link::message::ToServer;
use gabion_link::range::KeyRange;
use gabion_map::{FileId, Kind};

use super::RemoteFs;

/// Openings of one object that are kept; what others may, the server finds out when they do it.
const OPENERS_MAX: usize = 16;

/// Whether the server knows of an opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It was made by a call, which the server has counted.
    ByTheCall,
    /// It has to be told.
    NotYet,
}

/// One opening.
#[derive(Clone, Debug)]
struct Opener {
    caller: Caller,
    access: Access,
}

/// An object that is open.
#[derive(Debug, Default)]
struct Open {
    count: u32,
    /// How often the server has counted it.
    told: u32,
    by: Vec<Opener>,
}

impl Open {
    /// Whether the server knows of an opening that allows what this one does.
    fn has(&self, caller: &Caller, access: Access) -> bool {
        let is_one = |opener: &&Opener| opener.caller.uid == caller.uid;
        let mut of_caller = self.by.iter().filter(is_one);
        of_caller.any(|opener| opener.access.has(access)) || self.by.len() >= OPENERS_MAX
    }
}

/// Objects that are open, and how often.
#[derive(Default)]
pub(super) struct Opens {
    /// Who has locked this does not ask for the cache.
    files: Mutex<BTreeMap<FileId, Open>>,
}

impl Opens {
    pub(super) fn is_open(&self, file: FileId) -> bool {
        self.files.lock().contains_key(&file)
    }
}

impl RemoteFs {
    /// Counts an opening.
    pub(super) fn opened(&self, found: &Attributes, caller: &Caller, access: Access, told: Told) {
        let file = found.file;
        // Groups are found out only as long as the process waits, and only if they matter.
        let opener = match self.identities().are_checked() {
            true => Opener { caller: with_groups(caller, found, access), access },
            false => Opener { caller: through_handle(caller), access },
        };
        let mut files = self.opens.files.lock();
        let open = files.entry(file).or_default();
        open.count += 1;
        let is_known =
            open.count > 1 && { !self.identities().are_checked() || open.has(caller, access) };
        match told {
            Told::NotYet if is_known => return,
            Told::NotYet => self.calls.note(opener.note(file)),
            Told::ByTheCall => {}
        }
        open.told += 1;
        if !is_known {
            open.by.push(opener);
        }
    }

    /// The caller as the server has to know it.
    pub(super) fn told(&self, caller: &Caller) -> Caller {
        match self.identities().are_checked() {
            true => caller.clone(),
            false => through_handle(caller),
        }
    }

    /// The same of a change that was made here: who was not asked for groups need not be there.
    pub(super) fn told_of_change(&self, caller: &Caller) -> Caller {
        match self.identities().are_checked() {
            true => Caller { groups: caller.groups.found(), ..caller.clone() },
            false => through_handle(caller),
        }
    }

    /// Takes an opening back.
    pub(super) fn closed(&self, file: FileId) {
        // Before the lock is taken: who has the cache may ask for what is open.
        let has_no_name = self.has_no_name(file);
        let mut locking = self.locking.lock();
        let mut files = self.opens.files.lock();
        let Some(open) = files.get_mut(&file) else { return };
        open.count -= 1;
        if open.count == 0 {
            let told = open.told;
            files.remove(&file);
            locking.forget(file);
            (0..told).for_each(|_| self.calls.note(ToServer::Closed(file)));
            if has_no_name {
                // It goes now.
                self.calls.note(ToServer::Unwanted(vec![KeyRange::everything(file)]));
            }
        }
    }

    /// Whether the object is known to have lost its last name.
    fn has_no_name(&self, file: FileId) -> bool {
        let cache = self.cache.read();
        let inode = cache.item(file.key(Kind::INODE, 0)).map(|item| Inode::decode(item));
        matches!(inode, Some(Ok(inode)) if inode.nlink == 0)
    }

    /// The session has ended with all that was asked in it. The next one is told what is open
    /// before anything else.
    pub(super) fn tell_opens_again(&self) {
        // Nothing is opened or closed between what is forgotten and what is told.
        let mut files = self.opens.files.lock();
        self.calls.lose_all();
        tell_again(&mut files).into_iter().for_each(|note| self.calls.note(note));
        drop(files);
        self.ping();
    }

    /// The server has lost what it was told, and the session goes on. It is told again what is
    /// open, then `rest`, and what was asked.
    pub(super) fn say_again(&self, rest: Vec<ToServer>) {
        let mut files = self.opens.files.lock();
        let mut first = tell_again(&mut files);
        first.extend(rest);
        self.calls.say_again(first);
    }

    /// Lets the server know that this client lives, and what waits to be told.
    pub fn ping(&self) {
        self.let_go();
        self.calls.tell(ToServer::Ping);
    }
}

/// What the server has to be told of what is open, from the beginning.
fn tell_again(files: &mut BTreeMap<FileId, Open>) -> Vec<ToServer> {
    let mut notes = Vec::new();
    for (file, open) in files {
        open.told = open.by.len() as u32;
        notes.extend(open.by.iter().map(|opener| opener.note(*file)));
    }
    notes
}

impl Opener {
    fn note(&self, file: FileId) -> ToServer {
        let Self { caller, access } = self.clone();
        ToServer::Opened { file, caller, access }
    }
}

/// The caller without supplementary groups: what is done through a handle was allowed when that
/// was opened, and to find groups out takes time.
pub(super) fn through_handle(caller: &Caller) -> Caller {
    Caller { groups: Groups::default(), ..caller.clone() }
}

/// The caller of an opening, with groups if they can matter.
fn with_groups(caller: &Caller, found: &Attributes, access: Access) -> Caller {
    let is_whole = |bits: u32| Access::from_bits(bits & 7).is_some_and(|bits| bits.has(access));
    let (group, others) = (found.mode >> 3, found.mode);
    let is_granted = caller.uid == found.uid || is_whole(group) && is_whole(others);
    if is_granted {
        return through_handle(caller);
    }
    Caller { groups: Groups::new(caller.groups.as_slice()), ..caller.clone() }
}
