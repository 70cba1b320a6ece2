//! The chart's values: the schema, the page, `values.yaml` and the templates know the same, and
//! all that the agent's ConfigMap knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use super::chart;
use crate::docs::{rows, text};

fn schema() -> Value {
    serde_json::from_str(&text("deploy/chart/mooring/values.schema.json")).expect("the schema is JSON")
}

/// The schema that a reference in another leads to.
fn followed<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    reference.map_or(schema, |path| root.pointer(path.trim_start_matches('#')).expect("it leads somewhere"))
}

/// The values by their paths, but for what is in Kubernetes' own types.
fn paths<'s>(root: &'s Value, schema: &'s Value, at: &str, found: &mut BTreeMap<String, &'s Value>) {
    let inner = followed(root, schema);
    for (key, value) in inner["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        if ["tolerations", "jobTolerations", "imagePullSecrets"].contains(&key.as_str()) {
            found.insert(path, value);
            continue;
        }
        let before = found.len();
        paths(root, value, &path, found);
        if ["classes", "formerDirectories"].contains(&key.as_str()) {
            paths(root, &value["items"], &format!("{key}[]"), found);
        }
        // Of a group, its values; those of a class are values of their own as well.
        if found.len() == before || ["image", "storageClass"].contains(&key.as_str()) {
            found.insert(path, value);
        }
    }
}

fn all(schema: &Value) -> BTreeMap<String, &Value> {
    let mut found = BTreeMap::new();
    paths(schema, schema, "", &mut found);
    found
}

#[test]
fn each_value_is_documented_and_used() {
    let schema = schema();
    let known = all(&schema);
    let page = text("docs/chart.md");
    let documented: BTreeSet<String> = rows(&page).into_iter().map(|(path, _)| path).collect();
    assert_eq!(documented, known.keys().cloned().collect::<BTreeSet<_>>());
    let templates = fs::read_dir(chart().join("templates")).expect("it can be listed");
    let templates: String = templates
        .map(|file| fs::read_to_string(file.expect("it can be listed").path()).expect("it can be read"))
        .collect();
    let defaults = text("deploy/chart/mooring/values.yaml");
    for (path, value) in known {
        let key = path.rsplit('.').next().expect("it has a key");
        let mention = |text: &str| text.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|word| word == key);
        // `wipe` is copied as a whole.
        let is_inner = path.starts_with("classes[].storageClass.") || path.starts_with("classes[].wipe.");
        let is_unused = path == "global" || path == "nodeSelectorWindows" || path.starts_with("classes[].wipe.");
        assert!(is_unused || mention(&templates), "no template uses {path}");
        assert!(path == "global" || is_inner || mention(&defaults), "values.yaml does not show {path}");
        let described = value["description"].as_str().is_some_and(|text| !text.is_empty());
        assert!(described || value["$ref"].is_string(), "the schema does not describe {path}");
    }
}

#[test]
fn the_chart_has_every_key_of_the_config() {
    let (chart, config) = (schema(), text("config/schema.json"));
    let config: Value = serde_json::from_str(&config).expect("the schema is JSON");
    // What keys of the ConfigMap are called in the values; the last is obsolete.
    let renamed = [("storageClassMap", "classes"), ("nodeLabelsForPV", "nodeLabels"), ("useAlphaAPI", "")];
    for key in config["properties"].as_object().expect("it has keys").keys() {
        let name = renamed.iter().find(|(key_of, _)| key_of == key).map_or(key.as_str(), |(_, name)| name);
        assert!(name.is_empty() || chart["properties"][name].is_object(), "{key}");
    }
    let words = |value: &Value| -> BTreeSet<String> {
        value["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let class = &chart["definitions"]["class"]["properties"];
    for (key, value) in config["$defs"]["class"]["properties"].as_object().expect("it has keys") {
        assert!(class[key].is_object(), "{key}");
        assert_eq!(words(&class[key]), words(value), "{key}");
        for (inner, value) in value["properties"].as_object().into_iter().flatten() {
            assert!(class[key]["properties"][inner].is_object(), "{key}.{inner}");
            assert_eq!(words(&class[key]["properties"][inner]), words(value), "{key}.{inner}");
        }
    }
}

/// The values of the Go provisioner's chart 2.x.
const OLD: [&str; 53] = [
    "additionalArgs",
    "additionalVolumeMounts",
    "additionalVolumes",
    "affinity",
    "classes[].accessMode",
    "classes[].allowedTopologies",
    "classes[].blockCleanerCommand",
    "classes[].fsType",
    "classes[].hostDir",
    "classes[].mountDir",
    "classes[].name",
    "classes[].namePattern",
    "classes[].selector",
    "classes[].storageClass",
    "classes[].storageClass.isDefaultClass",
    "classes[].storageClass.provisioner",
    "classes[].storageClass.reclaimPolicy",
    "classes[].volumeMode",
    "enableWindows",
    "fullnameOverride",
    "hostPID",
    "image",
    "imagePullPolicy",
    "imagePullSecrets",
    "initContainers",
    "kubeConfigEnv",
    "labelsForPV",
    "livenessProbe",
    "minResyncPeriod",
    "mountDevVolume",
    "nameOverride",
    "nodeCleanupController.enabled",
    "nodeLabels",
    "nodeSelector",
    "nodeSelectorWindows",
    "podAnnotations",
    "podLabels",
    "podMonitor.enabled",
    "priorityClassName",
    "privileged",
    "provisionerNotReadyNodeTaintKey",
    "rbac.create",
    "rbac.extraRules",
    "readinessProbe",
    "removeNodeNotReadyTaint",
    "resources",
    "serviceAccount.create",
    "serviceMonitor.enabled",
    "setPVOwnerRef",
    "tolerations",
    "updateStrategy",
    "useJobForCleaning",
    "useNodeNameOnly",
];

#[test]
fn each_value_of_the_go_provisioners_chart_is_known_and_compared() {
    let schema = schema();
    let known = all(&schema);
    let page = rows(&text("docs/chart.md"));
    for path in OLD {
        assert!(known.contains_key(path), "{path}");
        let (_, row) = page.iter().find(|(name, _)| name == path).expect("it is documented");
        let compared = row.split(" | ").last().expect("it has cells").trim_end_matches(" |");
        let word = compared.split([':', ',', ' ']).next();
        assert!(["same", "more", "refused", "ignored"].contains(&word.unwrap_or_default()), "{path}: {compared}");
    }
}
