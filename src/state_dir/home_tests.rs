use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::*;

#[test]
fn a_file_that_was_removed_or_replaced_is_not_the_one_of_its_name() {
    let place = tempfile::tempdir().expect("a directory can be made");
    let home = Home::open(place.path()).expect("it can be opened");
    let file = home.lock("x").expect("it can be locked").expect("nobody has it");
    assert_eq!(home.is_at(&file, "x"), Ok(true));
    rustix::fs::unlinkat(&home.dir, "x", AtFlags::empty()).expect("it can be removed");
    assert_eq!(home.is_at(&file, "x"), Ok(false));
    let other = home.lock("x").expect("it can be locked").expect("nobody has the new one");
    assert_eq!((home.is_at(&file, "x"), home.is_at(&other, "x")), (Ok(false), Ok(true)));
}

#[test]
fn a_lock_ends_even_while_a_child_shares_its_file() {
    let place = tempfile::tempdir().expect("a directory can be made");
    let home = Home::open(place.path()).expect("it can be opened");
    let lock = home.lock("x").expect("it can be locked").expect("nobody has it");
    // What a fork does.
    let shared = lock.0.try_clone().expect("it can be shared");
    drop(lock);
    assert!(home.lock("x").expect("it can be locked").is_some());
    drop(shared);
}

/// The file of a lock is removed with it, so one that is opened before and locked after
/// keeps nobody out. Many threads at it: at no time have two of them the lock.
#[test]
fn two_never_have_the_lock_of_an_entry() {
    let place = tempfile::tempdir().expect("a directory can be made");
    let home = Home::open(place.path()).expect("it can be opened");
    let (holders, taken) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while taken.load(Ordering::SeqCst) < 50_000 {
                    let Ok(lock) = home.lock_entry(EntryId(1)) else { continue };
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two have the lock");
                    taken.fetch_add(1, Ordering::SeqCst);
                    holders.fetch_sub(1, Ordering::SeqCst);
                    drop(lock);
                }
            });
        }
    });
}
