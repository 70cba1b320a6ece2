//! Work that the threads of one pass share. It is handed over on demand: who has more
//! than it can do at once adds some only while the queue is short, so the queue takes
//! little memory however much there is to do.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Items for some threads. It is over when each item was done, or it was stopped.
pub struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    changed: Condvar,
    /// How many items wait; a hint that takes no lock.
    length: AtomicUsize,
    stopped: AtomicBool,
    enough: usize,
}

struct Waiting<T> {
    items: Vec<T>,
    /// Items that wait or are being worked on.
    unfinished: usize,
}

impl<T> Queue<T> {
    /// With a first item; `enough` items need not be exceeded.
    pub fn new(first: T, enough: usize) -> Self {
        Self {
            waiting: Mutex::new(Waiting { items: vec![first], unfinished: 1 }),
            changed: Condvar::new(),
            length: AtomicUsize::new(1),
            stopped: AtomicBool::new(false),
            enough,
        }
    }

    /// Whether more items are welcome.
    pub fn is_short(&self) -> bool {
        self.length.load(Ordering::Relaxed) < self.enough
    }

    /// Adds an item. Only for who works on one: else all may be over already.
    pub fn push(&self, item: T) {
        let mut waiting = self.lock();
        waiting.items.push(item);
        waiting.unfinished += 1;
        self.length.store(waiting.items.len(), Ordering::Relaxed);
        drop(waiting);
        self.changed.notify_one();
    }

    /// Waits for an item; `None` when it is over.
    pub fn next(&self) -> Option<T> {
        let mut waiting = self.lock();
        loop {
            if self.is_stopped() || waiting.unfinished == 0 {
                return None;
            }
            if let Some(item) = waiting.items.pop() {
                self.length.store(waiting.items.len(), Ordering::Relaxed);
                return Some(item);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The item that `next` gave is done.
    pub fn done(&self) {
        let mut waiting = self.lock();
        waiting.unfinished -= 1;
        if waiting.unfinished == 0 {
            self.changed.notify_all();
        }
    }

    /// Makes it over for all, now.
    pub fn stop(&self) {
        // Under the lock: nobody is between looking and waiting.
        let _waiting = self.lock();
        self.stopped.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Whether somebody stopped it.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the queue when the thread that holds this panics: the others would wait for
/// its item for ever.
pub struct StopOnPanic<'a, T>(pub &'a Queue<T>);

impl<T> Drop for StopOnPanic<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use super::*;

    #[test]
    fn every_item_is_done_once_and_then_all_end() {
        let queue = Queue::new(10_000_u32, 3);
        let sum = AtomicU32::new(0);
        let work = || {
            while let Some(mut item) = queue.next() {
                while item > 0 {
                    let part = item / 2;
                    if part > 0 && queue.is_short() {
                        queue.push(part);
                        item -= part;
                    } else {
                        sum.fetch_add(1, Ordering::Relaxed);
                        item -= 1;
                    }
                }
                queue.done();
            }
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(work);
            }
        });
        assert_eq!(sum.into_inner(), 10_000);
    }

    #[test]
    fn a_panic_of_one_ends_the_wait_of_the_others() {
        let queue = Queue::new((), 1);
        queue.next().expect("the first item");
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            thread::scope(|scope| {
                scope.spawn(|| assert_eq!(queue.next(), None));
                scope.spawn(|| {
                    let _stop = StopOnPanic(&queue);
                    panic!("a defect");
                });
            });
        }));
        assert!(outcome.is_err(), "the panic is passed on");
    }
}
