//! The machine that keeps copies equal, with disks in memory and a time that is told; disks that
//! are made of several; and what volumes keep.

mod decoders;
mod foreground;
mod golden;
mod growth;
mod resync;
mod rig;
mod spread;
mod trust;
