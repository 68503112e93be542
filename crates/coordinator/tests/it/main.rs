//! Coordinators as they are used: by several at once, killed, cut off and damaged.
//!
//! A real etcd is needed (Debian: etcd-server).

mod conformance;
mod embedded;
mod etcd;
mod etcd_server;
mod folder;
mod relay;
