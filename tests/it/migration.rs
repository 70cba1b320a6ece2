//! `docs/migration.md`, run as it is written: each of its commands by a shell and the real
//! kubectl, on a control plane of its own. The pods that would be made there are played by
//! child processes, and the Go provisioner by its stand-in.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume};
use kube::api::{Api, Patch, PatchParams, ResourceExt};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::{SOON, is_labelled, wait_verdict};
use crate::go_provisioner::GoProvisioner;
use crate::harness::config_dir::storage_class_map;
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Agent, AgentOptions, ControlPlane, Options, disk, launch, rbac, supervisor};

const MIB: u64 = 1 << 20;
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The commands of a page: under each heading, its blocks in order.
pub fn commands(page: &str) -> BTreeMap<String, Vec<String>> {
    let page = fs::read_to_string(Path::new(ROOT).join(page)).expect("the page is there");
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut heading, mut block) = (String::new(), None);
    for line in page.lines() {
        match (&mut block, line) {
            (None, "```sh") => block = Some(String::new()),
            (Some(_), "```") => found.entry(heading.clone()).or_default().extend(block.take()),
            (Some(text), line) => *text += &format!("{line}\n"),
            (None, line) => {
                if let Some(text) = line.strip_prefix("#").map(|text| text.trim_start_matches('#').trim()) {
                    heading = text.to_owned();
                }
            }
        }
    }
    found
}

/// An admin at a desk: a folder with the manifests, and the programs.
struct Desk {
    folder: PathBuf,
    commands: BTreeMap<String, Vec<String>>,
    typed: RefCell<BTreeSet<(String, usize)>>,
    kubeconfig: PathBuf,
}

impl Desk {
    fn new(plane: &ControlPlane, node: &TestNode, config: &Path) -> Self {
        let folder = node.dir().join("desk");
        fs::create_dir_all(folder.join("bin")).expect("a folder can be made");
        symlink(Path::new(ROOT).join("deploy"), folder.join("deploy")).expect("a link can be made");
        let desk = Self {
            folder,
            commands: commands("docs/migration.md"),
            typed: RefCell::default(),
            kubeconfig: plane.kubeconfig().to_owned(),
        };
        // What would run in a pod runs here, with the pod's credentials and directories.
        desk.program(
            "kubectl",
            &format!(
                "if [ \"$1\" = exec ]; then\n  while [ \"$1\" != -- ]; do shift; done; shift\n  \
                 exec env KUBECONFIG={} MY_NODE_NAME={} \"$@\"\nfi\nexec {} kubectl \"$@\"",
                node.kubeconfig().display(),
                node.name(),
                supervisor::binary().display()
            ),
        );
        desk.program(
            "mooring",
            &format!(
                "exec {} \"$@\" --config-dir {} --state-dir {}",
                launch::binary(None).display(),
                config.display(),
                node.state_dir().display()
            ),
        );
        desk
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.folder.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it has a mode");
    }

    /// Types a block of the page, and returns what it says.
    async fn types(&self, heading: &str, block: usize) -> String {
        self.typed.borrow_mut().insert((heading.to_owned(), block));
        let blocks = self.commands.get(heading).unwrap_or_else(|| panic!("the page has no part {heading:?}"));
        self.shell(&blocks[block]).await
    }

    async fn shell(&self, text: &str) -> String {
        let mut path = self.folder.join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", text]).current_dir(&self.folder).stdin(Stdio::null());
        shell.env("PATH", path).env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.folder);
        let output = tokio::task::spawn_blocking(move || shell.output().expect("bash can be run")).await;
        let output = output.expect("running it does not panic");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}\n{said}");
        said
    }

    /// All that the page says was typed.
    fn is_through(&self) {
        let all = self.commands.iter().flat_map(|(heading, blocks)| (0..blocks.len()).map(|i| (heading.clone(), i)));
        assert_eq!(*self.typed.borrow(), all.collect());
    }
}

/// The agent that a DaemonSet's pod on this node would be.
async fn pod(node: &TestNode, namespace: &str, daemonset: &str, kubeconfig: &Path, more: &[&str]) -> Agent {
    let daemonsets: Api<DaemonSet> = Api::namespaced(node.client(), namespace);
    let spec = daemonsets.get(daemonset).await.expect("the DaemonSet is there").spec.expect("it has a spec");
    let pod = spec.template.spec.expect("it has pods");
    let arguments = pod.containers[0].args.clone().unwrap_or_default();
    assert_eq!(arguments[0], "agent");
    let own = |argument: &&String| !argument.starts_with("--listen-address") && !argument.starts_with("--state-dir");
    let arguments: Vec<&str> =
        arguments[1..].iter().filter(own).map(String::as_str).chain(more.iter().copied()).collect();
    let volumes = pod.volumes.unwrap_or_default();
    let config = volumes.iter().find_map(|volume| volume.config_map.as_ref()).expect("it has a config");
    let configs: Api<ConfigMap> = Api::namespaced(node.client(), namespace);
    let config = configs.get(&config.name).await.expect("its ConfigMap is there").data.expect("it has keys");
    let config: Vec<_> = config.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    Agent::start(
        node,
        AgentOptions {
            config: &config,
            args: &arguments,
            stateless: !pod.containers[0].args.iter().flatten().any(|argument| argument.starts_with("--state-dir")),
            env: &[("KUBECONFIG", kubeconfig.to_str().expect("a path is text"))],
            ..AgentOptions::default()
        },
    )
}

/// The Go provisioner's own objects, as in its example manifests.
async fn install_go_provisioner(node: &TestNode, map: &str) {
    let labels = json!({ "app": "local-volume-provisioner" });
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "local-provisioner-config", "namespace": "default" },
        "data": { "storageClassMap": map },
    });
    let container = json!({
        "name": "provisioner", "image": "local-volume-provisioner:v2", "securityContext": { "privileged": true },
        "env": [{ "name": "MY_NODE_NAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }],
        "volumeMounts": [{ "name": "provisioner-config", "mountPath": "/etc/provisioner/config", "readOnly": true }],
    });
    let daemonset = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "local-volume-provisioner", "namespace": "default", "labels": labels },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "containers": [container],
                    "volumes": [{ "name": "provisioner-config", "configMap": { "name": "local-provisioner-config" } }],
                },
            },
        },
    });
    for object in [config, daemonset] {
        rbac::apply_manifest(&node.client(), &object.to_string()).await;
    }
}

/// No differences, once it has compared everything.
async fn sees_no_difference(shadow: &Agent) {
    let summary = shadow.wait_log("Shadow has compared everything once", SOON).await;
    assert!(summary.contains("\"differences\":0"), "{summary}");
    assert!(!shadow.logs().iter().any(|line| line.contains("\"message\":\"Difference\"")), "{:?}", shadow.logs());
}

async fn released(node: &TestNode, path: &Path) -> PersistentVolume {
    node.wait_pv(path, |pv| phase(pv) == "Released", SOON).await
}

#[tokio::test]
async fn the_page_on_migration_leads_from_the_go_provisioner_to_mooring_and_back() {
    // Of its own: it takes the agent's rights away in the end.
    let plane = ControlPlane::start(Options { audit: true });
    let node = TestNode::new(&plane, "worker").await;
    // No pod comes here: there is no kubelet to run it.
    let taint = json!({ "spec": { "taints": [{ "key": "no-kubelet", "effect": "NoSchedule" }] } });
    let nodes: Api<Node> = Api::all(node.client());
    nodes.patch(node.name(), &PatchParams::default(), &Patch::Merge(&taint)).await.expect("a Node can be tainted");
    let class = node.class("fast-disks", "Delete").await;
    let disks = node.discovery_dir("fast-disks");
    let map = storage_class_map(&[(&class, &disks, "")]);
    install_go_provisioner(&node, &map).await;
    let config = crate::harness::ConfigDir::new(node.dir().join("config"), &[("storageClassMap", &map)]);
    let desk = Desk::new(&plane, &node, config.path());

    let go = GoProvisioner { node: &node };
    let paths = ["bound", "released", "free"].map(|name| disks.join(name));
    let [bound, released_volume, free] = &paths;
    for path in &paths {
        disk::tmpfs(path, 16 * MIB);
        go.publish(&class, path, "Filesystem", 16 * MIB).await;
        node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await;
    }
    let first = node.wait_pv(bound, |_| true, SOON).await;
    node.bind(&first.name_any()).await;
    fs::write(bound.join("data"), "the only copy").expect("a tenant can write");

    desk.types("1. Look", 0).await;
    let reader = node.kubeconfig_of("default", "mooring-shadow").await;
    let mut shadow = pod(&node, "default", "mooring-shadow", &reader, &["--shadow-grace=1s"]).await;
    sees_no_difference(&shadow).await;

    // The switch; a claim goes while nobody is there.
    desk.types("2. Switch", 0).await;
    shadow.signal(Signal::SIGTERM);
    assert!(shadow.wait_exit(SOON).await.success());
    let second = node.wait_pv(released_volume, |_| true, SOON).await;
    let claim = node.bind(&second.name_any()).await;
    fs::write(released_volume.join("secret"), "of the tenant before").expect("a tenant can write");
    node.release(&claim).await;
    released(&node, released_volume).await;
    desk.types("2. Switch", 1).await;
    let mut agent = pod(&node, "mooring-system", "mooring", node.kubeconfig(), &[]).await;
    node.wait_gone(&second, SOON).await;
    let anew = |pv: &PersistentVolume| phase(pv) == "Available" && pv.uid() != second.uid();
    let ours = node.wait_pv(released_volume, anew, SOON).await;
    assert_eq!(ours.name_any(), second.name_any());
    assert!(!released_volume.join("secret").exists());
    for path in [bound, free] {
        let adopted = node.wait_pv(path, is_labelled, SOON).await;
        assert!(go.owns(&adopted), "the signature stays");
    }
    let adopted = node.wait_pv(bound, |_| true, SOON).await;
    assert_eq!((adopted.uid(), phase(&adopted)), (first.uid(), "Bound"));
    for entry in ["bound", "released", "free"] {
        wait_verdict(&agent, &class, entry, "Published").await;
    }

    let said = desk.types("3. Make sure", 0).await;
    let adopted = |line: &&str| line.starts_with("local-pv-") && line.trim_end().ends_with(node.name());
    assert_eq!(said.lines().filter(adopted).count(), 3, "{said}");
    assert!(said.contains("The agent would do nothing."), "{said}");

    // The way back; a wipe has been stopped, as far as anybody can see.
    let said = desk.types("Back", 0).await;
    assert!(said.contains("The agent would do nothing."), "{said}");
    let claim = node.bind(&ours.name_any()).await;
    fs::write(released_volume.join("secret"), "of the next tenant").expect("a tenant can write");
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait_exit(SOON).await.success());
    let mut stopped = node.local_pv("stopped", &class, Path::new("/elsewhere"));
    stopped.metadata.finalizers = Some(vec!["mooring.dev/wipe".to_owned()]);
    let stopped = node.create_pv(&stopped).await;
    let said = desk.types("Back", 1).await;
    assert!(said.contains("stopped ") && !said.contains("no wipe was stopped"), "{said}");
    node.force_delete_pv(&stopped).await;
    node.wait_gone(&stopped, SOON).await;
    let looks = desk.commands["Back"][1].lines().last().expect("the block has commands").to_owned();
    assert_eq!(desk.shell(&looks).await.trim(), "no wipe was stopped");
    desk.types("Back", 2).await;

    // The Go provisioner takes our PV for its own, and the volumes go on.
    node.release(&claim).await;
    let ours = released(&node, released_volume).await;
    assert!(go.owns(&ours));
    assert_eq!(go.reclaim().await, [ours.name_any()]);
    node.wait_gone(&ours, SOON).await;
    assert!(!released_volume.join("secret").exists());
    let again = go.publish(&class, released_volume, "Filesystem", 16 * MIB).await;
    node.wait_pv(released_volume, |pv| phase(pv) == "Available" && pv.uid() == again.uid(), SOON).await;
    let kept = node.wait_pv(bound, |_| true, SOON).await;
    assert_eq!((kept.uid(), phase(&kept)), (first.uid(), "Bound"));
    assert_eq!(fs::read_to_string(bound.join("data")).expect("it is there"), "the only copy");
    desk.shell(&desk.commands["1. Look"][0]).await;
    let reader = node.kubeconfig_of("default", "mooring-shadow").await;
    let shadow = pod(&node, "default", "mooring-shadow", &reader, &["--shadow-grace=1s"]).await;
    sees_no_difference(&shadow).await;

    desk.types("Or change only the image", 0).await;
    let daemonsets: Api<DaemonSet> = Api::namespaced(node.client(), "default");
    let changed: Value =
        serde_json::to_value(daemonsets.get("local-volume-provisioner").await.expect("it is there again"))
            .expect("it is JSON");
    assert_eq!(changed["spec"]["template"]["spec"]["containers"][0]["image"], "mooring:0.1.0");
    desk.is_through();
    drop(shadow);
    let of_shadows: BTreeSet<_> = plane
        .audit()
        .into_iter()
        .filter(|entry| entry.user == "system:serviceaccount:default:mooring-shadow")
        .map(|entry| entry.verb)
        .collect();
    assert_eq!(of_shadows, ["list", "watch"].map(str::to_owned).into(), "all that a shadow has asked for");
    tokio::time::timeout(Duration::from_secs(60), node.clean_up()).await.expect("it is soon done");
}
