//! The end: the release is uninstalled, disks and nodes go, and it is looked for what is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::api::{Api, DeleteParams, ListParams, ResourceExt as _};
use tokio::time::sleep;

use super::Play;
use super::volumes::Volume;
use crate::harness::helm::RELEASE;
use crate::harness::rbac::NAMESPACE;
use crate::harness::site::{SOON, Site};
use crate::screen::Screen;

/// The kinds of which the chart makes objects.
const KINDS: &str = "daemonset,pod,configmap,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding,storageclass,\
    validatingadmissionpolicy,validatingadmissionpolicybinding,networkpolicy";
const PATIENCE: Duration = Duration::from_secs(20);

/// Removes what was made in the cluster and on the nodes, as an admin does.
pub async fn remove(play: &Play<'_>, volumes: Vec<Volume>) -> anyhow::Result<()> {
    let screen = play.screen;
    screen.act("7  The end");
    let start = Instant::now();
    play.site.helm().run(&["uninstall", RELEASE]);
    let pods: Api<Pod> = Api::namespaced(play.tenant.client(), NAMESPACE);
    let gone =
        async || pods.list(&ListParams::default()).await.expect("pods can be listed").items.is_empty().then_some(());
    play.tenant.until("the agents are gone", SOON, gone).await;
    screen.done("helm uninstall: the agents stop in order", start.elapsed());
    let selector = format!("--selector=app.kubernetes.io/instance={RELEASE}");
    let left = play.site.kubectl().must(&["get", KINDS, "--all-namespaces", &selector, "--output=name"], "");
    ensure!(left.is_empty(), "of the release there is still {left}");
    screen.checked("objects of the release in the cluster", "none");
    free_volumes(play, &volumes).await?;
    for volume in &volumes {
        if !volume.raw {
            play.site.node(volume.node).umount(&volume.path);
        }
    }
    for node in play.site.nodes() {
        let no_container = async || node.ctr(&["tasks", "ls", "--quiet"]).is_empty().then_some(());
        play.tenant.until("no container runs", SOON, no_container).await;
        let mounts = node.exec_on_host(&["cat", "/proc/self/mountinfo"]);
        let left: Vec<_> = mounts.lines().filter(|line| line.contains("/var/lib/kubelet/")).collect();
        ensure!(left.is_empty(), "{} has mounts of pods: {left:?}", node.name());
    }
    screen.checked("containers, and mounts of pods, on the nodes", "none");
    let disks: Vec<_> = volumes.iter().map(|volume| volume.disk.backing.clone()).collect();
    drop(volumes);
    until_none("loop devices", || loop_devices_of(&disks)).await?;
    screen.checked("loop devices on the demo's disks, also those of kubelets", "none");
    Ok(())
}

/// PVs stay at an uninstall; nothing of ours keeps them from being deleted.
async fn free_volumes(play: &Play<'_>, volumes: &[Volume]) -> anyhow::Result<()> {
    let pvs: Api<PersistentVolume> = play.tenant.pvs();
    let left = pvs.list(&ListParams::default()).await?.items;
    ensure!(left.len() == volumes.len(), "{} PVs are left of {} volumes", left.len(), volumes.len());
    for pv in &left {
        pvs.delete(&pv.name_any(), &DeleteParams::default()).await?;
    }
    let none =
        async || pvs.list(&ListParams::default()).await.expect("PVs can be listed").items.is_empty().then_some(());
    play.tenant.until("no PV is left", SOON, none).await;
    play.screen.checked("its PVs stayed, as they do; deleted by hand, nothing holds them", "gone");
    Ok(())
}

/// Ends control plane and nodes, and makes sure of it.
pub async fn ended(screen: &Screen, site: Site) -> anyhow::Result<()> {
    let start = Instant::now();
    drop(site);
    until_none("processes", other_processes).await?;
    screen.done("control plane, kubelets and containerd end; no process is left", start.elapsed());
    let left = data_below(&std::env::temp_dir());
    ensure!(left.is_empty(), "files are left: {left:?}");
    screen.checked("files of disks, images, logs, and of etcd", "none");
    Ok(())
}

async fn until_none(what: &str, look: impl Fn() -> Vec<String>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = look();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{what} are left: {left:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Loop devices on the disks' files. Another one, which a kubelet puts on a raw device for a pod, keeps its disk.
fn loop_devices_of(disks: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let Ok(file) = fs::read_to_string(device.path().join("loop/backing_file")) else { continue };
        let file = file.trim_end();
        if disks.iter().any(|disk| Path::new(file.strip_suffix(" (deleted)").unwrap_or(file)) == disk) {
            found.push(format!("{} on {file}", device.file_name().display()));
        }
    }
    found
}

/// All in our own process ids' namespace but its init and this one.
fn other_processes() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        (id != 1 && id != std::process::id()).then(|| format!("{id} {}", name.trim_end()))
    });
    others.collect()
}

/// Files with content below the run's own directory. Locks and a pipe have none, and go with it.
fn data_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => found.extend(data_below(&entry.path())),
            Ok(metadata) if metadata.len() == 0 => {}
            _ => found.push(entry.path()),
        }
    }
    found
}
