//! The ledger as the controller has it: in memory, by which it decides, and on its way to
//! the state directory. While that can't be written, nothing new is offered or wiped.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tracing::{error, info};

use super::scribe::Scribe;
use crate::discovery::Finding;
use crate::ledger::{Entry, Ledger, State};
use crate::pv::{OwnedPv, Phase};
use crate::state_dir::{SaveError, Writer};

/// How often a ledger that can't be written is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The ledger and what is wrong with it.
pub struct Books {
    ledger: Ledger,
    heard: UnboundedReceiver<Entry>,
    arrived: Option<Entry>,
    saves: JoinSet<Result<(), SaveError>>,
    trouble: Option<String>,
    retry_at: Option<Instant>,
}

impl Books {
    /// Also returns the scribe for those who work on single volumes.
    pub fn open(ledger: Ledger, writer: Option<Writer>) -> (Self, Scribe) {
        let (scribe, heard) = Scribe::new(writer);
        (Self { ledger, heard, arrived: None, saves: JoinSet::new(), trouble: None, retry_at: None }, scribe)
    }

    /// What is known of each volume.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Keeps one copy of the identities that it has and discovery has seen.
    pub fn share_identities(&mut self, findings: &[Finding]) {
        for candidate in findings.iter().filter_map(|finding| finding.outcome.as_ref().ok()) {
            self.ledger.share(&candidate.sighting.identity);
        }
    }

    /// Why it can't be written, if so.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Completes when there is something to take over.
    pub async fn written(&mut self) {
        tokio::select! {
            Some(entry) = self.heard.recv() => self.arrived = Some(entry),
            Some(saved) = self.saves.join_next() => self.take_saved(saved),
            else => std::future::pending().await,
        }
    }

    /// Takes over what those who work on single volumes have written.
    pub fn take_written(&mut self) {
        let mut next = self.arrived.take();
        while let Some(entry) = next.take().or_else(|| self.heard.try_recv().ok()) {
            self.ledger.insert(entry);
        }
    }

    /// Takes over what the controller has decided to remember, and begins to save it.
    pub fn note(&mut self, records: Vec<Entry>, scribe: &Scribe) {
        for entry in records {
            self.ledger.insert(entry.clone());
            if scribe.is_durable() {
                let scribe = scribe.clone();
                self.saves.spawn(async move { scribe.save(entry).await });
            }
        }
    }

    /// A PV is gone. If it was seen to go, and had never been claimed, its volume is as it
    /// was before it was offered.
    pub fn note_gone(&mut self, last: Option<&OwnedPv>, scribe: &Scribe) {
        let Some(last) = last.filter(|last| last.terminating && last.free_of_finalizers) else { return };
        let unused = last.phase == Phase::Available && last.claim.is_none();
        let Some(entry) = self.ledger.of_pv(&last.uid).filter(|_| unused) else { return };
        let offered =
            State::Offered { pv: last.name.as_str().into(), uid: Some(last.uid.as_str().into()), since: last.since };
        if last.since.is_some() && entry.state == offered {
            let entry = Entry { state: State::Clean, as_of: jiff::Timestamp::now(), ..entry.clone() };
            self.note(vec![entry], scribe);
        }
    }

    /// Something could not be written.
    pub fn complain(&mut self, problem: &str) {
        if self.trouble.as_deref() != Some(problem) {
            error!(problem, "The ledger can't be written; nothing is offered or wiped until it can");
        }
        self.trouble = Some(problem.to_owned());
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
    }

    /// Tries to write all of it again when it is time to.
    pub fn tick(&mut self, scribe: &Scribe) {
        if self.retry_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        let (scribe, entries) = (scribe.clone(), self.ledger.entries().cloned().collect());
        self.saves.spawn(async move { scribe.rewrite(entries).await });
    }

    /// When to [`Books::tick`].
    pub fn next_tick(&self) -> Option<Instant> {
        self.retry_at
    }

    fn take_saved(&mut self, saved: Result<Result<(), SaveError>, tokio::task::JoinError>) {
        match saved {
            Ok(Ok(())) if self.retry_at.is_none() => {
                if self.trouble.take().is_some() {
                    info!("The ledger can be written again");
                }
            }
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.complain(&error.to_string()),
            Err(error) => panic!("a task that saves the ledger ended without a result: {error}"),
        }
    }
}
