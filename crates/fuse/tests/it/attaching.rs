//! Mounts that are made in two steps.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use gabion_fuse::mount::{
    Attachment, Expiry, MountFlags, MountOptions, Source, Unmount, expire, mount, prepare, unmount,
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
fn what_is_beneath_is_seen_when_what_covers_it_is_gone() {
    let at = Mountpoint::new();
    let source = |name: &str| Source::Name(name.to_owned());
    let (mut beneath, other, _) = prepared(at.path(), &source("beneath"));
    assert!(beneath.make_beneath().is_err(), "there is nothing that it could be beneath");
    let (mut above, session, _) = prepared(at.path(), &source("above"));
    above.make().unwrap();
    beneath.make_beneath().unwrap();
    assert_eq!(find(at.path()).unwrap().unwrap().source, "above");
    unmount(at.path(), Unmount::Plain).unwrap();
    assert_eq!(session.wait(), End::Unmounted);
    assert_eq!(find(at.path()).unwrap().unwrap().source, "beneath");
    unmount(at.path(), Unmount::Plain).unwrap();
    assert_eq!(other.wait(), End::Unmounted);
}

#[test]
fn a_mount_expires_that_nobody_uses() {
    let at = Mountpoint::new();
    let (mut attachment, session, _) = prepared(at.path(), &Source::Name("memory".to_owned()));
    assert!(expire(at.path()).is_err(), "nothing is mounted");
    attachment.make().unwrap();
    let user = fs::File::open(at.path()).unwrap();
    assert_eq!(expire(at.path()).unwrap(), Expiry::InUse);
    drop(user);
    assert_eq!(expire(at.path()).unwrap(), Expiry::Marked);
    fs::read_dir(at.path()).unwrap();
    assert_eq!(expire(at.path()).unwrap(), Expiry::Marked);
    assert_eq!(expire(at.path()).unwrap(), Expiry::Unmounted);
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
