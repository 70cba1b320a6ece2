//! What a tenant has: pods and claims in a namespace of its own, and how they fare.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::image;
use super::site::{SOON, Site, container_id};
use super::volumes::{is_on, path_of, phase};

const POLL: Duration = Duration::from_millis(20);

/// A pod to be made: busybox that does nothing, unless it says otherwise.
#[derive(Clone)]
pub struct PodSpec {
    name: String,
    value: Value,
}

impl PodSpec {
    /// A pod of that name. It ends at once when it is deleted.
    pub fn new(name: &str) -> Self {
        let idle = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";
        let container = json!({
            "name": "main", "image": image::BUSYBOX, "imagePullPolicy": "Never",
            "command": ["sh", "-c", idle], "volumeMounts": [], "volumeDevices": [],
        });
        let spec = json!({
            "terminationGracePeriodSeconds": 1, "dnsPolicy": "Default", "containers": [container], "volumes": [],
        });
        let value = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec });
        Self { name: name.to_owned(), value }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Only on that node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.value["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
        self
    }

    /// With a claim mounted at a path.
    #[must_use]
    pub fn claim(self, claim: &str, path: &str) -> Self {
        self.volume(claim, "volumeMounts", &json!({ "name": claim, "mountPath": path }))
    }

    /// With a claim (`volumeMode: Block`) as a device at a path.
    #[must_use]
    pub fn device(self, claim: &str, path: &str) -> Self {
        self.volume(claim, "volumeDevices", &json!({ "name": claim, "devicePath": path }))
    }

    /// Another image and its command; an empty one is the image's own.
    #[must_use]
    pub fn image(mut self, image: &str, command: &[&str]) -> Self {
        let container = &mut self.value["spec"]["containers"][0];
        container["image"] = json!(image);
        container["command"] = json!(command);
        self
    }

    /// Another command.
    #[must_use]
    pub fn command(mut self, command: &[&str]) -> Self {
        self.value["spec"]["containers"][0]["command"] = json!(command);
        self
    }

    /// The object, to be changed further.
    pub fn value(&mut self) -> &mut Value {
        &mut self.value
    }

    fn volume(mut self, claim: &str, kind: &str, entry: &Value) -> Self {
        let spec = &mut self.value["spec"];
        let volume = json!({ "name": claim, "persistentVolumeClaim": { "claimName": claim } });
        spec["volumes"].as_array_mut().expect("it is a list").push(volume);
        spec["containers"][0][kind].as_array_mut().expect("it is a list").push(entry.clone());
        self
    }
}

/// A namespace of one's own in a cluster.
pub struct Tenant<'a> {
    site: &'a Site,
    client: kube::Client,
    namespace: String,
}

impl<'a> Tenant<'a> {
    /// With a new namespace of that name; pods can be made in it when this returns.
    pub async fn new(site: &'a Site, namespace: &str) -> Self {
        let client = site.client().await;
        let metadata = ObjectMeta { name: Some(namespace.to_owned()), ..ObjectMeta::default() };
        let object = Namespace { metadata, ..Namespace::default() };
        let made = Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await;
        made.expect("a namespace can be made");
        let tenant = Self { site, client, namespace: namespace.to_owned() };
        let accounts: Api<ServiceAccount> = tenant.api();
        tenant
            .until("the namespace has its ServiceAccount", SOON, async || {
                accounts.get_opt("default").await.expect("it can be read").map(drop)
            })
            .await;
        tenant
    }

    /// The cluster.
    pub fn site(&self) -> &'a Site {
        self.site
    }

    /// A client with the administrator's rights.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Objects of a kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client(), &self.namespace)
    }

    /// All PVs of the cluster.
    pub fn pvs(&self) -> Api<PersistentVolume> {
        Api::all(self.client())
    }

    /// Asks again and again until there is an answer; panics after `timeout`, saying `what` was waited for.
    pub async fn until<T>(&self, what: &str, timeout: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(Instant::now() < deadline, "{what}: not within {timeout:?}");
            sleep(POLL).await;
        }
    }

    /// Runs kubectl in the namespace; it must succeed. Returns what it says.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.site.kubectl().must(&[&["--namespace", &self.namespace], arguments].concat(), "")
    }

    /// Runs kubectl in the namespace: what it says, or its error.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.site.kubectl().run(&[&["--namespace", &self.namespace], arguments].concat(), "");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Makes or changes the objects of a YAML text (`kubectl apply`), in the namespace unless they name another.
    pub fn apply(&self, yaml: &str) {
        self.site.kubectl().must(&["--namespace", &self.namespace, "apply", "--filename=-"], yaml);
    }

    /// Makes a claim of a class, `ReadWriteOnce`, for a filesystem.
    pub fn claim(&self, name: &str, class: &str, size: &str) {
        self.claim_with(name, class, size, &json!({}));
    }

    /// Makes a claim of a class for a raw device.
    pub fn claim_device(&self, name: &str, class: &str, size: &str) {
        self.claim_with(name, class, size, &json!({ "volumeMode": "Block" }));
    }

    /// Makes a claim of a class with further fields of its spec.
    pub fn claim_with(&self, name: &str, class: &str, size: &str, further: &Value) {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": { "requests": { "storage": size } },
        });
        spec.as_object_mut().expect("it is an object").extend(further.as_object().cloned().unwrap_or_default());
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name }, "spec": spec,
        });
        self.apply(&claim.to_string());
    }

    /// Waits until a claim is Bound; returns it and its PV.
    pub async fn wait_bound(&self, claim: &str) -> (PersistentVolumeClaim, PersistentVolume) {
        let claims: Api<PersistentVolumeClaim> = self.api();
        let bound = self
            .until(&format!("the claim {claim} is Bound"), SOON, async || {
                let claim = claims.get_opt(claim).await.expect("a claim can be read")?;
                (claim.status.as_ref()?.phase.as_deref() == Some("Bound")).then_some(claim)
            })
            .await;
        let name = bound.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).expect("it is Bound");
        let pv = self.pvs().get(name).await.expect("a Bound claim's PV is there");
        (bound, pv)
    }

    /// Deletes a claim and waits until it is gone.
    pub async fn delete_claim(&self, claim: &str) {
        self.delete::<PersistentVolumeClaim>(claim).await;
    }

    /// Deletes an object of the namespace and waits until it is gone.
    pub async fn delete<K>(&self, name: &str)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = self.api();
        let uid = api.get(name).await.expect("what is to be deleted is there").uid();
        api.delete(name, &DeleteParams::default()).await.expect("it can be deleted");
        self.until(&format!("{name} is gone"), SOON, async || {
            let now = api.get_opt(name).await.expect("it can be read");
            now.is_none_or(|now| now.uid() != uid).then_some(())
        })
        .await;
    }

    /// Makes a pod and waits until it runs.
    pub async fn run(&self, pod: &PodSpec) -> Pod {
        self.start(pod);
        self.wait_running(&pod.name).await
    }

    /// Makes a pod; returns at once.
    pub fn start(&self, pod: &PodSpec) {
        self.apply(&pod.value.to_string());
    }

    /// Waits until a pod's container runs.
    pub async fn wait_running(&self, pod: &str) -> Pod {
        let running = |pod: &Pod| pod.metadata.deletion_timestamp.is_none() && container_id(pod).is_some();
        self.wait_pod(pod, "runs", running).await
    }

    /// Waits until a pod is as the predicate says.
    pub async fn wait_pod(&self, pod: &str, what: &str, predicate: impl Fn(&Pod) -> bool) -> Pod {
        let pods: Api<Pod> = self.api();
        let ask = async || pods.get_opt(pod).await.expect("a pod can be read").filter(&predicate);
        self.until(&format!("the pod {pod} {what}"), SOON, ask).await
    }

    /// Waits until the scheduler says of a pod, in these words, that it can't run anywhere.
    pub async fn wait_unschedulable(&self, pod: &str, words: &str) -> Pod {
        let unschedulable = |pod: &Pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut failed = conditions.filter(|at| at.type_ == "PodScheduled" && at.status == "False");
            failed.any(|at| at.message.as_deref().unwrap_or_default().contains(words))
        };
        self.wait_pod(pod, "can't be scheduled", unschedulable).await
    }

    /// Deletes a pod and waits until it is gone, with its mounts.
    pub async fn delete_pod(&self, pod: &str) {
        self.delete::<Pod>(pod).await;
    }

    /// Runs a command in a pod; it must succeed. Returns what it says.
    pub fn exec(&self, pod: &str, command: &[&str]) -> String {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }

    /// Runs a command in a pod: what it says, or its error.
    pub fn try_exec(&self, pod: &str, command: &[&str]) -> Result<String, String> {
        self.try_kubectl(&[&["exec", pod, "--"], command].concat())
    }

    /// Runs a shell script in a pod; it must succeed. Returns what it says.
    pub fn sh(&self, pod: &str, script: &str) -> String {
        self.exec(pod, &["sh", "-ec", script])
    }

    /// The PVs of a class as they are now.
    pub async fn pvs_of(&self, class: &str) -> Vec<PersistentVolume> {
        let all = self.pvs().list(&ListParams::default()).await.expect("PVs can be listed");
        let of_class =
            |pv: &PersistentVolume| pv.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()) == Some(class);
        all.items.into_iter().filter(of_class).collect()
    }

    /// Waits for a PV of a class on a node (by number), at the path of that entry, that the predicate likes.
    pub async fn wait_pv(
        &self,
        class: &str,
        node: usize,
        entry: &str,
        timeout: Duration,
        predicate: impl Fn(&PersistentVolume) -> bool,
    ) -> PersistentVolume {
        let name = self.site.node(node).name();
        let mut seen = Vec::new();
        let deadline = Instant::now() + timeout;
        loop {
            let pvs = self.pvs_of(class).await;
            let wanted = |pv: &&PersistentVolume| is_on(pv, name) && path_of(pv).ends_with(&format!("/{entry}"));
            if let Some(pv) = pvs.iter().find(|pv| wanted(pv) && predicate(pv)) {
                return pv.clone();
            }
            seen.clear();
            seen.extend(pvs.iter().map(|pv| (pv.name_any(), path_of(pv).to_owned(), phase(pv).to_owned())));
            assert!(Instant::now() < deadline, "{class}/{entry} on {name}: not within {timeout:?}; PVs: {seen:?}");
            sleep(POLL).await;
        }
    }

    /// Waits until an entry's PV is Available.
    pub async fn wait_available(&self, class: &str, node: usize, entry: &str) -> PersistentVolume {
        self.wait_pv(class, node, entry, SOON, |pv| phase(pv) == "Available").await
    }

    /// Waits until an entry's PV is Available and another object than that one.
    pub async fn wait_anew(&self, class: &str, node: usize, entry: &str, old: &PersistentVolume) -> PersistentVolume {
        self.wait_pv(class, node, entry, SOON, |pv| phase(pv) == "Available" && pv.uid() != old.uid()).await
    }

    /// Waits until the PV of that name is in a phase.
    pub async fn wait_phase(&self, pv: &str, wanted: &str) -> PersistentVolume {
        let pvs = self.pvs();
        let ask = async || pvs.get_opt(pv).await.expect("a PV can be read").filter(|pv| phase(pv) == wanted);
        self.until(&format!("the PV {pv} is {wanted}"), SOON, ask).await
    }

    /// All Events about an object, by its name, in any namespace.
    pub async fn events(&self, about: &str) -> Vec<Event> {
        let chosen = ListParams::default().fields(&format!("involvedObject.name={about}"));
        Api::<Event>::all(self.client()).list(&chosen).await.expect("Events can be listed").items
    }

    /// Waits for an Event about an object with that reason whose message contains the words.
    pub async fn wait_event(&self, about: &str, reason: &str, words: &str) -> Event {
        let ask = async || {
            self.events(about).await.into_iter().find(|event| {
                event.reason.as_deref() == Some(reason) && event.message.as_deref().unwrap_or_default().contains(words)
            })
        };
        self.until(&format!("an Event {reason} about {about} with {words:?}"), SOON, ask).await
    }
}
