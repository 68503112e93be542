//! What a thread puts off while it has more of the same kind to do.
//!
//! A thread that has several requests at hand, or several answers, hands each of them on. Where
//! that costs a system call or wakes somebody, one for all of them does as well:
//!
//! ```text
//!   Batch::begin    put_off(socket), put_off(other), put_off(socket)    end of the batch
//!                   nothing yet                                         socket, other: once each
//! ```
//!
//! Outside of a batch nothing is put off. Whoever waits for somebody else in the middle of one must
//! [`settle`] before, as the other one may wait for what was put off; a
//! [`Ticket`](crate::disk::Ticket) does so by itself.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

/// Something that can be put off, and need not be done twice.
pub trait Work: Send + Sync {
    /// Does all that there is to do by now.
    fn run(&self);
}

#[derive(Default)]
struct Put {
    batches: usize,
    works: Vec<Arc<dyn Work>>,
}

thread_local! {
    static PUT: RefCell<Put> = RefCell::default();
}

/// A batch of this thread. Ends when it is dropped; within another one it changes nothing.
pub struct Batch(PhantomData<*const ()>);

impl Batch {
    /// Begins a batch.
    pub fn begin() -> Self {
        PUT.with_borrow_mut(|put| put.batches += 1);
        Self(PhantomData)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let is_last = PUT.with_borrow_mut(|put| {
            put.batches -= 1;
            put.batches == 0
        });
        if is_last {
            settle();
        }
    }
}

/// Has `work` done at the end of this thread's batch, or now if it is in none.
pub fn put_off(work: Arc<dyn Work>) {
    let now = PUT.with_borrow_mut(|put| {
        if put.batches == 0 {
            return Some(work);
        }
        if !put.works.iter().any(|other| Arc::ptr_eq(other, &work)) {
            put.works.push(work);
        }
        None
    });
    if let Some(work) = now {
        work.run();
    }
}

/// Does what this thread has put off.
pub fn settle() {
    loop {
        let works = PUT.with_borrow_mut(|put| std::mem::take(&mut put.works));
        if works.is_empty() {
            return;
        }
        works.iter().for_each(|work| work.run());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::disk::Ticket;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Work for Counted {
        fn run(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_batch_does_once_at_its_end_what_was_put_off_in_it() {
        let works = [0, 1].map(|_| Arc::new(Counted::default()));
        let counts = || works.each_ref().map(|work| work.0.load(Ordering::Relaxed));
        let put = |index: usize| put_off(Arc::clone(&works[index]) as Arc<dyn Work>);
        put(0);
        assert_eq!(counts(), [1, 0], "there is no batch");
        let outer = Batch::begin();
        put(0);
        let inner = Batch::begin();
        put(1);
        put(0);
        drop(inner);
        assert_eq!(counts(), [1, 0]);
        settle();
        assert_eq!(counts(), [2, 1]);
        put(1);
        drop(outer);
        assert_eq!(counts(), [2, 2]);
        put(1);
        assert_eq!(counts(), [2, 3]);
    }

    #[test]
    fn who_waits_for_a_ticket_has_put_nothing_off() {
        struct Completes(crate::sync::Mutex<Option<crate::disk::Completion>>);
        impl Work for Completes {
            fn run(&self) {
                if let Some(completion) = self.0.lock().take() {
                    completion.complete(Ok(None));
                }
            }
        }
        let (ticket, completion) = Ticket::pair();
        let _batch = Batch::begin();
        put_off(Arc::new(Completes(crate::sync::Mutex::new(Some(completion)))));
        ticket.wait().unwrap();
    }
}
