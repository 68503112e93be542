//! Private files, in folders that only their user can look into.
//!
//! A file is written beside its place, made durable, and put there: whoever reads it finds the old
//! one or the new one, also after a crash.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The longest list that is read back, in bytes.
const LIST_BYTES_MAX: u64 = 4 << 20;

/// Makes a folder that only its user can look into, if it is missing.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Writes a file that only its user can read.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
    };
    write_beside(path, content).map_err(named)
}

fn write_beside(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder_of(path)
}

/// Where something is made that is to be at `path`.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

/// Makes durable what was put into the folder of `path`, or taken out of it.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// The lines of a list; none if there is no such file.
pub fn read_lines(path: &Path) -> io::Result<Vec<String>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(metadata) if metadata.len() > LIST_BYTES_MAX => {
            return Err(io::Error::other(format!("{} is too long", path.display())));
        }
        Ok(_) => {}
    }
    Ok(fs::read_to_string(path)?.lines().map(str::to_owned).collect())
}

/// Writes a list, a line for each of its elements.
pub fn write_lines(path: &Path, lines: impl Iterator<Item = String>) -> io::Result<()> {
    let text: String = lines.map(|line| line + "\n").collect();
    write(path, text.as_bytes())
}
