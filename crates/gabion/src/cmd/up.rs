//! `gabion up`: from nothing to a mounted filesystem, and back with Ctrl-C.

use std::fs;
use std::io;
use std::path::Path;

use super::mkfs;
use super::mount;
use crate::args;
use crate::failure::{Failure, Result};
use crate::frugality;
use crate::options::Settings;
use crate::print;

/// The image's name in its folder.
const IMAGE: &str = "gabion.img";

/// Runs the command.
pub fn run(args: &args::Up) -> Result<()> {
    frugality::restart();
    let image = args.data.join(IMAGE);
    let is_new = !image.exists();
    if is_new {
        make_folder(&args.data)?;
        mkfs::make_image(&image, args.size)?;
    }
    // A dead mount at the mountpoint is there, but cannot be looked at.
    let is_mounted = crate::mounts::at(&args.mountpoint)?.is_some();
    if !is_mounted {
        make_folder(&args.mountpoint)?;
    }
    let plan = mount::plan(&image, &args.mountpoint, Settings::new(mount::users()))?;
    let (image, mountpoint) = (image.display(), args.mountpoint.display());
    mount::in_foreground(plan, || {
        let made = match is_new {
            true => {
                format!("Made a filesystem in {image}: sparse, it can grow to {}.\n", args.size)
            }
            false => String::new(),
        };
        print::line(format!(
            "{made}\
             Mounted {image} at {mountpoint}. Ctrl-C unmounts it.\n\
             \n\
             Try in another terminal:\n    \
             cp -r /usr/include {mountpoint}/ && sync\n    \
             gabion status {mountpoint}\n    \
             gabion scrub {mountpoint}"
        ))
    })?;
    print::line(format!(
        "Unmounted {mountpoint}. All of it is in {image}; `gabion up` brings it back."
    ))
}

fn make_folder(folder: &Path) -> Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|error| {
            Failure::of(format!("cannot make the folder {}", folder.display()), &error)
        }),
    }
}
