//! The heart of the matter: what becomes of the volumes of deleted claims, with the
//! moment at which the API server told of each step.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, DeleteParams, ResourceExt as _};

use super::harness::volumes::{path_of, phase};
use super::screen::{Screen, ms};
use super::stage::Stage;
use super::tenant::Tenant;
use super::timeline::Seen;

const FINALIZER: &str = "mooring.dev/wipe";
const WIDTHS: [usize; 7] = [13, 9, 9, 12, 9, 9, 10];

/// When each step of one volume was seen.
struct Steps {
    released: Instant,
    fenced: Instant,
    terminating: Instant,
    gone: Instant,
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
    screen.note("counted from the moment the PV is Released; each event is the API server's own");
    screen.row(&WIDTHS, &["VOLUME", "FENCE", "DELETED", "WIPED IN", "PV GONE", "NEW PV", "AVAILABLE"], true);
    let mut slowest = Duration::ZERO;
    for tenant in tenants {
        let (steps, new) = follow(stage, tenant).await.with_context(|| tenant.volume.label.clone())?;
        let since = |at: Instant| ms(at.saturating_duration_since(steps.released));
        let wiped = wiped_in(stage, &tenant.volume.pv)?;
        let cells = [
            tenant.volume.label.clone(),
            since(steps.fenced),
            since(steps.terminating),
            ms(wiped),
            since(steps.gone),
            since(new.at),
            since(steps.available),
        ];
        screen.row(&WIDTHS, &cells.each_ref().map(String::as_str), false);
        slowest = slowest.max(steps.available.saturating_duration_since(steps.released));
    }
    Ok(ms(slowest))
}

/// The steps of one volume, and the first event of the PV that offers it anew.
async fn follow(stage: &mut Stage, tenant: &Tenant<'_>) -> anyhow::Result<(Steps, Seen)> {
    let volume = tenant.volume;
    let ours = |seen: &Seen| seen.uid() == volume.uid;
    let has_fence = |seen: &Seen| seen.pv.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    let deleted = |seen: &Seen| seen.pv.metadata.deletion_timestamp.is_some();
    let timeline = &mut stage.timeline;
    let released = timeline.wait("Released", |seen| ours(seen) && phase(&seen.pv) == "Released").await?.at;
    let fenced = timeline.wait("the fence", |seen| ours(seen) && has_fence(seen)).await?.at;
    let terminating = timeline.wait("its deletion", |seen| ours(seen) && deleted(seen)).await?.at;
    let gone = timeline.wait("its end", |seen| ours(seen) && seen.gone).await?.at;
    let here = |seen: &Seen| path_of(&seen.pv) == volume.path.to_string_lossy() && !ours(seen);
    let new = timeline.wait("a new PV", here).await?;
    let available = timeline.wait("Available", |seen| here(seen) && phase(&seen.pv) == "Available").await?.at;
    ensure!(released <= fenced && fenced <= terminating, "the fence stood too late");
    ensure!(terminating <= gone && gone <= new.at, "a new PV was there before the old one was gone");
    Ok((Steps { released, fenced, terminating, gone, available }, new))
}

/// How long the wipe took, in the agent's own words.
fn wiped_in(stage: &Stage, pv: &str) -> anyhow::Result<Duration> {
    let events = stage.log_events("Volume is wiped and verified");
    let event = events.iter().find(|event| event["pv"] == pv).context("the agent does not say that it wiped it")?;
    let seconds = event["seconds"].as_f64().context("the agent does not say how long that took")?;
    Ok(Duration::from_secs_f64(seconds))
}
