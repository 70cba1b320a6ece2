//! What the controller begins: writes of single PVs, and the reclaim of a Released
//! one from the fence to its end. Each runs as a task and ends with what is now known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use tokio::sync::{Semaphore, watch};
use tracing::{debug, info};

use crate::cluster::{ApiError, Cluster};
use crate::deleter::{self, Control, Verified, Warrant, WipeError};
use crate::metrics::{Metrics, OutcomeLabels};
use crate::plan::{Action, Target};
use crate::pv::{self, Decoded, OwnedPv};
use crate::reclaim::{self, Fence, Step};
use crate::volume::NodeFacts;

/// A reclaim that has not come to an end after this many steps is given back to the
/// controller.
const MAX_STEPS: usize = 30;
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
                created => created.map(Some),
            },
            Action::Adopt { uid, .. } => {
                let name = self.node.as_ref().map_or("", |node| node.name.as_str());
                match self.cluster.adopt(&pv, &uid, name).await {
                    Err(ApiError::Conflict(_)) => self.cluster.get(&pv).await,
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
        let mut now = self.look(&target.pv).await?;
        for _ in 0..MAX_STEPS {
            let owned = now.as_ref().and_then(|pv| self.owned(pv));
            let step = reclaim::next_step(owned.as_ref(), &target.uid, verified.is_some());
            debug!(pv = target.pv, ?step, "Reclaim");
            now = match (step, owned) {
                (Step::Fence, Some(owned)) => {
                    self.inspect(&target).await?;
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
                (Step::Wipe(fence), _) => {
                    verified = Some(self.wipe(fence, &target, &control).await?);
                    now
                }
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
        let mut wait = RETRY.0;
        loop {
            match self.cluster.get(pv).await {
                Err(ApiError::Unknown(_)) => self.pause(wait).await?,
                answer => return answer.map_err(Ended::Api),
            }
            wait = (wait * 2).min(RETRY.1);
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
            Ok(None) | Err(ApiError::Conflict(_) | ApiError::Unknown(_)) => self.look(pv).await,
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(Ended::Api(error)),
        }
    }

    async fn inspect(&mut self, target: &Target) -> Result<(), Ended> {
        let volume = target.clone();
        self.on_thread(&target.pv, move || deleter::inspect(&volume)).await
    }

    async fn wipe(&mut self, fence: Fence, target: &Target, control: &Arc<Control>) -> Result<Verified, Ended> {
        let wipes = Arc::clone(&self.wipes);
        let _permit = tokio::select! {
            permit = wipes.acquire() => permit.expect("the semaphore is never closed"),
            _ = self.stopped.wait_for(|stopped| *stopped) => return Err(Ended::Stopped),
        };
        let (volume, shared, start) = (target.clone(), Arc::clone(control), Instant::now());
        let result = self.on_thread(&target.pv, move || deleter::wipe(fence, &volume, &shared)).await;
        let outcome = match &result {
            Ok(_) => "success",
            Err(Ended::NotWiped(WipeError::Cancelled) | Ended::Stopped) => "cancelled",
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

    /// Runs blocking work on a thread of its own and waits for it, also when the agent
    /// is stopping: it is told to end, and what it holds must not be left open.
    async fn on_thread<T: Send + 'static>(
        &self,
        pv: &str,
        work: impl FnOnce() -> Result<T, WipeError> + Send + 'static,
    ) -> Result<T, Ended> {
        match deleter::spawn(&thread_name(pv), work).await {
            Ok(result) => result.map_err(Ended::NotWiped),
            Err(_) => Err(Ended::NotWiped(WipeError::Refused("no thread is to be had for the wipe".to_owned()))),
        }
    }

    /// Removes the PV, for as long as it takes to be sure of it: the wipe is done, and
    /// would have to be done again.
    async fn remove(&mut self, warrant: Warrant) -> Result<Option<PersistentVolume>, Ended> {
        let mut wait = RETRY.0;
        loop {
            match self.cluster.remove(&warrant).await {
                Ok(last) => return Ok(Some(last)),
                Err(ApiError::NotFound) => return Ok(None),
                // A uid that does not match is a conflict: another PV has the name now.
                Err(ApiError::Conflict(_)) => return self.look(warrant.fence().pv()).await,
                Err(ApiError::Unknown(_)) => self.pause(wait).await?,
                Err(error) => return Err(Ended::Api(error)),
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    async fn pause(&mut self, wait: Duration) -> Result<(), Ended> {
        tokio::select! {
            () = tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)) => Ok(()),
            _ = self.stopped.wait_for(|stopped| *stopped) => Err(Ended::Stopped),
        }
    }
}
