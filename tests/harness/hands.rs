//! What somebody does by hand to PVs and claims that are at stake.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, Patch, PatchParams, PostParams, ResourceExt};
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
}
