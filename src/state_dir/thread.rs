//! The one thread that works on the files: takes what waits, makes a batch of it.

use std::sync::mpsc::Receiver;

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
    Save { id: EntryId, text: Vec<u8>, done: Done<()> },
    RewriteAll { entries: Vec<(EntryId, Vec<u8>)>, done: Done<()> },
    Changed { done: Done<Vec<Entry>> },
    Read { done: Done<Ledger> },
    ReadClasses { done: Done<Option<Vec<u8>>> },
    SaveClasses { text: Vec<u8>, done: Done<()> },
    LockEntry { id: EntryId, done: Done<EntryLock> },
    Close { done: Done<()> },
}

/// Serves requests in their order until the last sender is gone or one says close.
pub fn serve(mut home: Home, mut seen: Seen, requests: &Receiver<Request>) {
    while let Ok(first) = requests.recv() {
        let mut batch = Batch::default();
        for request in std::iter::once(first).chain(requests.try_iter()) {
            if let Request::Save { id, text, done } = request {
                batch.add(id, text, Some(done));
                continue;
            }
            // Those who asked for the batch are each told.
            let _ = std::mem::take(&mut batch).commit(&home, &mut seen);
            match request {
                Request::Save { .. } => unreachable!("it is in the batch"),
                // An answer that nobody waits for any more takes its lock along.
                Request::LockEntry { id, done } => drop(done.send(home.lock_entry(id))),
                Request::Changed { done } => drop(done.send(load::changed(&home, &mut seen))),
                Request::Read { done } => drop(done.send(load::load(&home).map(|(ledger, _)| ledger))),
                Request::ReadClasses { done } => drop(done.send(classes::read(&home))),
                Request::SaveClasses { text, done } => drop(done.send(classes::save(&home, &text))),
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
        let _ = batch.commit(&home, &mut seen);
    }
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
        batch.add(id, text, None);
    }
    batch.commit(home, seen)
}
