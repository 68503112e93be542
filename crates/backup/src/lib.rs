//! The stream that backups are kept in.
//!
//! ```text
//!   writer   pieces of files, records of what they are   -> segments, index, tail
//!   reader   a stream that is complete: any segment by its number, in any order
//!   forward  streams from a pipe: each segment once, in order
//!   scan     a stream that was cut off: what of it can be kept
//!   tree     the records of a chain of streams, one upon the other: the files of one moment
//! ```
//!
//! A stream holds the objects of a snapshot, or of the difference of two, by their inode numbers:
//! an object is one record whatever its names are, and a name is one record whatever it stands for.
//! So applying a difference is putting newer records in place of older ones, and no order of
//! renamings matters. The bytes of files are apart from the records, in segments of their own, and
//! equal pieces of them are kept once.
//!
//! Promises: what a decoder is given never makes it panic or allocate more than a segment's worth
//! for it; what is wrong is told with the offset in the stream; nothing is given out before its
//! checksum was compared.
//!
//! Absent: files, networks and clocks, and threads but for those that pack. Whoever uses this
//! brings a `Write` or a [`ReadAt`].

#![forbid(unsafe_code)]

pub mod error;
pub mod format;
pub mod forward;
mod packing;
mod pieces;
pub mod reader;
pub mod scan;
pub mod seal;
pub mod tree;
pub mod writer;

pub use error::{Error, Result};
pub use format::header::{Header, StreamId};
pub use format::record::{Attributes, Object, Record, Time};
pub use pieces::{Digest, Hash};
pub use reader::{ReadAt, Stream};
pub use seal::Secret;
pub use tree::Tree;
pub use writer::Writer;
