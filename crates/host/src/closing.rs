//! Closing a file, and hearing what its filesystem says to that.
//!
//! A file that goes is closed, too, but nobody is told whether that worked. Filesystems that
//! collect what is written say at the end that there was no room for it: FUSE without
//! write-through, NFS. Nothing here makes anything durable.

use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd;

/// Closes a file. An error says that bytes of it may not be there which were taken before; the
/// file is closed all the same.
pub fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor was the file's own, which is gone, so nobody closes it again.
    let closed = unsafe { libc::close(file.into_raw_fd()) };
    match closed {
        0 => Ok(()),
        // Not again after a signal, either: on Linux it is closed, and may be somebody else's.
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn what_is_closed_is_gone() {
        let (mut reader, writer) = io::pipe().unwrap();
        close(File::from(OwnedFd::from(writer))).unwrap();
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "the end");
    }
}
