//! The real world, for real: files, loop devices, processes.
//!
//! What needs the right to administer the system is left out without it.

mod background;
mod disk;
mod loop_device;
mod real_formats;
mod temp;
