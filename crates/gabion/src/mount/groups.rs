//! The supplementary groups of a process that waits for an answer: the kernel's protocol does not
//! tell them, and a server that checks permissions needs them.
//!
//! A process that has ended meanwhile, or that is out of sight, has none.

use std::fs;

/// The groups of a process or thread.
pub(super) fn of_process(process: u32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    parse(&status).unwrap_or_default()
}

fn parse(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"))?;
    line.split_whitespace().map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_a_process_are_read() {
        let status = "Name:\tx\nUid:\t1\t1\t1\t1\nGroups:\t4 24 1000 \nNStgid:\t1\n";
        assert_eq!(parse(status), Some(vec![4, 24, 1000]));
        assert_eq!(parse("Groups:\t \n"), Some(vec![]));
        assert_eq!(parse("Name:\tx\n"), None);
        let mut own: Vec<u32> =
            rustix::process::getgroups().unwrap().into_iter().map(|group| group.as_raw()).collect();
        own.sort_unstable();
        let mut found = of_process(std::process::id());
        found.sort_unstable();
        assert_eq!(found, own);
        assert_eq!(of_process(0), [0; 0]);
    }
}
