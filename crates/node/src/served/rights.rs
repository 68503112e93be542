//! What a session may do. Decided when it begins, looked at before each call.
//!
//! ```text
//!   a caller     -> Identities::map: whom the server takes it for
//!   a call       -> permit:  a read-only session changes nothing
//!                            names of a directory: to list, or to search for one of them
//!                            bytes, locks: what an opening was allowed, or the caller is
//!                            all else: the rules of files, for the mapped caller
//!   an opening   -> granted: what of it the mapped caller is allowed at that moment
//!   an answer    -> redacted: without extended attributes that nobody in the session may see
//! ```
//!
//! - What was allowed at an opening stays allowed until the session has the object closed: to all
//!   of its callers, as processes hand descriptors on and change their users.
//! - An owner may open whatever the mode says, as it may change the mode, and as what was made
//!   with a mode that forbids writing is written by who has made it.
//! - Who may execute a file may read it: it is run by reading it.
//!
//! Where the client's kernel is trusted, only changes are looked at. Attributes are told to whoever
//! knows the number of an object; whether a caller could have got there by names is not looked at.

use gabion_base::ids::{Ino, SubvolId};
use gabion_fs::format::inode::{Flags, Inode};
use gabion_fs::format::xattr::{self, AttributeList};
use gabion_fs::lock::{Lock, LockClass, Strength};
use gabion_fs::{Access, Caller, Error, ROOT, Result, Through};
use gabion_link::errand::Errand;
use gabion_link::identities::{Identities, Squash};
use gabion_link::message::Call;
use gabion_link::range::KeyRange;
use gabion_link::table::Want;
use gabion_link::wire::failure;
use gabion_map::{FileId, Key, Kind, MapError, Value};

use crate::snapshots;

use super::{Outcome, Request, Served, Session};

/// Whether a session may change anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changing {
    /// It may what its callers may.
    Allowed,
    /// Nothing.
    Refused,
}

/// What a session may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Whether it may change anything. Advisory locks are not meant: readers have them, too.
    pub changing: Changing,
    /// Who its callers are, and who checks what they may.
    pub identities: Identities,
    /// The folder that it is about: it may use only what is below.
    pub root: Ino,
    /// The subvolume that it is about, if that is another one than is served: all of it, with its
    /// snapshots.
    pub subvolume: Option<SubvolId>,
}

impl Rights {
    /// Everything that the kernel of the client allows.
    pub const TRUSTED: Self = Self {
        changing: Changing::Allowed,
        identities: Identities::TRUSTED,
        root: ROOT,
        subvolume: None,
    };

    /// Everything that the rules of files allow the callers.
    pub const CHECKED: Self = Self { identities: Identities::CHECKED, ..Self::TRUSTED };

    /// Whether it is about all of the filesystem.
    pub(super) fn have_all(&self) -> bool {
        self.root == ROOT && self.subvolume.is_none()
    }

    /// The outcome without extended attributes that none of the callers may see.
    pub(super) fn redacted(&self, mut outcome: Outcome) -> Outcome {
        if self.identities.have_superuser() {
            return outcome;
        }
        for grant in &mut outcome.grants {
            let inode = grant.items.iter().find(|(key, _)| key.kind == Kind::INODE);
            let inode = inode.and_then(|(_, value)| Inode::decode(value).ok());
            let is_readable = inode.is_some_and(|inode| self.may_be_readable(&inode));
            let hidden = if is_readable { &HIDDEN[..1] } else { HIDDEN };
            let items = std::mem::take(&mut grant.items).into_iter();
            grant.items = items.filter_map(|(key, value)| visible(key, value, hidden)).collect();
        }
        // Who has changed a user's attribute may write the bytes.
        for (key, value) in &mut outcome.updates {
            let shown = value.take().and_then(|value| visible(*key, value, &HIDDEN[..1]));
            *value = shown.map(|(_, value)| value);
        }
        outcome
    }

    /// Whether one of the callers might read the bytes. In doubt, yes.
    fn may_be_readable(&self, inode: &Inode) -> bool {
        let Identities { squash, uid, gid, .. } = self.identities;
        let has_bit = |bit: u32| inode.permissions & bit != 0;
        let (is_owned, has_group) = match squash {
            Squash::All => (inode.uid == uid, inode.gid == gid),
            Squash::Root | Squash::Nobody => (inode.uid != 0, inode.gid != 0),
        };
        // With an ACL the bits of the group are the most that users and groups are given.
        let is_in_group = has_group || inode.flags.has(Flags::ACCESS_ACL);
        is_owned || has_bit(0o004) || has_bit(0o040) && is_in_group
    }
}

/// Names that begin so are hidden: the first from all but the superuser, the second from who may
/// not read the bytes.
const HIDDEN: &[&[u8]] = &[b"trusted.", b"user."];

/// The item, as far as it may be seen.
fn visible(key: Key, value: Value, hidden: &[&[u8]]) -> Option<(Key, Value)> {
    let is_hidden = |name: &[u8]| hidden.iter().any(|prefix| name.starts_with(prefix));
    if key.kind != Kind::XATTR {
        return Some((key, value));
    }
    let mut rest = value.to_vec();
    let mut list = AttributeList::decode(&value).ok()?;
    while let Some(attribute) = list.next_attribute().ok()? {
        if is_hidden(attribute.name) {
            rest = xattr::remove(&rest, attribute.name).ok()??;
        }
    }
    Some((key, Value::from(rest)))
}

/// What a call opens an object for.
pub(super) fn asked_access(call: &Call) -> Access {
    match call {
        Call::Create { request, .. } if request.truncate.is_some() => {
            request.access | Access::WRITE
        }
        Call::Create { request, .. } => request.access,
        _ => Access::READ | Access::WRITE,
    }
}

/// Who asks.
#[derive(Clone, Copy)]
struct By<'a> {
    session: &'a Session,
    /// As the server takes it.
    caller: &'a Caller,
}

impl Served {
    /// Whether the session may make the call, as far as that is not found out by making it.
    pub(super) fn permit(&self, session: &Session, caller: &Caller, call: &Call) -> Result<()> {
        let rights = &session.rights;
        let is_lock = matches!(call, Call::Lock { .. } | Call::Unlock { .. });
        if rights.changing == Changing::Refused && call.entitles() && !is_lock {
            return Err(MapError::ReadOnly.into());
        }
        self.check_edges(call)?;
        if !rights.identities.are_checked() {
            return Ok(());
        }
        let by = By { session, caller };
        match call {
            Call::Acquire { needed, .. } => {
                let ranges = needed.iter().map(|(range, _)| range);
                let mut names = ranges.filter(|range| range.kind() == Some(Kind::DIRENT));
                names.try_for_each(|range| self.permit_names(by, range))
            }
            Call::Read { file, .. } | Call::Seek { file, .. } => {
                self.permit_bytes(by, *file, Access::READ)
            }
            Call::Write { file, .. } | Call::Fallocate { file, .. } => {
                self.permit_bytes(by, *file, Access::WRITE)
            }
            Call::Setattr { file, changes }
                if changes.size.is_some() && changes.through == Through::Handle =>
            {
                self.permit_bytes(by, *file, Access::WRITE)
            }
            Call::Copy { source, target, .. } => {
                self.permit_bytes(by, *source, Access::READ)?;
                self.permit_bytes(by, *target, Access::WRITE)
            }
            Call::Lock { lock, .. } => self.permit_lock(by, lock),
            Call::TestLock { lock } => self.permit_either(by, lock.file),
            _ => Ok(()),
        }
    }

    /// Whether an errand may be run for the caller: it has to be a superuser whom the server takes
    /// for one, and to have all of the filesystem. What there is everybody may know who has that.
    pub(super) fn permit_errand(
        &self,
        session: &Session,
        caller: &Caller,
        errand: &Errand,
    ) -> Result<()> {
        let rights = &session.rights;
        let is_listing = matches!(
            errand,
            Errand::Snapshots { .. }
                | Errand::Subvolumes { .. }
                | Errand::Quotas { .. }
                | Errand::Schedule { .. }
        );
        let may_all = caller.uid == 0 || is_listing;
        let refusal = if !rights.have_all() {
            "only a folder of it is mounted; this is for who has mounted all of it"
        } else if errand.changes() && rights.changing == Changing::Refused {
            "it is exported read-only to this machine"
        } else if !may_all && !rights.identities.have_superuser() {
            "the superuser of this machine is not taken for one there (root is squashed)"
        } else if !may_all {
            "only the superuser may do that on what another machine serves"
        } else {
            return Ok(());
        };
        Err(failure(refusal.to_owned()))
    }

    /// Whether the caller may know all names of a directory.
    pub(super) fn may_list(&self, job: &Request, dir: FileId) -> bool {
        !job.session.rights.identities.are_checked()
            || self.check_access(&job.caller, dir, Access::READ).is_ok()
    }

    /// Whether the caller may have what is welcome to it.
    pub(super) fn may_have(&self, job: &Request, want: &Want) -> bool {
        let by = By { session: &job.session, caller: &job.caller };
        let range = &want.0;
        self.is_changeable(want)
            && (!job.session.rights.identities.are_checked()
                || range.kind() != Some(Kind::DIRENT)
                || self.permit_names(by, range).is_ok())
    }

    /// Whether a reading of the object by the caller is to be recorded.
    pub(super) fn may_have_read(&self, session: &Session, caller: &Caller, file: FileId) -> bool {
        session.rights.changing == Changing::Allowed
            && !self.fs.is_read_only()
            && self.fs.check_changeable(file).is_ok()
            && (!session.rights.identities.are_checked()
                || self.permit_bytes(By { session, caller }, file, Access::READ).is_ok())
    }

    fn permit_names(&self, by: By<'_>, range: &KeyRange) -> Result<()> {
        let is_one = range.first() == range.last();
        match self.check_access(by.caller, range.file(), Access::READ) {
            Err(Error::AccessDenied) if is_one => {
                self.check_access(by.caller, range.file(), Access::EXECUTE)
            }
            outcome => outcome,
        }
    }

    fn permit_bytes(&self, by: By<'_>, file: FileId, wanted: Access) -> Result<()> {
        let is_refused = by.session.rights.changing == Changing::Refused;
        match wanted.has(Access::WRITE) && is_refused {
            true => Err(MapError::ReadOnly.into()),
            false if by.session.granted(file).has(wanted) => Ok(()),
            false => self.check_access(by.caller, file, wanted),
        }
    }

    /// As fcntl(2) and flock(2) want a descriptor to be open.
    fn permit_lock(&self, by: By<'_>, lock: &Lock) -> Result<()> {
        match (lock.class, lock.strength) {
            (LockClass::Flock, _) => self.permit_either(by, lock.file),
            (_, Strength::Shared) => self.permit_bytes(by, lock.file, Access::READ),
            (_, Strength::Exclusive) => self.permit_bytes(by, lock.file, Access::WRITE),
        }
    }

    fn permit_either(&self, by: By<'_>, file: FileId) -> Result<()> {
        let permit = |access| self.permit_bytes(by, file, access);
        permit(Access::READ).or_else(|_| permit(Access::WRITE))
    }

    fn check_access(&self, caller: &Caller, file: FileId, wanted: Access) -> Result<()> {
        if snapshots::is_snapshots(file) && !wanted.has(Access::WRITE) {
            // Everybody may list it.
            return Ok(());
        }
        let ctx = self.context(caller);
        self.fs.run(|txn| gabion_fs::access(txn, &ctx, file, wanted))
    }

    /// What an opening is allowed of what it is for.
    pub(super) fn granted(
        &self,
        session: &Session,
        file: FileId,
        caller: &Caller,
        asked: Access,
    ) -> Access {
        let Rights { changing, identities, .. } = session.rights;
        if !identities.are_checked() {
            return asked;
        }
        let caller = identities.map(caller);
        let owner = self.fs.run(|txn| gabion_fs::stat(txn, file)).map(|found| found.uid);
        let is_owner = owner.is_ok_and(|owner| owner == caller.uid);
        let allows = |access: Access| match access {
            Access::WRITE if changing == Changing::Refused => false,
            Access::READ | Access::WRITE if is_owner => true,
            access => self.check_access(&caller, file, access).is_ok(),
        };
        let mut granted = Access::EXISTS;
        for (access, gives) in [
            (Access::READ, Access::READ),
            (Access::WRITE, Access::WRITE),
            (Access::EXECUTE, Access::EXECUTE | Access::READ),
        ] {
            if asked.has(access) && allows(access) {
                granted = granted | gives;
            }
        }
        granted
    }
}
