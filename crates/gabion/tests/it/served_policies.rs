//! Quotas and schedules of a filesystem that is served, set and shown at its mounts.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::statvfs;
use rustix::io::Errno;
use serde_json::Value;

use crate::served_snapshots::Site;
use crate::world::names;

/// How long the server may take to make what is due.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_quota_that_is_set_at_a_mount_holds_at_another_one() {
    let Some(site) = Site::new() else { return };
    let (_, b) = (site.mount("", "a"), site.mount("", "b"));
    assert!(site.run("quota list a").contains("no quotas"));
    let early = File::create(b.join("early")).unwrap();
    early.write_all_at(&[1; 8192], 0).unwrap();
    let text = site.run("quota set a 8M --objects 5");
    assert!(text.contains("/: 16 KiB of 8 MiB, 2 of 5 objects"), "{text}");
    let file = File::create(b.join("file")).unwrap();
    let write = |index: u64| file.write_all_at(&vec![7; 1 << 20], index << 20);
    let refused = (0..20).find_map(|index| write(index).err());
    let refused = refused.and_then(|error| Errno::from_io_error(&error));
    assert_eq!(refused, Some(Errno::DQUOT));
    let made = (0..20).find_map(|n| fs::create_dir(b.join(format!("{n}"))).err());
    assert_eq!(made.and_then(|error| Errno::from_io_error(&error)), Some(Errno::DQUOT));
    let told = statvfs(&b).unwrap();
    assert_eq!(told.f_blocks * told.f_frsize, 8 << 20);
    let list = |subject: &str| {
        let text = site.run(&format!("quota list --json {subject}"));
        let list: Value = serde_json::from_str(&text).unwrap();
        list["quotas"].clone()
    };
    assert_eq!((list("a"), list("b")), (list("disk.img"), list("disk.img")));
    assert_eq!((&list("a")[0]["path"], &list("a")[0]["used_objects"]), (&"/".into(), &5.into()));
    site.fails("quota set a/early 1M", &["early"]);
    assert!(site.run("quota set b none").contains("no quota"));
    write(20).unwrap();
    file.sync_all().unwrap();
    assert_eq!(list("disk.img"), Value::Array(Vec::new()));
    // df(1) shows what holds where it looks.
    site.run("subvolume create a/sub");
    site.run("quota set a/sub 2M --objects 9");
    let told = statvfs(b.join("sub")).unwrap();
    assert_eq!((told.f_blocks * told.f_frsize, told.f_files, told.f_ffree), (2 << 20, 9, 8));
    let told = statvfs(&b).unwrap();
    assert!(told.f_blocks * told.f_frsize > 8 << 20 && told.f_files == 0);
    site.run("subvolume delete --yes a/sub");
    drop((early, file));
    site.finish(&["a", "b"]);
}

#[test]
fn a_schedule_is_set_shown_and_removed_at_mounts() {
    let Some(site) = Site::new() else { return };
    let (a, _) = (site.mount("", "a"), site.mount("", "b"));
    assert!(site.run("snapshot schedule b").contains("no snapshots are made by themselves"));
    let text = site.run("snapshot schedule a daily=7 monthly=2");
    assert!(text.ends_with("daily=7 monthly=2\n"), "{text}");
    let began = Instant::now();
    while names(&a.join(".snapshots")).len() < 2 {
        assert!(began.elapsed() < PATIENCE, "there are no snapshots");
        thread::sleep(Duration::from_millis(20));
    }
    for subject in ["a", "b", "disk.img"] {
        let text = site.run(&format!("snapshot schedule {subject} --json"));
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&told["daily"], &told["hourly"]), (&7.into(), &0.into()));
    }
    site.run("snapshot schedule b none");
    assert!(site.run("snapshot schedule disk.img").contains("no snapshots"));
    site.finish(&["a", "b"]);
}

#[test]
fn who_is_not_trusted_with_all_of_it_sets_no_quota_and_no_schedule() {
    let options = ["--export", "/:root_squash"];
    let Some(site) = Site::with(&options) else { return };
    site.mount("", "a");
    site.run("quota set disk.img 1G");
    site.fails("quota set a none", &["root is squashed"]);
    site.fails("snapshot schedule a daily=7", &["root is squashed"]);
    assert!(site.run("quota list a").contains("of 1 GiB"));
    assert!(site.run("snapshot schedule a").contains("no snapshots"));
    site.finish(&["a"]);
}
