//! Which of the filesystems that are served on this machine a command is about, and asking it.
//!
//! Whoever serves one filesystem need not say which. And what a mount on the same machine shows has
//! a path that everybody knows, whatever its server calls it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::clients;
use crate::cmd::status::{PATIENCE, User};
use crate::control::client::Connection;
use crate::control::folder;
use crate::control::wire::{Reply, Request, Status};
use crate::failure::{Exit, Failure, Result};
use crate::mounts;
use crate::print;
use crate::remote::RemoteTarget;
use crate::volumes::Place;

/// A filesystem that is served on this machine by this user.
pub struct Server {
    name: String,
    socket: PathBuf,
}

impl Server {
    /// The one that `target` names, or the only one if it does not name any.
    pub fn of(target: Option<&Path>) -> Result<Self> {
        match target {
            Some(target) => {
                let place = Place::of(target)?;
                let name = place.name();
                let socket = clients::served_socket(&place);
                let failed = |error| Failure::of(format!("cannot look at {name}"), &error);
                Ok(Self { socket: socket.map_err(failed)?, name })
            }
            None => Self::only(),
        }
    }

    /// The one that `target` names, and the path of an object in it. Or `target` is a path in a
    /// mount of it.
    pub fn and_path(target: Option<&Path>, path: Option<&str>) -> Result<(Self, Option<String>)> {
        let is_served = |text| Place::of(text).ok().and_then(|it| clients::socket_if_served(&it));
        if let (Some(text), None) = (target, path)
            && is_served(text).is_none()
            && let Some(found) = Self::behind(text)?
        {
            return Ok(found);
        }
        Ok((Self::of(target)?, path.map(str::to_owned)))
    }

    /// The one that a mount here has that `text` is in; nothing if it is in none, or in one of an
    /// image.
    fn behind(text: &Path) -> Result<Option<(Self, Option<String>)>> {
        let Ok(real) = text.canonicalize() else { return Ok(None) };
        let (folder, name) = match (real.is_dir(), real.parent(), real.file_name()) {
            (false, Some(folder), Some(name)) => (folder, Path::new(name)),
            _ => (real.as_path(), Path::new("")),
        };
        let Some((mount, within)) = mounts::containing(folder)? else { return Ok(None) };
        let user = User::Mount(mount);
        let status = status(|| user.connect()).map_err(|error| user.unreachable(&error))?;
        let Some(remote) = RemoteTarget::of(Path::new(&status.target)) else { return Ok(None) };
        let path = Path::new(remote?.path()).join(within).join(name);
        let served = Self::all()?.into_iter().find(|(_, served)| served.uuid == status.uuid);
        match served {
            Some((server, _)) => {
                let path = path.display().to_string();
                Ok(Some((server, Some(format!("/{}", path.trim_matches('/'))))))
            }
            None => {
                let (text, target) = (print::path(text), print::printable(&status.target));
                Err(Failure::new(format!("{text} is of {target}, which is not served here"))
                    .next("Ask where gabion serve runs, as the user who runs it."))
            }
        }
    }

    fn only() -> Result<Self> {
        let mut all = Self::all()?;
        let names: Vec<_> = all.iter().map(|(server, _)| print::printable(&server.name)).collect();
        match (all.pop(), all.is_empty()) {
            (Some((server, _)), true) => Ok(server),
            (None, _) => {
                Err(Failure::new("nothing is served on this machine by this user".to_owned())
                    .next("To serve a filesystem: gabion serve TARGET"))
            }
            (Some(_), false) => {
                let text = format!("several filesystems are served here: {}", names.join(", "));
                Err(Failure::new(text).next("Say which is meant.").exit(Exit::Usage))
            }
        }
    }

    /// All that answer, and what they say of themselves.
    fn all() -> Result<Vec<(Self, Status)>> {
        let sockets = || -> io::Result<Vec<PathBuf>> {
            let entries = fs::read_dir(folder::own()?)?;
            let entries: io::Result<Vec<_>> =
                entries.map(|entry| entry.map(|entry| entry.path())).collect();
            let mut sockets = entries?;
            sockets.retain(|path| clients::is_served_socket(path));
            sockets.sort();
            Ok(sockets)
        };
        let sockets =
            sockets().map_err(|error| Failure::of("cannot see what is served here", &error))?;
        let asked = sockets.into_iter().filter_map(|socket| {
            // What is left of one that was killed does not answer.
            let status = status(|| Connection::at(&socket)).ok()?;
            Some((Self { name: status.target.clone(), socket }, status))
        });
        Ok(asked.collect())
    }

    /// Asks it.
    pub fn ask(&self, request: Request) -> Result<Reply> {
        let name = &self.name;
        let ask = || -> io::Result<Reply> {
            let mut connection = Connection::at(&self.socket)?;
            connection.ask(request, PATIENCE)?;
            connection.reply()
        };
        match ask() {
            Ok(Reply::Error { message }) => Err(Failure::new(message)),
            Ok(reply) => Ok(reply),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Err(Failure::new(format!("{name} is not served on this machine by this user"))
                    .next(format!("To serve it: gabion serve {name}")))
            }
            Err(error) => Err(Failure::of(format!("cannot talk to the server of {name}"), &error)),
        }
    }
}

fn status(connect: impl FnOnce() -> io::Result<Connection>) -> io::Result<Status> {
    let mut connection = connect()?;
    connection.ask(Request::Status, PATIENCE)?;
    match connection.reply()? {
        Reply::Status(status) => Ok(*status),
        other => Err(io::Error::other(format!("the daemon answered {other:?}"))),
    }
}
