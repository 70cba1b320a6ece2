//! The ledger as the controller has it: in memory, by which it decides, and on its way to
//! the state directory. While that can't be written, nothing new is offered or wiped.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::scribe::Scribe;
use crate::discovery::Finding;
use crate::ledger::{Entry, EntryId, Ledger, State};
use crate::pv::{OwnedPv, Phase};
use crate::state_dir::{StateDir, StateDirError};

/// How often a ledger that can't be written is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often it is looked what others have written, such as `mooring wipe`: it costs a
/// `stat` of each file.
const LOOK: Duration = Duration::from_secs(10);

/// The ledger and what is wrong with it.
pub struct Books {
    ledger: Ledger,
    /// What the state directory keeps of the config.
    classes: Vec<u8>,
    heard: UnboundedReceiver<Entry>,
    saves: JoinSet<Result<(), StateDirError>>,
    looks: JoinSet<Result<Vec<Entry>, StateDirError>>,
    look_at: Option<Instant>,
    /// What others have written.
    from_others: Vec<Entry>,
    trouble: Option<String>,
    /// Trouble that has not been told yet.
    new_trouble: Option<String>,
    retry_at: Option<Instant>,
}

impl Books {
    /// `classes` is what the state directory has of the config. Also returns the scribe for
    /// those who work on single volumes.
    pub fn open(ledger: Ledger, classes: Vec<u8>, directory: Option<StateDir>) -> (Self, Scribe) {
        let look_at = directory.as_ref().map(|_| Instant::now() + LOOK);
        let (scribe, heard) = Scribe::new(directory);
        (
            Self {
                ledger,
                classes,
                heard,
                saves: JoinSet::new(),
                looks: JoinSet::new(),
                look_at,
                from_others: Vec::new(),
                trouble: None,
                new_trouble: None,
                retry_at: None,
            },
            scribe,
        )
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

    /// The trouble that has come up since the last time.
    pub fn take_new_trouble(&mut self) -> Option<String> {
        self.new_trouble.take()
    }

    /// Completes when something was taken over, and says whether that can change a decision.
    pub async fn written(&mut self) -> bool {
        tokio::select! {
            Some(entry) = self.heard.recv() => self.ledger.insert(entry),
            Some(saved) = self.saves.join_next() => return self.take_saved(saved),
            Some(found) = self.looks.join_next() => return self.take_found(found),
            else => std::future::pending().await,
        }
        true
    }

    /// Takes over what those who work on single volumes have written. Returns the entries
    /// that were changed by others than this agent.
    pub fn take_written(&mut self) -> Vec<EntryId> {
        while let Ok(entry) = self.heard.try_recv() {
            self.ledger.insert(entry);
        }
        let mut taken = Vec::new();
        for entry in std::mem::take(&mut self.from_others) {
            if self.ledger.get(entry.id).is_none_or(|known| may_replace(known, &entry)) {
                info!(entry = %entry.id, path = entry.path, state = ?entry.state, "Another process has changed the ledger");
                taken.push(entry.id);
                self.ledger.insert(entry);
            }
        }
        taken
    }

    /// Takes over what the controller has decided to remember, and begins to save it.
    pub fn note(&mut self, records: Vec<Entry>, scribe: &Scribe) {
        for entry in records {
            self.ledger.insert(entry.clone());
            if scribe.is_durable() {
                let scribe = scribe.clone();
                self.saves.spawn(async move { scribe.save_soon(entry).await });
            }
        }
    }

    /// Begins to save what the state directory is to keep of the config. What is decided
    /// by that config is written after it.
    pub fn note_classes(&mut self, classes: Vec<u8>, scribe: &Scribe) {
        if classes != self.classes {
            self.classes.clone_from(&classes);
            self.saves.spawn(scribe.save_classes(classes));
        }
    }

    /// A PV is gone. If it was seen to go, and had never been claimed, its volume is as it
    /// was before it was offered.
    pub fn note_gone(&mut self, last: Option<&OwnedPv>, scribe: &Scribe) {
        let Some(last) = last.filter(|last| last.terminating) else { return };
        let unused = last.phase == Phase::Available && last.claim.is_none();
        let Some(entry) = self.ledger.of_pv(&last.uid).filter(|_| unused) else { return };
        let offered =
            State::Offered { pv: last.name.as_str().into(), uid: Some(last.uid.as_str().into()), since: last.since };
        if last.since.is_some() && entry.state == offered {
            let entry = Entry { state: entry.unused(), as_of: jiff::Timestamp::now(), ..entry.clone() };
            self.note(vec![entry], scribe);
        }
    }

    /// Something could not be written.
    pub fn complain(&mut self, problem: &str) {
        if self.trouble.as_deref() != Some(problem) {
            error!(problem, "The ledger can't be written; nothing is offered or wiped until it can");
            self.new_trouble = Some(problem.to_owned());
        }
        self.trouble = Some(problem.to_owned());
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
    }

    /// Looks what others have written, and tries to write all of it again, when it is time to.
    pub fn tick(&mut self, scribe: &Scribe) {
        if self.look_at.is_some_and(|at| Instant::now() >= at) {
            self.look_at = Some(Instant::now() + LOOK);
            if self.looks.is_empty() {
                let scribe = scribe.clone();
                self.looks.spawn(async move { scribe.changed().await });
            }
        }
        if self.retry_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        let (scribe, entries) = (scribe.clone(), self.ledger.entries().cloned().collect());
        let classes = self.classes.clone();
        self.saves.spawn(async move { scribe.rewrite(entries, classes).await });
    }

    /// When to [`Books::tick`].
    pub fn next_tick(&self) -> Option<Instant> {
        self.retry_at.into_iter().chain(self.look_at).min()
    }

    fn take_found(&mut self, found: Result<Result<Vec<Entry>, StateDirError>, tokio::task::JoinError>) -> bool {
        match found {
            Ok(Ok(entries)) => self.from_others.extend(entries),
            Ok(Err(error)) => warn!(%error, "It can't be seen whether another process has changed the ledger"),
            Err(error) => panic!("a task that reads the ledger ended without a result: {error}"),
        }
        !self.from_others.is_empty()
    }

    fn take_saved(&mut self, saved: Result<Result<(), StateDirError>, tokio::task::JoinError>) -> bool {
        let before = self.trouble.is_some();
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
        before || self.trouble.is_some()
    }
}

/// Whether what another process wrote counts more than what is known: it is newer, and no
/// PV of the volume says anything else.
fn may_replace(known: &Entry, found: &Entry) -> bool {
    let without_pv = match &known.state {
        State::AsFound | State::Clean | State::Quarantined { .. } | State::Retired { .. } => true,
        State::Wiping { .. } => known.state.is_wipe_by_hand(),
        State::Offered { .. } | State::Used { .. } => false,
    };
    without_pv && found.as_of > known.as_of
}
