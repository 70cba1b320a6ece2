//! Many mounts at once, against a client that does nothing but make the same volumes.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, ListParams};

use crate::harness::cluster::client_from;
use crate::harness::{ControlPlane, TestNode, disk};
use crate::site::{BYTES, Site, post_all, twin};
use crate::table::{Samples, Table};
use crate::witness::{Kind, Sighting, Witness};

const MOUNTS: usize = 500;
const ROUNDS: usize = 4;
/// As many as the agent has.
const IN_FLIGHT: usize = 32;
/// The controller manager makes the new volumes Available meanwhile.
const QUIET: Duration = Duration::from_millis(400);

/// Measures on that control plane. Each round has a node and an agent of its own, and the
/// sides take turns at being the first. The bare client has the rights of an agent, on a
/// node that has none: what it makes is judged by the same policies.
pub async fn measure(plane: &ControlPlane, table: &mut Table) {
    let mut witness = Witness::start(plane.kubeconfig());
    let (mut agents, mut bares) = (Samples::default(), Samples::default());
    let (mut ratios, mut mounts) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let (site, bare) = (Site::new(plane, "burst").await, TestNode::new(plane, "twins").await);
        site.mount_points(MOUNTS);
        let warm = site.dir.join("warm");
        disk::tmpfs(&warm, BYTES);
        let agent = site.agent().await;
        let model = witness.wait("the first volume", |sighting| sighting.made_at(&warm)).await.pv;
        witness.quiet(QUIET).await;
        let (mut mounted, mut posted) = (None, None);
        for side in 0..2 {
            if (round + side) % 2 == 0 {
                mounted = Some(mount(&site, &mut witness).await);
            } else {
                posted = Some(post(&bare, &site, &model, &mut witness).await);
            }
            witness.quiet(QUIET).await;
        }
        let ((mount_time, mounted), posted) = mounted.zip(posted).expect("both sides have had their turn");
        mounts.push_time(mount_time);
        agents.push_time(mounted);
        bares.push_time(posted);
        ratios.push(mounted.as_secs_f64() / posted.as_secs_f64());
        drop(agent);
    }
    table.samples(&format!("{MOUNTS} mounts at once → last PV"), "ms", &agents, None);
    table.samples("  of which mount(2)", "ms", &mounts, None);
    table.samples(&format!("  bare client, {IN_FLIGHT} in flight → last PV"), "ms", &bares, None);
    table.value("  ratio of medians", "×", agents.median() / bares.median(), Some(1.5));
    table.samples("  ratio within a round", "×", &ratios, None);
}

/// How long the mounting took, and how long it was until the last volume.
async fn mount(site: &Site, witness: &mut Witness) -> (Duration, Duration) {
    let begin = Instant::now();
    let points = disk::mount_many(&site.dir, MOUNTS);
    let mounted = begin.elapsed();
    let is_ours = |sighting: &Sighting| points.iter().any(|point| sighting.made_at(point));
    (mounted, witness.wait_many("the volumes of the mounts", MOUNTS, is_ours).await - begin)
}

/// Makes the volumes of the site once more, as the bare node's.
async fn post(bare: &TestNode, site: &Site, model: &PersistentVolume, witness: &mut Witness) -> Duration {
    let client = client_from(bare.kubeconfig()).await;
    // One connection is warm, as is the agent's.
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.list(&ListParams::default().limit(1)).await.expect("volumes can be listed");
    let prefix = format!("{}-pv-", bare.name());
    let twins: Vec<PersistentVolume> = (0..MOUNTS)
        .map(|number| {
            let mut pv = twin(model, &site.node, (bare.name(), bare.uid()), &format!("{prefix}{number:08x}"));
            let local = pv.spec.as_mut().and_then(|spec| spec.local.as_mut()).expect("it is a local volume");
            local.path = site.dir.join(format!("{number:05}")).display().to_string();
            pv
        })
        .collect();
    let begin = Instant::now();
    post_all(client, twins, IN_FLIGHT).await;
    let is_ours = |sighting: &Sighting| {
        sighting.kind == Kind::Added
            && sighting.pv.metadata.name.as_deref().is_some_and(|name| name.starts_with(&prefix))
    };
    witness.wait_many("the volumes of the bare client", MOUNTS, is_ours).await - begin
}
