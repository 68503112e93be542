//! Who asks, and who has already checked that they may.

use std::fmt;
use std::sync::{Arc, OnceLock};

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
#[derive(Clone, Default)]
pub struct Groups(Option<Source>);

#[derive(Clone)]
enum Source {
    List(Arc<[u32]>),
    /// Most operations never ask.
    Process(Arc<Asked>),
}

/// The groups of a process, which are found out when they are needed first.
struct Asked {
    process: u32,
    ask: fn(u32) -> Vec<u32>,
    found: OnceLock<Vec<u32>>,
}

impl Groups {
    /// The groups of a list in any order.
    pub fn new(groups: &[u32]) -> Self {
        Self((!groups.is_empty()).then(|| Source::List(Arc::from(groups))))
    }

    /// The groups of a process, which `ask` knows. It is asked once at most, and has to be while
    /// the process waits for the operation.
    pub fn of_process(process: u32, ask: fn(u32) -> Vec<u32>) -> Self {
        Self(Some(Source::Process(Arc::new(Asked { process, ask, found: OnceLock::new() }))))
    }

    /// The groups as far as somebody has wanted to know them.
    pub fn found(&self) -> Self {
        match &self.0 {
            Some(Source::Process(asked)) if asked.found.get().is_none() => Self::default(),
            _ => Self::new(self.as_slice()),
        }
    }

    /// The list.
    pub fn as_slice(&self) -> &[u32] {
        match &self.0 {
            None => &[],
            Some(Source::List(groups)) => groups,
            Some(Source::Process(asked)) => {
                asked.found.get_or_init(|| (asked.ask)(asked.process)).as_slice()
            }
        }
    }
}

impl PartialEq for Groups {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Groups {}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = Some(self.as_slice()).filter(|list| !list.is_empty());
        f.debug_tuple("Groups").field(&list).finish()
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
