//! Saving filesystems, and making trees of files of what was saved.
//!
//! ```text
//!   gabion backup                                gabion restore
//!     origin   snapshots: made, held, compared     streams  what is there, and which is meant
//!     source   what is in one                      chain    some streams, one upon the other
//!       mounted   as files of a mount              rebuild  the tree, under a name of its own
//!       stored    as items of a map                place    its name, when it is complete
//!       beside    the same, of what is mounted
//!     ahead    source -> objects and bytes, several at a time
//!     abreast  the same with pieces of one object
//!     save     those -> stream
//!     destination   a place, or standard output piped    streams from standard input
//!                        store    places for streams: folders and others
//! ```
//!
//! What a stream is made of is in `gabion-backup`; what a difference is, in `gabion-node`.

pub mod abreast;
pub mod ahead;
pub mod beside;
pub mod chain;
pub mod delta;
pub mod destination;
pub mod dress;
pub mod losses;
pub mod mounted;
pub mod origin;
pub mod piped;
pub mod place;
pub mod progress;
pub mod rebuild;
pub mod save;
pub mod secrets;
pub mod source;
pub mod store;
pub mod stored;
pub mod streams;
