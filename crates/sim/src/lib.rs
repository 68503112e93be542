//! sim

#![forbid(unsafe_code)]
pub mod crash;
pub mod disk;
pub mod faults;
pub mod image;
