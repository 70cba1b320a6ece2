//! Entries that are made durable together: each new file is synced by itself, then all
//! take their names, then the directory is synced once.

use std::collections::BTreeMap;
use std::thread;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::StateDirError;
use super::home::{Home, Version, entry_file, temporary_file};
use super::load::Seen;
use super::thread::Done;
use crate::ledger::EntryId;

/// Changes that wait; of one entry only the last counts, and answers for all.
#[derive(Default)]
pub struct Batch {
    changes: BTreeMap<EntryId, Change>,
}

#[derive(Default)]
struct Change {
    /// The new content.
    text: Vec<u8>,
    waiting: Vec<Done<()>>,
}

impl Batch {
    /// Adds the new content of an entry's file.
    pub fn add(&mut self, id: EntryId, text: Vec<u8>, waiting: Option<Done<()>>) {
        let change = self.changes.entry(id).or_default();
        change.text = text;
        change.waiting.extend(waiting);
    }

    /// Makes all changes and answers all who wait; returns the first failure.
    pub fn commit(self, home: &Home, seen: &mut Seen) -> Result<(), StateDirError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let mut outcomes: Vec<Result<(), StateDirError>> = if home.is_in_place() {
            let written = write_all(home, &self.changes);
            let named = self.changes.keys().zip(written).map(|(id, written)| {
                let version = written?;
                put_in_place(home, *id)?;
                seen.insert(*id, version);
                Ok(())
            });
            named.collect()
        } else {
            vec![Err(StateDirError::Replaced(home.path.clone())); self.changes.len()]
        };
        if outcomes.iter().any(Result::is_ok)
            && let Err(errno) = rustix::fs::fsync(&home.dir)
        {
            let step = "written, but perhaps not for good: syncing the state directory";
            let error = StateDirError::Io { step, path: home.path.clone(), errno };
            outcomes.iter_mut().filter(|outcome| outcome.is_ok()).for_each(|outcome| *outcome = Err(error.clone()));
        }
        let all = outcomes.iter().find(|outcome| outcome.is_err()).cloned().unwrap_or(Ok(()));
        for (change, outcome) in self.changes.into_values().zip(outcomes) {
            for done in change.waiting {
                // Nobody may wait any more.
                let _ = done.send(outcome.clone());
            }
        }
        all
    }
}

/// Threads that write at the same time: a sync mostly waits for the disk. 500 entries took
/// 230 ms with one on a virtual disk, 100 ms with 8 and more.
const WRITERS: usize = 8;

/// Writes the new files under their temporary names.
fn write_all(home: &Home, changes: &BTreeMap<EntryId, Change>) -> Vec<Result<Version, StateDirError>> {
    let changes: Vec<_> = changes.iter().collect();
    let write = |changes: &[(&EntryId, &Change)]| -> Vec<_> {
        let one = |(id, change): &(&EntryId, &Change)| {
            home.write_new(&temporary_file(**id), &change.text).map_err(failed("writing", home, **id))
        };
        changes.iter().map(one).collect()
    };
    let share = changes.len().div_ceil(WRITERS);
    if share == 1 {
        // So few that threads would gain nothing.
        return write(&changes);
    }
    thread::scope(|scope| {
        let shares: Vec<_> = changes
            .chunks(share)
            .map(|share| (share, thread::Builder::new().name("ledger".to_owned()).spawn_scoped(scope, || write(share))))
            .collect();
        let outcomes = shares.into_iter().map(|(share, writer)| match writer {
            Ok(writer) => writer.join().expect("writing a file does not panic"),
            // No thread to be had: then here.
            Err(_) => write(share),
        });
        outcomes.flatten().collect()
    })
}

fn put_in_place(home: &Home, id: EntryId) -> Result<(), StateDirError> {
    let (temporary, name) = (temporary_file(id), entry_file(id));
    rustix::fs::renameat(&home.dir, &temporary, &home.dir, &name).map_err(|errno| {
        // What can't be removed now is a leftover for the next start.
        let _ = rustix::fs::unlinkat(&home.dir, &temporary, AtFlags::empty());
        failed("putting in place", home, id)(errno)
    })
}

fn failed(step: &'static str, home: &Home, id: EntryId) -> impl Fn(Errno) -> StateDirError {
    let path = home.path.join(entry_file(id));
    move |errno| StateDirError::Io { step, path: path.clone(), errno }
}
