//! Every claim of a node vanishes at once, as after a restore of etcd: nothing is wiped.

use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, ResourceExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::ballast;
use crate::harness::disk::mount_many;
use crate::harness::pods::PodSpec;
use crate::harness::rbac::NAMESPACE;
use crate::harness::site::{SOON, container_id};
use crate::harness::volumes::phase;
use crate::stage::{self, Alone};

pub const CLASSES: &[(&str, &str)] = &[(CLASS, "{}")];
const CLASS: &str = "s22";
const COUNT: usize = 12;
/// Taken back while they are held.
const TAKEN_BACK: usize = 6;
/// With those whose policy an admin changes; the rest is wiped after all.
const KEPT: usize = 9;
const NODE: usize = 1;
const HOLD: &str = "mooring.dev/hold";
const METRIC: &str = "mooring_mass_release";

/// That the brake itself ends after five minutes: `most_volumes_released_within_a_minute_are_held`.
#[tokio::test]
async fn s22_when_every_claim_of_a_node_vanishes_nothing_is_wiped_as_long_as_an_admin_says_so() {
    // Until the end, no wipe of the node begins.
    let scene = stage::alone("s22").await;
    let node = scene.node(NODE);
    let dir = node.discovery(CLASS);
    let paths = node.on_host(|| mount_many(&dir, COUNT));
    let mut pvs = Vec::new();
    for path in &paths {
        pvs.push(scene.wait_available(CLASS, NODE, entry(path)).await);
    }
    claim(&scene, &pvs, 0..COUNT);
    scene.run(&pod("old", 0..COUNT)).await;
    scene.sh("old", "for i in /data/*; do echo \"data of $i\" > $i/file; done");
    scene.delete_pod("old").await;
    vanish(&scene, &pvs).await;

    let event = scene.wait_event(node.name(), "MassRelease", "were released within a minute").await;
    let note = event.message.unwrap_or_default();
    eprintln!("{note}");
    let numbers: Vec<usize> = note.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] >= COUNT + ballast::COUNT, "{note}");
    assert!(note.contains("5 minutes") && note.contains(HOLD), "{note}");
    scene.wait_metric(NODE, METRIC, |value| value > 0.5).await;
    assert_eq!(scene.agent_metric(1 - NODE, METRIC).await, Some(0.0), "the other node goes on");
    for path in &paths {
        let detail = scene.wait_saying(NODE, CLASS, entry(path), "Pending", "wiped in ").await;
        let seconds = detail.split_once("wiped in ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u32>().ok());
        // Of five minutes; more than the two seconds in which it is found out.
        assert!(seconds.is_some_and(|left| (10..=301).contains(&left)), "{detail}");
    }

    // An admin gains time, and more than the five minutes: what is released is no mass any more
    // when most is taken back, and stays all the same.
    let hold = Hold::new(&scene);
    wait_detail(&scene, &paths, "mooring.dev/hold on the Node").await;
    let ballast = ballast::wait(&scene, node.name(), "Released").await;
    let back = pvs[..TAKEN_BACK].iter().map(ResourceExt::name_any).chain(ballast);
    futures::future::join_all(back.map(|name| take_back(&scene, name))).await;
    ballast::claim(&scene, node.name()).await;
    scene
        .until("the brake is off", SOON, async || {
            (scene.agent_metric(NODE, METRIC).await? < 0.5).then_some(())
        })
        .await;
    wait_detail(&scene, &paths[TAKEN_BACK..], "mooring.dev/hold on the Node").await;
    for pv in &pvs[TAKEN_BACK..KEPT] {
        let retain = r#"{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}"#;
        scene.kubectl(&["patch", "pv", &pv.name_any(), "--type=merge", "--patch", retain]);
    }
    assert_eq!(with_data(&scene, &paths), COUNT, "nothing was wiped");

    // Then it goes on, with what is left to it.
    drop(hold);
    for (path, pv) in paths.iter().zip(&pvs).skip(KEPT) {
        scene.wait_anew(CLASS, NODE, entry(path), pv).await;
    }
    assert_eq!(with_data(&scene, &paths), KEPT);
    for pv in &pvs[TAKEN_BACK..KEPT] {
        let now = scene.pvs().get(&pv.name_any()).await.expect("it is there");
        assert_eq!((phase(&now), now.uid()), ("Released", pv.uid()));
        take_back(&scene, pv.name_any()).await;
    }
    claim(&scene, &pvs, 0..KEPT);
    scene.run(&pod("again", 0..KEPT)).await;
    let found = scene.sh("again", "cat /data/*/file");
    let wanted: String = (0..KEPT).map(|number| format!("data of /data/{number}\n")).collect();
    assert_eq!(found, wanted, "each tenant has its own data again");
    scene.delete_pod("again").await;
    assert_eq!(scene.agent_metric(NODE, METRIC).await, Some(0.0), "nothing is left of it for others");
}

fn entry(path: &std::path::Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a volume has a name")
}

fn claim(scene: &Alone, pvs: &[PersistentVolume], which: std::ops::Range<usize>) {
    let one = |number: usize| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": format!("data-{number}") },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS, "volumeName": pvs[number].name_any(),
                "resources": { "requests": { "storage": "1Mi" } },
            },
        })
    };
    let claims: Vec<_> = which.map(one).collect();
    scene.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": claims }).to_string());
}

fn pod(name: &str, which: std::ops::Range<usize>) -> PodSpec {
    which.fold(PodSpec::new(name), |pod, number| pod.claim(&format!("data-{number}"), &format!("/data/{number}")))
}

/// All claims of the node go while its agent sees nothing, as when the API server is away for its restore.
async fn vanish(scene: &Alone, pvs: &[PersistentVolume]) {
    let node = scene.node(NODE);
    let agent = scene.agent_pod(NODE).await;
    let pid = node.container_pid(container_id(&agent).expect("an agent's pod runs"));
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("a process can be stopped");
    let all = (DeleteParams::default(), ListParams::default());
    let own: Api<PersistentVolumeClaim> = scene.api();
    own.delete_collection(&all.0, &all.1).await.expect("claims can be deleted");
    let others: Api<PersistentVolumeClaim> = Api::namespaced(scene.client(), ballast::NAMESPACE);
    let of_node = all.1.labels(&format!("node={}", node.name()));
    others.delete_collection(&all.0, &of_node).await.expect("claims can be deleted");
    ballast::wait(scene, node.name(), "Released").await;
    for pv in pvs {
        scene.wait_phase(&pv.name_any(), "Released").await;
    }
    // One that is stopped can't end in order.
    let pods: Api<Pod> = Api::namespaced(scene.client(), NAMESPACE);
    pods.delete(&agent.name_any(), &DeleteParams::default().grace_period(1)).await.expect("a pod can be deleted");
    scene
        .until("there is another agent", SOON, async || {
            (scene.agent_pod(NODE).await.name_any() != agent.name_any()).then_some(())
        })
        .await;
    scene.wait_agents().await;
}

/// The annotation on the Node, until this is dropped: also when the test fails.
struct Hold<'a>(&'a Alone);

impl<'a> Hold<'a> {
    fn new(scene: &'a Alone) -> Self {
        scene.kubectl(&["annotate", "node", scene.node(NODE).name(), &format!("{HOLD}=true")]);
        Self(scene)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        // A panic in a panic would hide what has failed.
        let _ = self.0.try_kubectl(&["annotate", "node", self.0.node(NODE).name(), &format!("{HOLD}-")]);
    }
}

async fn take_back(scene: &Alone, pv: String) {
    let patch = Patch::Merge(json!({ "spec": { "claimRef": null } }));
    scene.pvs().patch(&pv, &PatchParams::default(), &patch).await.expect("an admin may before the wipe begins");
}

async fn wait_detail(scene: &Alone, paths: &[PathBuf], words: &str) {
    for path in paths {
        scene
            .until(&format!("{} says {words:?}", path.display()), SOON, async || {
                let (_, detail) = scene.verdict(NODE, CLASS, entry(path)).await?;
                detail.contains(words).then_some(())
            })
            .await;
    }
}

/// How many volumes have their data, as the host sees them.
fn with_data(scene: &Alone, paths: &[PathBuf]) -> usize {
    scene.node(NODE).on_host(|| paths.iter().filter(|path| fs::metadata(path.join("file")).is_ok()).count())
}
