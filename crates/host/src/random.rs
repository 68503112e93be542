//! Random bytes of the system, for identities and for seeds.

use crate::sys::retried;

/// 16 bytes that nobody can guess.
pub fn bytes() -> [u8; 16] {
    let mut bytes = [0_u8; 16];
    // SAFETY: the pointer and the length describe `bytes`.
    let count = retried(|| unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) });
    match count {
        // Up to 256 bytes come whole once the system's pool is ready, and the call waits for that.
        Ok(count) => assert_eq!(count, 16, "random bytes"),
        Err(error) => panic!("the kernel has no random bytes: {error}"),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_differ_each_time() {
        assert_ne!(bytes(), bytes());
        assert_ne!(bytes(), [0; 16]);
    }
}
