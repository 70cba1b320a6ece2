//! What an admin does by hand: annotations on PVs and Nodes, PVs deleted or taken back,
//! and reading the Events.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::node::TestNode;

const POLL: Duration = Duration::from_millis(20);

impl TestNode {
    fn api(&self) -> Api<PersistentVolume> {
        Api::all(self.client())
    }

    async fn must_patch(&self, pv: &str, patch: Value) -> PersistentVolume {
        self.patch_pv(pv, patch).await.unwrap_or_else(|error| panic!("{pv} can't be patched: {error}"))
    }

    /// Sets an annotation of a PV, or removes it.
    pub async fn annotate_pv(&self, pv: &str, key: &str, value: Option<&str>) -> PersistentVolume {
        self.must_patch(pv, json!({ "metadata": { "annotations": { key: value } } })).await
    }

    /// Sets an annotation of this Node, or removes it.
    pub async fn annotate_node(&self, key: &str, value: Option<&str>) {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { key: value } } }));
        let nodes: Api<Node> = Api::all(self.client());
        nodes.patch(self.name(), &PatchParams::default(), &patch).await.expect("a Node can be annotated");
    }

    /// Sets a label of this Node, or removes it.
    pub async fn label_node(&self, key: &str, value: Option<&str>) {
        let patch = Patch::Merge(json!({ "metadata": { "labels": { key: value } } }));
        let nodes: Api<Node> = Api::all(self.client());
        nodes.patch(self.name(), &PatchParams::default(), &patch).await.expect("a Node can be labelled");
    }

    /// Takes all annotations of ours off a PV.
    pub async fn strip_annotations(&self, pv: &str) -> PersistentVolume {
        let now = self.api().get(pv).await.expect("the PV is there");
        let ours = now.annotations().keys().filter(|key| key.starts_with("mooring.dev/"));
        let none: serde_json::Map<_, _> = ours.map(|key| (key.clone(), Value::Null)).collect();
        self.must_patch(pv, json!({ "metadata": { "annotations": none } })).await
    }

    /// Takes its claim off a PV, so that anybody may claim it.
    pub async fn clear_claim(&self, pv: &str) -> PersistentVolume {
        self.must_patch(pv, json!({ "spec": { "claimRef": null } })).await
    }

    /// Begins the deletion of a PV, as `kubectl delete --wait=false` does.
    pub async fn delete_pv(&self, pv: &str) {
        self.api().delete(pv, &DeleteParams::default()).await.expect("a PV can be deleted");
    }

    /// Removes a PV whatever keeps it: its finalizers are taken off.
    pub async fn force_delete_pv(&self, pv: &PersistentVolume) {
        let name = pv.name_any();
        self.delete_pv(&name).await;
        let free = Patch::Merge(json!({ "metadata": { "uid": pv.uid(), "finalizers": null } }));
        let freed = self.api().patch(&name, &PatchParams::default(), &free).await;
        // Gone by itself meanwhile, and perhaps there anew, is as good.
        assert!(
            matches!(&freed, Ok(_) | Err(kube::Error::Api(_))),
            "the finalizers of {name} can't be taken off: {freed:?}"
        );
    }

    /// The messages of the Events about an object (by name), with that reason.
    pub async fn events(&self, about: &str, reason: &str) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client(), "default");
        let chosen = ListParams::default().fields(&format!("involvedObject.name={about},reason={reason}"));
        let list = events.list(&chosen).await.expect("Events can be listed");
        list.items.into_iter().filter_map(|event| event.message).collect()
    }

    /// Waits for an Event about an object with that reason whose message contains the words.
    pub async fn wait_event(&self, about: &str, reason: &str, words: &str, timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        loop {
            let messages = self.events(about, reason).await;
            if let Some(message) = messages.iter().find(|message| message.contains(words)) {
                return message.clone();
            }
            assert!(
                Instant::now() < deadline,
                "no Event {reason} about {about} with {words:?} within {timeout:?}, only {messages:?}"
            );
            sleep(POLL).await;
        }
    }
}
