//! House rules that a compiler does not check, over all files of the repository.
//!
//! Sizes are a habit, not a rule: the largest files are printed (`--nocapture`), and people decide.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which crates a crate may use, floor by floor. Upward there is no arrow, and the real world and
/// the simulated one never meet.
const FLOORS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("backup", &["base"]),
    ("block", &["base"]),
    ("map", &["base"]),
    ("fs", &["base", "map"]),
    ("link", &["base", "map", "fs"]),
    ("host", &["base"]),
    ("fuse", &[]),
    ("node", &["base", "block", "map", "fs", "link"]),
    ("tls", &["base"]),
    ("nbd", &["base", "tls"]),
    ("coordinator", &["base", "block", "tls"]),
    ("volume", &["base", "block", "host", "nbd"]),
    ("sim", &["base", "block", "map", "fs", "link", "node", "coordinator", "volume"]),
    (
        "gabion",
        &[
            "base",
            "backup",
            "block",
            "map",
            "fs",
            "link",
            "host",
            "fuse",
            "tls",
            "nbd",
            "coordinator",
            "volume",
            "node",
        ],
    ),
    ("bench", &["base", "block", "map", "fs", "host", "fuse", "nbd", "volume", "node"]),
];
/// Crates that may contain `unsafe`.
const UNSAFE: &[&str] = &["host", "fuse"];
/// The longest line of source, in characters.
const LINE_MAX: usize = 100;
/// The largest file that may be kept, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What every manual page consists of.
const PAGE_HEADINGS: &[&str] =
    &["## Synopsis", "## Description", "## Options", "## Examples", "## Failures", "## Files"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// All files of the repository that are no build products, with paths from its root.
fn files() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let kept = !name.starts_with('.') || name == ".ci" || name == ".config";
            let built = ["target", "gabion-data", "corpus", "artifacts"];
            if !kept || built.contains(&&*name) || name.starts_with("gabion-mnt") {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.path());
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    walk(&root, &mut found);
    found.iter().map(|path| path.strip_prefix(&root).unwrap().to_owned()).collect()
}

fn with_extension(extension: &str) -> Vec<(PathBuf, String)> {
    let has = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    let root = root();
    let texts = files().into_iter().filter(has).map(|path| {
        let text = fs::read_to_string(root.join(&path)).unwrap();
        (path, text)
    });
    texts.collect()
}

/// Fails with all complaints at once.
#[track_caller]
fn nothing_to_complain(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The crates that a manifest names under `[dependencies]`.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.split("\n[dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let names = section.lines().filter_map(|line| line.strip_prefix("gabion-"));
    let end = |name: &str| name.find(['.', ' ', '=']).unwrap_or(name.len());
    names.map(|name| name[..end(name)].to_owned()).collect()
}

#[test]
fn crates_use_only_the_floors_below_them() {
    let floors: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    let mut complaints = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(allowed) = floors.get(name) else {
            complaints.push(format!("crates/{name} stands on no floor; see FLOORS"));
            continue;
        };
        let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap();
        for used in dependencies(&manifest) {
            if !allowed.contains(&used.as_str()) {
                complaints.push(format!("crates/{name} must not use crates/{used}"));
            }
        }
    }
    nothing_to_complain(complaints);
}

#[test]
fn only_the_real_world_is_unsafe() {
    let mut complaints = Vec::new();
    for (name, _) in FLOORS.iter().filter(|(name, _)| !UNSAFE.contains(name)) {
        let folder = Path::new("crates").join(name).join("src");
        let roots: Vec<_> = ["lib.rs", "main.rs"].map(|file| folder.join(file)).into();
        let roots = roots.iter().filter_map(|file| fs::read_to_string(root().join(file)).ok());
        let word = concat!("unsafe", " {");
        let has_code = with_extension("rs")
            .iter()
            .any(|(path, text)| path.starts_with(&folder) && text.contains(word));
        // The smallest crates need no attribute to be seen through.
        if has_code || !roots.into_iter().any(|text| text.contains("forbid(unsafe_code)")) {
            complaints.push(format!("crates/{name} does not forbid unsafe code"));
        }
    }
    nothing_to_complain(complaints);
}

#[test]
fn every_module_says_what_it_is() {
    let complaints = with_extension("rs").into_iter().filter_map(|(path, text)| {
        // Tests of one module that have outgrown its file are said by the module.
        let is_part = path.file_name().is_some_and(|name| name == "tests.rs");
        let is_module = path.components().any(|part| part.as_os_str() == "src") && !is_part;
        let says = text.starts_with("//!");
        (is_module && !says).then(|| format!("{} has no head", path.display()))
    });
    nothing_to_complain(complaints.collect());
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file is no example of them.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
    ];
    let mut complaints = Vec::new();
    for extension in ["rs", "md", "toml", "sh"] {
        for (path, text) in with_extension(extension) {
            for (number, line) in text.lines().enumerate() {
                for word in words.iter().filter(|word| line.contains(*word)) {
                    complaints.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        }
    }
    nothing_to_complain(complaints);
}

#[test]
fn lines_are_short_and_files_are_small() {
    let mut complaints = Vec::new();
    let sources = with_extension("rs");
    for (path, text) in &sources {
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > LINE_MAX {
                complaints.push(format!("{}:{}: too long", path.display(), number + 1));
            }
        }
    }
    for path in files() {
        if fs::metadata(root().join(&path)).unwrap().len() > FILE_BYTES_MAX {
            complaints.push(format!("{} is too large", path.display()));
        }
    }
    let mut sizes: Vec<_> =
        sources.iter().map(|(path, text)| (text.lines().count(), path.display())).collect();
    sizes.sort_by_key(|(lines, _)| std::cmp::Reverse(*lines));
    for (lines, path) in sizes.iter().take(5) {
        println!("{lines:5} {path}");
    }
    nothing_to_complain(complaints);
}

/// The text between backticks in a document, without its blocks of code.
fn quoted(text: &str) -> Vec<&str> {
    let outside = text.split("```").step_by(2);
    outside.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

/// The lines of a document that are commands: `$ ...` in blocks of code, and quoted ones.
fn commands(text: &str) -> Vec<&str> {
    let blocks = text.split("```").skip(1).step_by(2).flat_map(str::lines);
    let shown = blocks.filter_map(|line| line.strip_prefix("$ "));
    shown.chain(quoted(text)).flat_map(|line| line.split("&&")).map(str::trim).collect()
}

#[test]
fn documents_mention_only_files_that_are_there() {
    let root = root();
    let mut complaints = Vec::new();
    for (path, text) in with_extension("md") {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let link = link.split('#').next().unwrap();
            if !root.join(path.parent().unwrap()).join(link).exists() {
                complaints.push(format!("{}: no file {link}", path.display()));
            }
        }
        for word in quoted(&text) {
            let starts = ["crates/", "docs/", "scripts/", ".ci/"];
            let is_path = starts.iter().any(|start| word.starts_with(start));
            if is_path && !word.contains(' ') && !root.join(word).exists() {
                complaints.push(format!("{}: no file {word}", path.display()));
            }
        }
    }
    nothing_to_complain(complaints);
}

/// The subcommands that the program itself lists.
fn subcommands() -> BTreeSet<String> {
    let help = Command::new(env!("CARGO_BIN_EXE_gabion")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn documents_mention_only_commands_that_are_there() {
    let known = subcommands();
    assert!(known.contains("mount") && known.contains("scrub"), "{known:?}");
    let mut complaints = Vec::new();
    for (path, text) in with_extension("md") {
        for command in commands(&text) {
            let mut words = command.split_whitespace();
            let (Some("gabion"), Some(name)) = (words.next(), words.next()) else { continue };
            if name.chars().all(|letter| letter.is_ascii_lowercase()) && !known.contains(name) {
                complaints.push(format!("{}: no command: {command}", path.display()));
            }
        }
    }
    nothing_to_complain(complaints);
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let mut complaints = Vec::new();
    for name in subcommands().iter().filter(|name| *name != "help") {
        let path = format!("docs/man/gabion-{name}.md");
        let page = fs::read_to_string(root().join(&path)).unwrap_or_default();
        let headings: Vec<_> = page.lines().filter(|line| line.starts_with("## ")).collect();
        if headings != PAGE_HEADINGS {
            complaints.push(format!("{path} has the headings {headings:?}"));
        }
        let help = Command::new(env!("CARGO_BIN_EXE_gabion")).args([name, "--help"]).output();
        let help = String::from_utf8(help.unwrap().stdout).unwrap();
        for option in help.split_whitespace().filter(|word| word.starts_with("--")) {
            let option = option.trim_matches(|letter: char| !letter.is_ascii_alphabetic());
            if !page.contains(&format!("`--{option}")) && option != "help" {
                complaints.push(format!("{path} does not explain --{option}"));
            }
        }
    }
    nothing_to_complain(complaints);
}

#[test]
fn every_promise_names_tests_that_are_there() {
    let sources = with_extension("rs");
    let is_there = |name: &str| {
        let start = format!("fn {name}(");
        sources.iter().any(|(_, text)| text.contains(&start))
    };
    let text = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let mut complaints = Vec::new();
    let mut promises = 0;
    for section in text.split("\n### ").skip(1) {
        let title = section.lines().next().unwrap();
        let shown = section.split("Shown by").nth(1).unwrap_or_default();
        let names: Vec<_> = shown.split('`').skip(1).step_by(2).collect();
        promises += 1;
        if names.is_empty() {
            complaints.push(format!("{title}: no test"));
        }
        for name in names.iter().filter(|name| !is_there(name)) {
            complaints.push(format!("{title}: no test {name}"));
        }
    }
    assert!(promises > 10, "{promises} promises were found");
    nothing_to_complain(complaints);
}
