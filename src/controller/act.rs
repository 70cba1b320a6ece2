//! What the controller begins: writes of single PVs, and the reclaim of a Released
//! one from the fence to its end. Each runs as a task and ends with what is now known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::{debug, info, warn};

use crate::cluster::{ApiError, Cluster};
use crate::deleter::{self, Control, Verified, Warrant, WipeError};
use crate::memory::backoff;
use crate::metrics::{Metrics, OutcomeLabels};
use crate::plan::{Action, Target};
use crate::pv::{self, Decoded, OwnedPv};
use crate::reclaim::{self, Fence, Step};
use crate::volume::NodeFacts;

/// A reclaim that has not come to an end after this many steps is given back to the
/// controller.
const MAX_STEPS: usize = 30;
/// A wipe that makes no progress for this long gives its turn to others.
const STANDSTILL: Duration = Duration::from_secs(30);
/// Waits while the API server does not answer in the middle of a reclaim.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// What the tasks work with.
#[derive(Clone)]
pub struct Tools {
    pub cluster: Cluster,
    pub node: Option<Arc<NodeFacts>>,
    pub use_node_name_only: bool,
    /// A permit for each volume that is being wiped.
    pub wipes: Arc<Semaphore>,
    /// Turns true when the agent stops.
    pub stopped: watch::Receiver<bool>,
    pub metrics: Arc<Metrics>,
}

/// Leave to wipe, given back with this value. Only devices need a permit: they take
/// bandwidth, and long.
struct Turn(Option<OwnedSemaphorePermit>);

/// The end of a task.
pub struct Done {
    /// The PV that it was about.
    pub pv: String,
    /// What is known now.
    pub ended: Ended,
}

/// What is known of a PV after a task.
pub enum Ended {
    /// It is like this.
    Is(Box<PersistentVolume>),
    /// There is none.
    IsGone,
    /// A call to the API server failed.
    Api(ApiError),
    /// Its volume was not wiped.
    NotWiped(WipeError),
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
    /// Carries out an action that is one call.
    pub async fn write(self, action: Action) -> Done {
        let pv = action.pv().to_owned();
        let result = match action {
            Action::Create(volume) => match self.cluster.create(&volume).await {
                // Made by a call that had no answer, or somebody else's: look.
                Err(ApiError::AlreadyExists) => self.cluster.get(&pv).await,
                Err(ApiError::NotFound) => Err(ApiError::Rejected("not found, though it was to be made".to_owned())),
                created => created.map(Some),
            },
            Action::Adopt { uid, .. } => {
                let name = self.node.as_ref().map_or("", |node| node.name.as_str());
                match self.cluster.adopt(&pv, &uid, name).await {
                    Err(ApiError::Conflict(_)) => self.cluster.get(&pv).await,
                    Ok(adopted) if self.owned(&adopted).is_some_and(|owned| !owned.labelled) => {
                        Err(ApiError::Rejected(format!("the label {} does not stay on it", pv::NODE_LABEL)))
                    }
                    adopted => adopted.map(Some),
                }
            }
            Action::LookAgain { .. } => self.cluster.get(&pv).await,
            Action::Reclaim(_) => unreachable!("a reclaim is more than one call"),
        };
        Done { pv, ended: result.into() }
    }

    /// Wipes the volume of a Released PV and removes the PV.
    pub async fn reclaim(mut self, target: Target, control: Arc<Control>) -> Done {
        let pv = target.pv.clone();
        let ended = match self.wipe_and_remove(target, control).await {
            Ok(last) => last.map_or(Ended::IsGone, |pv| Ended::Is(Box::new(pv))),
            Err(ended) => ended,
        };
        Done { pv, ended }
    }

    async fn wipe_and_remove(
        &mut self,
        target: Target,
        control: Arc<Control>,
    ) -> Result<Option<PersistentVolume>, Ended> {
        let mut verified: Option<Verified> = None;
        let mut turn: Option<Turn> = None;
        let mut now = self.look(&target.pv).await?;
        for _ in 0..MAX_STEPS {
            let owned = now.as_ref().and_then(|pv| self.owned(pv));
            let step = reclaim::next_step(owned.as_ref(), &target.uid, verified.is_some());
            debug!(pv = target.pv, ?step, "Reclaim");
            now = match (step, owned) {
                (Step::Fence, Some(owned)) => {
                    self.inspect(&target, &control).await?;
                    let fenced = self.cluster.fence(&owned).await.map(Some);
                    self.after(&target.pv, fenced).await?
                }
                (Step::Delete, Some(owned)) => {
                    let deleted = self.cluster.delete_fenced(&owned).await;
                    self.after(&target.pv, deleted).await?
                }
                (Step::Unfence, Some(owned)) => {
                    let unfenced = self.cluster.unfence(&owned).await.map(Some);
                    self.after(&target.pv, unfenced).await?
                }
                (Step::Wipe(fence), _) => match turn.take() {
                    Some(turn) => {
                        verified = Some(self.wipe(fence, &target, &control, turn).await?);
                        now
                    }
                    None => {
                        turn = Some(self.turn(&target).await?);
                        // The wait may have been long: what was seen before it is old.
                        self.look(&target.pv).await?
                    }
                },
                (Step::Remove, _) => {
                    let warrant = Warrant::Wiped(verified.take().expect("removal follows verification"));
                    return self.remove(warrant).await;
                }
                _ => return Ok(now),
            };
        }
        Err(Ended::Api(ApiError::Conflict("it changes faster than it can be reclaimed".to_owned())))
    }

    fn owned(&self, pv: &PersistentVolume) -> Option<OwnedPv> {
        match pv::sort(pv, self.node.as_ref()?, self.use_node_name_only) {
            Decoded::Owned(owned) => Some(*owned),
            _ => None,
        }
    }

    /// The PV as it is now; waits for as long as the API server does not answer.
    async fn look(&mut self, pv: &str) -> Result<Option<PersistentVolume>, Ended> {
        let mut failures = 0;
        loop {
            match self.cluster.get(pv).await {
                Err(ApiError::Unknown(_)) => self.pause(failures).await?,
                answer => return answer.map_err(Ended::Api),
            }
            failures += 1;
        }
    }

    /// The PV after a write: the answer, or a fresh look when that leaves it open.
    async fn after(
        &mut self,
        pv: &str,
        answer: Result<Option<PersistentVolume>, ApiError>,
    ) -> Result<Option<PersistentVolume>, Ended> {
        match answer {
            Ok(Some(now)) => Ok(Some(now)),
            Ok(None) | Err(ApiError::Conflict(_)) => self.look(pv).await,
            Err(ApiError::Unknown(_)) => {
                self.pause(0).await?;
                self.look(pv).await
            }
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(Ended::Api(error)),
        }
    }

    async fn inspect(&self, target: &Target, control: &Arc<Control>) -> Result<(), Ended> {
        let volume = target.clone();
        on_thread(deleter::spawn(&thread_name(&target.pv), control, move |_| deleter::inspect(&volume))).await
    }

    /// Waits for leave to wipe.
    async fn turn(&mut self, target: &Target) -> Result<Turn, Ended> {
        if !target.identity.is_device() {
            return Ok(Turn(None));
        }
        tokio::select! {
            permit = Arc::clone(&self.wipes).acquire_owned() => {
                Ok(Turn(Some(permit.expect("the semaphore is never closed"))))
            }
            _ = self.stopped.wait_for(|stopped| *stopped) => Err(Ended::Stopped),
        }
    }

    async fn wipe(
        &self,
        fence: Fence,
        target: &Target,
        control: &Arc<Control>,
        mut turn: Turn,
    ) -> Result<Verified, Ended> {
        let (volume, start) = (target.clone(), Instant::now());
        let work = move |control: &Control| deleter::wipe(fence, &volume, control);
        let mut thread = std::pin::pin!(on_thread(deleter::spawn(&thread_name(&target.pv), control, work)));
        let mut last = (control.progress(), start);
        let result = loop {
            tokio::select! {
                result = &mut thread => break result,
                () = tokio::time::sleep(STANDSTILL / 6) => {
                    if control.progress() != last.0 {
                        last = (control.progress(), Instant::now());
                    } else if last.1.elapsed() >= STANDSTILL && turn.0.take().is_some() {
                        warn!(pv = target.pv, "The wipe stands still; others no longer wait for it");
                    }
                }
            }
        };
        let outcome = match &result {
            Ok(_) => "success",
            Err(Ended::NotWiped(WipeError::Cancelled)) => "cancelled",
            Err(_) => "failed",
        };
        self.metrics.wipes.get_or_create(&OutcomeLabels { outcome }).inc();
        let (done, _) = control.progress();
        let seconds = start.elapsed().as_secs_f64();
        if result.is_ok() {
            self.metrics.wipe_seconds.observe(seconds);
            info!(pv = target.pv, entry = target.entry, done, seconds, "Volume is wiped and verified");
        }
        result
    }

    /// Removes the PV, for as long as it takes to be sure of it: the wipe is done, and
    /// would have to be done again.
    async fn remove(&mut self, warrant: Warrant) -> Result<Option<PersistentVolume>, Ended> {
        let mut failures = 0;
        loop {
            match self.cluster.remove(&warrant).await {
                Ok(last) => return Ok(Some(last)),
                Err(ApiError::NotFound) => return Ok(None),
                // A uid that does not match is a conflict: another PV has the name now.
                Err(ApiError::Conflict(_)) => return self.look(warrant.fence().pv()).await,
                Err(ApiError::Unknown(_)) => self.pause(failures).await?,
                Err(error) => return Err(Ended::Api(error)),
            }
            failures += 1;
        }
    }

    async fn pause(&mut self, failures: u32) -> Result<(), Ended> {
        tokio::select! {
            () = tokio::time::sleep(backoff(RETRY, failures, fastrand::f64())) => Ok(()),
            _ = self.stopped.wait_for(|stopped| *stopped) => Err(Ended::Stopped),
        }
    }
}

/// Waits for blocking work, also when the agent is stopping: it is told to end, and
/// what it holds must not be left open.
async fn on_thread<T>(work: oneshot::Receiver<Result<T, WipeError>>) -> Result<T, Ended> {
    match work.await {
        Ok(result) => result.map_err(Ended::NotWiped),
        Err(_) => Err(Ended::NotWiped(WipeError::Refused("no thread is to be had for the wipe".to_owned()))),
    }
}
