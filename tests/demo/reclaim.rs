//! The heart of the matter: what becomes of the volumes of deleted claims, with the
//! moment at which the API server told of each step.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, DeleteParams, ResourceExt as _};

use super::harness::volumes::phase;
use super::screen::{Screen, ms};
use super::stage::{Published, Stage};
use super::tenant::Tenant;
use super::timeline::{Seen, Timeline};

const FINALIZER: &str = "mooring.dev/wipe";
const WIDTHS: [usize; 7] = [13, 9, 9, 12, 9, 9, 10];

/// When each step of one volume was seen.
pub struct Steps {
    released: Instant,
    fenced: Instant,
    terminating: Instant,
    gone: Instant,
    again: Instant,
    available: Instant,
}

/// Deletes all claims at once and follows each volume until it is Available again.
/// Returns how long the slowest took from Released on.
pub async fn watch(screen: &Screen, stage: &mut Stage, tenants: &[Tenant<'_>]) -> anyhow::Result<String> {
    screen.act("5  The claims are deleted: fenced, wiped, verified, offered again");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(stage.node.client(), "default");
    for tenant in tenants {
        claims.delete(&tenant.claim.name_any(), &DeleteParams::default()).await?;
    }
    head(screen);
    let mut slowest = Duration::ZERO;
    for tenant in tenants {
        let Published { label, pv, uid, .. } = tenant.volume;
        let steps = Steps::follow(&mut stage.timeline, pv, uid).await.with_context(|| label.clone())?;
        steps.show(screen, label, wiped_in(stage, pv)?);
        slowest = slowest.max(steps.took());
    }
    Ok(ms(slowest))
}

/// The head of the table of steps.
pub fn head(screen: &Screen) {
    screen.note("counted from the moment the PV is Released; each event is the API server's own");
    screen.row(&WIDTHS, &["VOLUME", "FENCE", "DELETED", "WIPED IN", "PV GONE", "NEW PV", "AVAILABLE"], true);
}

impl Steps {
    /// Those of one volume, up to the PV that offers it anew under the same name.
    pub async fn follow(timeline: &mut Timeline, pv: &str, uid: &str) -> anyhow::Result<Self> {
        let ours = |seen: &Seen| seen.uid() == uid;
        let has_fence = |seen: &Seen| seen.pv.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
        let deleted = |seen: &Seen| seen.pv.metadata.deletion_timestamp.is_some();
        let released = timeline.wait("Released", |seen| ours(seen) && phase(&seen.pv) == "Released").await?.at;
        let fenced = timeline.wait("the fence", |seen| ours(seen) && has_fence(seen)).await?.at;
        let terminating = timeline.wait("its deletion", |seen| ours(seen) && deleted(seen)).await?.at;
        let gone = timeline.wait("its end", |seen| ours(seen) && seen.gone).await?.at;
        let here = |seen: &Seen| seen.name() == pv && !ours(seen);
        let again = timeline.wait("a new PV", here).await?.at;
        let available = timeline.wait("Available", |seen| here(seen) && phase(&seen.pv) == "Available").await?.at;
        ensure!(released <= fenced && fenced <= terminating, "the fence stood too late");
        ensure!(terminating <= gone && gone <= again, "a new PV was there before the old one was gone");
        Ok(Self { released, fenced, terminating, gone, again, available })
    }

    /// From Released to Available again.
    pub fn took(&self) -> Duration {
        self.available.saturating_duration_since(self.released)
    }

    /// A row of the table.
    pub fn show(&self, screen: &Screen, label: &str, wiped: Duration) {
        let since = |at: Instant| ms(at.saturating_duration_since(self.released));
        let (fenced, terminating, gone) = (since(self.fenced), since(self.terminating), since(self.gone));
        let (again, available) = (since(self.again), since(self.available));
        screen.row(&WIDTHS, &[label, &fenced, &terminating, &ms(wiped), &gone, &again, &available], false);
    }
}

/// How long the wipe took, in the agent's own words.
fn wiped_in(stage: &Stage, pv: &str) -> anyhow::Result<Duration> {
    let events = stage.log_events("Volume is wiped and verified");
    let event = events.iter().find(|event| event["pv"] == pv).context("the agent does not say that it wiped it")?;
    let seconds = event["seconds"].as_f64().context("the agent does not say how long that took")?;
    Ok(Duration::from_secs_f64(seconds))
}
