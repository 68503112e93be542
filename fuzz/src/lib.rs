//! Whatever bytes stand on a disk or come from a peer, decoding them gives a value or a reason.
//!
//! Each target is a function over bytes that decodes one structure and, if that succeeds, asserts
//! what must follow: that it can be read through, and that encoding it gives the same again. Where
//! a checksum stands before everything else, the target puts it right first: it keeps nobody out.
//!
//! The targets are run in two ways:
//!
//! - in the tests of `gabion-map`, `gabion-fs`, `gabion-nbd`, `gabion-block`, `gabion-link` and
//!   `gabion-backup`, over seeded random and damaged inputs ([`inputs`]), in a moment;
//! - by libFuzzer, for as long as one likes: `cargo +nightly fuzz run node`, in this folder's
//!   parent. This crate stands outside of the workspace for its sake.

#![forbid(unsafe_code)]

pub mod backup;
pub mod block;
pub mod fs;
pub mod inputs;
pub mod link;
pub mod map;
pub mod nbd;
#[path = "../../crates/link/tests/it/samples.rs"]
mod samples;
