//! A node's `PersistentVolumes`: looking at them, waiting for them, and doing what
//! users do with them. Waiting goes by a real watch, so its delay is the API
//! server's and not a polling period.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, ResourceExt};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout as within};

use super::node::TestNode;
use super::scratch::unique;

const BIND_TIMEOUT: Duration = Duration::from_mins(1);

/// The node's volumes by name.
pub type Volumes = BTreeMap<String, PersistentVolume>;

/// A volume's phase; empty before it has one.
pub fn phase(pv: &PersistentVolume) -> &str {
    pv.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// A volume's local path; empty when it is not a local volume.
pub fn path_of(pv: &PersistentVolume) -> &str {
    pv.spec.as_ref().and_then(|spec| spec.local.as_ref()).map_or("", |local| &local.path)
}

/// Whether a volume's node affinity names the node.
pub fn is_on(pv: &PersistentVolume, node: &str) -> bool {
    let affinity = pv.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let Some(selector) = affinity.and_then(|affinity| affinity.required.as_ref()) else {
        return false;
    };
    let mut requirements = selector.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    requirements.any(|requirement| {
        requirement.key == "kubernetes.io/hostname" && requirement.values.iter().flatten().any(|value| value == node)
    })
}

impl TestNode {
    fn volumes_api(&self) -> Api<PersistentVolume> {
        Api::all(self.client())
    }

    /// This node's volumes as they are now.
    pub async fn pvs(&self) -> Vec<PersistentVolume> {
        let all = self.volumes_api().list(&ListParams::default()).await.expect("volumes can be listed");
        all.items.into_iter().filter(|pv| is_on(pv, self.name())).collect()
    }

    /// Watches this node's volumes until `found` gives an answer; panics after `timeout`,
    /// saying `what` was waited for and what was there instead.
    pub async fn watch_pvs<T>(&self, what: &str, timeout: Duration, mut found: impl FnMut(&Volumes) -> Option<T>) -> T {
        let mut volumes = Volumes::new();
        let search = async {
            let mut events = Box::pin(watcher(self.volumes_api(), watcher::Config::default()));
            let mut listed = false;
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Init) => {
                        volumes.clear();
                        listed = false;
                    }
                    Ok(Event::InitApply(pv) | Event::Apply(pv)) if is_on(&pv, self.name()) => {
                        volumes.insert(pv.name_any(), pv);
                    }
                    Ok(Event::InitApply(_) | Event::Apply(_)) => continue,
                    Ok(Event::Delete(pv)) => drop(volumes.remove(&pv.name_any())),
                    Ok(Event::InitDone) => listed = true,
                    // The API server may be down on purpose.
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
                if let Some(answer) = listed.then(|| found(&volumes)).flatten() {
                    return answer;
                }
            }
            panic!("the watch ended");
        };
        let answer = within(timeout, search).await.ok();
        answer.unwrap_or_else(|| {
            let seen: Vec<_> = volumes.values().map(|pv| (pv.name_any(), path_of(pv), phase(pv))).collect();
            panic!("{what}: not within {timeout:?}; the volumes of {}: {seen:?}", self.name())
        })
    }

    /// Waits for a volume of that path that fulfils the predicate.
    pub async fn wait_pv(
        &self,
        path: &Path,
        predicate: impl Fn(&PersistentVolume) -> bool,
        timeout: Duration,
    ) -> PersistentVolume {
        let what = format!("a volume at {}", path.display());
        let wanted = |pv: &&PersistentVolume| Path::new(path_of(pv)) == path && predicate(pv);
        self.watch_pvs(&what, timeout, |volumes| volumes.values().find(wanted).cloned()).await
    }

    /// Waits until the object is gone; one of the same name with another uid does not count.
    pub async fn wait_gone(&self, pv: &PersistentVolume, timeout: Duration) {
        let is_there = |volumes: &Volumes| volumes.values().any(|other| other.uid() == pv.uid());
        let what = format!("the end of {}", pv.name_any());
        self.watch_pvs(&what, timeout, |volumes| (!is_there(volumes)).then_some(())).await;
    }

    /// A local volume on this node, not made yet: for volumes by another hand than the agent's.
    pub fn local_pv(&self, name: &str, class: &str, path: &Path) -> PersistentVolume {
        let hostname = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [self.name()]});
        let volume = json!({
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                "persistentVolumeReclaimPolicy": "Delete", "storageClassName": class, "local": {"path": path},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [hostname]}]}},
            },
        });
        serde_json::from_value(volume).expect("this is a PersistentVolume")
    }

    /// Makes a volume.
    pub async fn create_pv(&self, pv: &PersistentVolume) -> PersistentVolume {
        self.volumes_api().create(&PostParams::default(), pv).await.expect("a volume can be made")
    }

    /// Claims a volume in the namespace `default` and returns when both are Bound.
    pub async fn bind(&self, pv_name: &str) -> PersistentVolumeClaim {
        let pv = self.volumes_api().get(pv_name).await.expect("the volume to bind is there");
        let spec = pv.spec.expect("a volume has a spec");
        let name = format!("{pv_name}-{}-{}", std::process::id(), unique());
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: spec.access_modes,
                resources: Some(VolumeResourceRequirements { requests: spec.capacity, ..Default::default() }),
                storage_class_name: spec.storage_class_name,
                volume_mode: spec.volume_mode,
                volume_name: Some(pv_name.to_owned()),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client(), "default");
        claims.create(&PostParams::default(), &claim).await.expect("a claim can be made");
        self.made().claims.push(name.clone());
        let bound = |volumes: &Volumes| volumes.get(pv_name).filter(|pv| phase(pv) == "Bound").map(|_| ());
        self.watch_pvs(&format!("{pv_name} Bound"), BIND_TIMEOUT, bound).await;
        let deadline = Instant::now() + BIND_TIMEOUT;
        loop {
            let claim = claims.get(&name).await.expect("a claim can be read");
            if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound") {
                return claim;
            }
            assert!(Instant::now() < deadline, "the claim {name} did not become Bound");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Deletes a claim and returns when it is gone, whether or not its volume is Released yet.
    pub async fn release(&self, claim: &PersistentVolumeClaim) {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client(), "default");
        let name = claim.name_any();
        claims.delete(&name, &DeleteParams::default()).await.expect("a claim can be deleted");
        let patience = Instant::now() + Duration::from_secs(3);
        while claims.get_opt(&name).await.expect("a claim can be read").is_some() {
            if Instant::now() > patience {
                // Its protection lingers when the controller manager is down or a pod still has it.
                let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                let freed = claims.patch(&name, &PatchParams::default(), &free).await;
                // Gone by itself meanwhile is as good.
                let is_gone = matches!(&freed, Err(kube::Error::Api(status)) if status.code == 404);
                assert!(freed.is_ok() || is_gone, "the claim {name} can't be freed: {freed:?}");
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}
