//! What every caller of the C library needs: the error of the last call, and its repetition when
//! a signal interrupted it.

use std::io;

/// A call's result, where a negative one means that `errno` says why.
pub(crate) trait Returned: Copy {
    fn failed(self) -> bool;
}

impl Returned for libc::c_int {
    fn failed(self) -> bool {
        self < 0
    }
}

impl Returned for isize {
    fn failed(self) -> bool {
        self < 0
    }
}

/// The result of one call, made again for as long as signals interrupt it.
pub(crate) fn retried<R: Returned>(mut call: impl FnMut() -> R) -> io::Result<R> {
    loop {
        let result = call();
        if !result.failed() {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

/// An error number as an error.
pub(crate) fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
