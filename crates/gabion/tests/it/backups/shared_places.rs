//! Restorations to folders in which others may write, and what becomes of them when they are
//! stopped at any moment.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::killed::{kill_at, program};
use super::trees::{assert_same, noise, survey};
use super::{backups, mount, planted};
use crate::world::{Folder, GLANCE, Running, names};

/// Somebody who is not root.
const OTHER: u32 = 65_534;

/// A folder in which everybody may write, and rename what others have made.
fn shared(folder: &Folder) -> PathBuf {
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let path = folder.join("shared");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    path
}

/// Runs a script as somebody else, in a folder.
#[track_caller]
fn as_other(folder: &Folder, script: &str) {
    let mut command = Command::new("sh");
    command.args(["-euc", &format!("cd shared; {script}")]).uid(OTHER).gid(OTHER);
    folder.run(&mut command).succeeded();
}

/// The first digits of the number of the backup at a path.
fn number(folder: &Folder, path: &str) -> String {
    backups(folder, path)[0]["stream"].as_str().unwrap()[..8].to_owned()
}

/// Starts the program, and stops it when `has_come`.
pub fn stopped_when(folder: &Folder, arguments: &[&str], has_come: impl Fn() -> bool) -> Running {
    let mut command = program(folder, arguments);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let begun = Instant::now();
    while !has_come() {
        assert!(begun.elapsed() < Duration::from_secs(120), "it never got so far");
        assert!(running.0.try_wait().unwrap().is_none(), "it ended before");
        std::thread::sleep(GLANCE);
    }
    running.signal(Signal::STOP);
    running
}

/// How many names there are in the only folder in another one.
pub fn made(scratch: &Path) -> usize {
    let inner = |top: &Path| fs::read_dir(top).ok()?.next()?.ok().map(|entry| entry.path());
    inner(scratch).and_then(|tree| fs::read_dir(tree).ok()).map_or(0, Iterator::count)
}

/// Saves a folder with so many files of a MiB to `full.gabion`, and gives what there is.
pub fn many(folder: &Folder, count: u64) -> BTreeMap<PathBuf, String> {
    folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
    let mnt = mount(folder);
    for number in 0..count {
        fs::write(mnt.join(format!("{number}")), noise(number, 1 << 20)).unwrap();
    }
    fs::hard_link(mnt.join("7"), mnt.join("seven")).unwrap();
    fs::create_dir(mnt.join("deeper")).unwrap();
    fs::write(mnt.join("deeper/file"), "deeper").unwrap();
    // Everybody may write there, and its owner is somebody else.
    for path in [&mnt, &mnt.join("deeper")] {
        chown(path, Some(OTHER), Some(OTHER)).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let wanted = survey(&mnt);
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    wanted
}

#[test]
fn what_somebody_else_has_put_there_leads_no_restoration_elsewhere() {
    let Some(folder) = planted() else { return };
    let wanted = survey(&folder.join("mnt"));
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    let shared = shared(&folder);
    let id = number(&folder, "full.gabion");
    let outside = folder.join("outside");
    fs::create_dir_all(outside.join("below")).unwrap();
    fs::write(outside.join("below/kept"), "kept").unwrap();
    let before = survey(&outside);
    as_other(&folder, "mkdir within");
    let [link, closed] = ["ln -s ../outside SCRATCH", "mkdir -m 700 SCRATCH"];
    let open = "mkdir -m 777 SCRATCH; ln -s ../../outside SCRATCH/dir; \
                ln -s ../../outside/new SCRATCH/large";
    let places = [
        ("shared/tree", format!(".tree.restoring-{id}")),
        ("shared/within", format!("within/.restoring-{id}")),
    ];
    for (to, scratch) in places {
        for planting in [link, closed, open, "touch SCRATCH"] {
            as_other(&folder, &planting.replace("SCRATCH", &scratch));
            let parts = [&*scratch, "others could have changed", "Remove it"];
            let restore = ["restore", "--to-directory", "full.gabion", to];
            folder.gabion(&restore).failed(1, &parts);
            assert_same(&before, &outside);
            as_other(&folder, &format!("rm -r {scratch}"));
        }
        // Nor do folders that others may change at some moment, whoever has made them.
        let scratch = shared.join(&scratch);
        fs::create_dir(&scratch).unwrap();
        for mode in [0o777, 0o1777, 0o770, 0o711] {
            fs::set_permissions(&scratch, Permissions::from_mode(mode)).unwrap();
            let restore = ["restore", "--to-directory", "full.gabion", to];
            folder.gabion(&restore).failed(1, &["others could have changed"]);
        }
        // What nobody else can have changed was of another restoration.
        fs::set_permissions(&scratch, Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(scratch.join("tree")).unwrap();
        let restore = ["restore", "--to-directory", "full.gabion", to];
        folder.gabion(&restore).failed(1, &["has something else in it", "remove it"]);
        assert_eq!(names(&scratch), ["tree"]);
        fs::remove_dir(scratch.join("tree")).unwrap();
        folder.gabion(&restore).succeeded();
        assert_eq!(wanted.len(), survey(&folder.join(to)).len());
    }
    assert_same(&before, &outside);
    assert_eq!(names(&shared), ["tree", "within"]);
}

#[test]
fn who_exchanges_the_folder_of_a_restoration_leads_it_nowhere() {
    let Some(folder) = Folder::for_mounts() else { return };
    let wanted = many(&folder, 40);
    let shared = shared(&folder);
    let scratch = format!(".tree.restoring-{}", number(&folder, "full.gabion"));
    fs::create_dir(folder.join("outside")).unwrap();
    let restore = ["restore", "--to-directory", "full.gabion", "shared/tree"];
    let in_work = || made(&shared.join(&scratch)) > 5;
    let mut running = stopped_when(&folder, &restore, in_work);
    // It could do so a moment later as well.
    as_other(&folder, &format!("test ! -e tree; mv {scratch} away; ln -s ../outside {scratch}"));
    running.signal(Signal::CONT);
    assert_eq!(running.0.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    let stderr = running.0.stderr.as_mut().unwrap();
    std::io::Read::read_to_string(stderr, &mut said).unwrap();
    assert!(said.contains("shared/tree is restored, and") && said.contains(&scratch), "{said}");
    assert_same(&wanted, &shared.join("tree"));
    assert_eq!(names(&folder.join("outside")), [""; 0]);
    assert_eq!(names(&shared.join("away")), [""; 0]);
    assert!(shared.join(&scratch).is_symlink());
}

#[test]
fn nobody_else_reaches_what_is_not_whole_and_whoever_is_killed_goes_on() {
    let Some(folder) = Folder::for_mounts() else { return };
    let wanted = many(&folder, 40);
    let shared = shared(&folder);
    let scratch = shared.join(format!(".tree.restoring-{}", number(&folder, "full.gabion")));
    let restore = ["restore", "--to-directory", "full.gabion", "shared/tree"];
    let mut running = stopped_when(&folder, &restore, || made(&scratch) > 5);
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    let object = scratch.join(&names(&scratch)[0]);
    let inode = |path: PathBuf| fs::symlink_metadata(path).unwrap().ino();
    folder.gabion(&restore).succeeded();
    assert_same(&wanted, &shared.join("tree"));
    // As it is when all is dressed and has not got its name.
    let files: Vec<_> = names(&shared.join("tree"));
    let inodes = |of: &Path| files.iter().map(|name| inode(of.join(name))).collect::<Vec<_>>();
    let kept = inodes(&shared.join("tree"));
    fs::create_dir(&scratch).unwrap();
    fs::set_permissions(&scratch, Permissions::from_mode(0o700)).unwrap();
    fs::rename(shared.join("tree"), &object).unwrap();
    let path = object.strip_prefix(&shared).unwrap().display();
    as_other(&folder, &format!("! ls {path} 2>/dev/null; ! touch {path}/new 2>/dev/null"));
    folder.gabion(&restore).succeeded();
    assert_same(&wanted, &shared.join("tree"));
    assert_eq!(kept, inodes(&shared.join("tree")));
    assert_eq!(names(&shared), ["tree"]);
}

#[test]
fn a_part_of_a_backup_is_not_mixed_with_the_whole() {
    let Some(folder) = Folder::for_mounts() else { return };
    let wanted = many(&folder, 40);
    let scratch = folder.join(&format!(".tree.restoring-{}", number(&folder, "full.gabion")));
    let whole = ["restore", "--to-directory", "full.gabion", "tree"];
    let mut running = stopped_when(&folder, &whole, || made(&scratch) > 5);
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    let part = ["restore", "--only", "deeper", "--to-directory", "full.gabion", "tree"];
    let outcome = folder.gabion(&part);
    assert!(outcome.stderr.contains("is of another one; remove it"), "{outcome:?}");
    outcome.succeeded();
    fs::rename(folder.join("tree"), folder.join("part")).unwrap();
    folder.gabion(&whole).succeeded();
    assert_same(&wanted, &folder.join("tree"));
    assert!(!scratch.exists());
}

#[test]
fn a_restoration_into_a_folder_goes_on_where_it_was_killed_while_all_moves_up() {
    let Some(folder) = Folder::for_mounts() else { return };
    let wanted = many(&folder, 8);
    let scratch = format!("into/.restoring-{}", number(&folder, "full.gabion"));
    let scratch = folder.join(&scratch);
    fs::create_dir(folder.join("into")).unwrap();
    let restore = ["restore", "--to-directory", "full.gabion", "into"];
    // To know the name of what is made in there.
    fs::create_dir(&scratch).unwrap();
    fs::set_permissions(&scratch, Permissions::from_mode(0o700)).unwrap();
    let mut running = stopped_when(&folder, &restore, || made(&scratch) > 0);
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    let object = scratch.join(&names(&scratch)[0]);
    folder.gabion(&restore).succeeded();
    assert_same(&wanted, &folder.join("into"));
    let files = names(&folder.join("into"));
    for moved in [0, 1, 5, files.len()] {
        for is_there in [true, false] {
            if !is_there && moved < files.len() {
                continue;
            }
            fs::create_dir(&scratch).unwrap();
            if is_there {
                fs::create_dir(&object).unwrap();
            }
            for name in &files[moved..] {
                fs::rename(folder.join("into").join(name), object.join(name)).unwrap();
            }
            fs::set_permissions(&scratch, Permissions::from_mode(0o1700)).unwrap();
            folder.gabion(&restore).succeeded();
            assert_same(&wanted, &folder.join("into"));
        }
    }
    // Without that bit it is not complete, and what is beside it is somebody else's.
    fs::create_dir(&scratch).unwrap();
    fs::set_permissions(&scratch, Permissions::from_mode(0o700)).unwrap();
    folder.gabion(&restore).failed(1, &["into is not empty"]);
}

#[test]
fn a_restoration_that_is_killed_at_many_moments_ends_well() {
    let Some(folder) = Folder::for_mounts() else { return };
    let wanted = many(&folder, 12);
    let id = number(&folder, "full.gabion");
    fs::create_dir(folder.join("into")).unwrap();
    for (to, scratch) in [("tree", ".tree.restoring-"), ("into", "into/.restoring-")] {
        let scratch = folder.join(&format!("{scratch}{id}"));
        let restore = ["restore", "--to-directory", "full.gabion", to];
        let mut kills = 0;
        // Each time it comes a little further.
        let ended = (0..400).find_map(|moment| {
            let mut running = Running(program(&folder, &restore).spawn().unwrap());
            std::thread::sleep(Duration::from_millis(2 * moment));
            running.0.kill().unwrap();
            let code = running.0.wait().unwrap().code();
            kills += u32::from(code.is_none());
            code
        });
        // The last one that was killed may have done all.
        let is_left = fs::read_dir(&scratch).is_ok_and(|mut names| names.next().is_some());
        assert!(matches!(ended, Some(0 | 1)) && !is_left && kills > 3, "{ended:?}, {kills}");
        let _ = fs::remove_dir(&scratch);
        let (mut wanted, mut found) = (wanted.clone(), survey(&folder.join(to)));
        if ended == Some(1) {
            // It was killed when all but the folder's own time was as it should be.
            wanted.remove(Path::new(""));
            found.remove(Path::new(""));
        }
        assert_eq!(found, wanted);
    }
}

#[test]
fn a_backup_does_not_go_on_in_what_somebody_else_has_put_there() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
    let mnt = mount(&folder);
    fs::write(mnt.join("large"), noise(2, 30 << 20)).unwrap();
    let shared = shared(&folder);
    let partial = shared.join("full.gabion.partial");
    let backup = ["backup", "--rate", "8M", "mnt", "shared/full.gabion"];
    kill_at(&folder, &backup, &partial, 18 << 20);
    let begun = fs::read(&partial).unwrap();
    let refused = || {
        let parts = ["full.gabion.partial: it is of somebody else", "Remove it"];
        folder.gabion(&["backup", "mnt", "shared/full.gabion"]).failed(1, &parts);
    };
    // A copy of it that another one could read and change.
    chown(&partial, Some(OTHER), Some(OTHER)).unwrap();
    refused();
    chown(&partial, Some(0), Some(0)).unwrap();
    fs::rename(&partial, folder.join("elsewhere")).unwrap();
    as_other(&folder, "ln -s ../elsewhere full.gabion.partial");
    refused();
    assert!(fs::read(folder.join("elsewhere")).unwrap() == begun);
    fs::rename(folder.join("elsewhere"), &partial).unwrap();
    let said = folder.gabion(&["backup", "mnt", "shared/full.gabion"]).succeeded();
    assert!(said.contains("went on saving"), "{said}");
    folder.gabion(&["verify", "shared/full.gabion"]).succeeded();
}
