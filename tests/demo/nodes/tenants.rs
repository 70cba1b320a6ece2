//! A `StatefulSet` whose pods have a filesystem and a raw device each, and write a secret to both.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use serde_json::{Value, json};

use super::volumes::Volume;
use super::{FAST, Play, RAW};
use crate::harness::image;
use crate::harness::site::container_id;

/// The `StatefulSet`.
pub const SET: &str = "db";
/// Where a pod writes a line with its machine's uptime ten times a second.
pub const JOURNAL: &str = "journal";
const DIARY: &str = "diary.txt";
/// Not at either end of the device, and across a page boundary.
const OFFSET: u64 = (20 << 20) - 7;
const WIDTHS: [usize; 5] = [6, 8, 13, 18, 24];

/// A pod that runs.
pub struct Pod {
    pub name: String,
    pub node: usize,
    /// The container as the kubelet knows it.
    pub container: String,
    pub secret: String,
    pub claims: [String; 2],
}

/// Makes the `StatefulSet`, shows which pod got which volume, and lets each write its secret.
pub async fn move_in(play: &Play<'_>, volumes: &[Volume]) -> anyhow::Result<Vec<Pod>> {
    play.screen.act("3  A StatefulSet claims them: each pod a filesystem and a raw device");
    let start = Instant::now();
    play.tenant.apply(&stateful_set(play.nodes().len()).to_string());
    let mut pods = Vec::new();
    for number in play.nodes() {
        let name = format!("{SET}-{number}");
        let object = play.tenant.wait_running(&name).await;
        pods.push(pod(play, name, &object)?);
    }
    play.screen.done("its pods run", start.elapsed());
    play.screen.row(&WIDTHS, &["POD", "NODE", "CLAIM", "PV", "PATH"], true);
    for pod in &pods {
        for claim in &pod.claims {
            let (_, pv) = play.tenant.wait_bound(claim).await;
            let uid = pv.metadata.uid.unwrap_or_default();
            let volume = volumes.iter().find(|volume| volume.uid == uid).context("a claim has none of these PVs")?;
            ensure!(volume.node == pod.node, "{claim} has {}, but {} runs elsewhere", volume.label, pod.name);
            let path = volume.path.display().to_string();
            play.screen.row(&WIDTHS, &[&pod.name, play.site.node(pod.node).name(), claim, &volume.pv, &path], false);
        }
        let secret = &pod.secret;
        let write = format!(
            "printf %s {secret} >/data/{DIARY}; sync; printf %s {secret} | \
             dd of=/dev/raw bs=1 seek={OFFSET} conv=notrunc,fsync 2>/dev/null"
        );
        play.tenant.sh(&pod.name, &write);
    }
    still_have_them(play, volumes, &pods)?;
    play.screen.checked("each wrote a secret to both; it is on the hosts' disks", "yes");
    Ok(pods)
}

/// Makes sure that each secret is on both of its pod's volumes, seen from the host.
pub fn still_have_them(play: &Play<'_>, volumes: &[Volume], pods: &[Pod]) -> anyhow::Result<()> {
    for (volume, pod) in of_pods(volumes, pods) {
        ensure!(has(play, volume, &pod.secret), "{} wrote its secret, but it is not on {}", pod.name, volume.label);
    }
    Ok(())
}

/// Each volume with the pod of its node.
pub fn of_pods<'a>(volumes: &'a [Volume], pods: &'a [Pod]) -> impl Iterator<Item = (&'a Volume, &'a Pod)> {
    volumes.iter().filter_map(|volume| Some((volume, pods.iter().find(|pod| pod.node == volume.node)?)))
}

fn has(play: &Play<'_>, volume: &Volume, secret: &str) -> bool {
    play.site.node(volume.node).on_host(|| match volume.raw {
        true => volume.disk.backing_contains(secret.as_bytes()),
        false => fs::read_to_string(volume.path.join(DIARY)).is_ok_and(|text| text == secret),
    })
}

fn pod(play: &Play<'_>, name: String, object: &PodObject) -> anyhow::Result<Pod> {
    let node = object.spec.as_ref().and_then(|spec| spec.node_name.clone()).context("a pod that runs has a node")?;
    let node = play.nodes().find(|number| play.site.node(*number).name() == node).context("it is one of ours")?;
    let container = container_id(object).context("it runs")?.to_owned();
    let secret = format!("tenant-secret-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let claims = ["data", "raw"].map(|claim| format!("{claim}-{name}"));
    Ok(Pod { name, node, container, secret, claims })
}

fn stateful_set(replicas: usize) -> Value {
    let labels = json!({ "app": SET });
    let work = format!(
        "trap 'exit 0' TERM; while :; do read up _ </proc/uptime; echo $up >>/data/{JOURNAL}; sleep 0.1 & wait; done"
    );
    let claim = |name: &str, class: &str, mode: &str| {
        json!({
            "metadata": { "name": name },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": class, "volumeMode": mode,
                "resources": { "requests": { "storage": "1Mi" } },
            },
        })
    };
    let container = json!({
        "name": "main", "image": image::BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", work],
        "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
        "volumeDevices": [{ "name": "raw", "devicePath": "/dev/raw" }],
    });
    let one_a_node = json!([{ "labelSelector": { "matchLabels": labels }, "topologyKey": "kubernetes.io/hostname" }]);
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": SET },
        "spec": {
            "serviceName": SET, "replicas": replicas, "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": 1, "dnsPolicy": "Default", "containers": [container],
                    "affinity": {
                        "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": one_a_node },
                    },
                },
            },
            "volumeClaimTemplates": [claim("data", FAST, "Filesystem"), claim("raw", RAW, "Block")],
        },
    })
}
