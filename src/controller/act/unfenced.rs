//! The reclaim of a Released PV without the right to patch it: no finalizer can keep it
//! from being bound again. So the volume is claimed, and the PV read again before the first
//! byte; both the watch and a look every few seconds stop the wipe when somebody takes the
//! PV from it; and a PV that shows as free half wiped is removed before a claim gets it.
//! The ledger then has its volume wiped to the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use tracing::{debug, info, warn};

use super::reclaim::{WipedEntry, is_gone};
use super::{Ended, Tools, on_thread, thread_name};
use crate::cluster::ApiError;
use crate::controller::turns::{Place, Turn};
use crate::deleter::{self, Claimed, Control, Verified, Warrant, WipeError};
use crate::events::{About, Event, HALF_WIPED};
use crate::ledger::{Entry, State};
use crate::plan::Target;
use crate::pv::{self, Claim};
use crate::reclaim::Release;

/// How often the PV is read while its volume is wiped.
const LOOK: Duration = Duration::from_secs(5);
/// A wipe stops when the API server has not answered for so long: nobody knows whose the
/// volume is by then.
const BLIND: Duration = Duration::from_secs(20);
/// How often the removal of a PV that keeps changing is tried; after that, it is decided
/// anew.
const TRIES: usize = 5;

impl Tools {
    /// Wipes the volume and removes the PV.
    pub(super) async fn wipe_unfenced(
        &mut self,
        target: &Target,
        place: &Place,
        control: &Arc<Control>,
        wiped: &mut bool,
    ) -> Result<Option<PersistentVolume>, Ended> {
        // Job mode is not for these, but one of the Go provisioner's Jobs may be at work.
        self.heed_jobs(target).await?;
        self.inspect(target, control).await?;
        let turn = self.turn(place).await?;
        let now = self.look(&target.pv).await?;
        let Some(release) = self.release(target, now.as_ref()) else { return Ok(now) };
        let claimed = {
            let (leave, volume) = (release.clone(), target.clone());
            let take = move |_: &Control| deleter::claim_released(leave, &volume);
            on_thread(deleter::spawn(&thread_name(&target.pv), control, take)).await?
        };
        // Claiming may have taken its time: whoever has taken it back keeps the data.
        let now = self.look(&target.pv).await?;
        if self.release(target, now.as_ref()).is_none_or(|now| !now.is_same(&release)) {
            return Ok(now);
        }
        if control.is_cancelled() {
            return Err(Ended::NotWiped(WipeError::Cancelled));
        }
        let root = now.as_ref().and_then(|pv| pv::annotation(pv, pv::ROOT)).map(ToOwned::to_owned);
        let claim = now.as_ref().and_then(pv::claim);
        let (verified, entry) = self.wipe_on_watch(claimed, &release, target, root, claim, control, turn).await?;
        *wiped = true;
        // As long as the PV is there, anybody may get it. Who finds it gone without having seen that looks
        // whether the volume is still empty.
        let (pv, uid) = (target.pv.as_str().into(), Some(target.uid.as_str().into()));
        let entry = self.record_wiped(entry, State::Offered { pv, uid, since: None }).await?;
        self.remove_wiped(verified, entry, &release, target).await
    }

    /// Proof that the PV is to be wiped for the claim that was decided on.
    fn release(&self, target: &Target, now: Option<&PersistentVolume>) -> Option<Release> {
        let owned = now.and_then(|pv| self.owned(pv)).filter(|owned| owned.uid == target.uid)?;
        let decided_for = match &target.record.state {
            State::Used { claim, .. } => claim.as_ref(),
            _ => None,
        };
        let release = Release::of(&owned);
        debug!(pv = target.pv, released = release.is_some(), "Reclaim without a fence");
        release.filter(|release| decided_for.is_none_or(|claim| release.is_from(&claim.uid)))
    }

    /// Wipes for as long as the PV stays Released from its claim.
    #[expect(clippy::too_many_arguments, reason = "they are the parts of one job")]
    async fn wipe_on_watch(
        &self,
        claimed: Claimed<Release>,
        release: &Release,
        target: &Target,
        root: Option<String>,
        claim: Option<Claim>,
        control: &Arc<Control>,
        turn: Turn,
    ) -> Result<(Verified<Release>, WipedEntry), Ended> {
        let before = before_the_wipe(target, claim.clone());
        let work = async move |entry: &Entry| {
            self.wipe_here(move || Ok(claimed), None, target, entry, root, control, turn).await
        };
        let mut wipe = std::pin::pin!(self.wipe(target, claim, work));
        let result = tokio::select! {
            result = &mut wipe => result,
            () = self.until_over(release, target, control) => {
                if control.has_begun() {
                    self.withdraw_half_wiped(release, target).await;
                }
                wipe.await
            }
        };
        if result.is_err() && !control.has_begun() {
            self.scribe.record(before).await.map_err(Ended::Ledger)?;
        }
        result
    }

    /// Completes when the wipe was told to stop: by the controller, or because a look at the
    /// PV says so.
    async fn until_over(&self, release: &Release, target: &Target, control: &Control) {
        let mut seen = Instant::now();
        loop {
            tokio::select! {
                () = control.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            match self.cluster.get(&target.pv).await {
                Ok(now) => {
                    let owned = now.as_ref().and_then(|pv| self.owned(pv));
                    if owned.is_none_or(|owned| release.is_over(&owned)) {
                        return control.cancel();
                    }
                    seen = Instant::now();
                }
                Err(error) if seen.elapsed() >= BLIND => {
                    warn!(pv = target.pv, %error, "It can't be seen whose the volume is; its wipe stops");
                    return control.cancel();
                }
                Err(error) => debug!(pv = target.pv, %error, "The PV can't be read during its wipe"),
            }
        }
    }

    /// Removes the PV, if it shows as free or reserved and its volume is half wiped.
    async fn withdraw_half_wiped(&self, release: &Release, target: &Target) {
        for _ in 0..TRIES {
            let now = match self.cluster.get(&target.pv).await {
                Ok(now) => now,
                Err(error) => return debug!(pv = target.pv, %error, "The PV can't be read; deciding anew"),
            };
            let owned = now.as_ref().and_then(|pv| self.owned(pv));
            let Some(unclaimed) = owned.and_then(|owned| release.taken_back(&owned)) else { return };
            match self.cluster.remove(&Warrant::Unclaimed(unclaimed)).await {
                Ok(_) | Err(ApiError::NotFound) => {
                    warn!(
                        pv = target.pv,
                        "PV was taken from its wipe; it is withdrawn before a claim gets it half wiped"
                    );
                    let note = "its claimRef was changed while its volume was being wiped: the PV is withdrawn, and the \
                                volume is wiped to the end and offered anew";
                    let about = About::Pv(target.pv.clone(), target.uid.clone());
                    return self.events.send(Event::warning(about, HALF_WIPED, note));
                }
                Err(ApiError::Conflict(_) | ApiError::Unknown(_)) => {}
                Err(error) => return debug!(pv = target.pv, %error, "The PV can't be withdrawn; deciding anew"),
            }
        }
    }

    /// Removes the PV of a wiped volume, if it still is Released from the same claim; the volume counts as
    /// clean once that is gone. Whoever has taken it has got a clean volume.
    async fn remove_wiped(
        &mut self,
        mut verified: Verified<Release>,
        entry: WipedEntry,
        release: &Release,
        target: &Target,
    ) -> Result<Option<PersistentVolume>, Ended> {
        let mut failures = 0;
        loop {
            let now = self.look(&target.pv).await?;
            let again = self.release(target, now.as_ref()).filter(|now| now.is_same(release));
            let Some(again) = again else {
                if !is_gone(now.as_ref(), &target.uid) {
                    info!(pv = target.pv, "PV was taken back when its volume was wiped; it stays");
                }
                return Ok(now);
            };
            let warrant = Warrant::WipedUnfenced(verified, again);
            match self.cluster.remove(&warrant).await {
                Ok(last) => {
                    let now = self.until_gone(last).await?;
                    if is_gone(now.as_ref(), &target.uid) {
                        self.record_wiped(entry, State::Clean).await?;
                    }
                    return Ok(now);
                }
                Err(ApiError::NotFound) => return Ok(None),
                Err(ApiError::Conflict(_) | ApiError::Unknown(_)) => {}
                Err(error) => return Err(Ended::Api(error)),
            }
            let Warrant::WipedUnfenced(kept, _) = warrant else { unreachable!("it was made so above") };
            verified = kept;
            self.pause(failures).await?;
            failures += 1;
        }
    }
}

/// What the ledger is to say again if the wipe ends before its first byte.
fn before_the_wipe(target: &Target, claim: Option<Claim>) -> Entry {
    let mut entry = (*target.record).clone();
    if !matches!(entry.state, State::Wiping { .. }) {
        let (pv, uid) = (target.pv.as_str().into(), target.uid.as_str().into());
        entry.state = State::Used { pv, uid, claim, since: None };
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Cursor;
    use crate::testing;

    #[test]
    fn a_wipe_that_ends_before_its_first_byte_leaves_a_used_volume_or_the_wipe_before() {
        let claim = Claim { namespace: "tenant".into(), name: "data".into(), uid: "claim-uid".into() };
        let mut target = testing::target("a", 1);
        let used = before_the_wipe(&target, Some(claim.clone())).state;
        assert!(matches!(used, State::Used { claim: Some(of), uid, .. } if of == claim && *uid == *target.uid));
        let (pv, uid) = (target.pv.as_str().into(), target.uid.as_str().into());
        let cursor = Some(Cursor { pass: 0, offset: 64 });
        let wiping = State::Wiping { pv, uid, claim: Some(claim.clone()), method: "zero".into(), cursor };
        target.record.state = wiping.clone();
        assert_eq!(before_the_wipe(&target, Some(claim)).state, wiping, "it goes on where it was");
    }
}
