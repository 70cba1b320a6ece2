//! A whole cluster: a control plane, nodes that run pods, and the chart installed. Its machine
//! is the network, the process ids and the mounts that `tests/in-own-namespace` gives a program.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, ResourceExt};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::cluster::{ControlPlane, IN_CLUSTER, Options};
use super::evidence::Evidence;
use super::helm::{self, Helm};
use super::image;
use super::kubectl::Kubectl;
use super::rbac::NAMESPACE;
use super::real_node::{RealNode, give_address};
use super::scratch::Scratch;

/// Within it everything that a cluster does by itself is done.
pub const SOON: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(50);

/// A cluster.
pub struct Site {
    nodes: Vec<RealNode>,
    helm: Helm,
    kubectl: Kubectl,
    classes: Vec<Value>,
    images: Scratch,
    /// The images that its nodes have.
    tars: Vec<PathBuf>,
    // The last to go.
    plane: ControlPlane,
}

impl Site {
    /// Starts one with that many nodes, all Ready, on which the agents of these classes
    /// ([`helm::class`]) are ready. It blocks.
    pub fn start(nodes: usize, classes: Vec<Value>) -> Self {
        Self::start_with(nodes, classes, Options::default())
    }

    /// The same, on a control plane with these options.
    pub fn start_with(nodes: usize, classes: Vec<Value>, options: Options) -> Self {
        let (address, _) = IN_CLUSTER.split_once(':').expect("it is an address and a port");
        give_address(address);
        let images = Scratch::new("images");
        let ((nodes, tars), plane) = thread::scope(|scope| {
            let plane = scope.spawn(|| ControlPlane::start_for_pods(options));
            let tars = scope.spawn(|| {
                let mut tars = image::busybox(images.path());
                tars.push(image::agent(images.path()));
                tars
            });
            let nodes: Vec<_> = (0..nodes).map(|number| scope.spawn(move || RealNode::new(number))).collect();
            let nodes: Vec<_> = nodes.into_iter().map(|node| node.join().expect("a node starts")).collect();
            let tars = tars.join().expect("images can be made");
            ((nodes, tars), plane.join().expect("the control plane starts"))
        });
        let kubeconfig = plane.kubeconfig().to_owned();
        let (helm, kubectl) = (Helm::new(&kubeconfig), Kubectl::new(&kubeconfig));
        let site = Self { nodes, helm, kubectl, classes, images, tars, plane };
        let evidence = Evidence::of(&site, "start");
        thread::scope(|scope| {
            scope.spawn(|| site.helm.apply(&helm::values(&site.classes)));
            for node in &site.nodes {
                scope.spawn(|| site.join(node));
            }
        });
        site.block_on_ready();
        drop(evidence);
        site
    }

    /// Lets a node join: another one ([`RealNode::new`]) as well. It ends with the test that made it.
    pub fn join(&self, node: &RealNode) {
        node.join(self.plane.kubeconfig());
        self.tars.iter().for_each(|tar| node.import(tar));
    }

    fn block_on_ready(&self) {
        let ready = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(async {
                let client = self.client().await;
                for node in 0..self.nodes.len() {
                    self.wait_kubelet(node).await;
                }
                self.wait_nodes(&client).await;
                self.wait_agents(&client).await;
            });
        };
        // The caller is often inside a runtime.
        thread::scope(|scope| scope.spawn(ready).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    /// Waits until each Node is there and Ready.
    pub async fn wait_nodes(&self, client: &kube::Client) {
        let api: Api<Node> = Api::all(client.clone());
        let deadline = Instant::now() + SOON;
        loop {
            let nodes = api.list(&ListParams::default()).await.expect("Nodes can be listed").items;
            let ready = |node: &&Node| {
                let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
                conditions.filter(|at| at.type_ == "Ready").any(|at| at.status == "True")
            };
            if nodes.iter().filter(ready).count() >= self.nodes.len() {
                return;
            }
            assert!(Instant::now() < deadline, "not all nodes are Ready within {SOON:?}");
            sleep(POLL).await;
        }
    }

    /// Waits until a kubelet that was just started knows the pods of its node, with the agent's.
    pub async fn wait_kubelet(&self, node: usize) {
        let deadline = Instant::now() + SOON;
        while !self.node(node).has_pods_of(NAMESPACE) {
            assert!(
                Instant::now() < deadline,
                "the kubelet of {} is not there within {SOON:?}",
                self.node(node).name()
            );
            sleep(POLL).await;
        }
    }

    /// Waits until an agent of the chart's present state is ready on each node.
    pub async fn wait_agents(&self, client: &kube::Client) {
        let api: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
        let wanted = i32::try_from(self.nodes.len()).expect("there are few nodes");
        let deadline = Instant::now() + SOON;
        loop {
            let set = api.get_opt(helm::RELEASE).await.expect("a DaemonSet can be read").unwrap_or_default();
            let status = set.status.unwrap_or_default();
            let current = status.observed_generation == set.metadata.generation
                && status.updated_number_scheduled == Some(wanted)
                && status.number_ready == wanted
                && status.number_unavailable.unwrap_or_default() == 0;
            if current {
                return;
            }
            assert!(Instant::now() < deadline, "not all agents are ready within {SOON:?}: {status:?}");
            sleep(POLL).await;
        }
    }

    /// The agent's pod on a node; waits for one that runs.
    pub async fn agent_pod(&self, client: &kube::Client, node: usize) -> Pod {
        let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        let name = self.node(node).name();
        let chosen = ListParams::default()
            .labels("app.kubernetes.io/name=mooring")
            .fields(&format!("spec.nodeName={name},status.phase=Running"));
        let deadline = Instant::now() + SOON;
        loop {
            let pods = api.list(&chosen).await.expect("pods can be listed").items;
            let runs = |pod: &Pod| pod.metadata.deletion_timestamp.is_none() && container_id(pod).is_some();
            if let Some(pod) = pods.into_iter().find(runs) {
                return pod;
            }
            assert!(Instant::now() < deadline, "no agent runs on {name} within {SOON:?}");
            sleep(POLL).await;
        }
    }

    /// A node, counted from 0.
    pub fn node(&self, number: usize) -> &RealNode {
        &self.nodes[number]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[RealNode] {
        &self.nodes
    }

    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// A client with the administrator's rights, for the runtime that this is called in.
    pub async fn client(&self) -> kube::Client {
        self.plane.client().await
    }

    /// kubectl with the administrator's rights.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// helm with the administrator's rights.
    pub fn helm(&self) -> &Helm {
        &self.helm
    }

    /// The classes of the installation, for [`helm::values`].
    pub fn classes(&self) -> &[Value] {
        &self.classes
    }

    /// A directory for images.
    pub fn image_dir(&self) -> &Path {
        self.images.path()
    }
}

/// The id of a pod's (first) container while it runs.
pub fn container_id(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    status.state.as_ref()?.running.as_ref()?;
    status.container_id.as_deref()
}
