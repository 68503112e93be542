//! How the kernel shall treat a mount.

use std::fs;
use std::time::Duration;

use gabion_fuse::mount::Source;
use gabion_fuse::{Features, InitReply, KernelOffer, PAYLOAD_MAX};

use super::{Coherence, Locking, WritePolicy};

/// What the kernel caches does not get untrue without its being told.
pub(super) const FOREVER: Duration = Duration::MAX;

/// Asynchronous requests in flight at most: readahead and writeback, of up to 1 MiB each.
const BACKGROUND_MAX: u64 = 64;
/// The same with little memory.
const BACKGROUND_MIN: u64 = 4;
/// The same where others change the filesystem. READs may wait for them there, and must not keep
/// those WRITEs of mapped pages back that others wait for. Only READs are many, which are small;
/// and there is room for all of them behind handlers that wait.
const BACKGROUND_SHARED: u16 = 768;
/// How far the kernel reads ahead, in KiB: two requests of the largest size, so that the disk has
/// always one while the other is being answered.
const READ_AHEAD_KIB: u32 = 2048;

/// What is taken of the kernel's offer.
pub(super) fn init_reply(
    offer: &KernelOffer,
    coherence: Coherence,
    writes: WritePolicy,
    locking: Locking,
    memory: u64,
) -> InitReply {
    let mut features = Features::ASYNC_READ
        | Features::ASYNC_DIO
        | Features::PARALLEL_DIROPS
        | Features::DO_READDIRPLUS
        | Features::READDIRPLUS_AUTO
        | Features::CACHE_SYMLINKS
        | Features::HANDLE_KILLPRIV_V2
        | Features::POSIX_ACL
        | Features::DONT_MASK
        | Features::EXPORT_SUPPORT
        | Features::NO_OPENDIR_SUPPORT
        | Features::ABORT_ERROR;
    match coherence {
        // Its own writes move the time of modification, and are no reason to drop pages.
        Coherence::Alone => features |= Features::EXPLICIT_INVAL_DATA,
        // So that it looks at a file's length before it reads what it has kept: others cut files.
        Coherence::Shared => {
            features |= Features::AUTO_INVAL_DATA | Features::DIRECT_IO_ALLOW_MMAP;
        }
    }
    match locking {
        Locking::Kernel => features |= Features::NO_OPEN_SUPPORT,
        Locking::Filesystem => features |= Features::POSIX_LOCKS | Features::FLOCK_LOCKS,
    }
    if writes == WritePolicy::Back {
        features |= Features::WRITEBACK_CACHE;
    }
    let background = (memory / 2 / PAYLOAD_MAX as u64).clamp(BACKGROUND_MIN, BACKGROUND_MAX) as u16;
    let background_max = match coherence {
        Coherence::Alone => background,
        Coherence::Shared => BACKGROUND_SHARED,
    };
    InitReply {
        features,
        max_readahead: offer.max_readahead,
        max_background: background_max,
        // From here on the kernel holds writeback back.
        congestion_threshold: background / 4 * 3,
        max_write: PAYLOAD_MAX as u32,
        time_gran: 1,
        request_timeout_s: 0,
    }
}

/// Lifts limits that the kernel puts on filesystems it does not trust, as far as we may. It is no
/// failure if we may not: everything works, only slower.
pub(super) fn lift_limits((major, minor): (u32, u32), source: &Source, coherence: Coherence) {
    let suffix = match source {
        Source::BlockDevice { .. } => "-fuseblk",
        Source::Name(_) => "",
    };
    let settings = [
        ("read_ahead_kb", READ_AHEAD_KIB),
        // A share of the memory for dirty pages, in percent, instead of a fixed hundredth.
        ("strict_limit", 0),
        ("max_ratio", 100),
    ];
    let settings = match coherence {
        Coherence::Alone => &settings[..],
        // Others wait while mapped pages are handed over: those with changes stay few.
        Coherence::Shared => &settings[..1],
    };
    for (name, value) in settings {
        let path = format!("/sys/class/bdi/{major}:{minor}{suffix}/{name}");
        // Not ours to set for ordinary users and on older kernels.
        let _ = fs::write(path, value.to_string());
    }
}
