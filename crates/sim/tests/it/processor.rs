//! Worlds in which one thread runs at a time stay on one processor.
//!
//! A turn lasts some microseconds. To wake another processor for the next one takes longer than
//! that, and who else runs there is in the way. On one of two busy processors clusters need 0.2 to
//! 0.6 of the time that they need on both, and nested volumes 0.15. What happens is the same, as
//! the seed says who goes on.

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

/// Has this thread, and those that it starts from now on, stay where it is.
pub fn stay_on_one() {
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    // Where that is not allowed all is the same, but slower.
    let _ = sched_setaffinity(None, &here);
}
