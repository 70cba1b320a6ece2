//! What scenarios take for granted of their cluster.

use std::fs;

use kube::api::ResourceExt;
use serde_json::json;

use crate::harness::pods::PodSpec;
use crate::harness::rbac::NAMESPACE;
use crate::harness::site::SOON;
use crate::stage;

pub const CLASSES: &[(&str, &str)] = &[("stage", "{}"), ("stage-raw", r#"{"volumeMode": "Block"}"#)];

const SIZE: u64 = 64 << 20;

#[tokio::test]
async fn a_pod_reads_and_writes_a_raw_device_of_its_node() {
    let scene = stage::shared("stage-raw").await;
    let node = scene.node(1);
    let (_, disk) = node.link_disk("stage-raw", "disk", SIZE);
    let pv = scene.wait_available("stage-raw", 1, "disk").await;
    scene.wait_verdict(1, "stage-raw", "disk", "Published").await;
    assert!(scene.verdict(0, "stage-raw", "disk").await.is_none(), "the other node has no such entry");
    let logged = async || scene.agent_logs(1).await.contains("stage-raw").then_some(());
    scene.until("its log names the class", SOON, logged).await;
    assert_eq!(scene.agent_page(1, "/ready").await.0, 200);
    let agent = scene.agent_pod(1).await.name_any();
    let plan = scene.kubectl(&["exec", "--namespace", NAMESPACE, &agent, "--", "mooring", "plan"]);
    assert!(plan.contains("stage-raw"), "{plan}");
    scene.claim_device("raw", "stage-raw", "1Mi");
    scene.run(&PodSpec::new("pod").device("raw", "/dev/raw")).await;
    scene.sh("pod", "echo through the pod | dd of=/dev/raw bs=512 conv=fsync");
    assert!(scene.sh("pod", "head -c 15 /dev/raw").contains("through the pod"));
    let on_host = node.on_host(|| disk.read_all());
    assert!(on_host.starts_with(b"through the pod"), "the host sees what the pod wrote");
    scene.delete_pod("pod").await;
    scene.delete_claim("raw").await;
    scene.wait_anew("stage-raw", 1, "disk", &pv).await;
    assert!(!node.on_host(|| disk.backing_contains(b"through the pod")), "it is wiped");
}

#[tokio::test]
async fn what_is_stopped_starts_again_and_pods_and_data_stay() {
    let scene = stage::alone("stage").await;
    let node = scene.node(0);
    let path = node.mount_tmpfs("stage", "disk", SIZE);
    scene.wait_available("stage", 0, "disk").await;
    scene.claim("data", "stage", "1Mi");
    let before = scene.run(&PodSpec::new("pod").claim("data", "/data")).await;
    scene.sh("pod", "echo kept > /data/file");

    scene.restart_agent(0).await;
    scene.delete_agent(1).await;
    scene.stop_kubelet(0);
    scene.stop_containerd(0);
    scene.start_containerd(0);
    scene.start_kubelet(0).await;
    let after = scene.wait_running("pod").await;
    assert_eq!(container(&before), container(&after), "its container went on");
    assert_eq!(scene.sh("pod", "cat /data/file").trim(), "kept");

    scene.power_off(0);
    assert!(fs::read_dir("/proc").is_ok(), "the test's own machine is another");
    scene.power_on(0).await;
    scene
        .wait_pod("pod", "runs in another container", |pod| {
            container(pod).is_some() && container(pod) != container(&before)
        })
        .await;
    assert_eq!(node.on_host(|| fs::read_to_string(path.join("file"))).expect("it is there").trim(), "kept");

    let generation = scene.agent_pod(0).await.name_any();
    scene.helm_upgrade(json!({ "podAnnotations": { "test": "upgrade" } })).await;
    assert_ne!(scene.agent_pod(0).await.name_any(), generation, "there is another agent");
    scene.helm_upgrade(json!({})).await;
    scene.delete_pod("pod").await;
    scene.delete_claim("data").await;
    scene.wait_available("stage", 0, "disk").await;
}

fn container(pod: &k8s_openapi::api::core::v1::Pod) -> Option<&str> {
    crate::harness::site::container_id(pod)
}
