//! The wipe of a device by a Job (`useJobForCleaning`): what to make of Jobs that are there,
//! and the way from a claimed device to a verified one while a pod has it between. The
//! Job outlives the agent: who comes after goes on waiting for the same one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::runtime::watcher::{self, Event as Watch, watcher};
use kube::{Api, Client, ResourceExt as _};
use tracing::{debug, info, warn};

use super::reclaim::STANDSTILL;
use super::{Ended, Tools, on_thread, thread_name};
use crate::cleanup_job::{self, Found, Order, Progress, Site, Succeeded};
use crate::cluster::ApiError;
use crate::controller::scribe::Record;
use crate::controller::turns::Turn;
use crate::deleter::{self, Control, MarkId, Verified, WipeError};
use crate::events::Event;
use crate::ledger::Entry;
use crate::memory::backoff;
use crate::plan::{ByJob, Target};
use crate::reclaim::Fence;

/// The namespace when `MY_NAMESPACE` is not set; contract.
const NAMESPACE: &str = "default";
/// How often it is looked whether the wipe shall end.
const TICK: Duration = Duration::from_secs(1);
/// A Job whose pod does not run for this long is looked into, and then so often.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(30));
/// First and longest wait after a failure of the watch.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What Jobs are made and found with.
#[derive(Clone)]
pub struct Jobs {
    site: Arc<Site>,
    watches: Client,
    /// Whether it was said that Jobs or their pods can't be seen.
    told: Arc<AtomicBool>,
}

impl Jobs {
    pub fn new(site: Site, watches: Client) -> Self {
        Self { site: Arc::new(site), watches, told: Arc::default() }
    }

    /// Where the PV's Job is or would be; `None` when there can't be one.
    fn place(&self, target: &Target) -> Result<Option<Place>, Ended> {
        if target.job.is_some() && self.site.image.is_none() {
            let why = "useJobForCleaning needs the image of its Jobs: set JOB_CONTAINER_IMAGE in the DaemonSet to this \
                       agent's own image, or to one with the program of blockCleanerCommand";
            return Err(Ended::NotWiped(WipeError::Refused(why.to_owned())));
        }
        Ok(self
            .namespace(target.job.is_some())
            .map(|namespace| Place { namespace, name: cleanup_job::name(&target.pv) }))
    }

    /// Where Jobs are made; `None` when there can't be one.
    pub(super) fn namespace(&self, uses_jobs: bool) -> Option<String> {
        self.site.namespace.as_deref().or(uses_jobs.then_some(NAMESPACE)).map(ToOwned::to_owned)
    }

    pub(super) fn tell(&self, namespace: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            info!(namespace, "No right to read Jobs and their pods: one that is left of another agent is not noticed");
        }
    }
}

/// Namespace and name of a Job.
struct Place {
    namespace: String,
    name: String,
}

impl Place {
    fn text(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn problem(&self, problem: impl Into<String>) -> Ended {
        Ended::NotWiped(WipeError::Job { job: self.text(), problem: problem.into() })
    }

    /// A call about the Job that had no success.
    fn failed(&self, what: &str, error: ApiError) -> Ended {
        match error {
            ApiError::Unknown(_) => Ended::Api(error),
            ApiError::Forbidden(_) => self.problem(format!("can't be {what}: {error} (deploy/manifests/jobs.yaml)")),
            error => self.problem(format!("can't be {what}: {error}")),
        }
    }

    fn busy(&self, why: &str) -> Ended {
        Ended::NotWiped(WipeError::Busy(format!("the Job {} {why}", self.text())))
    }
}

/// How the wait for a Job has ended.
enum End {
    Succeeded(Succeeded),
    Failed(String),
    Gone,
    /// The wipe is held, or its PV is gone.
    Cancelled,
    /// The agent stops; the Job goes on.
    Stopped,
}

impl Tools {
    /// Makes sure, before the first step of a reclaim, that no Job of another hand is at the
    /// volume; one that has ended is taken away. Returns whether one of ours is there.
    pub(super) async fn heed_jobs(&mut self, target: &Target) -> Result<bool, Ended> {
        if !target.identity.is_device() {
            return Ok(false);
        }
        let Some(place) = self.jobs.place(target)? else { return Ok(false) };
        let job = match self.cluster.job(&place.namespace, &place.name).await {
            Ok(Some(job)) => job,
            Ok(None) if target.job.is_some() => return self.heed_pods(&place).await.map(|()| false),
            Ok(None) => return Ok(false),
            Err(ApiError::Forbidden(_)) if target.job.is_none() => {
                self.jobs.tell(&place.namespace);
                return Ok(false);
            }
            Err(error) => return Err(place.failed("read", error)),
        };
        match cleanup_job::judge(&job, target) {
            Found::Ours(_) => Ok(true),
            Found::InTheWay(why) => Err(place.busy(&why)),
            Found::Strange if target.job.is_none() => Ok(false),
            Found::Strange => Err(place.problem("is none of ours, and has the name; delete it")),
            Found::Over(why) => {
                info!(pv = target.pv, job = place.text(), why, "A former Job of the PV has ended; it is removed");
                self.end_job(&place, &job).await?;
                Err(place.busy("is being removed"))
            }
        }
    }

    /// Makes sure that no pod of a Job that is gone is at work.
    async fn heed_pods(&self, place: &Place) -> Result<(), Ended> {
        match self.cluster.pods_of_job(&place.namespace, &place.name).await {
            Ok(pods) => match cleanup_job::living(&pods) {
                Some(pod) => Err(place.busy(&format!("is gone, but its pod {pod} has not ended"))),
                None => Ok(()),
            },
            Err(ApiError::Forbidden(_)) => {
                self.jobs.tell(&place.namespace);
                Ok(())
            }
            Err(error) => Err(place.failed("read", error)),
        }
    }

    /// Begins the removal of a Job.
    async fn end_job(&self, place: &Place, job: &Job) -> Result<(), Ended> {
        match self.cluster.delete_job(&place.namespace, &place.name, &job.uid().unwrap_or_default()).await {
            // Gone, or another one by now: that is looked at the next time.
            Ok(()) | Err(ApiError::NotFound | ApiError::Conflict(_)) => Ok(()),
            Err(error) => Err(place.failed("removed", error)),
        }
    }

    /// Has a fenced device wiped by a Job, and verifies it. The ledger says by then that the
    /// wipe has begun.
    pub(super) async fn wipe_by_job(
        &mut self,
        fence: &Fence,
        target: &Target,
        by: &ByJob,
        entry: &Entry,
        control: &Arc<Control>,
        turn: Turn,
    ) -> Result<Verified, Ended> {
        let place = self.jobs.place(target)?.expect("with useJobForCleaning there is a namespace");
        let job = match self.our_job(&place, target).await? {
            Some(job) => {
                self.is_of_this_boot(&place, target, &job, control).await?;
                info!(pv = target.pv, job = place.text(), "Job is there already; waiting for it");
                job
            }
            None => self.begin_job(&place, fence, target, by, entry, control).await?,
        };
        let mut turn = Some(turn);
        let result = match self.await_job(&place, target, &job, control, &mut turn).await? {
            End::Succeeded(done) => {
                let result = self.verify_job(fence, target, entry, done, control, turn).await;
                // What kept us from looking at what it did is over some time.
                if !matches!(&result, Ok(_) | Err(Ended::NotWiped(WipeError::NotClean(_)))) {
                    return result;
                }
                result
            }
            End::Failed(why) => Err(place.problem(format!("failed: {why}"))),
            End::Cancelled => Err(Ended::NotWiped(WipeError::Cancelled)),
            End::Gone => return Err(place.problem("was removed by somebody before it had ended")),
            End::Stopped => return Err(Ended::NotWiped(WipeError::Cancelled)),
        };
        info!(pv = target.pv, job = place.text(), "Job is removed");
        if let Err(Ended::Api(error)) = self.end_job(&place, &job).await {
            debug!(pv = target.pv, %error, "Job is not removed yet");
        }
        result
    }

    /// The Job that has this volume, if there is one.
    async fn our_job(&self, place: &Place, target: &Target) -> Result<Option<Job>, Ended> {
        let found = self.cluster.job(&place.namespace, &place.name).await;
        let Some(job) = found.map_err(|error| place.failed("read", error))? else { return Ok(None) };
        match cleanup_job::judge(&job, target) {
            Found::Ours(_) => Ok(Some(job)),
            Found::InTheWay(why) => Err(place.busy(&why)),
            Found::Over(_) | Found::Strange => Err(place.busy("was made by somebody else meanwhile")),
        }
    }

    /// Makes sure that a Job that is underway does not refuse the disk for ever: its digest
    /// is another after a boot. While the Job is at work on it, the disk is busy.
    async fn is_of_this_boot(
        &self,
        place: &Place,
        target: &Target,
        job: &Job,
        control: &Arc<Control>,
    ) -> Result<(), Ended> {
        if !matches!(cleanup_job::judge(job, target), Found::Ours(Progress::Underway { .. })) {
            return Ok(());
        }
        let volume = target.clone();
        let look = deleter::spawn(&thread_name(&target.pv), control, move |_| deleter::digest(&volume));
        match on_thread(look).await {
            Ok(now) if cleanup_job::digest_of(job) != Some(&now) => {
                info!(
                    pv = target.pv,
                    job = place.text(),
                    "Job was made before the disk was attached anew; it is removed"
                );
                self.end_job(place, job).await?;
                Err(place.busy("was made before the disk was attached anew, and is being removed"))
            }
            _ => Ok(()),
        }
    }

    /// Does a part of the work on the claimed device, in a thread.
    async fn on_claimed<T: Send + 'static>(
        &self,
        fence: &Fence,
        target: &Target,
        entry: &Entry,
        control: &Arc<Control>,
        part: impl FnOnce(deleter::Claimed, deleter::Job<'_>, &Control) -> Result<T, WipeError> + Send + 'static,
    ) -> Result<T, Ended> {
        let (volume, fence, entry, scribe) = (target.clone(), fence.clone(), entry.clone(), self.scribe.clone());
        let work = move |control: &Control| {
            let claimed = deleter::claim(fence, &volume)?;
            let mark = MarkId(entry.id.0);
            let mut journal = Record::new(scribe, entry);
            let job =
                deleter::Job { rules: &volume.rules, mark, from: None, node: "", root: None, journal: &mut journal };
            part(claimed, job, control)
        };
        on_thread(deleter::spawn(&thread_name(&target.pv), control, work)).await
    }

    /// Claims and marks the device, lets go of it, and makes the Job.
    async fn begin_job(
        &mut self,
        place: &Place,
        fence: &Fence,
        target: &Target,
        by: &ByJob,
        entry: &Entry,
        control: &Arc<Control>,
    ) -> Result<Job, Ended> {
        let digest = self.on_claimed(fence, target, entry, control, deleter::leave_to_job).await?;
        let image = self.jobs.site.image.clone().expect("without an image no reclaim begins");
        let hostname = self.node.as_ref().map_or_else(String::new, |node| node.hostname.clone());
        let (namespace, now) = (place.namespace.as_str(), Timestamp::now());
        let order = Order { target, by, namespace, image: &image, hostname: &hostname, digest: &digest, now };
        match self.cluster.create_job(namespace, &order.encode()).await {
            Ok(job) => {
                info!(pv = target.pv, job = place.text(), image, digest, "Job is made to wipe the volume");
                let note = format!("the Job {} wipes it", place.text());
                if let Err(error) = self.cluster.note_progress(fence, &note).await {
                    debug!(pv = target.pv, %error, "Progress is not noted on the PV");
                }
                Ok(job)
            }
            Err(error @ (ApiError::AlreadyExists | ApiError::Unknown(_))) => {
                self.pause(0).await?;
                let unknown = ApiError::Unknown(format!("whether the Job {} was made: {error}", place.text()));
                self.our_job(place, target).await?.ok_or(Ended::Api(unknown))
            }
            Err(ApiError::NotFound) => Err(place.problem(format!(
                "can't be made: there is no namespace {namespace}; set MY_NAMESPACE in the DaemonSet to the pod's"
            ))),
            Err(error) => Err(place.failed("made", error)),
        }
    }

    /// Waits for the end of a Job. Gives the turn away while no pod of it runs.
    async fn await_job(
        &self,
        place: &Place,
        target: &Target,
        job: &Job,
        control: &Control,
        turn: &mut Option<Turn>,
    ) -> Result<End, Ended> {
        let api = Api::<Job>::namespaced(self.jobs.watches.clone(), &place.namespace);
        let config = watcher::Config::default().timeout(60).fields(&format!("metadata.name={}", place.name));
        let mut stopped = self.stopped.clone();
        let mut idle = Idle::since_now();
        let mut failures = 0;
        loop {
            let mut stream = Box::pin(watcher(api.clone(), config.clone()));
            let mut is_there = false;
            let error = loop {
                let event = tokio::select! {
                    event = stream.next() => Some(event),
                    _ = stopped.wait_for(|stopped| *stopped) => return Ok(End::Stopped),
                    () = tokio::time::sleep(TICK) => None,
                };
                let Some(event) = event else {
                    if control.is_cancelled() {
                        return Ok(if *self.stopped.borrow() { End::Stopped } else { End::Cancelled });
                    }
                    if idle.is_longer_than(STANDSTILL) && turn.take().is_some() {
                        warn!(pv = target.pv, job = place.text(), "Its pod does not run; others no longer wait for it");
                    }
                    if idle.is_due() {
                        self.tell_trouble(place, target, &mut idle).await;
                    }
                    continue;
                };
                let now = match event {
                    Some(Ok(Watch::Init)) => {
                        is_there = false;
                        continue;
                    }
                    Some(Ok(Watch::InitDone)) if is_there => continue,
                    Some(Ok(Watch::InitDone | Watch::Delete(_))) => return Ok(End::Gone),
                    Some(Ok(Watch::InitApply(now) | Watch::Apply(now))) => now,
                    Some(Err(error)) => break error,
                    None => break watcher::Error::NoResourceVersion,
                };
                (is_there, failures) = (true, 0);
                if now.uid() != job.uid() {
                    return Ok(End::Gone);
                }
                match cleanup_job::judge(&now, target) {
                    Found::Ours(Progress::Underway { runs }) => idle.note(runs),
                    Found::Ours(Progress::Succeeded(done)) => return Ok(End::Succeeded(done)),
                    Found::Ours(Progress::Failed(why)) => {
                        self.tell_trouble(place, target, &mut idle).await;
                        let trouble = idle.trouble;
                        return Ok(End::Failed(if trouble.is_empty() { why } else { format!("{why}; {trouble}") }));
                    }
                    // Somebody removes it: until its pods have ended, it is there.
                    Found::InTheWay(_) => {}
                    Found::Over(_) | Found::Strange => return Ok(End::Gone),
                }
            };
            let error = ApiError::from(error);
            if matches!(error, ApiError::Forbidden(_)) {
                return Err(place.failed("watched", error));
            }
            debug!(pv = target.pv, %error, "The Job can't be watched; trying again");
            tokio::select! {
                () = tokio::time::sleep(backoff(RETRY, failures, fastrand::f64())) => failures += 1,
                _ = stopped.wait_for(|stopped| *stopped) => return Ok(End::Stopped),
            }
        }
    }

    /// Finds out why a Job does not get on, and tells it, once each.
    async fn tell_trouble(&self, place: &Place, target: &Target, idle: &mut Idle) {
        idle.looked();
        let trouble = match self.cluster.pods_of_job(&place.namespace, &place.name).await {
            Ok(pods) => cleanup_job::trouble(&pods),
            Err(error) => {
                debug!(job = place.text(), %error, "The pods of a Job can't be read");
                return;
            }
        };
        if trouble.is_empty() || trouble == idle.trouble {
            return;
        }
        warn!(pv = target.pv, job = place.text(), trouble, "Job does not get on");
        let problem = format!("does not get on: {trouble}. It is waited for");
        self.events.send(Event::failed_delete(target, &WipeError::Job { job: place.text(), problem }));
        idle.trouble = trouble;
    }

    async fn verify_job(
        &self,
        fence: &Fence,
        target: &Target,
        entry: &Entry,
        done: Succeeded,
        control: &Arc<Control>,
        turn: Option<Turn>,
    ) -> Result<Verified, Ended> {
        info!(pv = target.pv, "Job says that it has wiped the volume; it is read back");
        let verify =
            move |claimed, job: deleter::Job<'_>, control: &Control| deleter::verify_job(claimed, &done, job, control);
        let thread = self.on_claimed(fence, target, entry, control, verify);
        self.watch_over(thread, &target.pv, Some(fence), control, turn).await
    }
}

/// Since when no pod of a Job runs, and what is known of that.
struct Idle {
    since: Option<Instant>,
    look_at: Instant,
    trouble: String,
}

impl Idle {
    fn since_now() -> Self {
        let now = Instant::now();
        Self { since: Some(now), look_at: now + PATIENCE.0, trouble: String::new() }
    }

    fn note(&mut self, runs: bool) {
        if runs {
            self.since = None;
        } else if self.since.is_none() {
            *self = Self { trouble: std::mem::take(&mut self.trouble), ..Self::since_now() };
        }
    }

    fn is_longer_than(&self, time: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= time)
    }

    fn is_due(&self) -> bool {
        self.since.is_some() && Instant::now() >= self.look_at
    }

    fn looked(&mut self) {
        self.look_at = Instant::now() + PATIENCE.1;
    }
}
