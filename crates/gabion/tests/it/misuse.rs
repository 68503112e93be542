//! Command lines that are not what their users mean: what is said names the thing, the cause and
//! the next step, and nothing is left behind.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::world::{Folder, GABION, Running, names};

#[test]
fn a_folder_to_save_to_that_is_not_there_is_named_and_no_file_is_made() {
    let folder = Folder::new();
    folder.image();
    for to in ["absent/", "absent/."] {
        let outcome = folder.gabion(&["backup", "disk.img", to]);
        outcome.failed(1, &["there is no folder absent/", "mkdir absent/"]);
    }
    assert_eq!(names(folder.path()), ["disk.img", "state"]);
    assert_eq!(folder.gabion(&["snapshot", "list", "disk.img"]).succeeded(), "");
    folder.gabion(&["backup", "disk.img", "absent"]).succeeded();
    assert!(folder.join("absent").is_file());
}

#[test]
fn a_backup_that_may_read_nothing_is_not_begun() {
    let folder = Folder::new();
    folder.image();
    let outcome = folder.gabion(&["backup", "--rate", "0", "disk.img", "saved"]);
    outcome.failed(2, &["--rate", "nothing would ever be read"]);
    folder.gabion(&["backup", "--rate", "1G", "disk.img", "saved"]).succeeded();
}

#[test]
fn a_place_to_restore_to_whose_folder_is_absent_is_told_as_that() {
    let folder = Folder::new();
    folder.image();
    folder.gabion(&["backup", "disk.img", "saved"]).succeeded();
    let outcome = folder.gabion(&["restore", "saved", "absent/tree"]);
    outcome.failed(1, &["cannot restore to", "/absent: No such file"]);
    let outcome = folder.gabion(&["restore", "saved", "tree"]);
    outcome.failed(1, &["is on no Gabion filesystem that is mounted", "--to-directory"]);
}

#[test]
fn a_name_of_nothing_is_told_to_be_no_volume_either() {
    let folder = Folder::new();
    fs::create_dir(folder.join("mnt")).unwrap();
    for command in ["mount tank mnt", "status tank", "serve --listen 127.0.0.1:0 tank"] {
        let words: Vec<_> = command.split(' ').collect();
        folder.gabion(&words).failed(1, &["tank: No such file", "gabion volume list"]);
    }
    let outcome = folder.gabion(&["status", "absent/tank"]);
    assert!(!outcome.stderr.contains("volume"), "{outcome:?}");
}

#[test]
fn what_cannot_be_served_is_told_as_that() {
    let folder = Folder::new();
    folder.image();
    fs::create_dir(folder.join("mnt")).unwrap();
    let serve = |at: &str, target: &str| folder.gabion(&["serve", "--listen", at, target]);
    serve("127.0.0.1:0", "mnt").failed(1, &["cannot serve: ", "is neither a regular file"]);
    serve("here", "disk.img").failed(2, &["cannot listen at here", "Say HOST:PORT"]);
    serve("127.0.0.1:99999", "disk.img").failed(2, &["99999", "Say HOST:PORT"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    serve(&at, "disk.img").failed(1, &[&at, "Address already in use"]);
}

#[test]
fn what_can_only_be_read_is_told_how() {
    let Some(folder) = Folder::for_mounts() else { return };
    let image = folder.image();
    ["fixed", "mnt"].iter().for_each(|name| fs::create_dir(folder.join(name)).unwrap());
    fs::rename(image, folder.join("fixed/disk.img")).unwrap();
    for options in [&["--bind", "fixed", "fixed"][..], &["-o", "remount,ro,bind", "fixed"]] {
        folder.run(Command::new("mount").args(options)).succeeded();
    }
    let outcome = folder.gabion(&["mount", "fixed/disk.img", "mnt"]);
    outcome.failed(1, &["Read-only file system", "gabion mount -o ro"]);
    folder.gabion(&["mount", "-o", "ro", "fixed/disk.img", "mnt"]).succeeded();
    folder.gabion(&["umount", "mnt"]).succeeded();
}

/// Offers files of the folder, by those names.
fn target(folder: &Folder, names: &[&str]) -> (Running, Vec<String>) {
    let mut program = Command::new(GABION);
    program.args(["target", "--listen", "127.0.0.1:0"]).current_dir(folder.path());
    program.args(names.iter().map(|name| format!("{name}={name}")));
    let mut program = Running(program.stdout(Stdio::piped()).spawn().unwrap());
    let said = BufReader::new(program.0.stdout.take().unwrap()).lines();
    let uris = said.take(names.len()).map(|line| line.unwrap()).collect();
    (program, uris)
}

#[test]
fn what_a_target_offers_is_told_as_that_without_waiting_for_its_end() {
    let Some(folder) = Folder::for_mounts() else { return };
    fs::create_dir(folder.join("mnt")).unwrap();
    File::create(folder.join("disk")).unwrap().set_len(64 << 20).unwrap();
    let (target, _) = target(&folder, &["disk"]);
    let in_use = format!("in use by process {}", target.0.id());
    for command in ["mount disk mnt", "mkfs disk", "serve --listen 127.0.0.1:0 disk"] {
        let words: Vec<_> = command.split(' ').collect();
        let outcome = folder.gabion(&words);
        assert!(!outcome.stderr.contains("waiting"), "{outcome:?}");
        outcome.failed(1, &[&in_use, "offered to NBD clients"]);
    }
}

#[test]
fn what_cannot_be_done_with_a_volume_is_told_by_its_name() {
    let Some(folder) = Folder::for_mounts() else { return };
    for name in ["a", "b"] {
        File::create(folder.join(name)).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(folder.join(&format!("mnt-{name}"))).unwrap();
    }
    let (_target, uris) = target(&folder, &["a", "b"]);
    let absent = uris[0].replace("/a", "/absent");
    let outcome = folder.gabion(&["volume", "create", "tank", "--mirror", &absent]);
    assert_eq!(outcome.stderr.matches("there is no such export").count(), 1, "{outcome:?}");
    outcome.failed(1, &["cannot make volume tank"]);
    let said = folder.gabion(&["volume", "create", "tank", "--mirror", &uris[0]]).succeeded();
    assert!(said.contains("one copy of everything only"), "{said}");
    let outcome = folder.gabion(&["volume", "add", "tank", &uris[0]]);
    outcome.failed(1, &["cannot add to volume tank", "is a member of volume tank already"]);
    folder.gabion(&["mkfs", "tank"]).succeeded();
    folder.gabion(&["mount", "tank", "mnt-a"]).succeeded();
    let where_it_is = format!("to unmount it: gabion umount {}", folder.join("mnt-a").display());
    let outcome = folder.gabion(&["mount", "tank", "mnt-b"]);
    outcome.failed(1, &["volume tank is in use by", &where_it_is]);
    folder.gabion(&["umount", "mnt-a"]).succeeded();
}

#[test]
fn a_file_of_a_mount_is_no_filesystem() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::write(mnt.join("letter"), "content").unwrap();
    fs::create_dir(folder.join("store")).unwrap();
    for command in [
        "snapshot create mnt/letter one",
        "subvolume create mnt/letter",
        "subvolume delete --yes mnt/letter",
        "quota set mnt/letter 1G",
        "backup mnt/letter store",
    ] {
        let words: Vec<_> = command.split(' ').collect();
        let outcome = folder.gabion(&words);
        outcome.failed(1, &["mnt/letter is a file in a mounted filesystem", "a subvolume"]);
    }
    assert_eq!(fs::read(mnt.join("letter")).unwrap(), b"content");
    // Unless it holds one itself.
    folder.gabion(&["mkfs", "--size", "16M", "mnt/inner.img"]).succeeded();
    folder.gabion(&["subvolume", "create", "mnt/inner.img:/sub"]).succeeded();
    let listed = folder.gabion(&["subvolume", "list", "mnt/inner.img"]).succeeded();
    assert!(listed.ends_with("/sub\n"), "{listed}");
}

#[test]
fn what_is_gone_is_brought_back_by_a_path_that_steps_back() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    fs::create_dir(mnt.join("letters")).unwrap();
    fs::write(mnt.join("letters/old"), "content").unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    fs::remove_dir_all(mnt.join("letters")).unwrap();
    fs::create_dir(folder.join("beside")).unwrap();
    let run = |path: &str| {
        let mut command = Command::new(GABION);
        folder.run(command.args(["undelete", path]).env("PWD", folder.path()))
    };
    run("beside/../mnt/letters/old").succeeded();
    assert_eq!(fs::read(mnt.join("letters/old")).unwrap(), b"content");
    run("absent/../mnt/letters/old").failed(1, &["absent/..", "No such file"]);
}

#[test]
fn shells_complete_every_command() {
    let folder = Folder::new();
    let help = folder.gabion(&["--help"]).succeeded();
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: Vec<_> =
        commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"mount") && commands.contains(&"completions"), "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = folder.gabion(&["completions", shell]).succeeded();
        for command in &commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
        assert!(script.contains("passphrase-file"), "{shell}");
        assert!(!script.contains("with-parent"), "{shell}: it is in no help, either");
    }
    folder.gabion(&["completions", "cmd"]).failed(2, &["bash", "zsh", "fish"]);
    let complete = "source <(\"$0\" completions bash); COMP_WORDS=(gabion volume re); \
        COMP_CWORD=2; _gabion gabion re volume; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let outcome = folder.run(Command::new("bash").args(["-c", complete, GABION]));
    let offered = outcome.succeeded();
    let offered: Vec<_> = offered.lines().collect();
    assert!(offered.contains(&"resync") && !offered.contains(&"create"), "{offered:?}");
}
