//! Writes the ledger: durably first, when there is a state directory, and then to the
//! controller, which decides by it.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::deleter::{Cursor, Journal, WipeError};
use crate::ledger::{Entry, EntryId, State};
use crate::state_dir::{EntryLock, StateDir, StateDirError};

/// Writes entries of the ledger.
#[derive(Clone)]
pub struct Scribe {
    directory: Option<StateDir>,
    written: UnboundedSender<Entry>,
}

impl Scribe {
    /// Also returns where the controller hears of what was written.
    pub fn new(directory: Option<StateDir>) -> (Self, UnboundedReceiver<Entry>) {
        let (written, heard) = unbounded_channel();
        (Self { directory, written }, heard)
    }

    /// Whether what is written outlives this process.
    pub fn is_durable(&self) -> bool {
        self.directory.is_some()
    }

    /// Returns once the entry is durable.
    pub async fn record(&self, entry: Entry) -> Result<(), StateDirError> {
        if let Some(directory) = &self.directory {
            directory.save(&entry).await?;
        }
        self.tell(entry);
        Ok(())
    }

    /// Makes the entry durable that the controller has noted of what others did: of many
    /// at once, with one another.
    pub async fn save_soon(&self, entry: Entry) -> Result<(), StateDirError> {
        match &self.directory {
            Some(directory) => directory.save_soon(&entry).await,
            None => Ok(()),
        }
    }

    /// Makes the text about the classes durable. It is on its way when this returns.
    pub fn save_classes(&self, text: Vec<u8>) -> impl Future<Output = Result<(), StateDirError>> + use<> {
        let answer = self.directory.as_ref().map(|directory| directory.save_classes(text));
        async move {
            match answer {
                Some(answer) => answer.await,
                None => Ok(()),
            }
        }
    }

    /// Writes everything again, also when the directory was taken away.
    pub async fn rewrite(&self, entries: Vec<Entry>, classes: Vec<u8>) -> Result<(), StateDirError> {
        if let Some(directory) = &self.directory {
            directory.rewrite_all(&entries).await?;
            directory.save_classes(classes).await?;
        }
        Ok(())
    }

    /// Keeps who works beside the agent from the entry's volume until the lock is dropped;
    /// without a state directory there is nobody to keep.
    pub async fn lock(&self, id: EntryId) -> Result<Option<EntryLock>, StateDirError> {
        match &self.directory {
            Some(directory) => directory.lock_entry(id).await.map(Some),
            None => Ok(None),
        }
    }

    /// The entry as it is in the state directory, where others may have written it.
    pub async fn on_disk(&self, id: EntryId) -> Option<Entry> {
        self.directory.as_ref()?.read().await.ok()?.get(id).cloned()
    }

    /// The entries that others have written.
    pub async fn changed(&self) -> Result<Vec<Entry>, StateDirError> {
        match &self.directory {
            Some(directory) => directory.changed().await,
            None => Ok(Vec::new()),
        }
    }

    /// Writes nothing any more, and lets another agent have the state directory.
    pub async fn close(&self) -> Result<(), StateDirError> {
        match &self.directory {
            Some(directory) => directory.close().await,
            None => Ok(()),
        }
    }

    /// As [`Scribe::record`], for threads.
    pub fn record_blocking(&self, entry: Entry) -> Result<(), StateDirError> {
        if let Some(directory) = &self.directory {
            directory.save(&entry).wait()?;
        }
        self.tell(entry);
        Ok(())
    }

    fn tell(&self, entry: Entry) {
        // Nobody listens any more when the agent is stopping.
        let _ = self.written.send(entry);
    }
}

/// The journal of one wipe: its entry in the ledger.
pub struct Record {
    scribe: Scribe,
    entry: Entry,
}

impl Record {
    /// `entry` is in the state `Wiping`.
    pub fn new(scribe: Scribe, entry: Entry) -> Self {
        Self { scribe, entry }
    }
}

impl Journal for Record {
    fn checkpoint(&mut self, at: Cursor) -> Result<(), WipeError> {
        let State::Wiping { cursor, .. } = &mut self.entry.state else {
            unreachable!("a record of a wipe is in the state Wiping")
        };
        *cursor = Some(at);
        self.scribe.record_blocking(self.entry.clone()).map_err(|error| WipeError::Ledger(error.to_string()))
    }
}
