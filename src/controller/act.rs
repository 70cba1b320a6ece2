//! What the controller begins: writes of single PVs, and ([`reclaim`]) the reclaim of a
//! Released one from the fence to its end, or ([`unfenced`]) without a fence. Each runs as a task and ends with what is now
//! known.

mod job;
mod left_jobs;
mod reclaim;
mod unfenced;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use tokio::sync::{oneshot, watch};
use tracing::info;

use super::scribe::Scribe;
use super::turns::Place;
use crate::cluster::{ApiError, Cluster};
use crate::deleter::{self, Control, Offerable, Warrant, WipeError};
use crate::events::{self, About, Event, Events};
use crate::ledger::{Entry, State};
use crate::metrics::Metrics;
use crate::plan::{Action, Adoption, Creation, Target};
use crate::pv::{self, Decoded, Labels, OwnedPv, Seen, Volume};
use crate::reclaim::Unclaimed;
use crate::state_dir::StateDirError;
use crate::volume::NodeFacts;

pub use job::Jobs;
pub use left_jobs::LeftJobs;
use reclaim::is_gone;

/// How long a volume has to be looked at before it is offered.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// What the tasks work with.
#[derive(Clone)]
pub struct Tools {
    pub cluster: Cluster,
    pub node: Option<Arc<NodeFacts>>,
    pub use_node_name_only: bool,
    /// Whether PVs may be patched, and so be fenced.
    pub may_patch: bool,
    /// Turns true when the agent stops.
    pub stopped: watch::Receiver<bool>,
    pub metrics: Arc<Metrics>,
    pub scribe: Scribe,
    pub events: Events,
    pub jobs: Jobs,
    pub left_jobs: LeftJobs,
}

/// The end of a task.
pub struct Done {
    /// The PV that it was about.
    pub pv: String,
    /// What is known now.
    pub ended: Ended,
    /// Whether its volume was wiped.
    pub wiped: bool,
}

/// What is known of a PV after a task.
pub enum Ended {
    /// It is like this.
    Is(Box<PersistentVolume>),
    /// It was not made, for this one has its name.
    NameTaken(Box<PersistentVolume>),
    /// There is none.
    IsGone,
    /// A call to the API server failed.
    Api(ApiError),
    /// The ledger could not be written, and nothing else was done.
    Ledger(StateDirError),
    /// Its volume was not wiped.
    NotWiped(WipeError),
    /// Its volume can't be offered.
    NotOffered(WipeError),
    /// The agent is stopping.
    Stopped,
}

impl From<Result<Option<PersistentVolume>, ApiError>> for Ended {
    fn from(result: Result<Option<PersistentVolume>, ApiError>) -> Self {
        match result {
            Ok(Some(pv)) => Self::Is(Box::new(pv)),
            Ok(None) | Err(ApiError::NotFound) => Self::IsGone,
            Err(error) => Self::Api(error),
        }
    }
}

/// The name of the thread that wipes the PV's volume; the kernel keeps 15 bytes of it.
pub fn thread_name(pv: &str) -> String {
    format!("wipe-{}", pv.strip_prefix("local-pv-").unwrap_or(pv))
}

impl Tools {
    /// Carries out an action that is a call or two.
    pub async fn write(self, action: Action) -> Done {
        let pv = action.pv().to_owned();
        let ended = match action {
            Action::Create(creation) => self.create(*creation).await,
            Action::Adopt(adoption) => self.adopt(&adoption).await.into(),
            Action::LookAgain { .. } => self.cluster.get(&pv).await.into(),
            Action::Grow { pv: seen, to } => {
                let grown = self.cluster.grow(&seen, to).await;
                if grown.is_ok() {
                    info!(pv, capacity = %to, "Volume has grown, and its PV with it");
                }
                self.or_look(&pv, grown.map(Some)).await.into()
            }
            Action::DropWord(seen) => {
                let dropped = self.cluster.drop_word(&seen).await;
                if dropped.is_ok() {
                    info!(pv, "The annotation mooring.dev/reclaim is taken off: it counts only on a Released PV");
                    let note = "the annotation mooring.dev/reclaim counts only once the claim is gone; it was taken off, or \
                                the next claim would inherit it. Set it again when the PV is Released";
                    self.events.send(Event::warning(
                        About::Pv(pv.clone(), seen.uid.clone()),
                        events::WORD_IGNORED,
                        note,
                    ));
                }
                self.or_look(&pv, dropped.map(Some)).await.into()
            }
            Action::Keep(seen) => {
                let kept = self.cluster.keep(&seen).await;
                if kept.is_ok() {
                    info!(pv, "Volume is offered again with its data, at an admin's word");
                }
                self.or_look(&pv, kept.map(Some)).await.into()
            }
            Action::Withdraw { pv: unclaimed, entry, why } => self.withdraw(&pv, unclaimed, entry, &why).await,
            Action::Retire { pv: seen, entry } => match self.scribe.record(*entry).await {
                Ok(()) => {
                    info!(pv, "Volume is retired at an admin's word; it will not be offered again");
                    let removed = self.cluster.remove(&Warrant::Retired(seen)).await;
                    self.or_look(&pv, removed).await.into()
                }
                Err(error) => Ended::Ledger(error),
            },
            Action::FreeIfBlank { .. } | Action::Reclaim(_) => unreachable!("these are more than a call or two"),
        };
        Done { pv, ended, wiped: false }
    }

    /// The ledger first, then the PV: a volume that somebody may use is never unknown.
    async fn create(&self, creation: Creation) -> Ended {
        let Creation { mut volume, target, before, found_at, uses_jobs } = creation;
        let mut entry = (*target.record).clone();
        let entry_name = target.entry.clone();
        let mut held = None;
        // What is made to be quarantined or wiped is looked at by then.
        if volume.claim.is_none() {
            // Without Jobs there may be one of the Go provisioner; it wipes devices only.
            if (uses_jobs || target.identity.is_device())
                && let Err(ended) = self.heed_left_jobs(uses_jobs, &volume).await
            {
                return ended;
            }
            let seen = match self.look_before(target).await {
                Ok(seen) => seen,
                Err(Ended::NotWiped(error)) => return Ended::NotOffered(error),
                Err(ended) => return ended,
            };
            if let Some(mark) = seen.mark {
                let why = format!(
                    "it carries the mark {mark} of a wipe that has not ended and that the ledger does not know"
                );
                entry.state =
                    State::Quarantined { reason: why.as_str().into(), pv: volume.name.as_str().into(), claim: None };
                volume = volume.quarantined(None, &why, false);
            } else if let Some(root) = seen.root.as_ref().filter(|_| entry.root.is_none()) {
                let root = serde_json::to_string(root).expect("the facts of a directory are plain data");
                volume.annotations.insert(pv::ROOT.to_owned(), root.clone());
                entry.root = Some(root.into());
            }
            held = Some(seen);
        }
        if let Err(error) = self.scribe.record(entry.clone()).await {
            return Ended::Ledger(error);
        }
        // A wipe by hand takes the volume first, and then looks into the ledger.
        drop(held);
        let ended = match self.cluster.create(&volume).await {
            Ok(created) => {
                self.count_made(&volume, found_at);
                self.tell_of_long_name(&entry_name, &volume, &created);
                return Ended::Is(Box::new(created));
            }
            // Made by a call that had no answer, or somebody else's: look.
            Err(ApiError::AlreadyExists) => match self.cluster.get(&volume.name).await {
                Ok(Some(other)) if self.owned(&other).is_none_or(|owned| owned.path != volume.path) => {
                    Ended::NameTaken(Box::new(other))
                }
                answer => {
                    if matches!(&answer, Ok(Some(_))) {
                        self.count_made(&volume, found_at);
                    }
                    return answer.into();
                }
            },
            // Whether it was made is open: the ledger goes on saying that it may be.
            Err(error @ ApiError::Unknown(_)) => return Ended::Api(error),
            Err(ApiError::NotFound) => Ended::Api(ApiError::Rejected("not found, though it was to be made".to_owned())),
            Err(error) => Ended::Api(error),
        };
        // What was found to be marked meanwhile stays quarantined.
        let Some(state) = before.filter(|_| matches!(entry.state, State::Offered { .. })) else { return ended };
        match self.scribe.record(Entry { state, ..entry }).await {
            Ok(()) => ended,
            Err(unwritten) => Ended::Ledger(unwritten),
        }
    }

    fn count_made(&self, volume: &Volume, found_at: Instant) {
        let took = found_at.elapsed();
        self.metrics.contract.discovered(volume.mode, took);
        if volume.claim.is_none() {
            self.metrics.published(took);
        }
    }

    /// Says why a PV has a longer name than the Go provisioner would give it.
    fn tell_of_long_name(&self, entry: &str, volume: &Volume, made: &PersistentVolume) {
        let node = self.node.as_ref().map_or("", |node| node.name.as_str());
        let usual = pv::pv_name(entry, node, &volume.class);
        if volume.name == usual {
            return;
        }
        info!(pv = volume.name, usual, "Another PV has the usual name; this one has a longer one");
        let about = About::Pv(volume.name.clone(), made.metadata.uid.clone().unwrap_or_default());
        let note = format!("another PV has the name {usual}, so the one for {} has a longer name", volume.path);
        self.events.send(Event { warning: false, ..Event::warning(about, events::NAME_TAKEN, note) });
    }

    /// Looks at a volume that is about to be offered.
    async fn look_before(&self, target: Target) -> Result<Offerable, Ended> {
        let control = Arc::new(Control::default());
        let look = deleter::spawn(&thread_name(&target.pv), &control, move |_| deleter::look(&target));
        match tokio::time::timeout(LOOK_PATIENCE, on_thread(look)).await {
            Ok(result) => result,
            Err(_) => Err(Ended::NotWiped(WipeError::Unresponsive)),
        }
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Option<PersistentVolume>, ApiError> {
        let adopted = self.cluster.adopt(adoption).await;
        if let Ok(pv) = &adopted {
            if adoption.signature.is_some() {
                info!(pv = adoption.pv.name, "PV of a former Node of this name is taken over");
            }
            let labels = Labels::of(pv);
            if adoption.labels.as_ref().is_some_and(|changes| labels.with(changes) != labels) {
                // Or it would be written again and again.
                return Err(ApiError::Rejected("its labels do not stay as they are set".to_owned()));
            }
        }
        self.or_look(&adoption.pv.name, adopted.map(Some)).await
    }

    async fn withdraw(&self, pv: &str, unclaimed: Unclaimed, entry: Option<Box<Entry>>, why: &str) -> Ended {
        let removed = self.cluster.remove(&Warrant::Unclaimed(unclaimed)).await;
        let ended = self.or_look(pv, removed).await.into();
        let terminating = |pv: &PersistentVolume| pv.metadata.deletion_timestamp.is_some();
        let gone = match &ended {
            Ended::IsGone => true,
            Ended::Is(pv) => terminating(pv),
            _ => false,
        };
        if gone {
            info!(pv, why, "PV is withdrawn");
            if let Some(entry) = entry
                && let Err(error) = self.scribe.record(*entry).await
            {
                return Ended::Ledger(error);
            }
        }
        ended
    }

    /// Removes the quarantined PV of a volume that is found empty.
    pub async fn free_if_blank(mut self, seen: Seen, target: Target, place: Place, control: Arc<Control>) -> Done {
        let pv = target.pv.clone();
        let ended = self.look_into(seen, target, &place, &control).await.unwrap_or_else(|ended| ended);
        Done { pv, ended, wiped: false }
    }

    async fn look_into(
        &mut self,
        seen: Seen,
        target: Target,
        place: &Place,
        control: &Arc<Control>,
    ) -> Result<Ended, Ended> {
        let (pv, mut entry) = (target.pv.clone(), (*target.record).clone());
        // All of a device may be read.
        let mut stopped = self.stopped.clone();
        let _turn = tokio::select! {
            turn = place.wait() => turn,
            _ = stopped.wait_for(|stopped| *stopped) => return Err(Ended::Stopped),
        };
        let check = deleter::spawn(&thread_name(&pv), control, move |control| deleter::blank(&target, seen, control));
        let blank = on_thread(check).await?;
        info!(pv, "Quarantined volume is found empty; it is offered anew");
        let (uid, is_recorded) = (blank.seen().uid.clone(), blank.is_the_recorded_one());
        // It holds the volume until the end.
        let warrant = Warrant::Blank(blank);
        let removed = match self.cluster.remove(&warrant).await {
            Ok(last) => self.until_gone(last).await?,
            failed => return Ok(self.or_look(&pv, failed).await.into()),
        };
        // Until the PV was gone, an admin could have offered it.
        if is_recorded && is_gone(removed.as_ref(), &uid) {
            entry.state = State::Clean;
            if let Some(known) = self.scribe.on_disk(entry.id).await {
                // Among them that of the wipe by hand that has emptied it.
                entry.receipts = known.receipts;
            }
            self.scribe.record(entry).await.map_err(Ended::Ledger)?;
        }
        Ok(Ok(removed).into())
    }

    fn owned(&self, pv: &PersistentVolume) -> Option<OwnedPv> {
        match pv::sort(pv, self.node.as_ref()?, self.use_node_name_only) {
            Decoded::Owned(owned) => Some(*owned),
            _ => None,
        }
    }

    /// The answer of a write, or the PV as it is now when it was not what it was thought
    /// to be.
    async fn or_look(
        &self,
        pv: &str,
        answer: Result<Option<PersistentVolume>, ApiError>,
    ) -> Result<Option<PersistentVolume>, ApiError> {
        match answer {
            Ok(None) | Err(ApiError::Conflict(_)) => self.cluster.get(pv).await,
            answer => answer,
        }
    }
}

/// Waits for blocking work, also when the agent is stopping: it is told to end, and
/// what it holds must not be left open.
async fn on_thread<T>(work: oneshot::Receiver<Result<T, WipeError>>) -> Result<T, Ended> {
    match work.await {
        Ok(result) => result.map_err(Ended::NotWiped),
        Err(_) => Err(Ended::NotWiped(WipeError::Refused("no thread is to be had for the work".to_owned()))),
    }
}
