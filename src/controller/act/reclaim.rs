//! The reclaim of a Released PV by its fence: fence, delete, claim, wipe, verify, remove. After each
//! step the API server is asked again, and [`reclaim::next_step`] decides anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt as _;
use tracing::{debug, info, warn};

use super::{Done, Ended, Tools, on_thread, thread_name};
use crate::cluster::ApiError;
use crate::controller::scribe::Record;
use crate::controller::turns::{Place, Turn};
use crate::deleter::{self, Claimed, Control, Job, MarkId, Receipt, Verified, Warrant, WipeError};
use crate::events::Event;
use crate::ledger::{self, Entry, State};
use crate::memory::backoff;
use crate::metrics::OutcomeLabels;
use crate::metrics::wipes::{By, Wipe, WipeUnderWay};
use crate::plan::Target;
use crate::pv::{self, Claim};
use crate::reclaim::{self, Fence, Step};
use crate::state_dir::{EntryLock, StateDirError};
use crate::volume::Capacity;

/// A reclaim that has not come to an end after this many steps is given back to the
/// controller.
const MAX_STEPS: usize = 30;
/// A wipe that makes no progress for this long gives its turn to others.
pub(super) const STANDSTILL: Duration = Duration::from_secs(30);
/// How often a wipe's progress is looked at, and noted on its PV.
const LOOK: Duration = Duration::from_secs(5);
const NOTE: Duration = Duration::from_secs(10);
/// Waits while the API server does not answer in the middle of a reclaim.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Waits between two looks whether a PV that was deleted is gone, and how long it is looked.
const GONE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
const GONE_PATIENCE: Duration = Duration::from_secs(30);
/// Waits while it refuses to remove the PV of a wiped volume.
const REFUSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// The ledger's entry of a volume that has been wiped and verified; none when the volume is not the recorded
/// one. As long as it lives, nobody else wipes the volume.
pub(super) struct WipedEntry {
    entry: Option<Entry>,
    _lock: Option<EntryLock>,
}

impl Tools {
    /// Wipes the volume of a Released PV and removes the PV.
    pub async fn reclaim(mut self, mut target: Target, place: Place, control: Arc<Control>) -> Done {
        let pv = target.pv.clone();
        let mut wiped = false;
        if !self.may_patch {
            // A Job would be one more hand on a volume that nothing guards.
            target.job = None;
        }
        let work = if self.may_patch {
            self.wipe_and_remove(&target, &place, &control, &mut wiped).await
        } else {
            self.wipe_unfenced(&target, &place, &control, &mut wiped).await
        };
        let ended = match work {
            Ok(last) => last.map_or(Ended::IsGone, |pv| Ended::Is(Box::new(pv))),
            Err(ended) => ended,
        };
        if let Ended::NotWiped(error) = &ended
            && !matches!(error, WipeError::Cancelled | WipeError::Busy(_))
        {
            self.events.send(Event::failed_delete(&target, error));
        }
        if is_failure(&ended) {
            self.metrics.contract.reclaim_failed(target.identity.mode(), by(&target));
        }
        Done { pv, ended, wiped }
    }

    async fn wipe_and_remove(
        &mut self,
        target: &Target,
        place: &Place,
        control: &Arc<Control>,
        wiped: &mut bool,
    ) -> Result<Option<PersistentVolume>, Ended> {
        // While somebody uses the volume, or it is another one, nobody need be asked. The
        // Job that wipes it uses it.
        if !self.heed_jobs(target).await? {
            self.inspect(target, control).await?;
        }
        let mut verified: Option<Verified> = None;
        let mut under_way: Option<WipeUnderWay> = None;
        let mut turn: Option<Turn> = None;
        let mut now = self.look(&target.pv).await?;
        for _ in 0..MAX_STEPS {
            let owned = now.as_ref().and_then(|pv| self.owned(pv));
            let step = reclaim::next_step(owned.as_ref(), target.begun(), verified.is_some());
            debug!(pv = target.pv, ?step, "Reclaim");
            // Held, or the agent stops: nothing more is begun.
            if verified.is_none() && control.is_cancelled() {
                return Err(Ended::NotWiped(WipeError::Cancelled));
            }
            now = match (step, owned) {
                (Step::Fence, Some(owned)) => {
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
                (Step::Wipe(fence), Some(owned)) => match turn.take() {
                    Some(turn) => {
                        let root = now.as_ref().and_then(|pv| pv::annotation(pv, pv::ROOT)).map(ToOwned::to_owned);
                        let claim = owned.claim.as_deref().cloned();
                        let wipe = self.metrics.begin_wipe(wipe_of(target, owned.capacity), control);
                        verified = Some(self.wipe_fenced(fence, target, root, claim, control, turn).await?);
                        wipe.succeeded();
                        under_way = Some(wipe);
                        *wiped = true;
                        now
                    }
                    None => {
                        turn = Some(self.turn(place).await?);
                        // The wait may have been long: what was seen before it is old.
                        self.look(&target.pv).await?
                    }
                },
                (Step::Remove, _) => {
                    let warrant = Warrant::Wiped(verified.take().expect("removal follows verification"));
                    let last = self.remove(warrant, target).await?;
                    if let Some(wipe) = under_way {
                        wipe.removed();
                    }
                    return Ok(last);
                }
                _ => return Ok(now),
            };
        }
        Err(Ended::Api(ApiError::Conflict("it changes faster than it can be reclaimed".to_owned())))
    }

    /// The PV as it is now; waits for as long as the API server does not answer.
    pub(super) async fn look(&mut self, pv: &str) -> Result<Option<PersistentVolume>, Ended> {
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

    pub(super) async fn inspect(&self, target: &Target, control: &Arc<Control>) -> Result<(), Ended> {
        let volume = target.clone();
        on_thread(deleter::spawn(&thread_name(&target.pv), control, move |_| deleter::inspect(&volume))).await
    }

    /// Waits for leave to wipe.
    pub(super) async fn turn(&mut self, place: &Place) -> Result<Turn, Ended> {
        tokio::select! {
            turn = place.wait() => Ok(turn),
            _ = self.stopped.wait_for(|stopped| *stopped) => Err(Ended::Stopped),
        }
    }

    /// Wipes and verifies the volume of a fenced PV: here, or by a Job.
    async fn wipe_fenced(
        &self,
        fence: Fence,
        target: &Target,
        root: Option<String>,
        claim: Option<Claim>,
        control: &Arc<Control>,
        turn: Turn,
    ) -> Result<Verified, Ended> {
        let mut tools = self.clone();
        let work = async move |entry: &Entry| match &target.job {
            Some(by) => tools.wipe_by_job(&fence, target, by, entry, control, turn).await,
            None => {
                let (fence_of_thread, volume) = (fence.clone(), target.clone());
                let take = move || deleter::claim(fence_of_thread, &volume);
                tools.wipe_here(take, Some(&fence), target, entry, root, control, turn).await
            }
        };
        let (verified, wiped) = self.wipe(target, claim, work).await?;
        // The fence keeps every claim off it until the PV is gone.
        self.record_wiped(wiped, State::Clean).await?;
        Ok(verified)
    }

    /// Has a volume wiped and verified by `work`, with the ledger a step ahead: it says so
    /// before the first byte goes. That the volume is clean by now is left to be recorded.
    pub(super) async fn wipe<L>(
        &self,
        target: &Target,
        claim: Option<Claim>,
        work: impl AsyncFnOnce(&Entry) -> Result<Verified<L>, Ended>,
    ) -> Result<(Verified<L>, WipedEntry), Ended> {
        let mut entry = (*target.record).clone();
        // Until the end: a wipe by hand beside this one would be a second hand in the ledger.
        let lock = self.scribe.lock(entry.id).await.map_err(|error| match error {
            StateDirError::EntryBusy(_) => Ended::NotWiped(WipeError::Busy(error.to_string())),
            error => Ended::Ledger(error),
        })?;
        let rules = target.rules.clone();
        let resume = entry.resume_point(&rules).filter(|_| target.job.is_none());
        let (pv, uid) = (target.pv.as_str().into(), target.uid.as_str().into());
        let method = target.named(&rules.method).into();
        entry.state = State::Wiping { pv, uid, claim: claim.clone(), method, cursor: resume };
        self.scribe.record(entry.clone()).await.map_err(Ended::Ledger)?;
        self.events.send(Event::wipe_begins(target));
        info!(
            pv = target.pv,
            entry = target.entry,
            method = target.named(rules.method.as_str()),
            resumed = resume.is_some(),
            "Wipe begins"
        );
        let start = Instant::now();
        let result = work(&entry).await;
        let outcome = match &result {
            Ok(_) => "success",
            Err(Ended::NotWiped(WipeError::Cancelled)) => "cancelled",
            Err(_) => "failed",
        };
        self.metrics.wipes.get_or_create(&OutcomeLabels { outcome }).inc();
        let verified = result?;
        let receipt = verified.receipt();
        let seconds = start.elapsed().as_secs_f64();
        self.metrics.wipe_seconds.observe(seconds);
        let Receipt { method, bytes, verification, .. } = *receipt;
        info!(
            pv = target.pv,
            entry = target.entry,
            method,
            bytes,
            seconds,
            verification,
            "Volume is wiped and verified"
        );
        // An empty volume that was mounted in the place of another does not make that clean.
        if !verified.is_the_recorded_one() {
            info!(pv = target.pv, "An empty volume is in its place; the ledger goes on asking for the former one");
            return Ok((verified, WipedEntry { entry: None, _lock: lock }));
        }
        entry.as_of = jiff::Timestamp::now();
        entry.sign(ledger::Receipt {
            at: entry.as_of,
            method: target.named(method).into(),
            amount: bytes,
            seconds,
            verification: verification.into(),
            identity: entry.identity.digest().into(),
            claim,
            pv: target.pv.as_str().into(),
            uid: target.uid.as_str().into(),
        });
        self.events.send(Event::wiped(target, receipt, seconds));
        Ok((verified, WipedEntry { entry: Some(entry), _lock: lock }))
    }

    /// Has the ledger say what a wiped volume is now.
    pub(super) async fn record_wiped(&self, wiped: WipedEntry, state: State) -> Result<WipedEntry, Ended> {
        if let Some(entry) = &wiped.entry {
            let as_of = jiff::Timestamp::now();
            self.scribe.record(Entry { state, as_of, ..entry.clone() }).await.map_err(Ended::Ledger)?;
        }
        Ok(wiped)
    }

    /// Waits until a PV is gone that was deleted, for finalizers keep it a moment; no longer when another claim
    /// has got it, or it stays. Returns what has its name then.
    pub(super) async fn until_gone(
        &mut self,
        deleted: Option<PersistentVolume>,
    ) -> Result<Option<PersistentVolume>, Ended> {
        let Some(deleted) = deleted else { return Ok(None) };
        let claim_of = |pv: &PersistentVolume| pv::claim(pv).map(|claim| claim.uid);
        let (name, deadline) = (deleted.name_any(), Instant::now() + GONE_PATIENCE);
        for looks in 0.. {
            self.rest(GONE, looks).await?;
            let now = self.look(&name).await?;
            let is_on_its_way = |now: &PersistentVolume| {
                now.uid() == deleted.uid() && claim_of(now) == claim_of(&deleted) && Instant::now() < deadline
            };
            if !now.as_ref().is_some_and(is_on_its_way) {
                return Ok(now);
            }
        }
        unreachable!("it ends at the deadline")
    }

    /// Wipes and verifies the volume that `take` claims, in a thread of this process. A
    /// `fence` lets the PV show the progress.
    #[expect(clippy::too_many_arguments, reason = "they are the parts of one job")]
    pub(super) async fn wipe_here<L: Send + 'static>(
        &self,
        take: impl FnOnce() -> Result<Claimed<L>, WipeError> + Send + 'static,
        fence: Option<&Fence>,
        target: &Target,
        entry: &Entry,
        root: Option<String>,
        control: &Arc<Control>,
        turn: Turn,
    ) -> Result<Verified<L>, Ended> {
        let rules = target.rules.clone();
        let resume = entry.resume_point(&rules);
        let mut journal = Record::new(self.scribe.clone(), entry.clone());
        let node = format!("{}/{}", target.mount_dir, target.entry);
        let mark = MarkId(entry.id.0);
        let root = entry.root.as_deref().or(root.as_deref()).and_then(|text| serde_json::from_str(text).ok());
        let work = move |control: &Control| {
            let claimed = take()?;
            let (rules, root, journal) = (&rules, root.as_ref(), &mut journal);
            deleter::wipe(claimed, Job { rules, mark, from: resume, node: &node, root, journal }, control)
        };
        let thread = on_thread(deleter::spawn(&thread_name(&target.pv), control, work));
        self.watch_over(thread, &target.pv, fence, control, Some(turn)).await
    }

    /// Waits for the thread that wipes; notes its progress on the PV, and gives its turn
    /// away when it stands still.
    pub(super) async fn watch_over<T>(
        &self,
        thread: impl Future<Output = Result<T, Ended>>,
        pv: &str,
        fence: Option<&Fence>,
        control: &Control,
        mut turn: Option<Turn>,
    ) -> Result<T, Ended> {
        let mut thread = std::pin::pin!(thread);
        let begun = Instant::now();
        let mut moved = (control.progress(), begun);
        let mut noted = begun;
        loop {
            tokio::select! {
                result = &mut thread => return result,
                () = tokio::time::sleep(LOOK) => {}
            }
            if control.progress() != moved.0 {
                moved = (control.progress(), Instant::now());
            } else if moved.1.elapsed() >= STANDSTILL && turn.take().is_some() {
                warn!(pv, "The wipe stands still; others no longer wait for it");
            }
            if noted.elapsed() >= NOTE {
                noted = Instant::now();
                let text = describe(control, begun.elapsed());
                info!(pv, progress = text, "Wipe goes on");
                if let Some(fence) = fence
                    && let Err(error) = self.cluster.note_progress(fence, &text).await
                {
                    debug!(pv, %error, "Progress is not noted on the PV");
                }
            }
        }
    }

    /// Removes the PV, for as long as it takes to be sure of it: the wipe is done, and
    /// would have to be done again.
    async fn remove(&mut self, warrant: Warrant, target: &Target) -> Result<Option<PersistentVolume>, Ended> {
        let (mut failures, mut told) = (0, false);
        loop {
            match self.cluster.remove(&warrant).await {
                Ok(last) => return Ok(last),
                Err(ApiError::NotFound) => return Ok(None),
                // A uid that does not match is a conflict: another PV has the name now.
                Err(ApiError::Conflict(_)) => return self.look(&target.pv).await,
                Err(ApiError::Unknown(_)) => self.pause(failures).await?,
                Err(error) => {
                    warn!(pv = target.pv, %error, "The volume is wiped, but its PV can't be removed; it is tried again");
                    if !told {
                        self.events.send(Event::not_removed(target, &error));
                        told = true;
                    }
                    self.metrics.contract.reclaim_failed(target.identity.mode(), by(target));
                    self.rest(REFUSED, failures).await?;
                }
            }
            failures += 1;
        }
    }

    pub(super) async fn pause(&mut self, failures: u32) -> Result<(), Ended> {
        self.rest(RETRY, failures).await
    }

    async fn rest(&mut self, waits: (Duration, Duration), failures: u32) -> Result<(), Ended> {
        tokio::select! {
            () = tokio::time::sleep(backoff(waits, failures, fastrand::f64())) => Ok(()),
            _ = self.stopped.wait_for(|stopped| *stopped) => Err(Ended::Stopped),
        }
    }
}

/// Whether the PV with that UID is gone, by what has its name now.
pub(super) fn is_gone(now: Option<&PersistentVolume>, uid: &str) -> bool {
    now.is_none_or(|now| now.metadata.uid.as_deref() != Some(uid))
}

/// Whether an attempt at a reclaim failed. One that was stopped, waits until nobody uses
/// the volume, or has no answer has not.
fn is_failure(ended: &Ended) -> bool {
    match ended {
        Ended::NotWiped(error) => !matches!(error, WipeError::Cancelled | WipeError::Busy(_)),
        Ended::Api(error) => !matches!(error, ApiError::Unknown(_)),
        Ended::Ledger(_) => true,
        Ended::Is(_) | Ended::IsGone | Ended::NameTaken(_) | Ended::NotOffered(_) | Ended::Stopped => false,
    }
}

/// What is told of a wipe in the metrics.
fn wipe_of(target: &Target, capacity: Option<Capacity>) -> Wipe {
    Wipe {
        class: target.record.class.to_string(),
        mode: target.identity.mode(),
        by: by(target),
        capacity,
        method: target.rules.method.clone(),
    }
}

/// Who wipes the volume.
fn by(target: &Target) -> By {
    if target.job.is_some() { By::Job } else { By::Process }
}

/// How far a wipe is, for people to read.
fn describe(control: &Control, after: Duration) -> String {
    let (done, total) = control.progress();
    let phase = control.phase().as_str();
    let rate = done as f64 / after.as_secs_f64();
    if total == 0 || done == 0 {
        return format!("{phase}, {done} done");
    }
    let percent = done.saturating_mul(100) / total;
    let left = total.saturating_sub(done) as f64 / rate;
    format!("{phase}, {percent} % of {total} bytes, {:.0} MB/s, {left:.0} s left", rate / 1e6)
}
