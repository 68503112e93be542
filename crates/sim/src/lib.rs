//! sim

#![forbid(unsafe_code)]
pub mod crash;
pub mod disk;
pub mod faults;
pub mod image;
pub mod model;
pub mod op;
pub mod tree;
pub mod workload;
