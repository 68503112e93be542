//! Tests of the map as a whole, one module for each part.

mod beside_commits;
mod decoders;
mod golden;
mod grow;
mod hostile;
mod image;
mod local;
mod prefetching;
mod quotas;
mod scrubbing;
mod snapshot_costs;
mod snapshots;
mod tree;
mod tree_diff;
mod tree_hostile;
mod tree_store;
