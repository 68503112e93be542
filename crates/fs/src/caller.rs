//! Who asks, and who has already checked that they may.

use std::sync::Arc;

/// Who checks permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A local mount: the kernel has checked mode bits, ACLs, owner rules and the sticky bit. Only
    /// what it leaves to the filesystem is done here.
    CheckedByKernel,
    /// Nobody has checked anything.
    CheckHere,
}

/// Supplementary groups. The empty list costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(Option<Arc<[u32]>>);

impl Groups {
    /// The groups of a list in any order.
    pub fn new(groups: &[u32]) -> Self {
        Self((!groups.is_empty()).then(|| Arc::from(groups)))
    }

    /// The list.
    pub fn as_slice(&self) -> &[u32] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Who asks for an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Effective user. 0 may do everything.
    pub uid: u32,
    /// Effective group; new objects belong to it.
    pub gid: u32,
    /// Further groups.
    pub groups: Groups,
    /// Permission bits to be taken from new objects, unless a default ACL says otherwise.
    pub umask: u32,
    /// Who checks permissions.
    pub trust: Trust,
}

impl Caller {
    /// The superuser without a umask: the filesystem's own wishes.
    pub const fn superuser() -> Self {
        Self { uid: 0, gid: 0, groups: Groups(None), umask: 0, trust: Trust::CheckHere }
    }

    /// Whether permissions have to be checked here.
    pub fn is_checked_here(&self) -> bool {
        self.trust == Trust::CheckHere
    }

    /// Whether no permission is denied to the caller.
    pub const fn is_superuser(&self) -> bool {
        self.uid == 0
    }

    /// Whether `gid` is one of the caller's groups.
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.as_slice().contains(&gid)
    }
}
