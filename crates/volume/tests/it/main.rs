//! Volumes on real files and real targets.

mod mirrors;
mod telling;
mod world;
