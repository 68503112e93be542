//! What is said between commands and daemons, and what `--json` prints: both are the same.
//!
//! The names and meanings of fields are promised to scripts; new fields may be added. Sizes are in
//! bytes. The manual pages of `status` and `scrub` describe each field.

use serde::{Deserialize, Serialize};

pub use super::quotas::{Quota, QuotaAction, Quotas};
pub use super::snapshots::{
    Allocation, Delta, Difference, Differences, Kept, Schedule, Snapshot, SnapshotAction,
    Snapshots, Subvolume, SubvolumeAction, Subvolumes, Touched,
};

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// A [`Reply::Status`].
    Status,
    /// Some [`Reply::Progress`], then a [`Reply::Report`].
    Scrub,
    /// A [`Reply::Grown`].
    Grow {
        /// How long the filesystem shall be; as long as its disk if not given.
        to_bytes: Option<u64>,
    },
    /// A [`Reply::Allocation`].
    Audit,
    /// A [`Reply::Snapshots`], a [`Reply::Schedule`], or some [`Reply::Differences`].
    Snapshots {
        /// Of the subvolume at this path in the filesystem; of the first if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// What to do with them.
        action: SnapshotAction,
    },
    /// A [`Reply::Subvolumes`].
    Subvolumes {
        /// What to do with them.
        action: SubvolumeAction,
    },
    /// A [`Reply::Quotas`].
    Quotas {
        /// Of the subvolume at this path in the filesystem; of the first if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// What to do with them.
        action: QuotaAction,
    },
    /// A [`Reply::Progress`] at once, and a [`Reply::Ended`] when the daemon ends.
    AwaitEnd,
    /// A [`Reply::Clients`].
    Clients,
    /// A [`Reply::Leases`].
    Leases {
        /// Only of the object at this path in the filesystem.
        path: Option<String>,
    },
    /// A [`Reply::Locks`].
    Locks {
        /// Only of the file at this path in the filesystem.
        path: Option<String>,
    },
    /// A [`Reply::Evicted`].
    Evict {
        /// Its session, or its name or machine if no other has that.
        client: String,
        /// Whether its machine loses the right to come back.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        revoke: bool,
    },
    /// A [`Reply::Invited`].
    Invite {
        /// How long the invitation lasts.
        seconds: u64,
        /// Where the server can be found; its own addresses if there are none.
        addresses: Vec<String>,
    },
}

/// What a daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// How it is.
    Status(Box<Status>),
    /// How far a scrub is.
    Progress(Progress),
    /// What a scrub found.
    Report(Report),
    /// The filesystem has its new length.
    Grown(Grown),
    /// How the map of blocks agrees with what is reachable.
    Allocation(Allocation),
    /// The snapshots that were asked for, made or changed.
    Snapshots(Snapshots),
    /// Which snapshots are made by themselves.
    Schedule(Schedule),
    /// The subvolumes that were asked for, made or removed.
    Subvolumes(Subvolumes),
    /// The quotas that were asked for or set.
    Quotas(Quotas),
    /// How two snapshots differ; the last part says that there is no more.
    Differences(Differences),
    /// What a backup has to read; the last part says that there is no more.
    Delta(Delta),
    /// The daemon ends.
    Ended(Ended),
    /// Who has mounted what is served.
    Clients(Clients),
    /// What those may cache.
    Leases(Leases),
    /// What they have locked.
    Locks(Locks),
    /// The session of a client has ended.
    Evicted(Evicted),
    /// A machine can join.
    Invited(Invited),
    /// The request was not possible.
    Error {
        /// Why.
        message: String,
    },
}

/// A filesystem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The image or device.
    pub target: String,
    /// Its identity.
    pub uuid: String,
    /// Its label; empty if it has none.
    pub label: String,
    /// When it was made, as in RFC 3339.
    pub created: String,
    /// Bytes that files and what describes them can occupy in all.
    pub total_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that can still be filled.
    pub available_bytes: u64,
    /// The number of the last commit.
    pub txg: u64,
    /// The number of subvolumes, snapshots included.
    pub subvolumes: u64,
    /// Why nothing is written, after an error; usually null.
    pub problem: Option<String>,
    /// Whether it goes on by itself when the problem goes away, and nothing is lost then.
    #[serde(default)]
    pub tried_again: bool,
    /// Its mount; null if it is not mounted.
    pub mount: Option<MountStatus>,
    /// How it is served; null if it is not.
    pub served: Option<ServedStatus>,
    /// What waits to serve it; null if nothing does. Then nothing else is known here.
    pub standby: Option<StandbyStatus>,
}

/// A server that waits until another one does not have the filesystem any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// Where it will be served, HOST:PORT.
    pub address: String,
    /// The waiting process.
    pub pid: u32,
    /// Who has it, for people; null if that is not known just now.
    pub holder: Option<String>,
}

/// A filesystem that other machines can mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedStatus {
    /// Where, HOST:PORT.
    pub address: String,
    /// The server's process.
    pub pid: u32,
    /// How many have it mounted.
    pub clients: u64,
}

/// A mount and its daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where.
    pub mountpoint: String,
    /// "rw" or "ro".
    pub access: String,
    /// What the kernel shows as source: a loop device for an image file.
    pub source: String,
    /// "fuseblk" or "fuse".
    pub kind: String,
    /// Whether sync(2) reaches the daemon. fsync(2) always does.
    pub sync_reaches_daemon: bool,
    /// The daemon's process.
    pub pid: u32,
    /// How long it has been mounted.
    pub uptime_seconds: u64,
    /// The memory that the daemon aims at.
    pub cache_bytes: u64,
    /// The memory that the daemon has in use now.
    pub resident_bytes: u64,
    /// Bytes of files that wait to be written.
    pub unwritten_bytes: u64,
    /// Bytes of changed items that wait for the next commit.
    pub uncommitted_bytes: u64,
    /// How the disk is read and written, for people.
    pub disk: String,
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes compared with their checksums.
    pub checked_bytes: u64,
    /// Bytes in use when the scrub began.
    pub total_bytes: u64,
}

/// What a scrub found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The image or device.
    pub target: String,
    /// Bytes compared with their checksums.
    pub checked_bytes: u64,
    /// Tree nodes among them.
    pub nodes: u64,
    /// Items in those.
    pub items: u64,
    /// What is damaged; at most a thousand.
    pub findings: Vec<Finding>,
    /// How much more is damaged.
    pub more_findings: u64,
    /// Blocks of copies that were wrong and have been written again from others.
    pub mended_blocks: u64,
    /// Whether it ended before it had seen everything.
    pub stopped: bool,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// Number of damaged places.
    pub fn damage(&self) -> u64 {
        self.findings.len() as u64 + self.more_findings
    }
}

/// Something damaged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The subvolume; 0 is the list of subvolumes.
    pub subvolume: u32,
    /// The file, if only one is concerned.
    pub inode: Option<u64>,
    /// What is wrong, for people.
    pub what: String,
}

/// A filesystem that was to grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grown {
    /// The image, device or volume.
    pub target: String,
    /// How long it was.
    pub from_bytes: u64,
    /// How long it is now.
    pub to_bytes: u64,
    /// How long it can become.
    pub most_bytes: u64,
}

/// The end of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Why not everything could be written; usually null.
    pub problem: Option<String>,
}

/// The clients of a filesystem that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// The image, device or volume.
    pub target: String,
    /// Where it is served, HOST:PORT.
    pub address: String,
    /// They themselves.
    pub clients: Vec<Client>,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its session, 16 hexadecimal digits.
    pub session: String,
    /// What it calls itself: host and mountpoint.
    pub name: String,
    /// Its machine, by its certificate; null if it does not encrypt.
    #[serde(default)]
    pub machine: Option<String>,
    /// Ranges that it has leases on.
    pub leases: u64,
    /// Objects that it has open.
    pub opens: u64,
    /// Revocations that it has not answered.
    pub owed: u64,
    /// It had a session when the server started, and has not come back yet; it has no name then.
    #[serde(default)]
    pub awaited: bool,
}

/// What clients may cache, and what they wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// The image, device or volume.
    pub target: String,
    /// The object that was asked for; null for all.
    pub path: Option<String>,
    /// Leases; at most 10,000.
    pub leases: Vec<LeaseRow>,
    /// How many more there are.
    pub more_leases: u64,
    /// What is waited for; at most 10,000.
    pub waiting: Vec<LeaseRow>,
    /// How much more that is.
    pub more_waiting: u64,
}

/// A lease on a part of an object, or that it is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// The client's session.
    pub client: String,
    /// The object's inode number.
    pub inode: u64,
    /// "attributes", "names" or "bytes".
    pub what: String,
    /// The first byte, or the first hash of a name; null for attributes.
    pub from: Option<u64>,
    /// Behind the last one; null for all that there are.
    pub to: Option<u64>,
    /// "shared" or "exclusive".
    pub mode: String,
}

/// Advisory locks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locks {
    /// The image, device or volume.
    pub target: String,
    /// The file that was asked for; null for all.
    pub path: Option<String>,
    /// Those that are held; at most 10,000.
    pub locks: Vec<LockRow>,
    /// How many more are held.
    pub more_locks: u64,
    /// Those that are waited for; at most 10,000.
    pub waiting: Vec<LockRow>,
    /// How many more are waited for.
    pub more_waiting: u64,
}

/// An advisory lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRow {
    /// The session of the client whose process has it.
    pub client: String,
    /// The file's inode number.
    pub inode: u64,
    /// "fcntl", "ofd" or "flock".
    pub kind: String,
    /// "shared" or "exclusive".
    pub mode: String,
    /// The first byte.
    pub from: u64,
    /// Behind the last one; null for all that there will ever be.
    pub to: Option<u64>,
    /// The process that has asked for it, as its machine counts.
    pub pid: u32,
}

/// A client whose session was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// Its session.
    pub session: String,
    /// What it calls itself.
    pub name: String,
    /// The machine that has lost the right to come back; null if none has.
    #[serde(default)]
    pub revoked: Option<String>,
}

/// An invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// The line for the machine that is to join.
    pub line: String,
    /// When it ends, in seconds since 1970.
    pub expires: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_form_that_is_documented() {
        let line = |reply: &Reply| serde_json::to_string(reply).unwrap();
        let ended = Reply::Ended(Ended::default());
        assert_eq!(line(&ended), r#"{"ended":{"problem":null}}"#);
        let error = Reply::Error { message: "no".to_owned() };
        assert_eq!(line(&error), r#"{"error":{"message":"no"}}"#);
        let progress = Reply::Progress(Progress { checked_bytes: 1, total_bytes: 2 });
        assert_eq!(line(&progress), r#"{"progress":{"checked_bytes":1,"total_bytes":2}}"#);
        let await_end = serde_json::to_string(&Request::AwaitEnd).unwrap();
        assert_eq!(await_end, r#"{"request":"await-end"}"#);
        assert_eq!(serde_json::from_str::<Reply>(&line(&ended)).unwrap(), ended);
        let grow = serde_json::to_string(&Request::Grow { to_bytes: Some(4096) }).unwrap();
        assert_eq!(grow, r#"{"request":"grow","to_bytes":4096}"#);
        let evict = serde_json::to_string(&Request::Evict {
            client: "host:/mnt".to_owned(),
            revoke: false,
        });
        assert_eq!(evict.unwrap(), r#"{"request":"evict","client":"host:/mnt"}"#);
        let leases = serde_json::from_str(r#"{"request":"leases"}"#);
        assert_eq!(leases.ok(), Some(Request::Leases { path: None }));
        let locks = serde_json::to_string(&Request::Locks { path: Some("/file".to_owned()) });
        assert_eq!(locks.unwrap(), r#"{"request":"locks","path":"/file"}"#);
    }
}
