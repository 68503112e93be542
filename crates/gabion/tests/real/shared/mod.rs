//! One filesystem that a server keeps and several machines mount. The tests state what must hold on
//! all mounts, whatever is kept where.
//!
//! ```text
//! alternating  random operations, each at any mount: files against a model, names against ext4
//! building     make at one mount after an edit at another
//! excluding    locks of all kinds
//! writing      appends, git, SQLite, fsx, at all mounts at once
//! dying        kill -9 of the server and of a mount in the midst of work
//! cutting      links that are cut for longer and for shorter than a session
//! mapping      stores into mapped files, as links are cut and mounts are killed
//! ```

mod alternating;
mod building;
mod cluster;
mod cutting;
mod dying;
mod excluding;
mod mapping;
mod writing;
