//! The table of failures in `docs/volumes.md`.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_failure_in_the_table_names_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("docs/volumes.md")).unwrap();
    let section = text.split("\n## What fails").nth(1).expect("the table of failures");
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 15, "{} rows", rows.len());
    let mut all = Vec::new();
    sources(&root.join("crates"), &mut all);
    let mut complaints = Vec::new();
    for row in rows {
        let name = row.rsplit('`').nth(1).unwrap_or_default();
        let test = format!("#[test]\nfn {name}(");
        if !all.iter().any(|source| source.contains(&test)) {
            complaints.push(format!("no test that is there: {row}"));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}
