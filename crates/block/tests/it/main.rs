//! The machine that keeps copies equal, with disks in memory and a time that is told.

mod decoders;
mod foreground;
mod golden;
mod resync;
mod rig;
mod trust;
