//! Tells what a filesystem does by itself: its kernel hands over what programs have written before
//! a snapshot is made, and forgets then which snapshots there were; and failures are events.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use gabion_base::event::{Event, FilesystemEvent, Sink};
use gabion_base::ids::SubvolId;
use gabion_fuse::mount::hand_over;
use gabion_fuse::{ByteRange, Notifier};
use gabion_node::{FilesystemWatcher, LocalFs};

use crate::failure::chain;
use crate::mount::Rollbacks;
use crate::mounts;

/// Follows one filesystem.
struct Watcher {
    fs: Weak<LocalFs>,
    /// What people call the filesystem.
    name: String,
    kernel: Option<Kernel>,
    sink: Option<Arc<dyn Sink>>,
}

/// The kernel that has it mounted here.
pub struct Kernel {
    /// Where, and the device number of the mount.
    pub place: (PathBuf, (u32, u32)),
    /// Tells it what it keeps in vain.
    pub notifier: Notifier,
    /// Keeps it waiting.
    pub rollbacks: Rollbacks,
}

/// Tells of what `fs`, which people call `name`, does by itself.
pub fn watch(fs: &Arc<LocalFs>, name: String, kernel: Option<Kernel>, sink: Option<Arc<dyn Sink>>) {
    let watcher = Watcher { fs: Arc::downgrade(fs), name, kernel, sink };
    fs.watch(Arc::new(watcher));
}

impl Watcher {
    /// Where a subvolume is, from the root of the filesystem.
    fn place(&self, of: SubvolId) -> String {
        let Some(fs) = self.fs.upgrade() else { return String::new() };
        if of == fs.root().subvol {
            return "/".to_owned();
        }
        let others = fs.subvolumes().unwrap_or_default();
        let path = others.into_iter().find(|(id, _)| *id == of).and_then(|(_, path)| path);
        path.map_or(format!("subvolume {}", of.0), |path| String::from_utf8_lossy(&path).into())
    }

    /// Tells of an event, or says so where none are kept.
    fn publish(&self, event: FilesystemEvent, said: &str) {
        let filesystem = self.name.clone();
        match &self.sink {
            Some(sink) => sink.publish(Event::Filesystem { filesystem, event }),
            None => eprintln!("gabion: {filesystem}: {said}"),
        }
    }
}

impl FilesystemWatcher for Watcher {
    fn hand_over(&self) {
        let Some(Kernel { place: (mountpoint, device), .. }) = &self.kernel else { return };
        // Nobody has written to what is not seen yet, or was unmounted. Who is unmounting meanwhile
        // meets somebody who uses it, for as long as this takes.
        let there = mounts::at(mountpoint).ok().flatten();
        if there.is_some_and(|mount| mount.device == *device) {
            // What could not be handed over is told to those who wrote it.
            let _ = hand_over(mountpoint);
        }
    }

    fn at_rest(&self, make: &mut dyn FnMut()) {
        match &self.kernel {
            Some(Kernel { rollbacks, .. }) => rollbacks.at_rest(make),
            None => make(),
        }
    }

    fn changed(&self, of: SubvolId) {
        if let (Some(fs), Some(Kernel { notifier, rollbacks, .. })) =
            (self.fs.upgrade(), &self.kernel)
        {
            // The kernel may not have any of it.
            let node = rollbacks.node(fs.snapshots_directory(of));
            let _ = notifier.inval_inode(node, ByteRange::All);
        }
    }

    fn failed(&self, of: SubvolId, name: &str, error: &gabion_fs::Error) {
        let (subvolume, snapshot, reason) = (self.place(of), name.to_owned(), chain(error));
        let said = format!("{subvolume}: {snapshot}: {reason}");
        self.publish(FilesystemEvent::ScheduleNotFollowed { subvolume, snapshot, reason }, &said);
    }

    fn stopped(&self, reason: &str) {
        let event = FilesystemEvent::StoppedWriting { reason: reason.to_owned() };
        self.publish(event, &format!("stopped writing: {reason}"));
    }

    fn refused(&self, reason: Option<&str>) {
        match reason {
            Some(reason) => {
                let event = FilesystemEvent::WritesRefused { reason: reason.to_owned() };
                self.publish(event, &format!("its disk does not take what is written: {reason}"));
            }
            None => {
                self.publish(FilesystemEvent::WritesAgain {}, "its disk takes what is written");
            }
        }
    }
}
