//! Backups at another machine that serves a filesystem.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::killed::{kill_when, program};
use super::snapshots;
use super::trees::{assert_same, noise, survey};
use crate::shared::Shared;
use crate::world::{Folder, names, rest};

/// A server with a folder for backups, and the mount `local` of another filesystem.
fn prepared() -> Option<(Shared, String)> {
    let shared = Shared::new()?;
    let at = shared.mount("a");
    fs::create_dir_all(at.join("shelf/home")).unwrap();
    let folder = &shared.folder;
    folder.gabion(&["mkfs", "--size", "256M", "local.img"]).succeeded();
    fs::create_dir(folder.join("local")).unwrap();
    folder.gabion(&["mount", "-o", "writethrough", "local.img", "local"]).succeeded();
    let place = format!("{}shelf/home", shared.uri);
    Some((shared, place))
}

fn rows(folder: &Folder, from: &str) -> Vec<Value> {
    let text = folder.gabion(&["backups", "--json", from]).succeeded();
    serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
}

#[test]
fn a_server_keeps_a_chain_of_backups_as_a_folder_would() {
    let Some((shared, place)) = prepared() else { return };
    let folder = &shared.folder;
    let local = folder.join("local");
    fs::write(local.join("large"), noise(1, 5 << 20)).unwrap();
    fs::create_dir(local.join("dir")).unwrap();
    let first = survey(&local);
    folder.gabion(&["backup", "local", &place]).succeeded();
    fs::rename(local.join("dir"), local.join("moved")).unwrap();
    File::options().write(true).open(local.join("large")).unwrap().write_all_at(b"x", 7).unwrap();
    folder.gabion(&["backup", "--incremental", "local", &place]).succeeded();
    let second = survey(&local);
    let rows = rows(folder, &place);
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["complete"] == true), "{rows:?}");
    folder.gabion(&["verify", &place]).succeeded();
    for (row, wanted) in rows.iter().zip([&first, &second]) {
        let by_name = row["path"].as_str().unwrap();
        folder.gabion(&["restore", "--to-directory", by_name, "tree"]).succeeded();
        assert_same(wanted, &folder.join("tree"));
        fs::remove_dir_all(folder.join("tree")).unwrap();
    }
    // They are files there, which a mount of it sees.
    let there = folder.join("a/shelf/home");
    assert_eq!(names(&there).len(), 2);
    folder.gabion(&["verify", "a/shelf/home"]).succeeded();
    // Damage is told with its place.
    let name = rows[0]["path"].as_str().unwrap().rsplit('/').next().unwrap();
    let file = File::options().write(true).open(there.join(name)).unwrap();
    file.write_all_at(&[0; 8], 2 << 20).unwrap();
    drop(file);
    folder.gabion(&["verify", &place]).failed(4, &[name, "damaged at byte"]);
    let missing = format!("{}not/there", shared.uri);
    folder.gabion(&["backups", &missing]).failed(1, &["cannot use", "not/there"]);
    folder.gabion(&["backups", "gabion://127.0.0.1:9/"]).failed(1, &["cannot be reached"]);
    folder.gabion(&["umount", "local"]).succeeded();
    shared.finish(&["a"]);
}

/// Starts a backup that is slow, and kills it when its file is so long.
fn kill_at(folder: &Folder, arguments: &[&str], there: &Path, length: u64) {
    let longest = || {
        let files = fs::read_dir(there).unwrap();
        files.map(|file| file.unwrap().metadata().map_or(0, |it| it.len())).max().unwrap_or(0)
    };
    kill_when(&mut program(folder, arguments), || longest() >= length);
}

#[test]
fn a_backup_to_a_server_that_was_killed_goes_on_where_it_was() {
    let Some((shared, place)) = prepared() else { return };
    let folder = &shared.folder;
    let local = folder.join("local");
    fs::write(local.join("large"), noise(2, 40 << 20)).unwrap();
    let wanted = survey(&local);
    let slow = ["backup", "--rate", "16M", "local", &place];
    let there = folder.join("a/shelf/home");
    kill_at(folder, &slow, &there, 20 << 20);
    let row = &rows(folder, &place)[0];
    assert_eq!(row["complete"], false);
    assert!(row["path"].as_str().unwrap().ends_with(".gabion.partial"), "{row}");
    // The server gives its lock back when the session of who was killed has ended.
    let begun = Instant::now();
    let text = loop {
        let again = folder.gabion(&["backup", "local", &place]);
        if again.status.success() {
            break again.stdout;
        }
        assert!(begun.elapsed() < Duration::from_secs(100), "{again:?}");
        again.failed(1, &["another backup is writing to"]);
        rest();
    };
    assert!(text.contains("went on saving"), "{text}");
    folder.gabion(&["restore", "--to-directory", &place, "tree"]).succeeded();
    assert_same(&wanted, &folder.join("tree"));
    assert_eq!(snapshots(folder, "local").len(), 1);
    folder.gabion(&["umount", "local"]).succeeded();
    shared.finish(&["a"]);
}
