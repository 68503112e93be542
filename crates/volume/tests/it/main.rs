//! Volumes on real files and real targets.

mod growth;
mod mirrors;
mod nested;
mod telling;
mod tenure;
mod world;
