//! The real world under Gabion: disks, devices, clocks, signals, events and the background process.
//!
//! This crate and the FUSE transport are the only places that touch the operating system; the
//! engine above is handed a [`gabion_base::disk::Disk`], a time and random bytes. Nothing here
//! knows what a filesystem is, with one exception: [`signature`] knows what the first bytes of
//! many formats look like, so that nobody's data is overwritten by accident.
//!
//! | module          | what it touches                                                     |
//! |-----------------|---------------------------------------------------------------------|
//! | [`file_disk`]   | an image file or a block device as a `Disk`                         |
//! | [`signature`]   | what is on a device now, and how to take it off                     |
//! | [`loop_device`] | a block device's name for an image file                             |
//! | [`clock`]       | the system's clocks                                                 |
//! | [`closing`]     | the end of a file, and what its filesystem says to that             |
//! | [`random`]      | the system's random bytes                                           |
//! | [`events`]      | the log of events, and telling who follows it                       |
//! | [`daemon`]      | leaving the terminal, and telling it how the start went             |
//! | [`signals`]     | waiting to be asked to stop                                         |
//! | [`memory`]      | how much memory this process has in use                             |

pub mod clock;
pub mod closing;
pub mod daemon;
pub mod events;
pub mod file_disk;
pub mod loop_device;
pub mod memory;
pub mod random;
pub mod signals;
pub mod signature;
mod sys;
