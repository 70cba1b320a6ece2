//! The thread that writes entries. Requests that wait at the same time are one batch: each
//! file is made durable, and then the directory once for all of them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::fs::{AtFlags, CWD};
use tokio::sync::oneshot;

use super::{StateDir, StateDirError, write};
use crate::ledger::Entry;

/// Threads that make files durable at the same time: each waits for the disk.
const THREADS: usize = 8;

/// Why an entry could not be written. The file that was there before is whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state directory {directory} can't be written: {problem}")]
pub struct SaveError {
    directory: String,
    problem: String,
}

enum Answer {
    Task(oneshot::Sender<Result<(), SaveError>>),
    Thread(Sender<Result<(), SaveError>>),
}

struct Request {
    entries: Vec<Entry>,
    /// Whether the directory may be made again, when it was removed.
    whole: bool,
    /// Whether nothing is written any more after it.
    last: bool,
    answer: Answer,
}

impl Request {
    /// Who asked may be gone.
    fn answer(self, result: Result<(), SaveError>) {
        match self.answer {
            Answer::Task(answer) => _ = answer.send(result),
            Answer::Thread(answer) => _ = answer.send(result),
        }
    }
}

/// Writes entries; the clones share one thread.
#[derive(Clone, Debug)]
pub struct Writer {
    requests: Sender<Request>,
    directory: PathBuf,
}

impl Writer {
    pub(super) fn start(state: StateDir) -> io::Result<Self> {
        let (requests, queue) = channel();
        let directory = state.path.clone();
        thread::Builder::new().name("ledger".to_owned()).spawn(move || Files { state }.serve(&queue))?;
        Ok(Self { requests, directory })
    }

    /// Returns once the entry is durable.
    ///
    /// # Errors
    /// When it can't be written; what was there before still is.
    pub async fn save(&self, entry: Entry) -> Result<(), SaveError> {
        self.ask(vec![entry], false, false).await
    }

    /// Writes all entries again, into a new directory if the old one was removed.
    ///
    /// # Errors
    /// As [`Writer::save`].
    pub async fn rewrite(&self, entries: Vec<Entry>) -> Result<(), SaveError> {
        self.ask(entries, true, false).await
    }

    /// Ends the thread, and returns once the directory is another agent's to lock, also when
    /// this process can't end yet. What is asked for later fails.
    ///
    /// # Errors
    /// When it has been closed before, or what was to be written with it can't be.
    pub async fn close(&self) -> Result<(), SaveError> {
        self.ask(Vec::new(), false, true).await
    }

    async fn ask(&self, entries: Vec<Entry>, whole: bool, last: bool) -> Result<(), SaveError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.requests.send(Request { entries, whole, last, answer: Answer::Task(answer) });
        match (sent, answered.await) {
            (Ok(()), Ok(result)) => result,
            _ => Err(self.gone()),
        }
    }

    /// As [`Writer::save`], for threads.
    ///
    /// # Errors
    /// As [`Writer::save`].
    pub fn save_blocking(&self, entry: &Entry) -> Result<(), SaveError> {
        let (answer, answered) = channel();
        let request =
            Request { entries: vec![entry.clone()], whole: false, last: false, answer: Answer::Thread(answer) };
        match (self.requests.send(request), answered.recv()) {
            (Ok(()), Ok(result)) => result,
            _ => Err(self.gone()),
        }
    }

    fn gone(&self) -> SaveError {
        SaveError { directory: self.directory.display().to_string(), problem: "its thread has ended".to_owned() }
    }
}

/// The thread's side.
struct Files {
    state: StateDir,
}

impl Files {
    fn serve(mut self, queue: &Receiver<Request>) {
        while let Ok(first) = queue.recv() {
            let batch: Vec<Request> = std::iter::once(first).chain(queue.try_iter()).collect();
            let result = self.write_all(&batch).map_err(|problem| SaveError {
                directory: self.state.path.display().to_string(),
                problem: problem.to_string(),
            });
            if batch.iter().any(|request| request.last) {
                drop(self);
                batch.into_iter().for_each(|request| request.answer(result.clone()));
                return;
            }
            batch.into_iter().for_each(|request| request.answer(result.clone()));
        }
    }

    fn write_all(&mut self, batch: &[Request]) -> io::Result<()> {
        if !self.is_in_place()? {
            if !batch.iter().any(|request| request.whole) {
                return Err(io::Error::other("it was removed, or another one is in its place"));
            }
            let (state, _) = StateDir::open(&self.state.path, true).map_err(|error| match error {
                StateDirError::Io { source, .. } => source,
                other => io::Error::other(other.to_string()),
            })?;
            self.state = state;
        }
        // Of several versions of an entry the last one counts.
        let mut entries: Vec<&Entry> = Vec::new();
        for entry in batch.iter().flat_map(|request| &request.entries) {
            match entries.iter_mut().find(|other| other.id == entry.id) {
                Some(earlier) => *earlier = entry,
                None => entries.push(entry),
            }
        }
        write_in_parallel(&self.state.directory, &entries)?;
        Ok(rustix::fs::fsync(&self.state.directory)?)
    }

    /// Whether the open directory still is the one at the path.
    fn is_in_place(&self) -> io::Result<bool> {
        let open = rustix::fs::fstat(&self.state.directory)?;
        match rustix::fs::statat(CWD, &self.state.path, AtFlags::empty()) {
            Ok(now) => Ok((now.st_dev, now.st_ino) == (open.st_dev, open.st_ino)),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn write_in_parallel(directory: &OwnedFd, entries: &[&Entry]) -> io::Result<()> {
    let share = entries.len().div_ceil(THREADS).max(1);
    if share == 1 && entries.len() <= 2 {
        return entries.iter().try_for_each(|entry| write(directory, entry));
    }
    thread::scope(|scope| {
        let threads: Vec<_> = entries
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().try_for_each(|entry| write(directory, entry))))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().expect("writing a file does not panic"));
        // All are waited for, and the first failure is told.
        results.collect::<Vec<_>>().into_iter().collect()
    })
}
