//! Entries that are made durable together: all new files are written, then each is synced,
//! then all take their names, then the directory is synced once.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::StateDirError;
use super::home::{Home, NewFile, Version, entry_file, temporary_file};
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
    pub fn add(&mut self, id: EntryId, text: Vec<u8>, waiting: impl IntoIterator<Item = Done<()>>) {
        let change = self.changes.entry(id).or_default();
        change.text = text;
        change.waiting.extend(waiting);
    }

    /// Takes the change of an entry out, and returns who waits for it.
    pub fn withdraw(&mut self, id: EntryId) -> Vec<Done<()>> {
        self.changes.remove(&id).map(|change| change.waiting).unwrap_or_default()
    }

    /// Adds all changes of another batch, which are newer.
    pub fn absorb(&mut self, other: Self) {
        for (id, change) in other.changes {
            self.add(id, change.text, change.waiting);
        }
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

/// New files that are open at the same time.
const WAVE: usize = 128;
/// Threads that wait for the disk at the same time, and the least files for each: every
/// file takes a flush of the disk's cache, and the kernel makes one of those of the same time.
const WAITERS: (usize, usize) = (4, 8);

/// Writes the new files under their temporary names.
fn write_all(home: &Home, changes: &BTreeMap<EntryId, Change>) -> Vec<Result<Version, StateDirError>> {
    let changes: Vec<_> = changes.iter().collect();
    changes.chunks(WAVE).flat_map(|wave| write_wave(home, wave)).collect()
}

/// All set out for the disk before one is waited for, so that they arrive together: on
/// ext4, 96 files are three commits of its journal then, and not 96.
fn write_wave(home: &Home, wave: &[(&EntryId, &Change)]) -> Vec<Result<Version, StateDirError>> {
    let write = |(id, change): &(&EntryId, &Change)| (**id, home.write_new(temporary_file(**id), &change.text));
    let files: Vec<_> = wave.iter().map(write).collect();
    let waiters = (files.len() / WAITERS.1).clamp(1, WAITERS.0);
    let (waiting, arrived) = (Mutex::new(files.into_iter()), Mutex::new(Vec::new()));
    let wait = || {
        loop {
            let next = lock(&waiting).next();
            let Some((id, file)) = next else { break };
            let version = file.and_then(NewFile::arrive).map_err(failed("writing", home, id));
            lock(&arrived).push((id, version));
        }
    };
    thread::scope(|scope| {
        for _ in 1..waiters {
            // Without another thread it takes longer.
            let _ = thread::Builder::new().name("ledger".to_owned()).spawn_scoped(scope, wait);
        }
        wait();
    });
    let mut arrived = arrived.into_inner().unwrap_or_else(PoisonError::into_inner);
    arrived.sort_unstable_by_key(|(id, _)| *id);
    arrived.into_iter().map(|(_, version)| version).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
