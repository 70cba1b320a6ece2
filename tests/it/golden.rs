//! What the Go provisioner was recorded to make of the same input, file by file in
//! `tests/fixtures/golden`. Ours may add labels, annotations and finalizers of its own
//! prefix; nothing else may differ.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiff::Timestamp;
use mooring::config::Config;
use mooring::discovery::{Entry, Listing, Observed, Sighting, Snapshot, discover};
use mooring::identity::{DeviceIdentity, DeviceNumber, Identity, MountIdentity};
use mooring::ledger::Ledger;
use mooring::memory::Memory;
use mooring::plan::{Action, World, plan};
use mooring::pv;
use mooring::volume::{NodeFacts, ReclaimPolicy, StorageClassFacts};
use serde_json::{Value, json};

/// Where the recorded configs look for volumes.
const MOUNT_DIR: &str = "/tmp/golden/disks";

/// The fixtures by name.
pub fn cases() -> Vec<(String, Value)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden");
    let mut cases: Vec<_> = std::fs::read_dir(folder)
        .expect("the fixtures are there")
        .map(|file| {
            let path = file.expect("the folder can be read").path();
            let text = std::fs::read_to_string(&path).expect("a fixture can be read");
            let case = serde_json::from_str(&text).expect("a fixture is JSON");
            (path.file_stem().expect("it has a name").to_string_lossy().into_owned(), case)
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    cases
}

/// A map of texts.
pub fn strings(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().expect("a label is text").to_owned())).collect()
}

fn observed(kind: &str, bytes: u64, minor: u32) -> Observed {
    let number = DeviceNumber { major: 7, minor };
    match kind {
        "tmpfs" => {
            let identity =
                MountIdentity { device: number, root: Some("/".into()), inode: 1, ..MountIdentity::default() };
            Observed::MountPoint(Sighting::new(Identity::Mount(identity), bytes))
        }
        "loop" => {
            let identity = DeviceIdentity { number, ..DeviceIdentity::default() };
            Observed::Device(Sighting::new(Identity::Device(identity), bytes))
        }
        "dir" => Observed::PlainDirectory,
        "file" => Observed::Other("a regular file"),
        "dangling" => Observed::DanglingLink,
        "symlink-tmpfs" => Observed::LinkToDirectory,
        other => panic!("a fixture has an entry of the unknown kind {other}"),
    }
}

/// The PVs that we would make, in the form of the fixtures.
fn ours(case: &Value) -> Vec<Value> {
    let files =
        case["config"].as_object().expect("a config").iter().map(|(key, value)| (key.clone(), value.to_string()));
    let config = Config::parse(&files.collect()).expect("the config is valid");
    let labels = strings(&case["node"]["metadata"]["labels"]);
    let node = NodeFacts {
        name: case["node"]["metadata"]["name"].as_str().expect("a name").to_owned(),
        uid: "NODE-UID".to_owned(),
        hostname: labels["kubernetes.io/hostname"].clone(),
        labels,
        hold: false,
        taints: Vec::new(),
    };
    let classes = case["storageClasses"].as_array().expect("classes").iter().map(|class| {
        let options = class["mountOptions"].as_array().into_iter().flatten();
        let facts = StorageClassFacts {
            reclaim_policy: ReclaimPolicy::parse(class["reclaimPolicy"].as_str().unwrap_or("Delete")),
            mount_options: options.map(|option| option.as_str().expect("text").to_owned()).collect(),
        };
        (class["metadata"]["name"].as_str().expect("a name").to_owned(), facts)
    });
    let entries = case["entries"].as_array().expect("entries").iter().zip(1..).map(|(entry, number)| Entry {
        name: entry["name"].as_str().expect("a name").into(),
        observed: observed(entry["kind"].as_str().expect("a kind"), entry["bytes"].as_u64().expect("a size"), number),
    });
    let snapshot = Snapshot {
        directories: BTreeMap::from([(MOUNT_DIR.to_owned(), Listing::Entries(entries.collect()))]),
        began: None,
    };
    let plan = plan(&World {
        config: &config,
        node: &node,
        classes: &classes.collect(),
        findings: &discover(&config, &snapshot),
        unseen: &BTreeMap::new(),
        owned: &BTreeMap::new(),
        suspects: &BTreeSet::new(),
        foreign: &BTreeMap::new(),
        ledger: &Ledger::default(),
        ledger_trouble: None,
        durable: true,
        may_patch: true,
        memory: &Memory::default(),
        now: Instant::now(),
        clock: Timestamp::UNIX_EPOCH,
        random: 1,
    });
    let mut pvs: Vec<Value> = plan
        .actions
        .iter()
        .map(|action| {
            let Action::Create(creation) = action else { panic!("only PVs to make are expected, not {action:?}") };
            without_our_own(serde_json::to_value(pv::encode(&creation.volume)).expect("a PV is JSON"))
        })
        .collect();
    pvs.sort_by_key(|pv| pv["spec"]["local"]["path"].to_string());
    pvs
}

fn without_our_own(mut pv: Value) -> Value {
    let fields = pv.as_object_mut().expect("a PV is an object");
    fields.remove("apiVersion");
    fields.remove("kind");
    let metadata = fields["metadata"].as_object_mut().expect("metadata is an object");
    let labels = metadata["labels"].as_object_mut().expect("we label each PV");
    assert!(labels.remove("mooring.dev/node").is_some(), "each PV carries our label");
    if labels.is_empty() {
        metadata.remove("labels");
    }
    let annotations = metadata["annotations"].as_object_mut().expect("we annotate each PV");
    annotations.retain(|key, _| !key.starts_with("mooring.dev/"));
    pv
}

#[test]
fn every_recorded_case_gives_the_same_pvs() {
    let cases = cases();
    assert!(cases.len() >= 12, "the fixtures are there");
    for (name, case) in cases {
        let mut expected = case["persistentVolumes"].as_array().expect("a list").clone();
        expected.sort_by_key(|pv| pv["spec"]["local"]["path"].to_string());
        assert_eq!(json!(ours(&case)), json!(expected), "{name}");
    }
}
