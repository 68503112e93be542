//! Backups: everything, and then what is changed of one hundredth of it; beside restic, if it is
//! there, which looks at all files to find out.
//!
//! What is saved is a mount of Gabion: once with a tree of files, of which a half packs, and a
//! large one as of a database (`mixed`); once with very many small files (`many`); and once with
//! one file (`large`). Between the two backups each hundredth file is written anew, and each
//! hundredth page of the large one. Both programs encrypt and pack, and write to the same disk;
//! before each measurement the filesystem is mounted again, so that nothing is cached. What it
//! takes one program to read all files, one after the other, is measured, too.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use gabion_base::rng::Rng;

use crate::args::{self, Size};
use crate::systems::{Gabion, Scratch, System, run as run_to_end};
use crate::table::Table;
use crate::workloads::tree;

/// Files in one directory.
const PER_DIRECTORY: u64 = 100;
/// A page of the large file, in bytes.
const PAGE: u64 = 8192;
/// Of so many files and pages one is changed.
const CHANGED: u64 = 100;

/// What is saved.
struct Case {
    name: &'static str,
    files: u64,
    /// The longest of them, in bytes.
    longest: u64,
    /// Length of the large one, in MiB.
    large: u64,
    /// Length of the image, in MiB.
    image: u64,
}

fn cases(size: Size) -> [Case; 3] {
    let case = |name, files, longest, large, image| Case { name, files, longest, large, image };
    match size {
        Size::Full => [
            case("mixed", 10_000, 60_000, 512, 2048),
            case("many", 100_000, 4_000, 0, 2048),
            case("large", 0, 0, 2048, 4096),
        ],
        Size::Small => [
            case("mixed", 300, 60_000, 16, 256),
            case("many", 1_000, 4_000, 0, 256),
            case("large", 0, 0, 64, 256),
        ],
    }
}

/// Runs the command.
pub fn run(args: &args::Backup) -> Result<()> {
    let cases = cases(args.size);
    if let Some(name) = args.only.iter().find(|name| cases.iter().all(|case| case.name != **name)) {
        bail!("there is no case {name:?}: mixed, many, large");
    }
    let is_wanted =
        |case: &&Case| args.only.is_empty() || args.only.iter().any(|name| name == case.name);
    cases.iter().filter(is_wanted).try_for_each(|case| run_case(args, case))
}

fn run_case(args: &args::Backup, case: &Case) -> Result<()> {
    let binary = match &args.gabion {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("gabion"),
    };
    let scratch = Scratch::new(&args.dir)?;
    let at = scratch.path();
    fs::create_dir(at.join("gabion"))?;
    // Programs that save leave no trace: or one would find that the other had read all files.
    let options = Some("noatime".to_owned());
    let mut system = Gabion::new(at, case.image, binary.clone(), options)?;
    fill(system.root(), case)?;
    system.sync()?;
    fs::write(at.join("secret"), "a secret for both")?;
    let mut programs = vec![ours(&binary, at, args.plain)?];
    programs.extend(restic(at)?);
    let headings = ["", "everything", "stored", "a hundredth", "stored", "nothing", "restored"];
    let mut table = Table::new(&headings);
    let mut rows: Vec<Vec<String>> =
        programs.iter().map(|program| vec![program.name.to_owned()]).collect();
    system.forget()?;
    let begun = Instant::now();
    tree::read(system.root())?;
    table.row(vec!["(only read)".to_owned(), text(begun.elapsed())]);
    for round in 0..3 {
        if round == 1 {
            touch(system.root(), case)?;
            system.sync()?;
        }
        for (program, row) in programs.iter().zip(&mut rows) {
            system.forget()?;
            let before = length(&program.store)?;
            row.push(text(timed(&mut (program.save)(system.root(), round > 0))?));
            if round < 2 {
                let stored = length(&program.store)? - before;
                row.push(format!("{:.1} MiB", stored as f64 / f64::from(1 << 20)));
            }
        }
    }
    for (program, mut row) in programs.iter().zip(rows) {
        row.push(text(timed(&mut (program.restore)())?));
        table.row(row);
        fs::remove_dir_all(at.join("restored"))?;
    }
    println!("{}: {} files and {} MiB in one", case.name, case.files, case.large);
    print!("{}", table.text());
    Ok(())
}

/// Makes the command that saves a directory: everything, or what has changed.
type Save = Box<dyn Fn(&Path, bool) -> Command>;

/// A program that saves.
struct Program {
    name: &'static str,
    store: PathBuf,
    save: Save,
    restore: Box<dyn Fn() -> Command>,
}

fn ours(binary: &Path, at: &Path, plain: bool) -> Result<Program> {
    let store = at.join("store");
    fs::create_dir(&store)?;
    let (secret, restored) = (at.join("secret"), at.join("restored"));
    let binary = binary.to_owned();
    let command = move |name: &str| {
        let mut command = Command::new(&binary);
        command.arg(name);
        if !plain {
            command.arg("--passphrase-file").arg(&secret);
        }
        command
    };
    let (save, to) = (command.clone(), store.clone());
    let save = move |what: &Path, incremental| {
        let mut command = save("backup");
        if incremental {
            command.arg("--incremental");
        }
        command.arg(what).arg(&to);
        command
    };
    let from = store.clone();
    let restore = move || {
        let mut command = command("restore");
        command.arg("--to-directory").arg(&from).arg(&restored);
        command
    };
    Ok(Program { name: "gabion", store, save: Box::new(save), restore: Box::new(restore) })
}

fn restic(at: &Path) -> Result<Option<Program>> {
    let (store, secret) = (at.join("restic"), at.join("secret"));
    let restored = at.join("restored");
    let repository = store.clone();
    let command = move |arguments: &[&str]| {
        let mut command = Command::new("restic");
        command.args(["-q", "--no-cache", "-r"]).arg(&repository).arg("-p").arg(&secret);
        command.args(arguments);
        command
    };
    if Command::new("restic").arg("version").stdout(Stdio::null()).status().is_err() {
        eprintln!("left out: restic (package restic)");
        return Ok(None);
    }
    if !command(&["init"]).status()?.success() {
        bail!("restic cannot make a repository");
    }
    let save = command.clone();
    let save = move |what: &Path, _| {
        let mut command = save(&["backup"]);
        command.arg(what);
        command
    };
    let restore = move || {
        let mut command = command(&["restore", "latest", "--target"]);
        command.arg(&restored);
        command
    };
    let (save, restore) = (Box::new(save), Box::new(restore));
    Ok(Some(Program { name: "restic", store, save, restore }))
}

/// How long it takes.
fn timed(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    run_to_end(command)?;
    Ok(begun.elapsed())
}

fn text(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Bytes of all files below a directory.
fn length(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { length(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

fn path_of(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{}/{number}", number / PER_DIRECTORY))
}

/// Bytes of which a half packs.
fn bytes(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![b'.'; length];
    rng.fill(&mut bytes[..length / 2]);
    bytes
}

fn fill(root: &Path, case: &Case) -> Result<()> {
    let mut rng = Rng::new(1);
    for number in 0..case.files {
        let path = path_of(root, number);
        if number % PER_DIRECTORY == 0 {
            fs::create_dir(path.parent().expect("it is in a directory"))?;
        }
        let length = 1 + rng.below(case.longest) as usize;
        fs::write(path, bytes(&mut rng, length))?;
    }
    let large = File::create(root.join("large"))?;
    for mebibyte in 0..case.large {
        large.write_all_at(&bytes(&mut rng, 1 << 20), mebibyte << 20)?;
    }
    Ok(())
}

fn touch(root: &Path, case: &Case) -> Result<()> {
    let mut rng = Rng::new(2);
    for number in (0..case.files).step_by(CHANGED as usize) {
        let length = 1 + rng.below(case.longest) as usize;
        fs::write(path_of(root, number), bytes(&mut rng, length))?;
    }
    if case.large == 0 {
        return Ok(());
    }
    let large = File::options().write(true).open(root.join("large"))?;
    let pages = (case.large << 20) / PAGE;
    for _ in 0..pages / CHANGED {
        large.write_all_at(&bytes(&mut rng, PAGE as usize), rng.below(pages) * PAGE)?;
    }
    Ok(())
}
