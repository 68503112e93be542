//! How much memory this process uses, as the kernel counts it.

use std::{fs, io};

/// Bytes of this process that are in memory now, shared pages included.
pub fn resident_bytes() -> io::Result<u64> {
    // SAFETY: takes no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.map(|pages| pages * page).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/self/statm says {statm:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_memory_is_counted() {
        let before = resident_bytes().unwrap();
        let touched = vec![1_u8; 64 << 20];
        let after = resident_bytes().unwrap();
        assert!(after > before + (32 << 20), "{before} to {after} with {}", touched.len());
    }
}
