//! Worlds in which one thread runs at a time stay on one processor.
//!
//! A turn lasts some microseconds. To wake another processor for the next one takes longer than
//! that, and who else runs there is in the way. On one processor a world of many threads needs half
//! of the time, and on a busy machine a fifth. What happens in it is the same, as its seed says who
//! goes on.

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

/// Has this thread, and those that it starts from now on, stay where it is.
pub fn stay_on_one() {
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    // Where that is not allowed all is the same, but slower.
    let _ = sched_setaffinity(None, &here);
}
