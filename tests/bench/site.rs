//! A node with a discovery directory and an agent, and volumes like the agent's by
//! another hand.

use std::path::PathBuf;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::harness::{Agent, AgentOptions, ControlPlane, TestNode, storage_class_map};

/// What a volume that nobody writes to is large.
pub const BYTES: u64 = 64 << 20;
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A node, one class, and its discovery directory.
pub struct Site {
    pub node: TestNode,
    pub dir: PathBuf,
    map: String,
}

impl Site {
    /// A new node.
    pub async fn new(plane: &ControlPlane, tag: &str) -> Self {
        let node = TestNode::new(plane, tag).await;
        let class = node.class("fast", "Delete").await;
        let dir = node.discovery_dir("disks");
        let map = storage_class_map(&[(&class, &dir, "")]);
        Self { node, dir, map }
    }

    /// Makes that many empty directories to mount volumes at.
    pub fn mount_points(&self, count: usize) -> Vec<PathBuf> {
        let points: Vec<PathBuf> = (0..count).map(|number| self.dir.join(format!("{number:05}"))).collect();
        for point in &points {
            std::fs::create_dir(point).expect("a mount point can be made");
        }
        points
    }

    /// Starts an agent and returns when it has looked at every entry.
    pub async fn agent(&self) -> Agent {
        let agent = Agent::start(
            &self.node,
            AgentOptions { config: &[("storageClassMap", &self.map)], ..AgentOptions::default() },
        );
        agent.wait_log("Ready: every entry was looked at", START_TIMEOUT).await;
        agent
    }
}

/// The same object under another name, as another node's agent would have made it. The
/// other node is given by its name and UID; to keep the size, both are as long.
pub fn twin(pv: &PersistentVolume, node: &TestNode, other: (&str, &str), name: &str) -> PersistentVolume {
    let fresh = PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: pv.metadata.labels.clone(),
            annotations: pv.metadata.annotations.clone(),
            ..ObjectMeta::default()
        },
        spec: pv.spec.clone(),
        status: None,
    };
    let text = serde_json::to_string(&fresh).expect("an object can be written as JSON");
    let text = text.replace(node.name(), other.0).replace(node.uid(), other.1);
    serde_json::from_str(&text).expect("another name leaves JSON what it is")
}

/// Makes the volumes with that many requests under way at a time.
pub async fn post_all(client: kube::Client, pvs: impl IntoIterator<Item = PersistentVolume>, in_flight: usize) {
    let volumes: Api<PersistentVolume> = Api::all(client);
    let params = PostParams::default();
    let posts = stream::iter(pvs).map(|pv| {
        let (volumes, params) = (&volumes, &params);
        async move { volumes.create(params, &pv).await.map(drop) }
    });
    posts.buffer_unordered(in_flight).for_each(|made| async { made.expect("a volume can be made") }).await;
}
