//! From the Go provisioner to mooring: its ConfigMap and its PVs, and our agent started over them.

use std::fs;
use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams, ResourceExt};
use mooring::pv::{PROVISIONED_BY, pv_name};
use serde_json::{Value, json};

use crate::harness::helm::RELEASE;
use crate::harness::pods::PodSpec;
use crate::harness::rbac::NAMESPACE;
use crate::harness::site::{SOON, container_id};
use crate::harness::volumes::{is_on, path_of, phase};
use crate::stage::{self, Alone};

/// Their directories are mounted in our agent's pod, and there is a `StorageClass` for each.
pub const CLASSES: &[(&str, &str)] = &[(FS, "{}"), (RAW, r#"{"volumeMode": "Block"}"#)];
const FS: &str = "s17-fs";
const RAW: &str = "s17-raw";

const SIZE: u64 = 32 << 20;
const SECRET: &str = "a-tenant-of-the-go-provisioner";
/// A PV as the Go provisioner was recorded to make it.
const RECORDED: &str = include_str!("../fixtures/golden/labels.json");
/// As the Go provisioner's chart writes it.
const CONFIG: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata:
  name: local-provisioner-config
  namespace: default
data:
  useNodeNameOnly: "false"
  storageClassMap: |
    s17-fs:
      hostDir: /mnt/disks/s17-fs
      mountDir: /mnt/disks/s17-fs
      blockCleanerCommand:
        - "/scripts/shred.sh"
        - "2"
      volumeMode: Filesystem
      fsType: ext4
      namePattern: "*"
    s17-raw:
      hostDir: /mnt/disks/s17-raw
      mountDir: /mnt/disks/s17-raw
      blockCleanerCommand:
        - "/scripts/shred.sh"
        - "2"
      volumeMode: Block
"#;

#[tokio::test]
async fn s17_every_pv_of_the_go_provisioner_is_adopted_and_a_released_one_is_wiped() {
    let scene = stage::alone("s17").await;
    let ours = Ours::stop(&scene).await;

    // What the Go provisioner has left. Node 1 has volumes of the same names.
    let mut disks = Vec::new();
    let mut theirs = Vec::new();
    for node in 0..2 {
        let signature = signature(&scene, node).await;
        let make = async |class: &str, path: &Path, mode: &str| {
            let pv = go_pv(scene.node(node).name(), &signature, class, path, mode);
            scene.pvs().create(&PostParams::default(), &pv).await.expect("a PV can be made")
        };
        for entry in ["free", "used", "left"] {
            let path = scene.node(node).mount_tmpfs(FS, entry, SIZE);
            theirs.push((node, FS, make(FS, &path, "Filesystem").await));
            let (path, disk) = scene.node(node).link_disk(RAW, entry, SIZE);
            disks.push((node, entry, disk));
            theirs.push((node, RAW, make(RAW, &path, "Block").await));
        }
    }
    let of = |entry: &str, node: usize, class: &str| {
        theirs.iter().map(|all| &all.2).find(|pv| pv.name_any() == pv_name(entry, scene.node(node).name(), class))
    };
    for entry in ["used", "left"] {
        for (class, mode) in [(FS, "Filesystem"), (RAW, "Block")] {
            let pv = of(entry, 0, class).expect("it was made").name_any();
            let further = json!({ "volumeMode": mode, "volumeName": pv });
            scene.claim_with(&format!("{entry}-{mode}").to_lowercase(), class, "1Mi", &further);
        }
    }
    let pod = |entry: &str| {
        let claim = |mode: &str| format!("{entry}-{mode}");
        PodSpec::new(entry).claim(&claim("filesystem"), "/data").device(&claim("block"), "/dev/raw")
    };
    for entry in ["used", "left"] {
        scene.run(&pod(entry)).await;
        scene.sh(entry, &format!("echo {SECRET} > /data/file; yes {SECRET} | head -c {SIZE} > /dev/raw; sync"));
    }
    scene.delete_pod("left").await;
    for claim in ["left-filesystem", "left-block"] {
        scene.delete_claim(claim).await;
    }
    let mut before = Vec::new();
    for (node, class, pv) in &theirs {
        let wanted = match (node, path_of(pv).rsplit('/').next()) {
            (0, Some("left")) => "Released",
            (0, Some("used")) => "Bound",
            _ => "Available",
        };
        before.push((*node, *class, scene.wait_phase(&pv.name_any(), wanted).await));
    }
    let running = scene.wait_running("used").await;

    ours.start_with(CONFIG).await;
    for (node, class, pv) in &before {
        let entry = path_of(pv).rsplit('/').next().expect("a path has a name");
        if phase(pv) == "Released" {
            let anew = scene.wait_anew(class, *node, entry, pv).await;
            assert_eq!(anew.name_any(), pv.name_any(), "it has the name it had");
            scene.wait_event(&pv.name_any(), "VolumeWiped", "").await;
            continue;
        }
        let adopted = |pv: &PersistentVolume| pv.labels().contains_key("mooring.dev/node");
        let now = scene.wait_pv(class, *node, entry, SOON, adopted).await;
        assert_eq!((now.name_any(), now.uid(), phase(&now)), (pv.name_any(), pv.uid(), phase(pv)));
        assert_eq!(now.spec, pv.spec, "{class}/{entry}: nothing else has changed");
        assert!(now.annotations().contains_key("mooring.dev/identity"), "{class}/{entry}: its volume is recorded");
    }
    for class in [FS, RAW] {
        let pvs = scene.pvs_of(class).await;
        for (node, _, pv) in before.iter().filter(|all| all.1 == class) {
            let there = |other: &&PersistentVolume| {
                is_on(other, scene.node(*node).name()) && path_of(other) == path_of(pv)
            };
            assert_eq!(pvs.iter().filter(there).count(), 1, "no path has a second PV: {}", path_of(pv));
        }
        assert_eq!(pvs.len(), 6, "and there are no others");
    }

    // The bytes, from both sides.
    let found = scene.node(0).on_host(|| {
        let disk = |entry: &str| disks.iter().find(|all| (all.0, all.1) == (0, entry)).map(|all| &all.2);
        let secret = |entry: &str| disk(entry).is_some_and(|disk| disk.backing_contains(SECRET.as_bytes()));
        let file = |entry: &str| fs::exists(format!("/mnt/disks/{FS}/{entry}/file")).expect("it can be looked at");
        [file("used"), secret("used"), file("left"), secret("left")]
    });
    assert_eq!(found, [true, true, false, false], "what is used has its data, and what was Released has none");
    let now = scene.wait_running("used").await;
    assert_eq!(container_id(&now), container_id(&running), "the pod has not noticed");
    let read = scene.sh("used", &format!("cat /data/file; head -c {} /dev/raw", SECRET.len()));
    assert_eq!(read, format!("{SECRET}\n{SECRET}"));

    // As a volume of ours, it is wiped when its claim goes.
    let used = of("used", 0, FS).expect("it was made").clone();
    scene.delete_pod("used").await;
    for claim in ["used-filesystem", "used-block"] {
        scene.delete_claim(claim).await;
    }
    scene.wait_anew(FS, 0, "used", &used).await;
    scene.wait_anew(RAW, 0, "used", of("used", 0, RAW).expect("it was made")).await;
    assert!(!scene.node(0).on_host(|| disks.iter().any(|(_, _, disk)| disk.backing_contains(SECRET.as_bytes()))));
    ours.finish().await;
}

async fn signature(scene: &Alone, node: usize) -> String {
    let name = scene.node(node).name();
    let node = Api::<Node>::all(scene.client()).get(name).await.expect("the Node is there");
    format!("local-volume-provisioner-{name}-{}", node.uid().expect("an object has a UID"))
}

/// The PV that the Go provisioner makes of a volume.
fn go_pv(node: &str, signature: &str, class: &str, path: &Path, mode: &str) -> PersistentVolume {
    let mut case: Value = serde_json::from_str(RECORDED).expect("a fixture is JSON");
    let mut pv = case["persistentVolumes"][0].take();
    let entry = path.file_name().expect("a path has a name").to_string_lossy();
    pv["metadata"] = json!({ "name": pv_name(&entry, node, class), "annotations": { PROVISIONED_BY: signature } });
    let spec = &mut pv["spec"];
    spec["capacity"]["storage"] = json!("32Mi");
    spec["local"]["path"] = json!(path);
    spec["storageClassName"] = json!(class);
    spec["volumeMode"] = json!(mode);
    spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] = json!([node]);
    serde_json::from_value(pv).expect("it is a PV")
}

/// Our agents' DaemonSet and ConfigMap, as the chart made them. They are so again when this is dropped.
struct Ours<'a> {
    scene: &'a Alone,
    set: DaemonSet,
    config: Value,
}

impl<'a> Ours<'a> {
    /// Returns when no agent runs.
    async fn stop(scene: &'a Alone) -> Self {
        let maps: Api<ConfigMap> = Api::namespaced(scene.client(), NAMESPACE);
        let config = json!(maps.get(RELEASE).await.expect("the chart has a ConfigMap").data);
        let sets: Api<DaemonSet> = Api::namespaced(scene.client(), NAMESPACE);
        let mut set = sets.get(RELEASE).await.expect("the chart has a DaemonSet");
        sets.delete(RELEASE, &DeleteParams::default()).await.expect("a DaemonSet can be deleted");
        set.status = None;
        set.metadata.uid = None;
        set.metadata.resource_version = None;
        let ours = Self { scene, set, config };
        let pods: Api<Pod> = Api::namespaced(scene.client(), NAMESPACE);
        scene
            .until("no agent runs", SOON, async || {
                pods.list(&ListParams::default()).await.expect("pods can be listed").items.is_empty().then_some(())
            })
            .await;
        ours
    }

    /// Starts them with the data of another ConfigMap, as docs/migration.md copies it.
    async fn start_with(&self, manifest: &str) {
        self.scene.site().kubectl().must(&["apply", "--filename=-"], manifest);
        let maps: Api<ConfigMap> = Api::namespaced(self.scene.client(), "default");
        let theirs = maps.get("local-provisioner-config").await.expect("it was just made");
        self.set_config(&json!(theirs.data));
        self.start();
        self.scene.wait_agents().await;
    }

    fn start(&self) {
        let apply = ["apply", "--server-side", "--force-conflicts", "--filename=-"];
        self.scene.site().kubectl().must(&apply, &manifest(&self.set));
    }

    fn set_config(&self, data: &Value) {
        let patch = json!([{ "op": "replace", "path": "/data", "value": data }]).to_string();
        let arguments = ["--namespace", NAMESPACE, "patch", "configmap", RELEASE, "--type=json", "--patch", &patch];
        self.scene.site().kubectl().must(&arguments, "");
    }

    /// Returns when the agents have the config of before.
    async fn finish(self) {
        let scene = self.scene;
        drop(self);
        for node in 0..2 {
            scene
                .until("the chart's config is in force again", SOON, async || {
                    let metric = r#"mooring_config_reloads_total{outcome="success"}"#;
                    (scene.agent_metric(node, metric).await? > 0.5).then_some(())
                })
                .await;
        }
    }
}

impl Drop for Ours<'_> {
    fn drop(&mut self) {
        self.set_config(&self.config);
        self.start();
    }
}

fn manifest(set: &DaemonSet) -> String {
    let mut object = json!(set);
    object["metadata"].as_object_mut().expect("it is an object").remove("managedFields");
    object.to_string()
}
