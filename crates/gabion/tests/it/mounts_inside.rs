//! What is mounted within a mount of what is served, while another machine changes names there.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Pid;

use crate::guard::mounts_below;
use crate::shared::{Shared, in_background, sh, succeeds};
use crate::walks::{make_tree, walk, walk_without, without};
use crate::world::{Running, await_that};

/// Something that is mounted, with a file by which it is known.
struct Inside(PathBuf);

impl Inside {
    fn tmpfs(at: &Path) -> Self {
        sh(Path::new("/"), &format!("mount -t tmpfs inside '{}'", at.display()));
        fs::write(at.join("mark"), "inside").unwrap();
        Self(at.to_owned())
    }

    /// What is at `from`, once more.
    fn bind(from: &Path, at: &Path) -> Self {
        fs::write(from.join("mark"), "inside").unwrap();
        sh(Path::new("/"), &format!("mount --bind '{}' '{}'", from.display(), at.display()));
        Self(at.to_owned())
    }

    fn is_there(&self) -> bool {
        fs::read(self.0.join("mark")).is_ok_and(|read| read == b"inside")
            && mounts_below(&self.0).contains(&self.0)
    }

    #[track_caller]
    fn unmount(self) {
        assert!(self.is_there(), "{} is not mounted any more", self.0.display());
        sh(Path::new("/"), &format!("umount '{}'", self.0.display()));
    }
}

/// Looks at everything that is there, while others change it.
fn look(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if fs::symlink_metadata(entry.path()).is_ok_and(|found| found.is_dir()) {
            look(&entry.path());
        }
    }
}

/// Whether a name is seen, and whether it is listed: both must be so, or none.
#[track_caller]
fn is_seen(dir: &Path, name: &str) -> bool {
    let is_found = dir.join(name).exists();
    let mut names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.any(|listed| listed == *name), is_found, "{name} in {}", dir.display());
    is_found
}

#[test]
fn what_is_mounted_in_a_mount_stays_whatever_others_change_beside_it() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    sh(&a, "mkdir -p top/deep/er/inside top/data top/bound top/outside; echo bytes > top/file");
    let outside = shared.folder.join("outside");
    fs::create_dir(&outside).unwrap();
    let top = b.join("top");
    walk(&b);
    let inside = [
        Inside::tmpfs(&top.join("deep/er/inside")),
        Inside::bind(&top.join("data"), &top.join("bound")),
        Inside::bind(&outside, &top.join("outside")),
    ];
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Others of this machine, who are in the same folders all the time.
        for number in 0..3 {
            let (top, is_over) = (&top, &is_over);
            scope.spawn(move || {
                let own = format!("own-{number}");
                while !is_over.load(Ordering::Relaxed) {
                    look(top);
                    for dir in [top.clone(), top.join("deep"), top.join("deep/er")] {
                        fs::write(dir.join(&own), "own").unwrap();
                        let _ = fs::metadata(dir.join("absent"));
                        fs::rename(dir.join(&own), dir.join("own")).unwrap();
                        let _ = fs::remove_file(dir.join("own"));
                    }
                }
            });
        }
        let rounds = || {
            for round in 0..25 {
                for dir in ["top", "top/deep", "top/deep/er"] {
                    let (there, here) = (a.join(dir), b.join(dir));
                    let [one, two] = ["one", "two"].map(|name| format!("{name}-{round}"));
                    assert!(!is_seen(&here, &one));
                    fs::create_dir(there.join(&one)).unwrap();
                    assert!(is_seen(&here, &one));
                    fs::rename(there.join(&one), there.join(&two)).unwrap();
                    assert!(!is_seen(&here, &one) && is_seen(&here, &two));
                    fs::remove_dir(there.join(&two)).unwrap();
                    assert!(!is_seen(&here, &two));
                    for it in &inside {
                        assert!(it.is_there(), "{} in round {round}", it.0.display());
                    }
                }
            }
        };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(rounds));
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
    // What is bound is the folder itself, also for the other machine.
    fs::write(top.join("bound/new"), "new").unwrap();
    assert_eq!(fs::read(a.join("top/data/new")).unwrap(), b"new");
    inside.into_iter().for_each(Inside::unmount);
    assert!(!top.join("deep/er/inside/mark").exists() && !a.join("top/outside/mark").exists());
    shared.finish(&["a", "b"]);
}

#[test]
fn what_is_mounted_while_others_change_names_stays_too() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    sh(&a, "mkdir -p dir/inside");
    let dir = b.join("dir");
    let go = shared.folder.join("go");
    fs::write(&go, "").unwrap();
    let script = format!(
        "while test -e '{}'; do mkdir one; mv one two; rmdir two; echo > file; rm file; done",
        go.display()
    );
    let change = in_background(&a.join("dir"), &script);
    for round in 0..25 {
        for name in ["one", "two", "file"] {
            let _ = fs::metadata(dir.join(name));
        }
        let inside = Inside::tmpfs(&dir.join("inside"));
        for _ in 0..round % 4 * 5 {
            walk(&dir.join("inside"));
            let _ = fs::metadata(dir.join("one"));
            assert!(inside.is_there(), "in round {round}");
        }
        inside.unmount();
    }
    fs::remove_file(&go).unwrap();
    succeeds(change);
    assert_eq!(walk(&a.join("dir")), walk(&dir));
    shared.finish(&["a", "b"]);
}

/// As on NFS: names decide, and what is mounted goes where its folder is found first.
#[test]
fn what_is_mounted_goes_with_a_folder_that_others_move_and_with_one_that_they_remove() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    sh(&a, "mkdir -p moved/inside lost/inside removed/inside");
    walk(&b);
    Inside::tmpfs(&b.join("moved/inside"));
    let lost = Inside::tmpfs(&b.join("lost/inside"));
    let removed = Inside::tmpfs(&b.join("removed/inside"));
    fs::create_dir(b.join("stays")).unwrap();
    let stays = Inside::tmpfs(&b.join("stays"));
    // Found by its new name: there it is mounted.
    fs::rename(a.join("moved"), a.join("elsewhere")).unwrap();
    let moved = Inside(b.join("elsewhere/inside"));
    assert!(moved.is_there());
    assert!(!b.join("moved").exists() && moved.is_there());
    // Missed by its old name: it is gone.
    fs::rename(a.join("lost"), a.join("away")).unwrap();
    assert!(!lost.0.exists() && mounts_below(&b.join("lost")).is_empty());
    assert!(!b.join("away/inside/mark").exists() && b.join("away/inside").exists());
    // Nobody is held up by what is mounted on another machine.
    fs::remove_dir(a.join("removed/inside")).unwrap();
    let gone = fs::metadata(&removed.0).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert!(mounts_below(&removed.0).is_empty());
    // What is made there anew is empty.
    fs::create_dir(a.join("removed/inside")).unwrap();
    assert_eq!(walk(&removed.0), 1);
    moved.unmount();
    stays.unmount();
    shared.finish(&["a", "b"]);
}

#[test]
fn names_are_kept_again_when_nothing_is_mounted_any_more() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    let (made, top) = (a.join("top"), b.join("top"));
    fs::create_dir(&made).unwrap();
    let count = make_tree(&made);
    assert_eq!((walk(&top), walk(&top)), (count, count));
    let inside = Inside::tmpfs(&top.join("branch-0/twig"));
    walk(&top);
    inside.unmount();
    assert_eq!((walk(&top), walk(&top)), (count, count));
    assert_eq!(walk_without(shared.daemon("b"), top.clone()), Some(count));
    // And given up as before.
    fs::remove_file(made.join("branch-1/twig/leaf-3")).unwrap();
    assert_eq!(walk(&top), count - 1);
    shared.finish(&["a", "b"]);
}

#[test]
fn what_is_mounted_stays_of_use_while_the_server_is_away() {
    let Some(shared) = Shared::new() else { return };
    let a = shared.mount("a");
    let b = shared.mount_with("b", "deadline=4");
    sh(&a, "mkdir -p top/inside top/second; echo bytes > top/file");
    let inside = Inside::tmpfs(&b.join("top/inside"));
    await_that(|| is_asked(shared.daemon("b"), b.join("top/file")));
    assert!(inside.is_there());
    let second = Inside::tmpfs(&b.join("top/second"));
    let stopped = shared.stop_server();
    // Until the session is over by its client's clock, and what was cached is forgotten.
    await_that(|| fs::metadata(b.join("top/file")).is_err());
    assert!(inside.is_there());
    fs::write(inside.0.join("written"), "without the server").unwrap();
    assert_eq!(walk(&inside.0), 3);
    // Where nobody has been since it was mounted, nobody knows the way.
    if let Err(error) = fs::metadata(second.0.join("mark")) {
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }
    drop(stopped);
    await_that(|| fs::metadata(b.join("top/file")).is_ok());
    fs::remove_file(a.join("top/file")).unwrap();
    assert!(!is_seen(&b.join("top"), "file"));
    inside.unmount();
    second.unmount();
    shared.finish(&["a", "b"]);
}

/// Whether somebody has to be asked what a name stands for. On a busy machine a short silence may
/// mean that nobody has had the time to look; a long one would end the session. The daemon needs
/// time of its own before it is stopped for as long once more.
fn is_asked(daemon: Pid, path: PathBuf) -> bool {
    let seen = without(daemon, Duration::from_secs(1), move || fs::metadata(&path).is_ok());
    if seen.is_none() {
        thread::sleep(Duration::from_millis(500));
    }
    seen.is_none()
}

#[test]
fn what_is_mounted_in_a_namespace_of_another_process_stays() {
    let Some(shared) = Shared::new() else { return };
    let (a, b) = shared.two();
    sh(&a, "mkdir -p dir/inside; echo bytes > dir/file");
    let daemon = shared.daemon("b");
    walk(&b);
    let mut command = Command::new("unshare");
    command.args([
        "-m",
        "sh",
        "-ec",
        "mount -t tmpfs inside dir/inside; echo > dir/inside/mark; read x; \
         for round in 1 2 3; do test -e dir/inside/mark; ls -l dir; done; echo stays",
    ]);
    let mut container = Running(
        command.current_dir(&b).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap(),
    );
    await_that(|| is_asked(daemon, b.join("dir/file")));
    for round in 0..30 {
        let name = format!("name-{round}");
        assert!(!is_seen(&b.join("dir"), &name));
        fs::write(a.join("dir").join(&name), "new").unwrap();
        assert!(is_seen(&b.join("dir"), &name));
    }
    container.0.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    let mut told = String::new();
    container.0.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.ends_with("stays\n"), "{told}");
    assert!(container.0.wait().unwrap().success());
    // When that is over names are kept again.
    await_that(|| !is_asked(daemon, b.join("dir/file")));
    shared.finish(&["a", "b"]);
}
