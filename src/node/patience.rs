//! Asks the kernel what it may never answer: on a thread of its own, and with patience.
//! What has not answered is not asked again before it does, so there is at most one stuck
//! thread for each.

use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long an answer is waited for: a machine so busy that a thread waits seconds for its
/// turn must not look like a server that hangs.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(2);

/// Who is being asked.
static ASKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The answer of the one of that name; `None` when it does not come in time, or has not
/// come in time to an earlier question.
pub fn ask<T: Send + 'static>(name: &str, question: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    // Another thread may be asking just now.
    while !asked().insert(name.to_owned()) {
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL);
    }
    let (sender, answer) = channel();
    let own = name.to_owned();
    let run = move || {
        let answer = question();
        asked().remove(&own);
        // Nobody may be waiting any more.
        let _ = sender.send(answer);
    };
    if thread::Builder::new().name("ask".to_owned()).spawn(run).is_err() {
        asked().remove(name);
        return None;
    }
    answer.recv_timeout(PATIENCE).ok()
}

fn asked() -> MutexGuard<'static, BTreeSet<String>> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_not_asked_again_before_it_does() {
        let (end, ended) = channel::<()>();
        assert_eq!(ask("hung", move || ended.recv().is_ok()), None);
        assert_eq!(ask("hung", || true), None, "it is still being asked");
        assert_eq!(ask("another", || 7), Some(7));
        end.send(()).expect("it is waiting");
        while asked().contains("hung") {
            thread::yield_now();
        }
        assert_eq!(ask("hung", || 8), Some(8));
    }

    #[test]
    fn who_is_being_asked_by_another_thread_is_waited_for() {
        let asking = || (0..20).all(|_| ask("shared", || thread::sleep(Duration::from_millis(1))).is_some());
        thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(asking)).collect();
            assert!(threads.into_iter().all(|thread| thread.join().expect("it does not panic")));
        });
    }
}
