//! The subcommands, one module each: they ask, call and print, and have no rules of their own.

pub mod backup;
pub mod backups;
pub mod clients;
pub mod completions;
mod consent;
pub mod events;
pub mod evict;
pub mod grow;
pub mod inspect;
pub mod invite;
pub mod join;
pub mod leases;
pub mod locks;
pub mod mkfs;
pub mod mount;

pub mod quota;
pub mod restore;
pub mod scrub;
pub mod serve;
pub mod snapshot;
pub mod status;
pub mod subvolume;
pub mod target;
pub mod umount;
pub mod undelete;
pub mod up;
pub mod verify;
pub mod volume;
