//! Two nodes have equal volumes, and a pod may only run on the second one.

use std::fs;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ResourceExt;

use crate::harness::pods::PodSpec;
use crate::harness::volumes::{is_on, phase};
use crate::stage;

pub const CLASSES: &[(&str, &str)] = &[("s02", "{}"), ("s02-immediate", r#"{"storageClass": false}"#)];

const SIZE: u64 = 64 << 20;

#[tokio::test]
async fn s02_a_claim_binds_the_volume_of_the_node_where_its_pod_may_run() {
    let scene = stage::shared("s02").await;
    let paths = [0, 1].map(|node| scene.node(node).mount_tmpfs("s02", "disk", SIZE));
    let mut pvs = Vec::new();
    for node in 0..2 {
        pvs.push(scene.wait_available("s02", node, "disk").await);
    }
    // Both ways round, for a claim may be on the right node by chance.
    for (node, other) in [(1, 0), (0, 1)] {
        let name = format!("on-{node}");
        scene.claim(&name, "s02", "1Mi");
        let pod = scene.run(&PodSpec::new(&name).on(scene.node(node).name()).claim(&name, "/data")).await;
        assert_eq!(node_of(&pod), Some(scene.node(node).name()));
        let (_, bound) = scene.wait_bound(&name).await;
        assert_eq!(bound.uid(), pvs[node].uid(), "it is that node's PV");

        scene.sh(&name, &format!("echo {name} > /data/file; sync"));
        assert_eq!(scene.sh(&name, "cat /data/file").trim(), name);
        let read = |node: usize| scene.node(node).on_host(|| fs::read_to_string(paths[node].join("file")));
        assert_eq!(read(node).expect("the host sees it").trim(), name);
        assert_ne!(read(other).unwrap_or_default().trim(), name, "it is on no other node");
    }
    for node in 0..2 {
        scene.delete_pod(&format!("on-{node}")).await;
    }
}

#[tokio::test]
async fn s02_with_immediate_binding_the_same_pod_can_be_left_unschedulable() {
    let scene = stage::shared("s02-immediate").await;
    scene.apply(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: s02-immediate}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: Immediate
reclaimPolicy: Delete
",
    );
    for node in 0..2 {
        scene.node(node).mount_tmpfs("s02-immediate", "disk", SIZE);
        scene.wait_available("s02-immediate", node, "disk").await;
    }
    scene.claim("data", "s02-immediate", "1Mi");
    let (_, bound) = scene.wait_bound("data").await;
    let (taken, free) = if is_on(&bound, scene.node(0).name()) { (0, 1) } else { (1, 0) };

    // The controller took either; the pod may run on the other one, where a PV is still free.
    scene.start(&PodSpec::new("pod").on(scene.node(free).name()).claim("data", "/data"));
    let pod = scene.wait_unschedulable("pod", "PersistentVolume's node affinity").await;
    assert_eq!(node_of(&pod), None);
    let pvs = scene.pvs_of("s02-immediate").await;
    let on = |node: usize| pvs.iter().find(|pv| is_on(pv, scene.node(node).name())).map(phase);
    assert_eq!((on(taken), on(free)), (Some("Bound"), Some("Available")));

    // The volume is all right: without the selector the pod runs where it is.
    scene.delete_pod("pod").await;
    let pod = scene.run(&PodSpec::new("anywhere").claim("data", "/data")).await;
    assert_eq!(node_of(&pod), Some(scene.node(taken).name()));
    scene.delete_pod("anywhere").await;
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}
