//! Volumes on real files and real targets.

mod mirrors;
mod world;
