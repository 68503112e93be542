//! The bytes of a stream, all of them little-endian. `docs/backup.md` describes them for people.
//!
//! ```text
//!   header | segment 0 | segment 1 | ... | INDEX segments | END segment | tail
//! ```
//!
//! - [`header`]: whose backup it is, and how it is encrypted;
//! - [`segment`]: the frame around each part, with its checksum;
//! - [`record`]: what is said in RECORDS segments;
//! - [`index`]: where each segment is, and where that is told;
//! - [`parts`]: a stream as several objects, and what says that they are all.

pub mod header;
pub mod index;
pub mod parts;
pub mod record;
pub mod segment;
