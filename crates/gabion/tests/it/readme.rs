//! The README is true: its commands work, and print what it shows.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::world::{Folder, GABION};

/// Where the README's user works.
const HOME: &str = "/home/mira";

/// A command and what it prints.
struct Example {
    command: String,
    output: String,
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap()
}

fn examples(text: &str) -> Vec<Example> {
    let block = text.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let examples = block.split("$ ").skip(1).map(|example| {
        let (command, output) = example.split_once('\n').unwrap();
        Example { command: command.to_owned(), output: output.to_owned() }
    });
    examples.collect()
}

/// The text without what differs each time: numbers, units, identities and padding.
fn shape(text: &str) -> String {
    let words = text.lines().map(|line| {
        let words = line.split_whitespace().map(|word| {
            let is_number = word.contains(|letter: char| letter.is_ascii_digit())
                && !word.contains('/')
                && word != "sync(2)";
            let bare = word.trim_matches(|letter| "(),".contains(letter));
            let units = ["B", "KiB", "MiB", "GiB", "TiB", "KiB/s", "MiB/s", "GiB/s"];
            if is_number || units.contains(&bare) { "#" } else { word }
        });
        words.collect::<Vec<_>>().join(" ")
    });
    words.collect::<Vec<_>>().join("\n")
}

/// Paths as the README shows them.
fn at_home(text: &str, folder: &Folder) -> String {
    let text = text.replace(folder.path().to_str().unwrap(), HOME);
    // Whether there was a first request already is a matter of time.
    let text = text.replace("nothing submitted yet", "io_uring");
    let words = text.split_inclusive(char::is_whitespace).map(|word| match word {
        word if word.starts_with("/dev/loop") => "/dev/loop0; ",
        word => word,
    });
    words.collect()
}

#[test]
fn the_readme_shows_what_its_commands_print() {
    let examples = examples(&readme());
    assert!(examples.len() >= 5, "{} commands", examples.len());
    let Some(folder) = Folder::for_mounts() else { return };
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", Path::new(GABION).parent().unwrap().display());
    for Example { command, output } in examples {
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]).env("PATH", &path);
        let printed = folder.run(&mut shell).succeeded();
        assert_eq!(shape(&at_home(&printed, &folder)), shape(&output), "{command}: {printed}");
    }
}

#[test]
fn the_readme_starts_the_program_and_the_tests() {
    let text = readme();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    assert!(text.contains("\n    cargo run --release -- up\n    scripts/test\n"));
    for program in ["scripts/test", ".ci/run"] {
        let metadata = fs::metadata(root.join(program)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
        assert_eq!(mode & 0o111, 0o111, "{program} can be run");
    }
}
