//! A stand-in for the Go provisioner where its program can't be had: it does to PVs and
//! directories what was recorded of it (`tests/fixtures/golden`), and nothing else.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, DeleteParams, PostParams, ResourceExt};
use mooring::pv::{PROVISIONED_BY, pv_name};
use mooring::volume::Capacity;
use serde_json::{Value, json};

use crate::harness::node::TestNode;
use crate::harness::volumes::{path_of, phase};

/// A PV that the Go provisioner was recorded to make.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/labels.json");

/// The Go provisioner of one node.
pub struct GoProvisioner<'a> {
    pub node: &'a TestNode,
}

impl GoProvisioner<'_> {
    fn api(&self) -> Api<PersistentVolume> {
        Api::all(self.node.client())
    }

    fn signature(&self) -> String {
        format!("local-volume-provisioner-{}-{}", self.node.name(), self.node.uid())
    }

    /// The PV of a volume, as it was recorded.
    pub fn pv(&self, class: &str, path: &Path, mode: &str, bytes: u64) -> PersistentVolume {
        let case = fs::read_to_string(RECORDED).expect("the fixture is there");
        let mut case: Value = serde_json::from_str(&case).expect("a fixture is JSON");
        let mut pv = case["persistentVolumes"][0].take();
        let entry = path.file_name().expect("a path has a name").to_string_lossy();
        let metadata = &mut pv["metadata"];
        metadata["name"] = json!(pv_name(&entry, self.node.name(), class));
        metadata["annotations"] = json!({ PROVISIONED_BY: self.signature() });
        metadata.as_object_mut().expect("it is an object").remove("labels");
        let spec = &mut pv["spec"];
        spec["capacity"]["storage"] = json!(Capacity::rounded_down(bytes).to_string());
        spec["local"]["path"] = json!(path);
        spec["storageClassName"] = json!(class);
        spec["volumeMode"] = json!(mode);
        let terms = &mut spec["nodeAffinity"]["required"]["nodeSelectorTerms"];
        terms[0]["matchExpressions"][0]["values"] = json!([self.node.name()]);
        serde_json::from_value(pv).expect("it is a PV")
    }

    /// Publishes a volume.
    pub async fn publish(&self, class: &str, path: &Path, mode: &str, bytes: u64) -> PersistentVolume {
        let made = self.api().create(&PostParams::default(), &self.pv(class, path, mode, bytes)).await;
        made.expect("the Go provisioner's PV can be made")
    }

    /// Whether it takes a PV for its own.
    pub fn owns(&self, pv: &PersistentVolume) -> bool {
        pv.annotations().get(PROVISIONED_BY) == Some(&self.signature())
    }

    /// Empties the directory of each of its Released PVs with policy Delete, then deletes
    /// the PV by its name. Returns their names.
    pub async fn reclaim(&self) -> Vec<String> {
        let mut reclaimed = Vec::new();
        for pv in self.node.pvs().await.into_iter().filter(|pv| self.owns(pv)) {
            let policy = pv.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
            if phase(&pv) != "Released" || policy != Some("Delete") || pv.metadata.deletion_timestamp.is_some() {
                continue;
            }
            for entry in fs::read_dir(path_of(&pv)).expect("the volume is there") {
                let path = entry.expect("it can be listed").path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.expect("what is in a volume can be removed");
            }
            let name = pv.name_any();
            self.api().delete(&name, &DeleteParams::default()).await.expect("a PV can be deleted");
            reclaimed.push(name);
        }
        reclaimed
    }
}
