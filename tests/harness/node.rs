//! One test's own corner of a shared cluster: a Node object, `StorageClasses`,
//! credentials of the agent's `ServiceAccount` bound to that node, and a directory
//! whose mounts an agent in a slave namespace sees.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, ServiceAccount};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Resource, ResourceExt};
use kube::config::Kubeconfig;
use serde_json::{Value, json};

use super::cluster::ControlPlane;
use super::scratch::{Scratch, unique};
use super::{disk, is_root, rbac, require_own_namespace};

/// More than any test writes; a tmpfs takes memory only for what is written.
const ROOT_BYTES: u64 = 64 << 30;

/// A node without a kubelet. Keep it alive for as long as its agents.
pub struct TestNode {
    name: String,
    uid: String,
    client: kube::Client,
    existing_cluster: bool,
    kubeconfig: PathBuf,
    root: PathBuf,
    scratch: Scratch,
    pub(super) made: Mutex<Made>,
}

/// What to remove from a cluster that outlives the tests.
#[derive(Default)]
pub(super) struct Made {
    pub(super) classes: Vec<String>,
    pub(super) claims: Vec<String>,
}

impl TestNode {
    /// A new node; its name begins with `tag`.
    pub async fn new(plane: &ControlPlane, tag: &str) -> Self {
        let name = format!("{tag}-{}-{}", std::process::id(), unique());
        let labels = host_name(&name);
        Self::named(plane, name, labels).await
    }

    /// A new node of that very name, with those labels.
    pub async fn named(plane: &ControlPlane, name: String, labels: BTreeMap<String, String>) -> Self {
        require_own_namespace();
        let client = plane.client().await;
        let (node, uid) = make(&client, &name, labels).await;

        let scratch = Scratch::new(&name);
        let root = scratch.path().join("root");
        if is_root() {
            disk::tmpfs(&root, ROOT_BYTES);
            disk::make_shared(&root);
        } else {
            std::fs::create_dir(&root).expect("a directory can be made in a new one");
        }
        let kubeconfig = scratch.path().join("agent.kubeconfig");
        let token = token(&client, rbac::SERVICE_ACCOUNT, &node).await;
        std::fs::write(&kubeconfig, with_token(plane.kubeconfig(), &token)).expect("a kubeconfig can be written");
        let existing_cluster = plane.is_existing();
        Self { name, uid, client, existing_cluster, kubeconfig, root, scratch, made: Mutex::default() }
    }

    /// Deletes the Node object and makes it anew, with nothing but its name in common, as
    /// when a machine is set up again. The agent's credentials are new, too.
    pub async fn make_again(&mut self) {
        let nodes: Api<Node> = Api::all(self.client());
        nodes.delete(&self.name, &DeleteParams::default()).await.expect("a Node can be deleted");
        let (node, uid) = make(&self.client, &self.name, host_name(&self.name)).await;
        let token = token(&self.client, rbac::SERVICE_ACCOUNT, &node).await;
        std::fs::write(&self.kubeconfig, with_token(&self.kubeconfig, &token)).expect("a kubeconfig can be written");
        self.uid = uid;
    }

    /// The name, which is also the value of its label `kubernetes.io/hostname`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Node object's uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// A client with the administrator's rights.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// A kubeconfig with the rights of the agent's `ServiceAccount`, bound to this node.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubeconfig with the rights of another `ServiceAccount` of the agent's namespace.
    pub async fn kubeconfig_of(&self, account: &str) -> PathBuf {
        let node = Api::<Node>::all(self.client()).get(&self.name).await.expect("the Node is there");
        let token = token(&self.client, account, &node).await;
        let path = self.scratch.path().join(format!("{account}.kubeconfig"));
        std::fs::write(&path, with_token(&self.kubeconfig, &token)).expect("a kubeconfig can be written");
        path
    }

    /// A directory on the machine's own filesystem, for backing files and the like.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Where its agents keep their ledger.
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// A shared tmpfs of its own, for what the agent is to see (a plain directory when not root).
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A new directory to discover volumes in.
    pub fn discovery_dir(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        std::fs::create_dir(&path).expect("a discovery directory can be made");
        path
    }

    /// Makes a `StorageClass` of this node's own and returns its name.
    pub async fn class(&self, name: &str, reclaim_policy: &str) -> String {
        let name = format!("{}-{name}", self.name);
        let class = StorageClass {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            provisioner: "kubernetes.io/no-provisioner".to_owned(),
            reclaim_policy: Some(reclaim_policy.to_owned()),
            volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
            ..StorageClass::default()
        };
        let classes: Api<StorageClass> = Api::all(self.client());
        classes.create(&PostParams::default(), &class).await.expect("a StorageClass can be made");
        self.made().classes.push(name.clone());
        name
    }

    /// What was made so far.
    pub(super) fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what a cluster that outlives the tests should not keep. Does nothing
    /// on a control plane that ends with them. End the node's agents first.
    pub async fn clean_up(self) {
        if !self.existing_cluster {
            return;
        }
        let Made { classes, claims } = std::mem::take(&mut *self.made());
        let volumes: Vec<String> = self.pvs().await.iter().map(ResourceExt::name_any).collect();
        let claims_api: Api<PersistentVolumeClaim> = Api::namespaced(self.client(), "default");
        remove(&claims_api, claims).await;
        remove(&Api::<PersistentVolume>::all(self.client()), volumes).await;
        remove(&Api::<StorageClass>::all(self.client()), classes).await;
        remove(&Api::<Node>::all(self.client()), [self.name.clone()]).await;
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        disk::detach_all(&self.root);
    }
}

/// A Node object without a kubelet, and its uid.
/// The label that each Node has.
fn host_name(name: &str) -> BTreeMap<String, String> {
    [("kubernetes.io/hostname".to_owned(), name.to_owned())].into()
}

async fn make(client: &kube::Client, name: &str, labels: BTreeMap<String, String>) -> (Node, String) {
    let node = Node {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() },
        ..Node::default()
    };
    let node = Api::all(client.clone()).create(&PostParams::default(), &node).await.expect("a Node can be made");
    let uid = node.uid().expect("an object of the API server has a uid");
    (node, uid)
}

/// Deletes objects by name, with whatever finalizers they have.
async fn remove<K>(api: &Api<K>, names: impl IntoIterator<Item = String>)
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let free = json!({"metadata": {"finalizers": null}});
    for name in names {
        // Gone is what we want.
        let _ = api.delete(&name, &DeleteParams::default()).await;
        let _ = api.patch(&name, &kube::api::PatchParams::default(), &kube::api::Patch::Merge(&free)).await;
    }
}

/// A token for a `ServiceAccount` of the agent's namespace with a claim that names the node, as a pod on it would have.
async fn token(client: &kube::Client, account: &str, node: &Node) -> String {
    let bound_object_ref = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: node.metadata.name.clone(),
        uid: node.metadata.uid.clone(),
    };
    let spec = TokenRequestSpec {
        bound_object_ref: Some(bound_object_ref),
        expiration_seconds: Some(24 * 60 * 60),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), rbac::NAMESPACE);
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
    answer.expect("the API server issues tokens").status.expect("an issued token has a status").token
}

/// The administrator's kubeconfig with another identity. JSON is YAML.
fn with_token(kubeconfig: &Path, token: &str) -> String {
    let parsed = Kubeconfig::read_from(kubeconfig).expect("the kubeconfig can be read");
    let mut value: Value = serde_json::to_value(parsed).expect("a kubeconfig can be written as JSON");
    let users = value["users"].as_array_mut().expect("a kubeconfig has users");
    for user in users {
        user["user"] = json!({"token": token});
    }
    value.to_string()
}
