//! A new node registers with the start-up taint: nothing comes to it before its volumes are offered.

use std::fs;
use std::path::Path;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, ResourceExt, VersionMatch};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use tokio::time::timeout;

use crate::harness::evidence;
use crate::harness::pods::PodSpec;
use crate::harness::rbac::NAMESPACE;
use crate::harness::real_node::{Disturb, RealNode};
use crate::harness::site::{SOON, Site};
use crate::harness::volumes::{is_on, path_of, phase};
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[("s20", "{}")];

const KEY: &str = "sig-storage-local-static-provisioner/agent-not-ready";
const SIZE: u64 = 64 << 20;

/// A third node, which goes with the test.
struct Newcomer {
    node: RealNode,
    site: &'static Site,
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            evidence::of_node(&self.node, "s20");
        }
        Disturb(&self.node).power_off();
        let here = format!("--field-selector=spec.nodeName={}", self.node.name());
        for what in [["node", self.node.name()], ["pods", &here]] {
            let delete = ["--namespace", NAMESPACE, "delete", "--force", "--wait=false"];
            let _ = self.site.kubectl().run(&[delete.as_slice(), &what].concat(), "");
        }
    }
}

#[tokio::test]
async fn s20_the_start_up_taint_goes_when_all_is_offered_that_can_be() {
    let scene = stage::alone("s20").await;
    scene.helm_upgrade(json!({ "removeNodeNotReadyTaint": true })).await;
    scene.claim("data", "s20", "1Mi");
    scene.start(&PodSpec::new("pod").claim("data", "/data"));
    let newcomer = Newcomer { node: RealNode::with_taint(2, Some(KEY)), site: scene.site() };
    let node = &newcomer.node;
    ["a", "b", "c"].iter().for_each(|entry| drop(node.mount_tmpfs("s20", entry, SIZE)));
    // Entries that nothing will ever come of.
    let disks = node.discovery("s20");
    node.on_host(|| {
        nix::unistd::mkfifo(&disks.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
        fs::create_dir(disks.join("plain")).expect("a directory can be made");
        std::os::unix::fs::symlink("/dev/no-such-disk", disks.join("dead")).expect("a link can be made");
    });
    scene.site().join(node);

    let freed = until_free(&scene, node.name()).await;
    // What there was at this very moment.
    let version = freed.resource_version().expect("an object has a version");
    let then = ListParams::default().at(&version).matching(VersionMatch::Exact);
    let pvs = scene.pvs().list(&then).await.expect("PVs can be listed as they were").items;
    let pvs: Vec<_> = pvs.into_iter().filter(|pv| is_on(pv, node.name())).collect();
    assert_eq!(pvs.len(), 3, "all was offered before, and nothing else");
    let pods: Api<Pod> = scene.api();
    let pod = pods.list(&then).await.expect("pods can be listed as they were").items.remove(0);
    assert_eq!(pod.spec.expect("it has a spec").node_name, None, "it has waited");

    let pod = scene.wait_running("pod").await;
    assert_eq!(pod.spec.and_then(|spec| spec.node_name).as_deref(), Some(node.name()));
    let (_, pv) = scene.wait_bound("data").await;
    scene.sh("pod", "echo from the pod > /data/file");
    let file = Path::new(path_of(&pv)).join("file");
    assert_eq!(node.on_host(|| fs::read_to_string(file)).expect("it is there").trim(), "from the pod");
    scene.delete_pod("pod").await;
    scene.delete_claim("data").await;
    let tidy = async || {
        let pvs = scene.pvs_of("s20").await;
        (pvs.len() == 3 && pvs.iter().all(|pv| phase(pv) == "Available")).then_some(pvs)
    };
    let pvs = scene.until("all are Available", SOON, tidy).await;
    drop(newcomer);
    for pv in pvs {
        scene.pvs().delete(&pv.name_any(), &DeleteParams::default()).await.expect("a PV can be deleted");
    }
    scene.helm_upgrade(json!({})).await;
}

/// Waits for a Node that is registered with the taint and loses it; returns it as it was then.
async fn until_free(scene: &Scene, name: &str) -> Node {
    let chosen = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut nodes = Box::pin(watcher(Api::<Node>::all(scene.client()), chosen).applied_objects());
    let is_tainted = |node: &Node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == KEY))
    };
    let first = timeout(SOON, nodes.try_next()).await.expect("the node registers").expect("Nodes can be watched");
    assert!(is_tainted(&first.expect("the watch goes on")), "it registers with the taint");
    loop {
        let node = timeout(SOON, nodes.try_next()).await.expect("the taint goes").expect("Nodes can be watched");
        let node = node.expect("the watch goes on");
        if !is_tainted(&node) {
            return node;
        }
    }
}
