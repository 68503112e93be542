//! Mounts that are made in two steps.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use gabion_fuse::mount::{
    Attachment, MountFlags, MountOptions, Source, Unmount, mount, prepare, unmount,
};
use gabion_fuse::mountinfo::find;
use gabion_fuse::{Config, End, Session};

use crate::ending::Loop;
use crate::memfs::{MemFs, Mountpoint, Served};

/// A filesystem that is served, and not attached yet.
fn prepared(at: &Path, source: &Source) -> (Attachment, Session, Arc<MemFs>) {
    let options = MountOptions::new(source.clone(), "gabion");
    let (device, attachment) = prepare(at, &options).unwrap();
    // Nobody can answer yet.
    attachment.device_number().unwrap();
    let fs = Arc::new(MemFs::default());
    let session = Session::start(device, Served(Arc::clone(&fs)), Config::default()).unwrap();
    (attachment, session, fs)
}

/// One of each kind.
fn sources(device: &Loop) -> [Source; 2] {
    let path = device.device.clone();
    [Source::Name("memory".to_owned()), Source::BlockDevice { path, block_size: 4096 }]
}

#[test]
fn a_mount_is_seen_when_it_is_attached_and_its_number_is_known_before() {
    let at = Mountpoint::new();
    for source in sources(&Loop::new(&at)) {
        let (mut attachment, session, _) = prepared(at.path(), &source);
        let number = attachment.device_number().unwrap();
        assert_eq!(find(at.path()).unwrap(), None);
        attachment.make().unwrap();
        assert_eq!(find(at.path()).unwrap().unwrap().device, number);
        assert_eq!(attachment.device_number().unwrap(), number);
        assert_eq!(fs::read_dir(at.path()).unwrap().count(), 0);
        unmount(at.path(), Unmount::Plain).unwrap();
        assert_eq!(session.wait(), End::Unmounted);
    }
}

#[test]
fn what_is_not_attached_ends_with_its_attachment() {
    let at = Mountpoint::new();
    for source in sources(&Loop::new(&at)) {
        let (attachment, session, fs) = prepared(at.path(), &source);
        drop(attachment);
        assert_eq!(session.wait(), End::Unmounted);
        assert_eq!(fs.record(|record| record.destroyed), 1);
        assert_eq!(find(at.path()).unwrap(), None);
    }
    // Where it cannot be attached it is nowhere, and can be given up.
    let absent = at.path().join("absent");
    let (mut attachment, session, _) = prepared(&absent, &Source::Name("memory".to_owned()));
    assert!(attachment.make().is_err() && !attachment.is_made());
    attachment.give_up();
    assert_eq!(session.wait(), End::Unmounted);
}

#[test]
fn options_and_long_names_arrive() {
    let at = Mountpoint::new();
    for (name, is_attached) in [("memory".to_owned(), false), ("long/".repeat(200), true)] {
        let mut options = MountOptions::new(Source::Name(name.clone()), "gabion");
        options.flags = options.flags
            | MountFlags::READ_ONLY
            | MountFlags::NOEXEC
            | MountFlags::NOATIME
            | MountFlags::NODIRATIME
            | MountFlags::SYNCHRONOUS
            | MountFlags::DIRSYNC;
        options.max_read = Some(65536);
        let (device, mut attachment) = prepare(at.path(), &options).unwrap();
        assert_eq!(attachment.is_made(), is_attached);
        attachment.make().unwrap();
        let found = find(at.path()).unwrap().unwrap();
        assert_eq!(found.source.to_str(), Some(&*name));
        assert_eq!(found.fstype, "fuse.gabion");
        let has = |text: &str, option: &str| text.split(',').any(|it| it == option);
        for option in ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"] {
            assert!(has(&found.options, option), "{option}: {}", found.options);
        }
        for option in ["ro", "sync", "dirsync", "allow_other", "max_read=65536", "user_id=0"] {
            assert!(has(&found.super_options, option), "{option}: {}", found.super_options);
        }
        drop(device);
        unmount(at.path(), Unmount::Plain).unwrap();
    }
    let options = MountOptions::new(Source::Name("memory".to_owned()), "gabion");
    let options = MountOptions { flags: MountFlags::STRICTATIME, ..options };
    let device = mount(at.path(), &options).unwrap();
    let found = find(at.path()).unwrap().unwrap();
    assert!(!found.options.contains("atime") && !found.options.contains("nosuid"), "{found:?}");
    drop(device);
}
