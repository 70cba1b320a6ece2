//! The ConfigMap is edited while the agents run: what is good counts, what is broken does not.

use std::fs;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume};
use kube::api::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::helm::RELEASE;
use crate::harness::pods::PodSpec;
use crate::harness::rbac::NAMESPACE;
use crate::harness::site::{SOON, container_id};
use crate::harness::volumes::path_of;
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[("s18", "{}"), ("s18-late", "{}")];

const SIZE: u64 = 64 << 20;
const KEY: &str = "storageClassMap";
const SUCCESS: &str = r#"mooring_config_reloads_total{outcome="success"}"#;
const IN_FORCE: &str = "mooring_config_last_reload_successful";

#[tokio::test]
async fn s18_an_edit_of_the_config_map_counts_without_a_restart_and_a_broken_one_changes_nothing() {
    // An agent that started now by chance would not with what is broken.
    let scene = stage::alone("s18").await;
    let node = scene.node(1);
    let agents = [scene.agent_pod(0).await, scene.agent_pod(1).await];
    let map = Map::of(&scene).await;
    let stays = node.mount_tmpfs("s18", "stays", SIZE);
    let used = node.mount_tmpfs("s18-late", "used", SIZE);
    let before = scene.wait_available("s18", 1, "stays").await;
    let pv = scene.wait_available("s18-late", 1, "used").await;
    scene.claim("data", "s18-late", "1Mi");
    scene.run(&PodSpec::new("pod").claim("data", "/data")).await;
    scene.sh("pod", "echo used > /data/file");

    // A class goes, and another one takes only some names.
    let mut classes: Value = serde_saphyr::from_str(&map.text).expect("the chart's map is YAML");
    classes.as_object_mut().expect("it is a map").remove("s18-late").expect("the class is there");
    classes["s18"]["namePattern"] = json!("keep*");
    let edited = classes.to_string();
    map.edit_and_wait("a class less, another pattern", &edited).await;
    node.mount_tmpfs("s18-late", "new", SIZE);
    node.mount_tmpfs("s18", "other", SIZE);
    node.mount_tmpfs("s18", "keep-1", SIZE);
    scene.wait_available("s18", 1, "keep-1").await;
    scene.wait_verdict(1, "s18", "other", "ExcludedByPattern").await;
    assert_eq!(entries(&scene, "s18").await, ["keep-1", "stays"], "what was offered stays so");
    assert_eq!(entries(&scene, "s18-late").await, ["used"]);
    assert_eq!(scene.wait_available("s18", 1, "stays").await.uid(), before.uid());
    assert_eq!(scene.sh("pod", "cat /data/file").trim(), "used");

    // Broken YAML.
    let began = Instant::now();
    map.edit(&format!("{edited}\n  namePattern: [\n"));
    for number in 0..2 {
        scene
            .until("the metric says that the config is not in force", SOON, async || {
                (scene.agent_metric(number, IN_FORCE).await? < 0.5).then_some(())
            })
            .await;
        let event = scene.wait_event(scene.node(number).name(), "ConfigRejected", KEY).await;
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(scene.agent_page(number, "/ready").await.0, 200);
    }
    eprintln!("broken YAML: told of after {:?}", began.elapsed());
    node.mount_tmpfs("s18", "keep-2", SIZE);
    scene.wait_available("s18", 1, "keep-2").await;
    assert_eq!(entries(&scene, "s18").await, ["keep-1", "keep-2", "stays"], "the former config is in force");
    // A volume of the class that is gone is wiped as the class said, and not offered.
    scene.delete_pod("pod").await;
    scene.delete_claim("data").await;
    scene
        .until("the PV of the removed class is gone", SOON, async || {
            entries(&scene, "s18-late").await.is_empty().then_some(())
        })
        .await;
    assert_eq!(node.on_host(|| fs::read_dir(&used).expect("it is there").count()), 0, "it is wiped");

    // A class comes, and the pattern goes.
    map.edit_and_wait("a class more, no pattern", &map.text).await;
    for (class, entry) in [("s18", "other"), ("s18-late", "new"), ("s18-late", "used")] {
        scene.wait_available(class, 1, entry).await;
    }
    assert_eq!(scene.wait_available("s18", 1, "stays").await.uid(), before.uid());
    assert_ne!(scene.wait_available("s18-late", 1, "used").await.uid(), pv.uid());
    assert_eq!(scene.agent_metric(0, "mooring_config_hash").await, scene.agent_metric(1, "mooring_config_hash").await);
    for (number, agent) in agents.iter().enumerate() {
        let now = scene.agent_pod(number).await;
        assert_eq!(container_id(&now), container_id(agent), "the agent of node {number} was not restarted");
    }
    assert!(node.on_host(|| stays.exists()));
}

/// The entries of a class that have a PV, sorted.
async fn entries(scene: &Scene, class: &str) -> Vec<String> {
    let pvs = scene.pvs_of(class).await;
    let entry = |pv: &PersistentVolume| path_of(pv).rsplit('/').next().map(str::to_owned);
    let mut names: Vec<_> = pvs.iter().filter_map(entry).collect();
    names.sort();
    names
}

/// The release's ConfigMap; it is as it was when this is dropped.
struct Map<'a> {
    scene: &'a Scene,
    text: String,
}

impl<'a> Map<'a> {
    async fn of(scene: &'a Scene) -> Self {
        let api: Api<ConfigMap> = Api::namespaced(scene.client(), NAMESPACE);
        let map = api.get(RELEASE).await.expect("the chart has a ConfigMap");
        Self { scene, text: map.data.and_then(|mut data| data.remove(KEY)).expect("the map of classes is required") }
    }

    fn edit(&self, text: &str) {
        let patch = json!({ "data": { KEY: text } }).to_string();
        let arguments = ["--namespace", NAMESPACE, "patch", "configmap", RELEASE, "--type=merge", "--patch", &patch];
        self.scene.site().kubectl().must(&arguments, "");
    }

    /// Returns when it is in force on both nodes.
    async fn edit_and_wait(&self, what: &str, text: &str) {
        let scene = self.scene;
        let before = [scene.agent_metric(0, SUCCESS).await, scene.agent_metric(1, SUCCESS).await];
        let began = Instant::now();
        self.edit(text);
        for (number, before) in before.into_iter().enumerate() {
            scene
                .until(&format!("{what}: in force on node {number}"), SOON, async || {
                    (scene.agent_metric(number, SUCCESS).await > before).then_some(())
                })
                .await;
            scene.wait_metric(number, IN_FORCE, |value| value > 0.5).await;
        }
        eprintln!("{what}: in force after {:?}", began.elapsed());
    }
}

impl Drop for Map<'_> {
    fn drop(&mut self) {
        self.edit(&self.text);
    }
}
