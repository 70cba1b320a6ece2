//! Two accidents that cost data, or hand it on, where nobody looks: disks that change
//! places, and a PV that is deleted by hand.

use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, DeleteParams, Patch, PatchParams, ResourceExt as _};
use rustix::fs::{CWD, RenameFlags};
use serde_json::json;

use super::harness::disk::tmpfs;
use super::harness::volumes::{path_of, phase};
use super::screen::Screen;
use super::stage::{MIB, Published, Stage};
use super::tenant::Tenant;
use super::timeline::Seen;
use super::verdicts;

/// As long as a wipe of these volumes takes, and more.
const WHILE: Duration = Duration::from_millis(300);

/// Lets both happen.
pub async fn show(screen: &Screen, stage: &mut Stage) -> anyhow::Result<()> {
    screen.act("8  Two disks change places; a PV is deleted by hand");
    swapped(screen, stage).await?;
    deleted(screen, stage).await
}

async fn swapped(screen: &Screen, stage: &mut Stage) -> anyhow::Result<()> {
    let mut volumes = Vec::new();
    for name in ["left", "right"] {
        let (disk, path) = (stage.disk(&format!("{name}.img"), 32 * MIB)?, stage.raw.join(name));
        let link = |stage: &Stage, _: &std::path::Path| drop(stage.disks[disk].link(&stage.raw, name));
        volumes.push(stage.publish(screen, &path, Some(disk), "a block device is linked", link).await?);
    }
    let mut tenants = Vec::new();
    for volume in &volumes {
        tenants.push(Tenant::settle(stage, volume).await?);
    }
    let change_places =
        || rustix::fs::renameat_with(CWD, &volumes[0].path, CWD, &volumes[1].path, RenameFlags::EXCHANGE);
    change_places()?;
    for tenant in &tenants {
        stage.node.release(&tenant.claim).await;
        stage.timeline.wait("Released", |seen| is(seen, tenant.volume) && phase(&seen.pv) == "Released").await?;
    }
    tokio::time::sleep(WHILE).await;
    for tenant in &tenants {
        let label = &tenant.volume.label;
        let why = verdicts::turns(stage, label, "IdentityChanged").await?;
        screen.note(&format!("{label}: IdentityChanged: {why}"));
        tenant.still_has_it(stage)?;
    }
    screen.checked("their links are swapped, their claims deleted: both disks are", "untouched");
    change_places()?;
    let start = Instant::now();
    for tenant in &tenants {
        offered_again(stage, tenant.volume, "").await?;
        tenant.has_lost_it(stage)?;
    }
    screen.done("the links are put right: both are wiped and Available again", start.elapsed());
    Ok(())
}

async fn deleted(screen: &Screen, stage: &mut Stage) -> anyhow::Result<()> {
    let path = stage.kept.join("home");
    std::fs::create_dir(&path)?;
    let what = "a tmpfs of a class that retains is mounted";
    let volume = stage.publish(screen, &path, None, what, |_, path| tmpfs(path, 32 * MIB)).await?;
    let tenant = Tenant::settle(stage, &volume).await?;
    stage.node.release(&tenant.claim).await;
    stage.timeline.wait("Released", |seen| is(seen, &volume) && phase(&seen.pv) == "Released").await?;
    let pvs: Api<PersistentVolume> = Api::all(stage.node.client());
    let start = Instant::now();
    pvs.delete(&volume.pv, &DeleteParams::default()).await?;
    let is_back = |seen: &Seen| is_another(seen, &volume) && phase(&seen.pv) == "Released";
    let back = stage.timeline.wait("the deleted PV again", is_back).await?;
    let spec = back.pv.spec.clone().unwrap_or_default();
    let policy = spec.persistent_volume_reclaim_policy.unwrap_or_default();
    ensure!(policy == "Retain", "the PV came back with policy {policy}");
    screen.done("its PV is deleted by hand, and comes back Released, for nobody to claim", start.elapsed());
    verdicts::turns(stage, &volume.label, "Quarantined").await?;
    let why = back.pv.annotations().get("mooring.dev/quarantined").cloned().unwrap_or_default();
    screen.note(&format!("{}: Quarantined: {}", volume.label, why));
    tenant.still_has_it(stage)?;
    let start = Instant::now();
    let word = Patch::Merge(json!({"metadata": {"annotations": {"mooring.dev/reclaim": "wipe"}}}));
    pvs.patch(&volume.pv, &PatchParams::default(), &word).await?;
    offered_again(stage, &volume, &back.uid()).await?;
    tenant.has_lost_it(stage)?;
    screen.done("annotated mooring.dev/reclaim=wipe: it is wiped and Available again", start.elapsed());
    Ok(())
}

fn is(seen: &Seen, volume: &Published) -> bool {
    seen.uid() == volume.uid
}

fn is_another(seen: &Seen, volume: &Published) -> bool {
    path_of(&seen.pv) == volume.path.to_string_lossy() && !is(seen, volume)
}

/// Waits for an Available PV that is neither the volume's first one nor the given one.
async fn offered_again(stage: &mut Stage, volume: &Published, nor: &str) -> anyhow::Result<()> {
    let wanted = |seen: &Seen| is_another(seen, volume) && seen.uid() != nor && phase(&seen.pv) == "Available";
    stage.timeline.wait(&format!("{} Available again", volume.label), wanted).await.map(drop)
}
