//! ConfigMaps mean what they mean to the Go provisioner: a table of what its YAML library
//! makes of them (tests/fixtures/go-config), compared with what is read here.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Toleration};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Class, Config};
use crate::method::{Method, WipeRules};

#[derive(Deserialize)]
struct Row {
    data: BTreeMap<String, String>,
    config: Option<Value>,
}

fn table() -> Vec<Row> {
    let text = include_str!("../../tests/fixtures/go-config/table.json");
    serde_json::from_str(text).expect("the table is a list of rows")
}

/// What the Go provisioner runs with and the agent does not, by what it says then: it would
/// publish nothing that the API server takes, or not what is meant.
const REFUSED: [&str; 14] = [
    "is missing or empty: name at least one class",
    "is no absolute path",
    "must not contain \"..\"",
    "the root directory",
    "is unknown; expected ReadWriteOnce",
    "is unknown; expected In, NotIn",
    "values: are missing",
    "is no valid pattern",
    "cleans nothing",
    "is no number of passes",
    "can't be the key of a label",
    "can't be the value of a label",
    "the alpha form of node affinity",
    "binary data can't be used",
];

/// What keeps the Go provisioner from starting and not the agent: its meaning is plain.
const TAKEN: [(&str, &str); 15] = [
    ("useNodeNameOnly", "\"true\""),
    ("useNodeNameOnly", "'yes'"),
    ("useNodeNameOnly", "!!str true"),
    ("useNodeNameOnly", "|\n  true"),
    ("useNodeNameOnly", "--- true"),
    ("useNodeNameOnly", "true\n..."),
    ("useJobForCleaning", "\"true\""),
    ("jobTolerations", "- key: k\n  tolerationSeconds: \"300\"\n"),
    ("minResyncPeriod", ""),
    ("minResyncPeriod", "null"),
    ("minResyncPeriod", "0"),
    ("unknown", "{{{"),
    ("storageClassMap", "---\nc:\n  hostDir: /h\n  mountDir: /m\n"),
    ("storageClassMap", "%YAML 1.1\n---\nc: {hostDir: /h, mountDir: /m}\n"),
    ("storageClassMap", "c:\n  hostDir: /h\n  mountDir: /m\n...\n"),
];

fn list<T: DeserializeOwned>(value: &Value) -> Vec<T> {
    if value.is_null() {
        return Vec::new();
    }
    serde_json::from_value(value.clone()).expect("the table has Kubernetes' types")
}

fn check_class(class: &Class, go: &Value, row: &str) {
    let text = |key: &str, default: &str| match go[key].as_str().unwrap_or_default() {
        "" => default.to_owned(),
        text => text.to_owned(),
    };
    let plain =
        |path: &str| format!("/{}", path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"));
    assert_eq!(class.host_dir, plain(&text("hostDir", "")), "{row}");
    assert_eq!(class.mount_dir, plain(&text("mountDir", "")), "{row}");
    assert_eq!(class.mode.as_str(), text("volumeMode", "Filesystem"), "{row}");
    assert_eq!(class.access_mode.as_str(), text("accessMode", "ReadWriteOnce"), "{row}");
    assert_eq!(class.fs_type.clone().unwrap_or_default(), text("fsType", ""), "{row}");
    assert_eq!(class.pattern.to_string(), text("namePattern", "*"), "{row}");
    assert_eq!(class.selector, list::<NodeSelectorTerm>(&go["selector"]), "{row}");
    let command: Vec<String> = list(&go["blockCleanerCommand"]);
    // The keys of ours are none of the Go provisioner's.
    if !row.contains("wipe") {
        let rules = WipeRules::default().method;
        let method = if command.is_empty() { Ok(rules) } else { Method::from_cleaner_command(&command) };
        assert_eq!(Ok(class.wipe.method.clone()), method, "{row}");
    }
}

fn check(config: &Config, go: &Value, row: &str) {
    let no_classes = serde_json::Map::new();
    let classes = go["storageClassMap"].as_object().unwrap_or(&no_classes);
    assert_eq!(
        config.classes.iter().map(|class| &class.name).collect::<Vec<_>>(),
        classes.keys().collect::<Vec<_>>(),
        "{row}"
    );
    for class in &config.classes {
        check_class(class, &classes[&class.name], row);
    }
    let is = |key: &str| go[key].as_bool().unwrap_or(false);
    assert_eq!(config.use_node_name_only, is("useNodeNameOnly"), "{row}");
    assert_eq!(config.set_pv_owner_ref, is("setPVOwnerRef"), "{row}");
    assert_eq!(config.use_job_for_cleaning, is("useJobForCleaning"), "{row}");
    assert_eq!(config.node_labels, list::<String>(&go["nodeLabelsForPV"]), "{row}");
    let labels: BTreeMap<String, String> = serde_json::from_value(go["labelsForPV"].clone()).unwrap_or_default();
    assert_eq!(config.labels, labels, "{row}");
    assert_eq!(config.job_tolerations, list::<Toleration>(&go["jobTolerations"]), "{row}");
    let taint = go["provisionerNotReadyNodeTaintKey"].as_str().filter(|_| is("removeNodeNotReadyTaint"));
    assert_eq!(config.start_up_taint.as_deref(), taint, "{row}");
    let resync = go["minResyncPeriod"].as_i64().expect("the table has it");
    // Zero and less are the default here, with a warning.
    let resync = if resync > 0 { i128::from(resync) } else { 300_000_000_000 };
    assert_eq!(config.resync.as_nanos().cast_signed(), resync, "{row}");
}

#[test]
fn a_configmap_means_what_it_means_to_the_go_provisioner() {
    let rows = table();
    let mut taken = BTreeSet::new();
    let mut reasons = BTreeSet::new();
    for Row { data, config } in &rows {
        let row = serde_json::to_string(data).expect("text can be written");
        match (Config::parse(data), config) {
            (Ok(ours), Some(go)) => check(&ours, go, &row),
            (Err(error), Some(_)) => {
                let error = error.to_string();
                let reason = REFUSED.iter().find(|reason| error.contains(**reason));
                reasons.insert(*reason.unwrap_or_else(|| panic!("{row}: {error}")));
            }
            (Ok(_), None) => {
                let odd = data.iter().find(|(key, _)| data.len() == 1 || *key != "storageClassMap");
                let (key, text) = odd.expect("a row has a key that it is about");
                taken.insert((key.as_str(), text.as_str()));
            }
            (Err(_), None) => {}
        }
    }
    assert_eq!(taken, BTreeSet::from(TAKEN));
    assert_eq!(reasons, BTreeSet::from(REFUSED));
}
