//! The cluster that all scenarios share, and who has it: most at the same time, each with classes,
//! a namespace and directories of its own; those that disturb the others, alone, and last.

#![allow(dead_code)] // No scenario uses all of it.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ResourceExt};
use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

use crate::ballast;
use crate::harness::evidence::Evidence;
use crate::harness::helm;
use crate::harness::http;
use crate::harness::pods::Tenant;
use crate::harness::rbac::NAMESPACE;
use crate::harness::real_node::{DISKS, Disturb, RealNode};
use crate::harness::site::{SOON, Site, container_id};

/// How many nodes there are.
const NODES: usize = 2;
const AGENT_PORT: u16 = 8080;

/// So many at the same time: most wait most of the time.
const AT_ONCE: usize = 8;

static TURN: RwLock<()> = RwLock::const_new(());
static SEATS: Semaphore = Semaphore::const_new(AT_ONCE);
/// Those that run beside others, or are about to. Whoever wants the cluster alone lets them go first,
/// or it would break them up into small groups.
static SHARING: AtomicUsize = AtomicUsize::new(0);
static SITE: LazyLock<Site> = LazyLock::new(|| {
    let classes = crate::CLASSES.iter().copied().flatten();
    let class = |(name, further): &(&str, &str)| {
        let further: Value = serde_json::from_str(further).expect("a class's further fields are JSON");
        helm::class(name, &further)
    };
    Site::start(NODES, classes.map(class).collect())
});

/// One test's view of the cluster. Its name is the test's and its namespace's, and its classes'
/// names begin with it. When the test panics, logs and objects are collected.
pub struct Scene {
    tenant: Tenant<'static>,
    _evidence: Evidence<'static>,
    _turn: Turn,
}

enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()>, _seat: SemaphorePermit<'static>, _sharing: Sharing },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

/// One of [`SHARING`].
struct Sharing;

impl Sharing {
    fn begin() -> Self {
        SHARING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        SHARING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// As a [`Scene`] that no other test runs beside: only this one may stop and restart what others need.
pub struct Alone(Scene);

/// Begins a test that runs beside others. The name is a valid namespace, such as `s04`.
pub async fn shared(name: &str) -> Scene {
    let _sharing = Sharing::begin();
    let _seat = SEATS.acquire().await.expect("it is never closed");
    let turn = Turn::Shared { _guard: TURN.read().await, _seat, _sharing };
    Scene::new(name, turn).await
}

/// Begins a test that nothing runs beside.
pub async fn alone(name: &str) -> Alone {
    let guard = loop {
        while SHARING.load(Ordering::SeqCst) > 0 {
            sleep(Duration::from_millis(100)).await;
        }
        let guard = TURN.write().await;
        // Some may have come meanwhile.
        if SHARING.load(Ordering::SeqCst) == 0 {
            break guard;
        }
    };
    Alone(Scene::new(name, Turn::Alone { _guard: guard }).await)
}

impl Scene {
    async fn new(name: &str, turn: Turn) -> Self {
        // Before anything can fail.
        let evidence = Evidence::of(&SITE, name);
        ballast::load(&SITE).await;
        Self { tenant: Tenant::new(&SITE, name).await, _evidence: evidence, _turn: turn }
    }

    /// A node, 0 or 1.
    pub fn node(&self, number: usize) -> &'static RealNode {
        SITE.node(number)
    }

    /// The agent's pod on a node.
    pub async fn agent_pod(&self, node: usize) -> Pod {
        SITE.agent_pod(&self.client(), node).await
    }

    /// What the agent on a node has logged since its container started.
    pub async fn agent_logs(&self, node: usize) -> String {
        let pod = self.agent_pod(node).await.name_any();
        SITE.kubectl().must(&["--namespace", NAMESPACE, "logs", &pod], "")
    }

    /// GETs one of the agent's pages on a node: `/metrics`, `/volumes`, `/ready`.
    pub async fn agent_page(&self, node: usize, path: &str) -> (u16, String) {
        // One that has just been started does not listen yet.
        self.until("the agent answers", SOON, async || {
            let ip = self.agent_pod(node).await.status?.pod_ip?;
            http::get(&format!("{ip}:{AGENT_PORT}"), path).ok()
        })
        .await
    }

    /// The value of one of the agent's series on a node, named with its labels as the page writes them.
    pub async fn agent_metric(&self, node: usize, series: &str) -> Option<f64> {
        http::metric(&self.agent_page(node, "/metrics").await.1, series)
    }

    /// The verdict of an entry and its sentence, from the agent's `/volumes`.
    pub async fn verdict(&self, node: usize, class: &str, entry: &str) -> Option<(String, String)> {
        let (_, page) = self.agent_page(node, "/volumes").await;
        let lines: Vec<Value> = serde_json::from_str(&page).expect("/volumes is a JSON list");
        let line = lines.into_iter().find(|line| line["class"] == class && line["entry"] == entry)?;
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        Some((text("verdict"), text("detail")))
    }

    /// Waits for a verdict of an entry; returns its sentence.
    pub async fn wait_verdict(&self, node: usize, class: &str, entry: &str, wanted: &str) -> String {
        self.wait_saying(node, class, entry, wanted, "").await
    }

    /// Waits for a verdict of an entry, and these words in its sentence: there may be another reason
    /// for the same verdict before. Returns the sentence.
    pub async fn wait_saying(&self, node: usize, class: &str, entry: &str, wanted: &str, words: &str) -> String {
        let is_it = |told: &(String, String)| told.0 == wanted && told.1.contains(words);
        let mut last = None;
        let deadline = Instant::now() + SOON;
        loop {
            let now = self.verdict(node, class, entry).await;
            if let Some(told) = now.as_ref().filter(|told| is_it(told)) {
                return told.1.clone();
            }
            last = now.or(last);
            assert!(Instant::now() < deadline, "{class}/{entry} is {last:?}, not {wanted} with {words:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the agent of a node shows such a value of a series.
    pub async fn wait_metric(&self, node: usize, series: &str, wanted: impl Fn(f64) -> bool) {
        let ask = async || self.agent_metric(node, series).await.filter(|value| wanted(*value));
        self.until(&format!("{series} of node {node} is as wanted"), SOON, ask).await;
    }
}

/// The number of a disk that has gone is soon another's, to which its link would lead.
impl Drop for Scene {
    fn drop(&mut self) {
        for node in SITE.nodes() {
            let links = || {
                for class in fs::read_dir(DISKS).into_iter().flatten().flatten() {
                    let name = class.file_name();
                    let rest = name.to_str().and_then(|name| name.strip_prefix(self.tenant.namespace()));
                    if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
                        unlink_all(&class.path());
                    }
                }
            };
            node.on_host(links);
        }
    }
}

fn unlink_all(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_symlink() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Deref for Scene {
    type Target = Tenant<'static>;

    fn deref(&self) -> &Self::Target {
        &self.tenant
    }
}

impl Deref for Alone {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.0
    }
}

/// One that failed half-way may have left a kubelet stopped, which the others need.
impl Drop for Alone {
    fn drop(&mut self) {
        SITE.nodes().iter().for_each(|node| Disturb(node).recover());
    }
}

impl Alone {
    /// Kills the agent on a node with SIGKILL; returns at once. The kubelet starts it again.
    pub async fn kill_agent(&self, node: usize) {
        let pod = self.agent_pod(node).await;
        SITE.node(node).kill_container(container_id(&pod).expect("an agent's pod runs"));
    }

    /// As [`Self::kill_agent`]; returns when another one is ready.
    pub async fn restart_agent(&self, node: usize) {
        let before = self.agent_pod(node).await;
        self.kill_agent(node).await;
        self.wait_other_agent(node, &before).await;
    }

    /// Deletes the agent's pod on a node, which the DaemonSet replaces; returns when the new one is ready.
    pub async fn delete_agent(&self, node: usize) {
        let before = self.agent_pod(node).await;
        let pods: Api<Pod> = Api::namespaced(self.client(), NAMESPACE);
        pods.delete(&before.name_any(), &DeleteParams::default()).await.expect("a pod can be deleted");
        self.wait_other_agent(node, &before).await;
    }

    async fn wait_other_agent(&self, node: usize, before: &Pod) {
        let deadline = Instant::now() + SOON;
        while container_id(&self.agent_pod(node).await) == container_id(before) {
            assert!(Instant::now() < deadline, "the agent is the same one after {SOON:?}");
            sleep(Duration::from_millis(50)).await;
        }
        self.wait_agents().await;
    }

    /// Waits until the agents of the chart's present state are ready on all nodes.
    pub async fn wait_agents(&self) {
        SITE.wait_agents(&self.client()).await;
    }

    /// Upgrades the chart by further values (merged into those it was installed with); returns when the
    /// agents are ready. Undo it by `helm_upgrade(json!({}))`.
    pub async fn helm_upgrade(&self, further: Value) {
        let mut values = helm::values(SITE.classes());
        values.as_object_mut().expect("it is an object").extend(further.as_object().cloned().unwrap_or_default());
        SITE.helm().apply(&values);
        self.wait_agents().await;
    }

    /// Stops a node's kubelet; its pods go on.
    pub fn stop_kubelet(&self, node: usize) {
        Disturb(SITE.node(node)).stop_kubelet();
    }

    /// Starts a stopped kubelet; returns when it knows its pods and all nodes are Ready.
    pub async fn start_kubelet(&self, node: usize) {
        Disturb(SITE.node(node)).start_kubelet();
        SITE.wait_kubelet(node).await;
        SITE.wait_nodes(&self.client()).await;
    }

    /// Stops a node's containerd; its containers go on.
    pub fn stop_containerd(&self, node: usize) {
        Disturb(SITE.node(node)).stop_containerd();
    }

    /// Starts a stopped containerd; returns when it answers.
    pub fn start_containerd(&self, node: usize) {
        Disturb(SITE.node(node)).start_containerd();
    }

    /// As when the power goes: a node's daemons and containers end. What was mounted on it stays.
    pub fn power_off(&self, node: usize) {
        Disturb(SITE.node(node)).power_off();
    }

    /// Starts a node after [`Self::power_off`]; returns when all nodes are Ready and it has another agent.
    pub async fn power_on(&self, node: usize) {
        let before = self.agent_pod(node).await;
        Disturb(SITE.node(node)).power_on();
        SITE.wait_kubelet(node).await;
        SITE.wait_nodes(&self.client()).await;
        self.wait_other_agent(node, &before).await;
    }
}
