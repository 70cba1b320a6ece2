//! What somebody does by hand to PVs and claims that are at stake.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, ResourceExt};
use serde_json::{Value, json};

use super::node::TestNode;

impl TestNode {
    /// Patches a volume as an admin does; a key with `null` is removed.
    pub async fn patch_pv(&self, name: &str, patch: Value) -> kube::Result<PersistentVolume> {
        self.patch_pv_with(name, patch, &PatchParams::default()).await
    }

    /// As [`Self::patch_pv`], but nothing is changed: only whether it would be allowed.
    pub async fn try_patch_pv(&self, name: &str, patch: Value) -> kube::Result<PersistentVolume> {
        self.patch_pv_with(name, patch, &PatchParams { dry_run: true, ..PatchParams::default() }).await
    }

    async fn patch_pv_with(&self, name: &str, patch: Value, params: &PatchParams) -> kube::Result<PersistentVolume> {
        Api::<PersistentVolume>::all(self.client()).patch(name, params, &Patch::Merge(patch)).await
    }

    /// Holds the wipe of a volume, or lets go of it.
    pub async fn hold(&self, name: &str, held: bool) {
        let value = if held { json!("a test") } else { Value::Null };
        let patch = json!({ "metadata": { "annotations": { "mooring.dev/hold": value } } });
        self.patch_pv(name, patch).await.expect("an annotation can be changed");
    }

    /// Makes a PV look as if it had been in its phase since a minute before it was made.
    pub async fn backdate_phase(&self, pv: &PersistentVolume) {
        let made = pv.creation_timestamp().expect("the API server notes when it was made").0;
        let before = made - jiff::SignedDuration::from_mins(1);
        let patch = Patch::Merge(json!({ "status": { "lastPhaseTransitionTime": before.to_string() } }));
        let pvs = Api::<PersistentVolume>::all(self.client());
        pvs.patch_status(&pv.name_any(), &PatchParams::default(), &patch).await.expect("a status can be changed");
    }

    /// Makes a claim like another one, which may be gone, under that name.
    pub async fn claim_again(&self, like: &PersistentVolumeClaim, name: &str) -> PersistentVolumeClaim {
        let mut claim = PersistentVolumeClaim { spec: like.spec.clone(), ..PersistentVolumeClaim::default() };
        claim.metadata.name = Some(name.to_owned());
        let made = self.claims_api().create(&PostParams::default(), &claim).await.expect("a claim can be made");
        self.made().claims.push(name.to_owned());
        made
    }

    /// Makes the controller-manager look at a claim again, which it else does every 15 s.
    /// Returns whether the claim is Bound.
    pub async fn nudge(&self, claim: &PersistentVolumeClaim) -> bool {
        let patch = json!({ "metadata": { "annotations": { "nudge": super::scratch::unique().to_string() } } });
        let nudged = self.claims_api().patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        let status = nudged.expect("a claim can be changed").status;
        status.and_then(|status| status.phase).as_deref() == Some("Bound")
    }

    /// The claims of the namespace `default`.
    pub fn claims_api(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client(), "default")
    }

    /// Waits for an Event with that reason on a volume, and returns all of it.
    pub async fn wait_event_on(&self, pv: &PersistentVolume, reason: &str, timeout: Duration) -> Event {
        let name = pv.name_any();
        self.wait_event(&name, reason, "", timeout).await;
        let about = ListParams::default().fields(&format!("involvedObject.name={name},reason={reason}"));
        let events: Api<Event> = Api::namespaced(self.client(), "default");
        events.list(&about).await.expect("Events can be listed").items.pop().expect("it was there just now")
    }
}
