//! `mooring plan`: it says what the agent then does, and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use kube::api::ResourceExt;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{SOON, is_labelled, start, start_with, wait_verdict};
use crate::go_provisioner::GoProvisioner;
use crate::harness::config_dir::storage_class_map;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::scratch::unique;
use crate::harness::volumes::{path_of, phase};
use crate::harness::{ConfigDir, launch, shared};

const MIB: u64 = 1 << 20;

/// A config directory as an admin has it.
fn config(node: &TestNode, classes: &[(&str, &Path, &str)], keys: &[(&str, &str)]) -> ConfigDir {
    let map = storage_class_map(classes);
    let files: Vec<_> = [("storageClassMap", map.as_str())].into_iter().chain(keys.iter().copied()).collect();
    ConfigDir::new(node.dir().join(format!("plan-config-{}", unique())), &files)
}

async fn run(node: &TestNode, config: &ConfigDir, arguments: &[&str]) -> Output {
    let mut command = launch::command_line(&launch::binary(None));
    command.arg("plan").arg("--config-dir").arg(config.path()).arg("--state-dir").arg(node.state_dir());
    command.args(arguments).stdin(Stdio::null());
    command.env("MY_NODE_NAME", node.name()).env_remove("KUBECONFIG");
    if !arguments.contains(&"--offline") {
        command.env("KUBECONFIG", node.kubeconfig());
    }
    // Its calls are answered by nobody of this runtime.
    tokio::task::spawn_blocking(move || command.output().expect("the program can be run"))
        .await
        .expect("running it does not panic")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("it is text")
}

async fn plan(node: &TestNode, config: &ConfigDir, arguments: &[&str]) -> Value {
    let arguments: Vec<_> = arguments.iter().copied().chain(["-o", "json"]).collect();
    serde_json::from_str(&text(&run(node, config, &arguments).await)).expect("it is JSON")
}

/// The actions, as `NAME ENTRY` or `NAME ENTRY in SECONDS`.
fn actions(plan: &Value) -> Vec<String> {
    let action = |doing: &Value| {
        let entry = doing["path"].as_str().expect("it has a path").rsplit('/').next().expect("it has a name");
        let name = doing["action"].as_str().expect("it has a name");
        match doing["afterSeconds"].as_u64().expect("it has a time") {
            0 => format!("{name} {entry}"),
            seconds => format!("{name} {entry} in {seconds}"),
        }
    };
    plan["actions"].as_array().expect("a list").iter().map(action).collect()
}

fn verdicts(plan: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().expect("it is text").to_owned();
    let entries = plan["entries"].as_array().expect("a list").iter();
    entries.map(|entry| (text(&entry["entry"]), text(&entry["verdict"]))).collect()
}

fn files(folder: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let paths = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("it can be listed").path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap_or_default())).collect()
}

#[tokio::test]
async fn what_the_plan_says_the_agent_then_does() {
    let node = TestNode::new(shared(), "plan").await;
    let (fast, raw) = (node.class("fast", "Delete").await, node.class("raw", "Delete").await);
    let (disks, links) = (node.discovery_dir("disks"), node.discovery_dir("links"));
    let classes = [(fast.as_str(), disks.as_path(), ""), (raw.as_str(), links.as_path(), "volumeMode: Block")];
    let config = config(&node, &classes, &[]);
    disk::tmpfs(&disks.join("volume"), 16 * MIB);
    fs::create_dir(disks.join("plain")).expect("a directory can be made");
    let disk = LoopDisk::new(node.dir(), 32 * MIB);
    disk.link(&links, "disk");

    let planned = plan(&node, &config, &[]).await;
    assert_eq!(actions(&planned), ["create volume", "create disk"]);
    let expected = [("disk", "Pending"), ("plain", "NotAMountPoint"), ("volume", "Pending")];
    assert_eq!(verdicts(&planned), expected.map(|(entry, verdict)| (entry.to_owned(), verdict.to_owned())).into());
    assert!(planned["assumed"][0].as_str().is_some_and(|text| text.contains("the agent makes it")), "{planned}");
    assert!(!node.state_dir().exists() && node.pvs().await.is_empty(), "a plan changes nothing");

    let mut agent = start(&node, &classes);
    wait_verdict(&agent, &raw, "disk", "Published").await;
    wait_verdict(&agent, &fast, "volume", "Published").await;
    let made: BTreeMap<_, _> = node.pvs().await.into_iter().map(|pv| (pv.name_any(), pv)).collect();
    for doing in planned["actions"].as_array().expect("a list") {
        let pv = &made[doing["pv"].as_str().expect("it has a name")];
        let is = mooring::pv::fields(pv);
        let would_be = mooring::pv::fields(&serde_json::from_value(doing["object"].clone()).expect("it is a PV"));
        assert_eq!(mooring::pv::fields_that_differ(&is, &would_be), []);
    }
    // Beside a running agent, whose lock it leaves alone.
    let settled = plan(&node, &config, &[]).await;
    assert_eq!(actions(&settled), [] as [String; 0]);
    assert_eq!(verdicts(&settled)["volume"], "Published");

    // Without a cluster, the ledger tells what is offered; it follows within about a second.
    let deadline = std::time::Instant::now() + SOON;
    let offline = loop {
        let offline = plan(&node, &config, &["--offline"]).await;
        if actions(&offline).is_empty() {
            break offline;
        }
        assert!(std::time::Instant::now() < deadline, "{offline}");
    };
    assert_eq!(offline["offline"], Value::Bool(true));
    assert_eq!(verdicts(&offline)["volume"], "Published");
    assert_eq!(offline["assumed"].as_array().expect("a list").len(), 3);

    let pv = made.values().find(|pv| path_of(pv).ends_with("/disk")).expect("it was made");
    let claim = node.bind(&pv.name_any()).await;
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait_exit(SOON).await.success());
    node.release(&claim).await;
    let released = node.wait_pv(&links.join("disk"), |pv| phase(pv) == "Released", SOON).await;
    let before = files(&node.state_dir());
    let planned = plan(&node, &config, &[]).await;
    assert_eq!(actions(&planned), ["wipe disk"]);
    assert!(planned["actions"][0]["detail"].as_str().is_some_and(|detail| detail.contains("auto")), "{planned}");
    let now = node.wait_pv(&links.join("disk"), |_| true, SOON).await;
    assert_eq!((now.resource_version(), files(&node.state_dir())), (released.resource_version(), before));
    let _agent = start(&node, &classes);
    node.wait_gone(&released, SOON).await;
    drop(_agent);
    node.clean_up().await;
}

#[tokio::test]
async fn the_go_provisioners_pvs_are_adopted_and_what_follows_is_planned_with_its_time() {
    let node = TestNode::new(shared(), "planned").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let classes = [(class.as_str(), disks.as_path(), "wipeAfter: 30m")];
    let config = config(&node, &classes, &[("withdrawAfter", "40s")]);
    let go = GoProvisioner { node: &node };
    for name in ["kept", "released"] {
        disk::tmpfs(&disks.join(name), 16 * MIB);
        go.publish(&class, &disks.join(name), "Filesystem", 16 * MIB).await;
    }
    go.publish(&class, &disks.join("gone"), "Filesystem", 16 * MIB).await;
    let released = node.wait_pv(&disks.join("released"), |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&released.name_any()).await;
    node.release(&claim).await;
    node.wait_pv(&disks.join("released"), |pv| phase(pv) == "Released", SOON).await;
    let planned = plan(&node, &config, &[]).await;
    let mut found = actions(&planned);
    let wipe = found.pop().expect("the wipe comes last");
    let seconds: u64 = wipe.strip_prefix("wipe released in ").and_then(|text| text.parse().ok()).expect("its time");
    assert!((1..=1_800).contains(&seconds), "{wipe}");
    found.sort();
    assert_eq!(found, ["adopt kept", "adopt released", "withdraw gone in 40"]);
    assert!(!node.pvs().await.iter().any(is_labelled));
    // The agent begins with the same.
    let agent = start_with(&node, &classes, &[("withdrawAfter", "40s")]);
    node.wait_pv(&disks.join("released"), is_labelled, SOON).await;
    node.wait_pv(&disks.join("kept"), is_labelled, SOON).await;
    let settled = plan(&node, &config, &["released"]).await;
    assert_eq!(settled["actions"].as_array().map(Vec::len), Some(1), "{settled}");
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn it_is_shown_as_a_table_as_yaml_and_of_one_entry() {
    let node = TestNode::new(shared(), "forms").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let config = config(&node, &[(&class, &disks, "")], &[]);
    disk::tmpfs(&disks.join("volume"), 16 * MIB);
    for plain in ["plain", "plain\u{1b}[2J"] {
        fs::create_dir(disks.join(plain)).expect("a directory can be made");
    }
    let table = text(&run(&node, &config, &[]).await);
    let name = mooring::pv::pv_name("volume", node.name(), &class);
    for expected in [
        "CLASS",
        "VERDICT",
        "    why: its PV would be made now",
        "    why: a directory that nothing is mounted on",
        "    do:  mount a filesystem on it",
        "The agent would now",
        &format!("  create  {name}  {}", disks.join("volume").display()),
        "make a PV (16Mi, Filesystem, Delete)",
        "Assumed",
        "plain\\u{1b}[2J",
    ] {
        assert!(table.contains(expected), "{expected:?} is not in {table}");
    }
    assert!(!table.contains('\u{1b}'), "what names an entry does not command the terminal");
    let json = plan(&node, &config, &[]).await;
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plan.md")).expect("it is there");
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let top = keys(&json).into_iter().chain(keys(&json["entries"][0])).map(|key| format!("`{key}`"));
    let of_action =
        keys(&json["actions"][0]).into_iter().map(|key| (format!("`actions[].{key}`"), format!("`.{key}`")));
    let missing: Vec<_> = top
        .filter(|key| !page.contains(key))
        .chain(of_action.filter(|(one, two)| !page.contains(one) && !page.contains(two)).map(|(one, _)| one))
        .collect();
    assert!(missing.is_empty(), "docs/plan.md does not explain {missing:?}");
    let yaml: Value = serde_saphyr::from_str(&text(&run(&node, &config, &["-o", "yaml"]).await)).expect("it is YAML");
    let without_chance = |mut plan: Value| {
        // A new name for the ledger's entry each time.
        for doing in plan["actions"].as_array_mut().expect("a list") {
            doing["object"]["metadata"]["annotations"].take();
        }
        plan
    };
    assert_eq!(without_chance(yaml), without_chance(json));

    let path = disks.join("volume");
    for only in ["volume", &name, path.to_str().expect("a path is text")] {
        let one = plan(&node, &config, &[only]).await;
        assert_eq!(verdicts(&one).into_keys().collect::<Vec<_>>(), ["volume"], "{only}");
        assert_eq!(actions(&one), ["create volume"]);
    }
    assert_eq!(verdicts(&plan(&node, &config, &[&class]).await).len(), 3);
    let output = run(&node, &config, &["nowhere"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing here is called nowhere"), "{output:?}");
    node.clean_up().await;
}

#[tokio::test]
async fn what_it_needs_and_does_not_get_is_named() {
    let node = TestNode::new(shared(), "needs").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let good = config(&node, &[(&class, &disks, "")], &[]);
    let bad = config(&node, &[(&class, &disks, "volumeMode: Blocks")], &[]);
    let fails = async |config: &ConfigDir, arguments: &[&str], why: &str| {
        let output = run(&node, config, arguments).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said:?} does not say {why:?}");
    };
    fails(&bad, &[], &format!("storageClassMap.{class}.volumeMode")).await;
    fails(&good, &["--node-name", "no-such-node"], "there is no Node no-such-node").await;
    fails(&good, &["--node-name="], "--node-name or MY_NODE_NAME").await;
    let nowhere = node.dir().join("nowhere");
    let nowhere = nowhere.to_str().expect("a path is text");
    fails(&good, &["--config-dir", nowhere], "mount the ConfigMap there").await;
    fs::create_dir(node.state_dir()).expect("a directory can be made");
    fs::set_permissions(node.state_dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("it has a mode");
    fails(&good, &[], "chmod 700").await;
    fs::remove_dir(node.state_dir()).expect("it is empty");
    // A class that the cluster does not have is a verdict, and offline it is assumed.
    let unknown = config(&node, &[("no-such-class", &disks, "")], &[]);
    disk::tmpfs(&disks.join("volume"), 16 * MIB);
    let planned = plan(&node, &unknown, &[]).await;
    assert_eq!((verdicts(&planned)["volume"].as_str(), actions(&planned)), ("NoStorageClass", Vec::new()));
    assert_eq!(actions(&plan(&node, &unknown, &["--offline"]).await), ["create volume"]);
    node.clean_up().await;
}
