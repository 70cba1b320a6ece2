//! Writes the ledger: durably first, when there is a state directory, and then to the
//! controller, which decides by it.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::deleter::{Cursor, Journal, WipeError};
use crate::ledger::{Entry, State};
use crate::state_dir::{SaveError, Writer};

/// Writes entries of the ledger.
#[derive(Clone)]
pub struct Scribe {
    writer: Option<Writer>,
    written: UnboundedSender<Entry>,
}

impl Scribe {
    /// Also returns where the controller hears of what was written.
    pub fn new(writer: Option<Writer>) -> (Self, UnboundedReceiver<Entry>) {
        let (written, heard) = unbounded_channel();
        (Self { writer, written }, heard)
    }

    /// Whether what is written outlives this process.
    pub fn is_durable(&self) -> bool {
        self.writer.is_some()
    }

    /// Returns once the entry is durable.
    pub async fn record(&self, entry: Entry) -> Result<(), SaveError> {
        if let Some(writer) = &self.writer {
            writer.save(entry.clone()).await?;
        }
        self.tell(entry);
        Ok(())
    }

    /// Makes the entry durable that the controller has decided on itself.
    pub async fn save(&self, entry: Entry) -> Result<(), SaveError> {
        match &self.writer {
            Some(writer) => writer.save(entry).await,
            None => Ok(()),
        }
    }

    /// Writes everything again, also when the directory was taken away.
    pub async fn rewrite(&self, entries: Vec<Entry>) -> Result<(), SaveError> {
        match &self.writer {
            Some(writer) => writer.rewrite(entries).await,
            None => Ok(()),
        }
    }

    /// Writes nothing any more, and lets another agent have the state directory.
    pub async fn close(&self) -> Result<(), SaveError> {
        match &self.writer {
            Some(writer) => writer.close().await,
            None => Ok(()),
        }
    }

    /// As [`Scribe::record`], for threads.
    pub fn record_blocking(&self, entry: Entry) -> Result<(), SaveError> {
        if let Some(writer) = &self.writer {
            writer.save_blocking(&entry)?;
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
