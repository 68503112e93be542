//! The rules of files, run on a map in memory.
//!
//! Every operation is run with the locks it asked for missing at first, so each of these tests
//! also shows that operations can be run again from their start. At the end of a test the whole
//! map is checked: counts of links and entries, parents, orphans, nothing left over.

mod acls;
mod attributes;
mod bytes;
mod collisions;
mod decoders;
mod directories;
mod invariants;
mod links;
mod listing;
mod local;
mod locks;
mod memory_map;
mod names;
mod orphans;
mod permissions;
mod random;
mod renames;
mod world;
mod xattrs;
