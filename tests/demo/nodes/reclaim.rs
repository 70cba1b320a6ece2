//! Pods and claims are deleted; what becomes of their volumes, and of what was on them.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod as PodObject};
use kube::api::{Api, DeleteParams, ListParams};

use super::Play;
use super::tenants::{self, Pod};
use super::volumes::Volume;
use crate::harness::site::SOON;
use crate::reclaim::{Steps, head};

/// Deletes all and follows each volume until it is Available again. Returns how long the slowest took.
pub async fn watch(play: &mut Play<'_>, volumes: &[Volume], pods: &[Pod]) -> anyhow::Result<Duration> {
    play.screen.act("5  Pods and claims are deleted: fenced, wiped, verified, offered again");
    let start = Instant::now();
    play.tenant.delete::<StatefulSet>(tenants::SET).await;
    let claims: Api<PersistentVolumeClaim> = play.tenant.api();
    for claim in pods.iter().flat_map(|pod| &pod.claims) {
        claims.delete(claim, &DeleteParams::default()).await?;
    }
    let objects: Api<PodObject> = play.tenant.api();
    let gone = async || {
        let left = objects.list(&ListParams::default()).await.expect("pods can be listed");
        left.items.is_empty().then_some(())
    };
    play.tenant.until("all pods are gone", SOON, gone).await;
    play.screen.done("the StatefulSet and its claims are deleted; its pods have ended", start.elapsed());
    head(play.screen);
    let mut slowest = Duration::ZERO;
    for volume in volumes {
        let steps = Steps::follow(&mut play.timeline, &volume.pv, &volume.uid).await;
        let steps = steps.with_context(|| volume.label.clone())?;
        steps.show(play.screen, &volume.label, wiped_in(play, volume).await?);
        slowest = slowest.max(steps.took());
    }
    for (volume, pod) in tenants::of_pods(volumes, pods) {
        look_for_remains(play, volume, pod)?;
    }
    Ok(slowest)
}

/// How long the wipe took, in the agent's own words.
async fn wiped_in(play: &Play<'_>, volume: &Volume) -> anyhow::Result<Duration> {
    let log = play.log(volume.node).await;
    let line = log.lines().find(|line| line.contains("Volume is wiped and verified") && line.contains(&volume.pv));
    let seconds = line.and_then(|line| line.split("seconds=").nth(1)?.split_whitespace().next()?.parse().ok());
    seconds.map(Duration::from_secs_f64).context("the agent does not say how long the wipe took")
}

/// Looks for the secret on the host: it must not be there.
fn look_for_remains(play: &Play<'_>, volume: &Volume, pod: &Pod) -> anyhow::Result<()> {
    let Volume { label, disk, .. } = volume;
    play.site.node(volume.node).on_host(|| {
        let on_disk = disk.backing_contains(pod.secret.as_bytes());
        if volume.raw {
            ensure!(!on_disk, "the secret of {} is still on the disk behind {label}", pod.name);
            ensure!(disk.read_all().iter().all(|byte| *byte == 0), "{label} has a byte that is not zero");
            play.screen.checked(&format!("{label}: searched its whole disk for the secret"), "nothing");
            play.screen.checked(&format!("{label}: read all of the device"), "zeros");
            return Ok(());
        }
        let names = fs::read_dir(&volume.path)?.map(|entry| entry.map(|entry| entry.file_name()));
        let left: Vec<_> = names.filter(|name| name.as_ref().is_ok_and(|name| name != "lost+found")).collect();
        ensure!(left.is_empty(), "{label} still has {left:?}");
        play.screen.checked(&format!("{label}: listed the filesystem"), "no file");
        if on_disk {
            play.screen.note("its files are removed; the filesystem's free blocks are not overwritten");
        }
        Ok(())
    })
}
