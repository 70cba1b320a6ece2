//! The one thread that works on the files: takes what waits, makes a batch of it.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::StateDirError;
use super::batch::Batch;
use super::classes;
use super::home::{self, EntryLock, Home};
use super::load::{self, Seen};
use crate::ledger::{Entry, EntryId, Ledger};

/// Where an answer goes.
pub type Done<T> = oneshot::Sender<Result<T, StateDirError>>;

/// What the thread can be asked for.
pub enum Request {
    Save { id: EntryId, text: Vec<u8>, at_once: bool, done: Done<()> },
    RewriteAll { entries: Vec<(EntryId, Vec<u8>)>, done: Done<()> },
    Changed { done: Done<Vec<Entry>> },
    Read { done: Done<Ledger> },
    ReadClasses { done: Done<Option<Vec<u8>>> },
    SaveClasses { text: Vec<u8>, done: Done<()> },
    SetClassesAside { done: Done<()> },
    LockEntry { id: EntryId, done: Done<EntryLock> },
    Close { done: Done<()> },
}

/// What need not be durable at once is written when nothing else was asked for so long,
/// and after the longer time in any case.
const LATER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Serves requests in their order until the last sender is gone or one says close. What
/// need not be durable at once is overtaken by what must be, but not of the same entry.
pub fn serve(mut home: Home, mut seen: Seen, requests: &Receiver<Request>) {
    let (mut later, mut latest) = (Batch::default(), None::<Instant>);
    loop {
        let first = match latest.map(|latest| latest.min(Instant::now() + LATER.0)) {
            Some(due) => requests.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => requests.recv().map_err(RecvTimeoutError::from),
        };
        if matches!(first, Err(RecvTimeoutError::Disconnected)) {
            break;
        }
        let is_quiet = first.is_err();
        let mut batch = Batch::default();
        for request in first.into_iter().chain(requests.try_iter()) {
            let request = match request {
                Request::Save { id, text, at_once: true, done } => {
                    // What was to be written later is out of date.
                    batch.add(id, text, later.withdraw(id).into_iter().chain([done]));
                    continue;
                }
                Request::Save { id, text, at_once: false, done } => {
                    later.add(id, text, [done]);
                    latest.get_or_insert_with(|| Instant::now() + LATER.1);
                    continue;
                }
                request => request,
            };
            batch.absorb(std::mem::take(&mut later));
            // Those who asked for the batch are each told.
            let _ = std::mem::take(&mut batch).commit(&home, &mut seen);
            match request {
                Request::Save { .. } => unreachable!("it is in a batch"),
                // An answer that nobody waits for any more takes its lock along.
                Request::LockEntry { id, done } => drop(done.send(home.lock_entry(id))),
                Request::Changed { done } => drop(done.send(load::changed(&home, &mut seen))),
                Request::Read { done } => drop(done.send(load::load(&home).map(|(ledger, _)| ledger))),
                Request::ReadClasses { done } => drop(done.send(classes::read(&home))),
                Request::SaveClasses { text, done } => drop(done.send(classes::save(&home, &text))),
                Request::SetClassesAside { done } => drop(done.send(classes::set_aside(&home))),
                Request::RewriteAll { entries, done } => {
                    drop(done.send(rewrite_all(&mut home, &mut seen, entries)));
                }
                Request::Close { done } => {
                    drop(home);
                    let _ = done.send(Ok(()));
                    return;
                }
            }
        }
        if is_quiet || latest.is_some_and(|latest| latest <= Instant::now()) {
            latest = None;
            batch.absorb(std::mem::take(&mut later));
        }
        let _ = batch.commit(&home, &mut seen);
    }
    let _ = later.commit(&home, &mut seen);
}

fn rewrite_all(home: &mut Home, seen: &mut Seen, entries: Vec<(EntryId, Vec<u8>)>) -> Result<(), StateDirError> {
    if !home.is_in_place() {
        home::create(&home.path)?;
        let mut again = Home::open(&home.path)?;
        if home.is_agents() {
            again.lock_node()?;
        }
        *home = again;
    }
    let mut batch = Batch::default();
    for (id, text) in entries {
        batch.add(id, text, []);
    }
    batch.commit(home, seen)
}
