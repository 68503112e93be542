//! Whom the server takes the callers of a session for.
//!
//! ```text
//!   squash    a caller's user 0    its groups 0    all others
//!   nobody    0                    0               themselves
//!   root      anonymous            anonymous       themselves
//!   all       anonymous            anonymous       anonymous
//! ```
//!
//! The server maps each caller before anything else, whatever the client says. A client that knows
//! the mapping refuses at once what the server would refuse later: its own kernel takes user 0 for
//! the superuser.
//!
//! Absent: who a client itself is, and what else its session may do. Only the server decides that.

use gabion_fs::{Caller, Groups, Trust};

/// The user and group that stand for nobody, as in Linux.
pub const NOBODY: u32 = 65534;

/// Which callers are taken for the anonymous user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Squash {
    /// None.
    Nobody,
    /// The superuser.
    Root,
    /// All of them.
    All,
}

/// Who the callers of a session are, and who checks what they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identities {
    /// Whether the client's kernel is believed that it has checked.
    pub trust: Trust,
    /// Which callers are mapped.
    pub squash: Squash,
    /// The anonymous user.
    pub uid: u32,
    /// The anonymous group.
    pub gid: u32,
}

impl Identities {
    /// All callers are who they say that they are, and their kernel has checked what they may.
    pub const TRUSTED: Self =
        Self { trust: Trust::CheckedByKernel, squash: Squash::Nobody, uid: NOBODY, gid: NOBODY };

    /// All callers are who they say that they are, and the server checks what they may.
    pub const CHECKED: Self = Self { trust: Trust::CheckHere, ..Self::TRUSTED };

    /// Whether the server checks. Who is taken for somebody else was checked by nobody.
    pub fn are_checked(&self) -> bool {
        self.trust == Trust::CheckHere || self.squash != Squash::Nobody
    }

    /// Whether one of the callers may be the superuser.
    pub fn have_superuser(&self) -> bool {
        match self.squash {
            Squash::Nobody => true,
            Squash::Root | Squash::All => self.uid == 0,
        }
    }

    /// Whom the server takes the caller for.
    pub fn map(&self, caller: &Caller) -> Caller {
        let mut mapped = self.squashed(caller).unwrap_or_else(|| caller.clone());
        if self.are_checked() {
            mapped.trust = Trust::CheckHere;
        }
        mapped
    }

    /// Whom the client itself had better take the caller for who only wants to see something: its
    /// kernel takes those for other users than the server does.
    pub fn foresee(&self, caller: &Caller) -> Caller {
        match self.squash == Squash::Root && caller.uid != 0 {
            true => caller.clone(),
            false => self.squashed(caller).unwrap_or_else(|| caller.clone()),
        }
    }

    /// Whom the caller is taken for, if that is somebody else.
    fn squashed(&self, caller: &Caller) -> Option<Caller> {
        let groups = || caller.groups.as_slice();
        match self.squash {
            Squash::Nobody => None,
            Squash::Root if caller.uid != 0 && caller.gid != 0 && !groups().contains(&0) => None,
            Squash::Root => {
                let gid = |gid: u32| if gid == 0 { self.gid } else { gid };
                let groups: Vec<u32> = groups().iter().map(|group| gid(*group)).collect();
                Some(Caller {
                    uid: if caller.uid == 0 { self.uid } else { caller.uid },
                    gid: gid(caller.gid),
                    groups: Groups::new(&groups),
                    umask: caller.umask,
                    trust: Trust::CheckHere,
                })
            }
            Squash::All => Some(Caller {
                uid: self.uid,
                gid: self.gid,
                groups: Groups::default(),
                umask: caller.umask,
                trust: Trust::CheckHere,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        let trust = Trust::CheckedByKernel;
        Caller { uid, gid, groups: Groups::new(groups), umask: 0o22, trust }
    }

    #[test]
    fn callers_are_mapped_as_the_squash_says() {
        let root = Identities { squash: Squash::Root, uid: 7, gid: 8, ..Identities::TRUSTED };
        let all = Identities { squash: Squash::All, ..root };
        let checked = |uid, gid, groups: &[u32]| Caller {
            trust: Trust::CheckHere,
            ..caller(uid, gid, groups)
        };
        assert_eq!(root.map(&caller(0, 0, &[0, 5])), checked(7, 8, &[8, 5]));
        assert_eq!(root.map(&caller(1, 0, &[])), checked(1, 8, &[]));
        assert_eq!(root.map(&caller(1, 2, &[3])), checked(1, 2, &[3]));
        assert_eq!(all.map(&caller(1, 2, &[3])), checked(7, 8, &[]));
        assert_eq!(Identities::CHECKED.map(&caller(0, 0, &[])), checked(0, 0, &[]));
        assert_eq!(Identities::TRUSTED.map(&caller(0, 0, &[])), caller(0, 0, &[]));
    }

    #[test]
    fn only_whom_the_server_maps_is_checked_at_the_client() {
        let root = Identities { squash: Squash::Root, ..Identities::CHECKED };
        assert!(root.foresee(&caller(0, 0, &[])).is_checked_here());
        assert!(!root.foresee(&caller(1, 1, &[])).is_checked_here());
        assert!(!Identities::CHECKED.foresee(&caller(0, 0, &[])).is_checked_here());
    }
}
