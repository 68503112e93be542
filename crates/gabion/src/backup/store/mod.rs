//! Where streams are kept, side by side with what else is there.
//!
//! ```text
//!   folder   files of this machine: NAME.partial, renamed to NAME when it is whole
//!   served   the same, of a filesystem that another machine serves
//!   s3       objects: NAME/00000000, NAME/00000001, ..., and NAME/whole when they are all there
//! ```
//!
//! A [`Shelf`] is read from, a [`Store`] is written to, too. A stream has a name there, and what
//! people call it is its path, which commands understand. Whoever opens one need not know how it
//! is kept: it has a length, and bytes at offsets.

mod folder;
#[cfg(feature = "s3")]
mod s3;
mod served;
mod window;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;

use gabion_backup::{ReadAt, StreamId};

pub use self::folder::Folder;
use self::served::Served;
use crate::failure::{Failure, Result};
use crate::remote::RemoteTarget;

/// What the name of a stream ends with that a store has chosen.
pub const EXTENSION: &str = ".gabion";

/// What the name of a stream in a folder ends with that is not complete.
pub const PARTIAL: &str = ".partial";

/// A place that streams are read from.
pub trait Shelf {
    /// What people call it.
    fn name(&self) -> String;

    /// What people call the stream `name` in it.
    fn path(&self, name: &OsStr) -> String;

    /// The names of all that may be streams, complete or not.
    fn names(&self) -> Result<Vec<OsString>>;

    /// Opens what is there by this name.
    fn open(&self, name: &OsStr) -> Result<Opened>;
}

/// The bytes of a stream, which several threads may read.
pub type Bytes = Box<dyn ReadAt + Send + Sync>;

/// What was opened.
pub struct Opened {
    /// Its bytes.
    pub bytes: Bytes,
    /// Whether the store takes it for finished, whatever its bytes say.
    pub is_finished: bool,
}

/// A place that streams are written to.
pub trait Store: Shelf {
    /// What tells the place from all others, and stays the same.
    fn identity(&self) -> Vec<u8>;

    /// The names of streams that are not finished: all of them, or that of the one that will be
    /// called `name`.
    fn partials(&self, name: Option<&OsStr>) -> Result<Vec<OsString>>;

    /// Begins the stream `name`. Nobody else has begun it, and nobody may while it is written.
    fn begin(&self, name: &OsStr, stream: StreamId) -> Result<Box<dyn Upload>>;

    /// Opens a stream that is not finished to go on with it, if nobody else is writing to it.
    fn take_up(&self, partial: &OsStr) -> Result<Box<dyn Unfinished>>;

    /// Removes a stream that is not finished.
    fn remove(&self, partial: &OsStr) -> Result<()>;
}

/// A stream on its way. A flush says that it is good up to there: what was written by then may be
/// sent, and is there for who goes on with it.
pub trait Upload: Write {
    /// Makes it durable, and gives it the name of one that is whole. Tells its path.
    fn finish(self: Box<Self>) -> Result<String>;
}

/// A stream that is not finished.
pub trait Unfinished {
    /// What there is of it.
    fn bytes(&self) -> &dyn ReadAt;

    /// Goes on behind its first `length` bytes; the others are given up.
    fn go_on(self: Box<Self>, length: u64) -> Result<Box<dyn Upload>>;
}

/// What `text` means as a place that is read from, and which of the streams there, if it means one.
pub fn shelf(text: &Path) -> Result<(Box<dyn Shelf>, Option<OsString>)> {
    if let Some((store, name)) = elsewhere(text)? {
        return Ok((store, name));
    }
    Folder::of_existing(text).map(|(folder, name)| (Box::new(folder) as Box<dyn Shelf>, name))
}

/// What `text` means as a place that is written to, and the name of the stream, if it says one.
pub fn store(text: &Path) -> Result<(Box<dyn Store>, Option<OsString>)> {
    if let Some(found) = elsewhere(text)? {
        return Ok(found);
    }
    Folder::of_new(text).map(|(folder, name)| (Box::new(folder) as Box<dyn Store>, name))
}

/// A place, and which stream there.
type Meant = (Box<dyn Store>, Option<OsString>);

/// A place that is not a folder of this machine.
fn elsewhere(text: &Path) -> Result<Option<Meant>> {
    let Some(url) = text.to_str().filter(|text| text.contains("://")) else { return Ok(None) };
    #[cfg(feature = "s3")]
    if let Some(rest) = url.strip_prefix(s3::SCHEME) {
        let (bucket, name) = s3::Bucket::of(rest)?;
        return Ok(Some((Box::new(bucket), name)));
    }
    if let Some(target) = RemoteTarget::of(text) {
        let (served, name) = Served::of(&target?)?;
        return Ok(Some((Box::new(served), name)));
    }
    Err(Failure::new(format!("{url} is no place that is known"))
        .next("Send it to a program that stores it: gabion backup PATH - | ..."))
}
