//! Volumes on real files and real targets.

mod growth;
mod mirrors;
mod telling;
mod world;
