//! Snapshots, clones and subvolumes of a filesystem that is served, from its server and its mounts.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::world::{Folder, GABION, Running};

/// A served filesystem with its mounts.
struct Site {
    server: Running,
    uri: String,
    folder: Folder,
}

impl Site {
    fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// Served with these options.
    fn with(options: &[&str]) -> Option<Self> {
        let folder = Folder::for_mounts()?;
        folder.image();
        let (server, uri) = serve(&folder, "127.0.0.1:0", options);
        Some(Self { server, uri, folder })
    }

    fn mount(&self, path: &str, name: &str) -> PathBuf {
        let mountpoint = self.folder.join(name);
        fs::create_dir(&mountpoint).unwrap();
        let uri = format!("{}{path}", self.uri);
        self.folder.gabion(&["mount", "-o", "deadline=60", &uri, name]).succeeded();
        mountpoint
    }

    #[track_caller]
    fn run(&self, command: &str) -> String {
        self.folder.gabion(&command.split(' ').collect::<Vec<_>>()).succeeded()
    }

    #[track_caller]
    fn fails(&self, command: &str, parts: &[&str]) {
        self.folder.gabion(&command.split(' ').collect::<Vec<_>>()).failed(1, parts);
    }

    /// The names of the snapshots, as somebody lists them.
    #[track_caller]
    fn snapshots(&self, subject: &str) -> Vec<String> {
        let listed = self.run(&format!("snapshot list {subject}"));
        listed.lines().map(|line| line.split("  ").nth(1).unwrap().to_owned()).collect()
    }

    /// All that was written is well.
    fn finish(mut self, mounts: &[&str]) {
        for name in mounts {
            self.folder.gabion(&["umount", name]).succeeded();
        }
        self.server.signal(Signal::TERM);
        assert!(self.server.0.wait().unwrap().success());
        self.folder.gabion(&["scrub", "disk.img"]).succeeded();
    }
}

fn serve(folder: &Folder, address: &str, options: &[&str]) -> (Running, String) {
    let mut command = Command::new(GABION);
    command.args(["serve", "disk.img", "--session-seconds", "3", "--listen", address]);
    command.args(options);
    command.current_dir(folder.path()).env("GABION_STATE", folder.join("state"));
    let mut server = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("gabion://"), "{line:?}");
    (server, line.trim_end().to_owned())
}

#[test]
fn snapshots_of_what_is_served_are_made_shown_and_removed_at_the_server_and_at_mounts() {
    let Some(site) = Site::new() else { return };
    let (a, _) = (site.mount("", "a"), site.mount("", "b"));
    fs::write(a.join("file"), "one").unwrap();
    assert!(site.run("snapshot create disk.img first").contains(".snapshots/first"));
    fs::write(a.join("file"), "two").unwrap();
    fs::write(a.join("more"), "").unwrap();
    site.run("snapshot create b second");
    for subject in ["disk.img", "a", "b"] {
        assert_eq!(site.snapshots(subject), ["first", "second"]);
        assert_eq!(site.run(&format!("snapshot diff {subject} first second")), "M file\n+ more\n");
    }
    site.run("snapshot hold a first");
    site.fails("snapshot delete b first", &["\"first\" is held"]);
    site.run("snapshot release disk.img first");
    site.fails("snapshot create a second", &["already"]);
    site.fails("snapshot rollback a first", &["in use"]);
    site.run("snapshot delete b first");
    assert_eq!(site.snapshots("a"), ["second"]);
    site.finish(&["a", "b"]);
}

#[test]
fn who_is_not_trusted_with_all_of_it_makes_no_snapshots() {
    for (export, path, refusal) in [
        ("/:ro", "", "exported read-only"),
        ("/:root_squash", "", "root is squashed"),
        ("/", "sub", "only a folder of it is mounted"),
    ] {
        let Some(site) = Site::with(&["--export", export]) else { return };
        if path == "sub" {
            fs::create_dir(site.mount("", "all").join("sub")).unwrap();
            site.run("umount all");
        }
        site.run("snapshot create disk.img one");
        site.mount(path, "a");
        site.fails("snapshot create a two", &[refusal]);
        site.fails("snapshot delete a one", &[refusal]);
        if path.is_empty() {
            assert_eq!(site.snapshots("a"), ["one"]);
        }
        assert_eq!(site.snapshots("disk.img"), ["one"]);
        site.finish(&["a"]);
    }
}
