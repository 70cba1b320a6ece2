//! A `StatefulSet`: each of its pods gets its own data back, wherever it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kube::api::ResourceExt;
use serde_json::json;

use crate::harness::pods::PodSpec;
use crate::harness::site::SOON;
use crate::harness::volumes::{is_on, path_of, phase};
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[("s05", "{}")];

const SIZE: u64 = 64 << 20;
const REPLICAS: usize = 3;
/// More than are needed, on nodes that have not enough each.
const DISKS_OF_A_NODE: usize = 2;

#[tokio::test]
async fn s05_every_pod_of_a_stateful_set_gets_its_own_data_back() {
    let scene = stage::shared("s05").await;
    let mut disks = Vec::new();
    for (node, number) in (0..2).flat_map(|node| (0..DISKS_OF_A_NODE).map(move |number| (node, number))) {
        let entry = format!("disk-{number}");
        disks.push(scene.node(node).mount_ext4("s05", &entry, SIZE));
        scene.wait_available("s05", node, &entry).await;
    }

    scene.apply(&stateful_set().to_string());
    for pod in pods() {
        scene.wait_running(&pod).await;
        scene.sh(&pod, &format!("echo data of {pod} > /data/file; sync"));
    }
    let volumes = volumes(&scene).await;
    let names: Vec<_> = volumes.values().map(|(_, pv)| pv.as_str()).collect();
    assert!((0..2).all(|node| volumes.values().any(|(on, _)| *on == node)), "they are on both nodes: {names:?}");
    let mut starts = [1; REPLICAS];
    check(&scene, starts).await;

    scene.delete_pod("set-1").await;
    scene.wait_running("set-1").await;
    starts[1] += 1;
    check(&scene, starts).await;
    assert_eq!(self::volumes(&scene).await, volumes, "each claim has the PV it had");

    scene.kubectl(&["scale", "statefulset/set", "--replicas=0"]);
    for pod in pods() {
        wait_gone(&scene, &pod).await;
    }
    assert_eq!(self::volumes(&scene).await, volumes, "each claim has the PV it had");
    on_host(&scene, starts).await;
    for node in 0..2 {
        for number in 0..DISKS_OF_A_NODE {
            scene.wait_verdict(node, "s05", &format!("disk-{number}"), "Published").await;
        }
    }

    scene.kubectl(&["scale", "statefulset/set", "--replicas=3"]);
    for pod in pods() {
        scene.wait_running(&pod).await;
    }
    starts = starts.map(|number| number + 1);
    check(&scene, starts).await;
    assert_eq!(self::volumes(&scene).await, volumes, "each claim has the PV it had");
    let free = scene.pvs_of("s05").await.into_iter().filter(|pv| phase(pv) == "Available").count();
    assert_eq!(free, 2 * DISKS_OF_A_NODE - REPLICAS, "what is not needed is free");

    scene.kubectl(&["delete", "statefulset/set"]);
    for pod in pods() {
        wait_gone(&scene, &pod).await;
    }
}

fn pods() -> impl Iterator<Item = String> {
    (0..REPLICAS).map(|number| format!("set-{number}"))
}

/// Each of its pods notes that it was started.
fn stateful_set() -> serde_json::Value {
    let script = "hostname >> /data/starts; trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";
    let mut pod = PodSpec::new("set").command(&["sh", "-c", script]);
    let spec = &mut pod.value()["spec"];
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    spec.as_object_mut().expect("it is an object").remove("volumes");
    let labels = json!({ "app": "set" });
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "set" },
        "spec": {
            "replicas": REPLICAS, "serviceName": "set", "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec },
            "volumeClaimTemplates": [{
                "metadata": { "name": "data" },
                "spec": {
                    "accessModes": ["ReadWriteOnce"], "storageClassName": "s05",
                    "resources": { "requests": { "storage": "1Mi" } },
                },
            }],
        },
    })
}

/// Of each claim, the node and the uid of its PV.
async fn volumes(scene: &Scene) -> BTreeMap<String, (usize, String)> {
    let mut volumes = BTreeMap::new();
    for pod in pods() {
        let (claim, pv) = scene.wait_bound(&format!("data-{pod}")).await;
        assert_eq!(phase(&pv), "Bound");
        let node = usize::from(is_on(&pv, scene.node(1).name()));
        volumes.insert(claim.name_any(), (node, pv.uid().expect("a PV has a uid")));
    }
    volumes
}

/// Each pod, and each node, has that pod's data, as after so many starts of it.
async fn check(scene: &Scene, starts: [usize; REPLICAS]) {
    for (pod, starts) in pods().zip(starts) {
        let expected = expected(&pod, starts);
        // It runs before its first command has.
        scene
            .until(&format!("{pod} has its data"), SOON, async || {
                (scene.try_exec(&pod, &["cat", "/data/file", "/data/starts"]).ok()? == expected).then_some(())
            })
            .await;
    }
    on_host(scene, starts).await;
}

async fn on_host(scene: &Scene, starts: [usize; REPLICAS]) {
    for (pod, starts) in pods().zip(starts) {
        let (_, pv) = scene.wait_bound(&format!("data-{pod}")).await;
        let node = scene.node(usize::from(is_on(&pv, scene.node(1).name())));
        let read = |name: &str| fs::read_to_string(Path::new(path_of(&pv)).join(name)).expect("the host can read it");
        let found = node.on_host(|| read("file") + &read("starts"));
        assert_eq!(found, expected(&pod, starts), "{} on {}", path_of(&pv), node.name());
    }
}

fn expected(pod: &str, starts: usize) -> String {
    format!("data of {pod}\n{}", format!("{pod}\n").repeat(starts))
}

async fn wait_gone(scene: &Scene, pod: &str) {
    let pods = scene.api::<k8s_openapi::api::core::v1::Pod>();
    let ask = async || pods.get_opt(pod).await.expect("a pod can be read").is_none().then_some(());
    scene.until(&format!("{pod} is gone"), SOON, ask).await;
}
