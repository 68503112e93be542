//! INIT: what the kernel offers, what the filesystem takes of it.
//!
//! The session adds what its own machinery needs (`INIT_EXT`, `BIG_WRITES`, `MAX_PAGES`,
//! `SETXATTR_EXT`) and removes what was not offered, so a handler may ask for more than there is.
//!
//! Flags that look tempting and are traps for a filesystem others can change: `WRITEBACK_CACHE`
//! makes the kernel ignore the server's size and mtime until the inode is evicted;
//! `AUTO_INVAL_DATA` drops the page cache whenever mtime moves, which every own write does.

use crate::abi;
use crate::bits::flag_set;
use crate::buffer::{PAGE, PAYLOAD_MAX};

flag_set! {
    /// Optional parts of the protocol, negotiated at INIT.
    Features(u64) {
        /// Reads may be sent in parallel and out of order.
        ASYNC_READ = 1 << 0;
        /// fcntl locks are asked of the filesystem.
        POSIX_LOCKS = 1 << 1;
        /// Open with `O_TRUNC` truncates; else a SETATTR follows.
        ATOMIC_O_TRUNC = 1 << 3;
        /// Lookups of `.` and `..` work, as NFS export needs.
        EXPORT_SUPPORT = 1 << 4;
        /// Writes may exceed a page.
        BIG_WRITES = 1 << 5;
        /// The kernel leaves applying umask to the filesystem (default ACLs replace it).
        DONT_MASK = 1 << 6;
        /// flock locks are asked of the filesystem.
        FLOCK_LOCKS = 1 << 10;
        /// Directories take ioctls.
        HAS_IOCTL_DIR = 1 << 11;
        /// Cached pages are dropped when size or mtime changed.
        AUTO_INVAL_DATA = 1 << 12;
        /// READDIRPLUS instead of READDIR.
        DO_READDIRPLUS = 1 << 13;
        /// READDIRPLUS only while its entries are being looked at.
        READDIRPLUS_AUTO = 1 << 14;
        /// Direct I/O is sent asynchronously.
        ASYNC_DIO = 1 << 15;
        /// The kernel collects writes; it then owns size and times.
        WRITEBACK_CACHE = 1 << 16;
        /// ENOSYS to OPEN means: no opens at all.
        NO_OPEN_SUPPORT = 1 << 17;
        /// Lookups and readdirs of one directory may run in parallel.
        PARALLEL_DIROPS = 1 << 18;
        /// The filesystem drops set-id bits on write, chown and truncate, always.
        HANDLE_KILLPRIV = 1 << 19;
        /// ACLs are kept and checked with `default_permissions`.
        POSIX_ACL = 1 << 20;
        /// Reading the device after an abort says ECONNABORTED.
        ABORT_ERROR = 1 << 21;
        /// `max_pages` limits the size of one request.
        MAX_PAGES = 1 << 22;
        /// Targets of symbolic links are cached.
        CACHE_SYMLINKS = 1 << 23;
        /// ENOSYS to OPENDIR means: no opendirs at all.
        NO_OPENDIR_SUPPORT = 1 << 24;
        /// Cached pages are dropped only when the filesystem says so.
        EXPLICIT_INVAL_DATA = 1 << 25;
        /// Entries may be marked as roots of submounts.
        SUBMOUNTS = 1 << 27;
        /// The filesystem drops set-id bits when a request's `kill_suidgid` says so.
        HANDLE_KILLPRIV_V2 = 1 << 28;
        /// SETXATTR has the longer structure.
        SETXATTR_EXT = 1 << 29;
        /// Flags above 31 are in use.
        INIT_EXT = 1 << 30;
        /// Creations carry a security context.
        SECURITY_CTX = 1 << 32;
        /// Creations carry the caller's group that matches the parent's.
        CREATE_SUPP_GROUP = 1 << 34;
        /// Entries can be expired without being dropped.
        HAS_EXPIRE_ONLY = 1 << 35;
        /// Shared mappings work on files opened with DIRECT_IO.
        DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// Reads and writes go straight to another file.
        PASSTHROUGH = 1 << 37;
        /// The mount cannot be exported by NFS.
        NO_EXPORT_SUPPORT = 1 << 38;
        /// Unanswered requests can be asked for again.
        HAS_RESEND = 1 << 39;
        /// Idmapped mounts; needs `default_permissions`.
        ALLOW_IDMAP = 1 << 40;
        /// Requests over io_uring.
        OVER_IO_URING = 1 << 41;
        /// The kernel aborts the connection when a request takes too long.
        REQUEST_TIMEOUT = 1 << 42;
    }
}

impl Features {
    /// What served a coherent network filesystem well: parallel, large requests, explicit
    /// invalidation, locks and set-id bits in the filesystem's hands.
    pub const NETWORK: Self = Self::ASYNC_READ
        .union(Self::POSIX_LOCKS)
        .union(Self::FLOCK_LOCKS)
        .union(Self::ATOMIC_O_TRUNC)
        .union(Self::PARALLEL_DIROPS)
        .union(Self::DO_READDIRPLUS)
        .union(Self::EXPLICIT_INVAL_DATA)
        .union(Self::HANDLE_KILLPRIV_V2)
        .union(Self::HAS_EXPIRE_ONLY)
        .union(Self::HAS_RESEND)
        .union(Self::ABORT_ERROR);

    /// What the session's own decoding and buffers rely on.
    const OWN: Self = Self::BIG_WRITES.union(Self::MAX_PAGES).union(Self::SETXATTR_EXT);

    /// Parts of the protocol that are not implemented and are never taken.
    const ABSENT: Self = Self::SECURITY_CTX.union(Self::PASSTHROUGH).union(Self::OVER_IO_URING);
}

/// What the kernel says of itself.
#[derive(Clone, Copy, Debug)]
pub struct KernelOffer {
    /// The protocol's minor version, the major being 7.
    pub minor: u32,
    /// The most the kernel reads ahead, in bytes.
    pub max_readahead: u32,
    /// Everything it could do.
    pub features: Features,
}

impl KernelOffer {
    pub(crate) fn from_wire(wire: &abi::InitIn) -> Self {
        let mut bits = u64::from(wire.flags);
        if bits & Features::INIT_EXT.bits() != 0 {
            bits |= u64::from(wire.flags2) << 32;
        }
        Self {
            minor: wire.minor,
            max_readahead: wire.max_readahead,
            features: Features::from_bits(bits),
        }
    }
}

/// How the filesystem wants its connection.
#[derive(Clone, Copy, Debug)]
pub struct InitReply {
    /// What it takes of the offer.
    pub features: Features,
    /// The most the kernel shall read ahead, in bytes.
    pub max_readahead: u32,
    /// Asynchronous requests (readahead, writeback) in flight at once.
    pub max_background: u16,
    /// Asynchronous requests in flight from which on the kernel holds back.
    pub congestion_threshold: u16,
    /// The largest WRITE, in bytes, at most [`PAYLOAD_MAX`].
    pub max_write: u32,
    /// Granularity of timestamps, in nanoseconds, 1 to 1,000,000,000.
    pub time_gran: u32,
    /// Seconds after which the kernel aborts the whole connection over one unanswered request;
    /// 0 for never. A last resort, far above the session's own deadline.
    pub request_timeout_s: u16,
}

impl InitReply {
    /// [`Features::NETWORK`] and defaults that suit it.
    pub fn network(offer: &KernelOffer) -> Self {
        Self {
            features: Features::NETWORK,
            max_readahead: offer.max_readahead,
            max_background: 64,
            congestion_threshold: 48,
            max_write: PAYLOAD_MAX as u32,
            time_gran: 1,
            request_timeout_s: 0,
        }
    }

    pub(crate) fn to_wire(self, offer: &KernelOffer) -> abi::InitOut {
        let mut features = self.features.without(Features::ABSENT) | Features::OWN;
        if self.request_timeout_s > 0 {
            features |= Features::REQUEST_TIMEOUT;
        }
        if features.bits() >> 32 != 0 {
            features |= Features::INIT_EXT;
        }
        features = features & offer.features;
        let max_write = self.max_write.clamp(PAGE as u32, PAYLOAD_MAX as u32);
        abi::InitOut {
            major: abi::MAJOR,
            minor: abi::MINOR.min(offer.minor),
            max_readahead: self.max_readahead.min(offer.max_readahead),
            flags: features.bits() as u32,
            max_background: self.max_background,
            congestion_threshold: self.congestion_threshold,
            max_write,
            time_gran: self.time_gran.clamp(1, 1_000_000_000),
            max_pages: max_write.div_ceil(PAGE as u32) as u16,
            flags2: (features.bits() >> 32) as u32,
            request_timeout: self.request_timeout_s,
            ..abi::InitOut::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: KernelOffer =
        KernelOffer { minor: 45, max_readahead: 131_072, features: Features(u64::MAX) };

    #[test]
    fn flags_above_31_travel_in_the_second_word() {
        let wire = abi::InitIn { flags: 1 << 30, flags2: 1 << 7, ..abi::InitIn::default() };
        let offer = KernelOffer::from_wire(&wire);
        assert!(offer.features.contains(Features::HAS_RESEND));
        let wire = abi::InitIn { flags: 0, flags2: 1 << 7, ..abi::InitIn::default() };
        assert!(!KernelOffer::from_wire(&wire).features.contains(Features::HAS_RESEND));

        let out = InitReply::network(&OFFER).to_wire(&OFFER);
        assert_eq!(out.flags2 & (1 << 7), 1 << 7);
        assert_eq!(out.flags & (1 << 30), 1 << 30);
    }

    #[test]
    fn what_was_not_offered_or_is_not_implemented_is_not_taken() {
        let poor = KernelOffer { minor: 36, features: Features::ASYNC_READ, ..OFFER };
        let mut reply = InitReply::network(&poor);
        let out = reply.to_wire(&poor);
        assert_eq!((out.flags, out.flags2, out.minor), (1, 0, 36));
        reply.features |= Features::PASSTHROUGH;
        assert_eq!(reply.to_wire(&OFFER).flags2 & (1 << 5), 0);
    }

    #[test]
    fn a_megabyte_is_256_pages_and_more_is_cut() {
        let reply = InitReply { max_write: u32::MAX, ..InitReply::network(&OFFER) };
        let out = reply.to_wire(&OFFER);
        assert_eq!((out.max_write, out.max_pages), (1 << 20, 256));
    }

    #[test]
    fn sets_print_their_names() {
        let set = Features::ASYNC_READ | Features::from_bits(1 << 60);
        assert_eq!(format!("{set:?}"), "{ASYNC_READ, 0x1000000000000000}");
    }
}
