//! What one thread puts down and another one takes up.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Condvar, Mutex, now};

/// A queue without a bound: whoever fills it sees to it that there is one.
#[derive(Debug)]
pub struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    filled: Condvar,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { items: Mutex::default(), filled: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Puts something behind all else.
    pub fn put(&self, item: T) {
        self.items.lock().push_back(item);
        self.filled.notify_one();
    }

    /// Waits for the first.
    pub fn take(&self) -> T {
        let mut items = self.items.lock();
        loop {
            if let Some(item) = items.pop_front() {
                return item;
            }
            self.filled.wait(&mut items);
        }
    }

    /// Waits for the first for as long as `patience`.
    pub fn take_within(&self, patience: Duration) -> Option<T> {
        let end = now().saturating_add(patience);
        let mut items = self.items.lock();
        loop {
            if let Some(item) = items.pop_front() {
                return Some(item);
            }
            let left = end.saturating_sub(now());
            if left.is_zero() {
                return None;
            }
            self.filled.wait_for(&mut items, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_put_is_taken_in_its_order_or_waited_for() {
        let queue = Arc::new(Queue::default());
        queue.put(1);
        queue.put(2);
        assert_eq!(queue.take(), 1);
        assert_eq!(queue.take_within(Duration::ZERO), Some(2));
        assert_eq!(queue.take_within(Duration::from_millis(1)), None);
        let filler = Arc::clone(&queue);
        let thread = thread::spawn(move || filler.put(3));
        assert_eq!(queue.take(), 3);
        thread.join().unwrap();
    }
}
