//! Where the program keeps what must survive it and the machine's restart: records of volumes,
//! the log of events. Sockets and the daemons' log are elsewhere, see the module `control`.
//!
//! 1. `$GABION_STATE` if it is set, for tests and for machines with places of their own.
//! 2. `/var/lib/gabion` for root.
//! 3. `$XDG_STATE_HOME/gabion`, or else `~/.local/state/gabion`, for everybody else.
//!
//! The folder is made if it is missing. It must be one that only this user writes to: whoever can
//! change a volume's record can make old copies pass for new ones.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The folder for durable state, made if it is missing; an absolute path.
pub fn state() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let folder = chosen(uid, |name| std::env::var_os(name))?;
    make(&folder, uid)?;
    Ok(folder)
}

fn chosen(uid: u32, variable: impl Fn(&str) -> Option<OsString>) -> io::Result<PathBuf> {
    let variable = |name| variable(name).filter(|value: &OsString| value != OsStr::new(""));
    if let Some(folder) = variable("GABION_STATE") {
        // A daemon leaves the folder that it was started in.
        return std::path::absolute(folder);
    }
    if uid == 0 {
        return Ok(PathBuf::from("/var/lib/gabion"));
    }
    // A relative path is to be ignored, says who defined the variable.
    let absolute = |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    if let Some(folder) = variable("XDG_STATE_HOME").and_then(absolute) {
        return Ok(folder.join("gabion"));
    }
    let home = variable("HOME").and_then(absolute).ok_or_else(|| {
        io::Error::other("no place for state: none of GABION_STATE, XDG_STATE_HOME, HOME is set")
    })?;
    Ok(home.join(".local/state/gabion"))
}

/// Makes a folder that only this user writes to, if it is missing.
pub fn own(folder: &Path) -> io::Result<()> {
    make(folder, rustix::process::geteuid().as_raw())
}

fn make(folder: &Path, uid: u32) -> io::Result<()> {
    let cannot = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot make {}: {error}", folder.display()))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(cannot)?;
    let metadata = fs::symlink_metadata(folder)?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        let text = format!("{} is not a folder that only its user writes to", folder.display());
        return Err(io::Error::other(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn choose(uid: u32, variables: &[(&str, &str)]) -> Option<String> {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        chosen(uid, find).ok().map(|path| path.display().to_string())
    }

    #[test]
    fn the_variable_goes_before_root_and_root_before_the_home() {
        let all = [("GABION_STATE", "/a"), ("XDG_STATE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(choose(0, &all).as_deref(), Some("/a"));
        assert_eq!(choose(0, &all[1..]).as_deref(), Some("/var/lib/gabion"));
        assert_eq!(choose(7, &all[1..]).as_deref(), Some("/b/gabion"));
        assert_eq!(choose(7, &all[2..]).as_deref(), Some("/c/.local/state/gabion"));
        assert_eq!(choose(7, &[]), None);
        let odd = [("GABION_STATE", ""), ("XDG_STATE_HOME", "relative"), ("HOME", "/c")];
        assert_eq!(choose(7, &odd).as_deref(), Some("/c/.local/state/gabion"));
    }

    #[test]
    fn a_folder_that_others_write_to_is_refused() {
        let uid = rustix::process::geteuid().as_raw();
        let top = std::env::temp_dir().join(format!("gabion-places-{}", std::process::id()));
        let folder = top.join("state");
        let made = make(&folder, uid).and_then(|()| make(&folder, uid));
        let mode = fs::metadata(&folder).map(|metadata| metadata.mode() & 0o777);
        let opened = fs::set_permissions(&folder, fs::Permissions::from_mode(0o777));
        let refused = make(&folder, uid);
        fs::remove_dir_all(&top).unwrap();
        made.unwrap();
        opened.unwrap();
        assert_eq!(mode.unwrap(), 0o700);
        assert!(refused.unwrap_err().to_string().contains("only its user writes to"));
    }
}
