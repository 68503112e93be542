//! What everybody may know of a mount whose daemon answers only root and who mounted it: what the
//! kernel tells.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use gabion_fuse::mountinfo::Mount;
use rustix::io::Errno;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::state;

/// How long the daemon may take to tell its space.
const PATIENCE: Duration = Duration::from_secs(5);

/// A mount of another user.
pub struct Outside {
    mountpoint: PathBuf,
    /// What the kernel shows as source.
    source: String,
    /// "fuseblk" or "fuse".
    kind: String,
    is_read_only: bool,
    space: Space,
}

/// What it says of its space.
enum Space {
    Told {
        total: u64,
        used: u64,
        available: u64,
    },
    /// Who may not use the mount is not told, and neither is anybody when the daemon hangs.
    Untold,
}

impl Outside {
    /// Looks at a mount. Nothing if its daemon is gone.
    pub fn of(mount: &Mount) -> Option<Self> {
        Some(Self {
            mountpoint: mount.mountpoint.clone(),
            source: mount.source.to_string_lossy().into_owned(),
            kind: mount.fstype.split('.').next().unwrap_or_default().to_owned(),
            is_read_only: mount.options.split(',').any(|option| option == "ro"),
            space: space(mount.mountpoint.clone())?,
        })
    }

    /// As some lines of text.
    pub fn text(&self) -> String {
        let access = if self.is_read_only { "mounted read-only" } else { "mounted" };
        let mut text = format!("{}: Gabion filesystem, {access}\n", self.mountpoint.display());
        if let Space::Told { total, used, available } = self.space {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", state::space_line(used, total, available));
        }
        let (kind, source) = (&self.kind, &self.source);
        let _ = writeln!(text, "  kernel     {kind} of {source}");
        text + "  more       is told to root and to who mounted it"
    }

    /// For scripts, without what is not known.
    fn json(&self) -> Value {
        let mut value = json!({
            "target": self.source,
            "mount": {
                "mountpoint": self.mountpoint.to_string_lossy(),
                "access": if self.is_read_only { "ro" } else { "rw" },
                "source": self.source,
                "kind": self.kind,
                "sync_reaches_daemon": self.kind == "fuseblk",
            },
        });
        if let Space::Told { total, used, available } = self.space {
            value["total_bytes"] = total.into();
            value["used_bytes"] = used.into();
            value["available_bytes"] = available.into();
        }
        value
    }
}

impl Serialize for Outside {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

fn space(mountpoint: PathBuf) -> Option<Space> {
    let (sender, receiver) = mpsc::channel();
    // The kernel asks the daemon, which may hang.
    thread::spawn(move || sender.send(rustix::fs::statvfs(&mountpoint)));
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(found)) => {
            let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
            Some(Space::Told {
                total: bytes(found.f_blocks),
                used: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
                available: bytes(found.f_bavail),
            })
        }
        Ok(Err(Errno::ACCESS | Errno::PERM)) | Err(_) => Some(Space::Untold),
        Ok(Err(_)) => None,
    }
}
