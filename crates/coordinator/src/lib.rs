//! Where the records of volumes are kept.

#![forbid(unsafe_code)]
