//! What a node's agent may do to another node's PVs: nothing. By the very token of its pod.

use std::fs;

use http::{Method, Request, header};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::harness::pods::PodSpec;
use crate::harness::site::container_id;
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[("s19", r#"{"storageClass": {"reclaimPolicy": "Retain"}}"#)];

const SIZE: u64 = 64 << 20;
const PVS: &str = "/api/v1/persistentvolumes";
const TOKEN: &str = "var/run/secrets/kubernetes.io/serviceaccount/token";
/// How the policy, or RBAC, begins.
const DENIED: [&str; 2] = ["'mooring-own-node'", "is forbidden: User \"system:serviceaccount:mooring-system:mooring\""];

#[tokio::test]
async fn s19_the_agent_of_one_node_can_do_nothing_to_the_pvs_of_another() {
    let scene = stage::shared("s19").await;
    let path = scene.node(1).mount_tmpfs("s19", "used", SIZE);
    for entry in ["free", "left"] {
        scene.node(1).mount_tmpfs("s19", entry, SIZE);
    }
    scene.node(0).mount_tmpfs("s19", "own", SIZE);
    let own = scene.wait_available("s19", 0, "own").await;
    let mut theirs = Vec::new();
    for entry in ["free", "used", "left"] {
        theirs.push(scene.wait_available("s19", 1, entry).await.name_any());
    }
    let named = |index: usize| json!({ "volumeName": theirs[index] });
    scene.claim_with("used", "s19", "1Mi", &named(1));
    scene.claim_with("left", "s19", "1Mi", &named(2));
    scene.run(&PodSpec::new("pod").claim("used", "/used")).await;
    scene.sh("pod", "echo theirs > /used/file");
    scene.wait_bound("left").await;
    scene.delete_claim("left").await;
    scene.wait_phase(&theirs[2], "Released").await;

    let agent = agent_of(&scene, 0).await;
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let me = call(&agent, Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await;
    let me = me.expect("it may know who it is")["status"]["userInfo"].take();
    assert_eq!(me["username"], "system:serviceaccount:mooring-system:mooring");
    assert_eq!(me["extra"]["authentication.kubernetes.io/node-name"], json!([scene.node(0).name()]));

    let mut before = Vec::new();
    for name in &theirs {
        let pv = scene.pvs().get(name).await.expect("it is there");
        for (what, method, path, body) in attempts(&scene, &pv, &own) {
            denied(&format!("to {what} {name}"), call(&agent, method, &path, &body).await);
        }
        before.push(pv);
    }
    for (what, method, path, body) in beyond(&scene, &before[0]) {
        denied(what, call(&agent, method, &path, &body).await);
    }
    for pv in &before {
        let now = scene.pvs().get(&pv.name_any()).await.expect("it is there");
        assert_eq!((now.uid(), now.resource_version()), (pv.uid(), pv.resource_version()), "nothing has come of it");
    }
    assert_eq!(scene.sh("pod", "cat /used/file").trim(), "theirs");
    assert_eq!(scene.node(1).on_host(|| fs::read_to_string(path.join("file"))).expect("it is there").trim(), "theirs");

    // It is the node that counts: of its own it may.
    let path = format!("{PVS}/{}", own.name_any());
    for value in [json!("x"), Value::Null] {
        let patch = json!({ "metadata": { "annotations": { "example.com/s19": value } } });
        call(&agent, Method::PATCH, &path, &patch).await.expect("an agent may change its own node's PVs");
    }
    scene.delete_pod("pod").await;
}

/// A client with what the agent's container has.
async fn agent_of(scene: &Scene, node: usize) -> kube::Client {
    let pod = scene.agent_pod(node).await;
    let pid = scene.node(node).container_pid(container_id(&pod).expect("an agent's pod runs"));
    let token = fs::read_to_string(format!("/proc/{pid}/root/{TOKEN}")).expect("its token can be read");
    let plane = scene.site().plane();
    let config: Kubeconfig = serde_json::from_value(json!({
        "clusters": [{ "name": "c", "cluster": { "server": plane.server(), "certificate-authority": plane.ca() } }],
        "users": [{ "name": "u", "user": { "token": token } }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        "current-context": "x",
    }))
    .expect("it is a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    kube::Client::try_from(config.expect("the kubeconfig is complete")).expect("a client can be made of it")
}

type Attempt = (&'static str, Method, String, Value);

/// What it might try on a PV of another node.
fn attempts(scene: &Scene, pv: &PersistentVolume, own: &PersistentVolume) -> Vec<Attempt> {
    let path = format!("{PVS}/{}", pv.name_any());
    let own_node = scene.node(0).name();
    let claim = json!({ "namespace": "default", "name": "mine", "uid": "01234567-89ab-cdef-0123-456789abcdef" });
    let signature = own.annotations()["pv.kubernetes.io/provisioned-by"].clone();
    let annotated = |key: &str, value: &str| json!({ "metadata": { "annotations": { key: value } } });
    let patches = [
        ("label", json!({ "metadata": { "labels": { "mooring.dev/node": own_node } } })),
        ("unlabel", json!({ "metadata": { "labels": { "mooring.dev/node": null } } })),
        ("sign", annotated("pv.kubernetes.io/provisioned-by", &signature)),
        ("annotate", annotated("mooring.dev/identity", "{}")),
        ("give the word for", annotated("mooring.dev/reclaim", "wipe")),
        ("fence", json!({ "metadata": { "finalizers": ["mooring.dev/wipe"] } })),
        ("free", json!({ "metadata": { "finalizers": ["example.com/mine"] } })),
        ("give away", json!({ "spec": { "claimRef": claim } })),
        ("change the policy of", json!({ "spec": { "persistentVolumeReclaimPolicy": "Delete" } })),
        ("enlarge", json!({ "spec": { "capacity": { "storage": "1Ti" } } })),
    ];
    let mut attempts: Vec<Attempt> =
        patches.into_iter().map(|(what, patch)| (what, Method::PATCH, path.clone(), patch)).collect();
    if pv.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some()) {
        attempts.push(("clear the claimRef of", Method::PATCH, path.clone(), json!({ "spec": { "claimRef": null } })));
    }
    let available = json!({ "status": { "phase": "Available" } });
    attempts.push(("change the status of", Method::PATCH, format!("{path}/status"), available));
    attempts.push(("replace", Method::PUT, path.clone(), json!(pv)));
    attempts.push(("delete", Method::DELETE, path, json!({})));
    attempts
}

/// What else it might try.
fn beyond(scene: &Scene, theirs: &PersistentVolume) -> Vec<Attempt> {
    let mut copy = json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {}, "spec": theirs.spec });
    copy["metadata"]["annotations"] = json!(theirs.annotations());
    copy["metadata"]["labels"] = json!(theirs.labels());
    let made = |name: &str, node: usize| {
        let mut pv = copy.clone();
        pv["metadata"]["name"] = json!(name);
        pv["metadata"]["labels"]["mooring.dev/node"] = json!(scene.node(node).name());
        pv
    };
    let cordon = json!({ "spec": { "unschedulable": true } });
    let taint = json!({ "spec": { "taints": [] } });
    let [own, other] = [0, 1].map(|node| format!("/api/v1/nodes/{}", scene.node(node).name()));
    vec![
        ("to make a PV of another node", Method::POST, PVS.to_owned(), made("s19-theirs", 1)),
        ("to make a PV of another node with our label", Method::POST, PVS.to_owned(), made("s19-ours", 0)),
        ("to delete all PVs", Method::DELETE, PVS.to_owned(), json!({})),
        ("to patch another Node", Method::PATCH, other.clone(), cordon.clone()),
        ("to patch its own Node", Method::PATCH, own.clone(), cordon),
        ("to take taints off another Node", Method::PATCH, other.clone(), taint),
        ("to patch the status of another Node", Method::PATCH, format!("{other}/status"), json!({ "status": {} })),
        ("to delete another Node", Method::DELETE, other, json!({})),
        ("to delete a claim", Method::DELETE, claim_path(scene, "used"), json!({})),
        ("to read Secrets", Method::GET, "/api/v1/secrets".to_owned(), Value::Null),
        ("to read the node's pods", Method::GET, "/api/v1/pods".to_owned(), Value::Null),
    ]
}

fn claim_path(scene: &Scene, name: &str) -> String {
    format!("/api/v1/namespaces/{}/persistentvolumeclaims/{name}", scene.namespace())
}

async fn call(client: &kube::Client, method: Method, path: &str, body: &Value) -> kube::Result<Value> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind).body(body);
    client.request(request.expect("it is a request")).await
}

fn denied(what: &str, answer: kube::Result<Value>) {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            assert!(DENIED.iter().any(|words| status.message.contains(words)), "{what}: {}", status.message);
        }
        answer => panic!("{what}: {answer:?}"),
    }
}
