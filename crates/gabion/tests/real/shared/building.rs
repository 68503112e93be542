//! `make` on several mounts: it trusts modification times, and nothing else.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::cluster::{Cluster, Place};
use crate::numbers::Numbers;
use crate::program::{program, run};
use crate::site::is_long;

/// What depends on what, directly.
const RULES: &[(&str, &[&str])] = &[
    ("main.o", &["main.c", "first.h", "second.h"]),
    ("first.o", &["first.c", "first.h"]),
    ("second.o", &["second.c", "second.h"]),
    ("third.o", &["third.c"]),
    ("program", &["main.o", "first.o", "second.o", "third.o"]),
];
const SOURCES: &[(&str, &str)] = &[
    ("first.h", "int first(void);\n"),
    ("second.h", "int second(void);\n"),
    ("first.c", "#include \"first.h\"\nint first(void) { return 1; }\n"),
    ("second.c", "#include \"second.h\"\nint second(void) { return 20; }\n"),
    ("third.c", "int third(void) { return 300; }\n"),
    (
        "main.c",
        "#include <stdio.h>\n#include \"first.h\"\n#include \"second.h\"\nint third(void);\n\
         int main(void) { printf(\"%d\\n\", first() + second() + third()); return 0; }\n",
    ),
];

fn plant(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for (name, text) in SOURCES {
        fs::write(folder.join(name), text).unwrap();
    }
    let mut makefile = "program:\n\tcc -o $@ $^\n\t@echo built $@\n\
                        %.o: %.c\n\tcc -c -o $@ $<\n\t@echo built $@\n"
        .to_owned();
    for (target, needs) in RULES {
        makefile += &format!("{target}: {}\n", needs.join(" "));
    }
    fs::write(folder.join("Makefile"), makefile).unwrap();
}

/// Runs make, and gives what it built.
fn make(folder: &Path) -> BTreeSet<String> {
    let mut make = program("make", "make");
    let said = run(make.args(["-j2", "-C"]).arg(folder).args(["-f", "Makefile", "program"]));
    let built = said.lines().filter_map(|line| line.strip_prefix("built "));
    built.map(str::to_owned).collect()
}

/// What has to be built again if this file changes.
fn affected(source: &str) -> BTreeSet<String> {
    let mut affected = BTreeSet::new();
    for (target, needs) in RULES {
        if needs.iter().any(|need| *need == source || affected.contains(*need)) {
            affected.insert((*target).to_owned());
        }
    }
    affected
}

fn edit(path: &Path, round: usize) {
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    writeln!(file, "/* {round} */").unwrap();
}

/// The modification time of everything in a folder, to the nanosecond.
fn times(folder: &Path) -> Vec<(String, i64, i64)> {
    let mut times: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let found = fs::metadata(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), found.mtime(), found.mtime_nsec())
        })
        .collect();
    times.sort();
    times
}

#[test]
fn make_builds_at_one_mount_what_was_edited_at_another_and_nothing_else() {
    let rounds = if is_long() { 200 } else { 8 };
    let cluster = Cluster::new("make", Place::Network, 4);
    let folder = |machine: usize| cluster.path(machine, "project");
    plant(&folder(0));
    let everything: BTreeSet<_> = RULES.iter().map(|(target, _)| (*target).to_owned()).collect();
    assert_eq!(make(&folder(1)), everything);
    let mut numbers = Numbers(1);
    for round in 0..rounds {
        let nothing = BTreeSet::new();
        (0..4).for_each(|machine| assert_eq!(make(&folder(machine)), nothing, "mount {machine}"));
        let (source, _) = numbers.of(SOURCES);
        let editor = numbers.below(4) as usize;
        let builder = (editor + 1 + numbers.below(3) as usize) % 4;
        edit(&folder(editor).join(source), round);
        let built = make(&folder(builder));
        assert_eq!(built, affected(source), "{source}, edited at {editor}, made at {builder}");
        let wanted = times(&folder(builder));
        for machine in 0..4 {
            assert_eq!(times(&folder(machine)), wanted, "mount {machine}");
            let said = run(&mut program(folder(machine).join("program").to_str().unwrap(), "make"));
            assert_eq!(said, "321\n");
        }
    }
    cluster.finish();
}
