//! Passphrases and key files.

use std::fs;
use std::path::Path;

use gabion_backup::Secret;
use gabion_backup::seal::KEY_FILE_MIN;

use crate::args::backup::Secrets;
use crate::failure::{Failure, Result};

/// The longest key file, in bytes.
const KEY_FILE_MAX: u64 = 1 << 20;

/// The secret that the command line names, if it names one.
pub fn of(secrets: &Secrets) -> Result<Option<Secret>> {
    if let Some(path) = &secrets.passphrase_file {
        let text = read(path)?;
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        if line.is_empty() {
            return Err(Failure::new(format!("the first line of {} is empty", path.display()))
                .next("Write a passphrase into it, in one line."));
        }
        return Ok(Some(Secret::Passphrase(line.to_vec())));
    }
    let Some(path) = &secrets.key_file else { return Ok(None) };
    let bytes = read(path)?;
    if bytes.len() < KEY_FILE_MIN {
        let name = path.display();
        return Err(Failure::new(format!("{name} has fewer than {KEY_FILE_MIN} bytes"))
            .next(format!("To make one: head -c 32 /dev/urandom > {name}")));
    }
    Ok(Some(Secret::KeyFile(bytes)))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Failure::of(format!("cannot read {}", path.display()), &error);
    if fs::metadata(path).map_err(failed)?.len() > KEY_FILE_MAX {
        return Err(Failure::new(format!("{} is too long to be a key", path.display())));
    }
    fs::read(path).map_err(failed)
}
