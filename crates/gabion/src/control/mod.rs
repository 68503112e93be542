//! How commands talk to the daemon of a mount: a Unix socket and lines of JSON.
//!
//! ```text
//! command                                   daemon
//!    | connect  /run/gabion/7-0.sock          |     7:0 is the mount's device number
//!    | {"request":"status"}  -------------->  |
//!    |  <--------------------  {"status":{..}}|
//!    | {"request":"scrub"}   -------------->  |
//!    |  <-------  {"progress":{..}} ... {"report":{..}} or {"error":{"message":".."}}
//!    | {"request":"grow","to_bytes":null} ->  |
//!    |  <---------------------  {"grown":{..}}|
//!    | {"request":"snapshots","action":..}->  |
//!    |  <-----  {"snapshots":{..}} or {"differences":{..}} ...
//!    | {"request":"audit"}   -------------->  |
//!    |  <-----------------  {"allocation":{..}}
//!    | {"request":"await-end"} ------------>  |     answered when the daemon ends
//!    |  <-----------------  {"ended":{"problem":null}}
//!
//! command                                   `gabion serve`
//!    | connect  /run/gabion/served-9-2a.sock  |     see `crate::clients`
//!    | {"request":"clients"} -------------->  |
//!    |  <-------------------  {"clients":{..}}|
//!    | {"request":"leases"}  -------------->  |
//!    |  <--------------------  {"leases":{..}}|
//!    | {"request":"evict","client":"ab.."} -> |
//!    |  <-------------------  {"evicted":{..}}|
//!    | {"request":"invite","seconds":3600,..} |
//!    |  <-------------------  {"invited":{..}}|
//!    | status, scrub, grow, as above           |
//! ```
//!
//! - One connection takes requests one after the other. A line that makes no sense is answered by
//!   an error and ends it.
//! - The device number names a mount in every mount namespace, for as long as it lives. A socket
//!   that is left over from a killed daemon refuses connections and is replaced.
//! - Only the owner of the mount and root can connect. Root's sockets are in `/run/gabion`, other
//!   users' in their `$XDG_RUNTIME_DIR/gabion`.
//! - Every reader bounds the length of a line and the time it waits for one.

pub mod client;
pub mod folder;
mod quotas;
pub mod server;
mod snapshots;
pub mod wire;
