//! One thing at a time: from a mount to its volume, and from a released claim to the
//! volume's end and new beginning.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, ResourceExt};
use serde_json::json;
use tokio::time::sleep;

use crate::harness::cluster::client_from;
use crate::harness::{ControlPlane, TestNode, disk};
use crate::site::{BYTES, Site, twin};
use crate::table::{Samples, Table};
use crate::witness::{Kind, Witness};

const MOUNTS: usize = 60;
/// Mounts on directories that were made a moment ago, as a shell's `mkdir` and `mount` do.
const FRESH_MOUNTS: usize = 20;
const MKDIR_TO_MOUNT: Duration = Duration::from_millis(2);
const RECLAIMS: usize = 30;
/// Between two measurements.
const SPACING: Duration = Duration::from_millis(120);
const FINALIZER: &str = "mooring.dev/wipe";

/// Measures on that control plane. What is done without the agent is done with an agent's
/// rights, on a node that has none.
pub async fn measure(plane: &ControlPlane, table: &mut Table) {
    let mut witness = Witness::start(plane.kubeconfig());
    let site = Site::new(plane, "latency").await;
    let bare = TestNode::new(plane, "without").await;
    let client = client_from(bare.kubeconfig()).await;
    let twins = mount_to_pv(&site, (&bare, &client), &mut witness, table).await;
    let bare = bare_removal(client, &twins, &mut witness).await;
    let site = Site::new(plane, "reclaim").await;
    released_to_gone(&site, &mut witness, &bare, table).await;
}

/// Returns the names of the volumes that were made without the agent.
async fn mount_to_pv(
    site: &Site,
    (bare, client): (&TestNode, &kube::Client),
    witness: &mut Witness,
    table: &mut Table,
) -> Vec<String> {
    let points = site.mount_points(MOUNTS);
    let agent = site.agent().await;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.list(&ListParams::default().limit(1)).await.expect("volumes can be listed");
    let (mut mounted, mut posted, mut names) = (Samples::default(), Samples::default(), Vec::new());
    for (number, point) in points.iter().enumerate() {
        sleep(SPACING).await;
        let begin = Instant::now();
        disk::tmpfs(point, BYTES);
        let sighting = witness.wait("a mount's volume", |sighting| sighting.made_at(point)).await;
        mounted.push_time(sighting.at - begin);

        sleep(SPACING).await;
        let name = format!("bench-pv-{number:08x}");
        let twin = twin(&sighting.pv, &site.node, (bare.name(), bare.uid()), &name);
        let begin = Instant::now();
        volumes.create(&PostParams::default(), &twin).await.expect("a volume can be made");
        posted.push_time(
            witness.wait("a bare POST's volume", |sighting| sighting.is(Kind::Added, &name)).await.at - begin,
        );
        names.push(name);
    }
    let mut fresh = Samples::default();
    for number in 0..FRESH_MOUNTS {
        sleep(SPACING).await;
        let point = site.dir.join(format!("fresh-{number}"));
        std::fs::create_dir(&point).expect("a mount point can be made");
        std::thread::sleep(MKDIR_TO_MOUNT);
        let begin = Instant::now();
        disk::tmpfs(&point, BYTES);
        fresh.push_time(witness.wait("a mount's volume", |sighting| sighting.made_at(&point)).await.at - begin);
    }
    drop(agent);
    table.samples("mount → PV", "ms", &mounted, Some(25.0));
    table.samples("  bare POST → PV", "ms", &posted, None);
    table.value("  ratio", "×", mounted.median() / posted.median(), Some(3.0));
    table.samples("mkdir, 2 ms, mount → PV", "ms", &fresh, None);
    names
}

/// The writes of a reclaim with nothing in between, from the first request to the end.
async fn bare_removal(client: kube::Client, names: &[String], witness: &mut Witness) -> Samples {
    let volumes: Api<PersistentVolume> = Api::all(client);
    let mut times = Samples::default();
    for name in names {
        sleep(SPACING / 2).await;
        let begin = Instant::now();
        let metadata = json!({"metadata": {"finalizers": [FINALIZER]}});
        let patch = |value| Patch::Strategic(value);
        let fenced = volumes.patch(name, &PatchParams::default(), &patch(metadata)).await;
        let fenced = fenced.expect("a finalizer can be added");
        let preconditions =
            Preconditions { uid: fenced.uid(), resource_version: fenced.metadata.resource_version.clone() };
        let params = DeleteParams::default().preconditions(preconditions);
        volumes.delete(name, &params).await.expect("a volume can be deleted");
        let metadata = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        volumes.patch(name, &PatchParams::default(), &patch(metadata)).await.expect("a finalizer can be removed");
        times.push_time(
            witness.wait("a bare volume's end", |sighting| sighting.is(Kind::Deleted, name)).await.at - begin,
        );
    }
    times
}

async fn released_to_gone(site: &Site, witness: &mut Witness, bare: &Samples, table: &mut Table) {
    let point = site.dir.join("a");
    disk::tmpfs(&point, BYTES);
    let _agent = site.agent().await;
    let name = witness.wait("the volume", |sighting| sighting.made_at(&point)).await.pv.name_any();
    witness.wait("the volume Available", |sighting| sighting.turned(&name, "Available")).await;
    let (mut gone, mut available) = (Samples::default(), Samples::default());
    for _ in 0..RECLAIMS {
        sleep(SPACING).await;
        let claim = site.node.bind(&name).await;
        sleep(SPACING).await;
        site.node.release(&claim).await;
        let released = witness.wait("Released", |sighting| sighting.turned(&name, "Released")).await.at;
        gone.push_time(witness.wait("its end", |sighting| sighting.is(Kind::Deleted, &name)).await.at - released);
        witness.wait("its new beginning", |sighting| sighting.is(Kind::Added, &name)).await;
        available
            .push_time(witness.wait("Available", |sighting| sighting.turned(&name, "Available")).await.at - released);
    }
    table.samples("Released → PV gone", "ms", &gone, Some(60.0));
    table.samples("  bare fence, delete, remove → gone", "ms", bare, None);
    table.value("  ratio", "×", gone.median() / bare.median(), None);
    table.samples("Released → Available again", "ms", &available, None);
}
