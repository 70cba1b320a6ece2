//! The schema, the examples, the page and the parser know the same keys, with the same
//! defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::ConfigMap;
use mooring::config::{Config, DirtyPolicy, known_keys};
use mooring::method::{Method, Verify};
use serde_json::Value;

use crate::docs::{rows, text};
use crate::harness::launch;

type Files = BTreeMap<String, String>;

fn schema() -> Value {
    serde_json::from_str(&text("config/schema.json")).expect("the schema is JSON")
}

/// A schema with its reference followed.
fn followed<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).expect(reference),
        None => schema,
    }
}

/// Checks a value by the words of JSON Schema that ours uses; by any other it fails.
fn validate(root: &Value, schema: &Value, value: &Value, at: &str) {
    for (word, rule) in schema.as_object().expect("a schema is an object") {
        let len = value.as_str().map(str::len).or(value.as_array().map(Vec::len));
        let number = value.as_i64();
        let holds = match word.as_str() {
            "$schema" | "title" | "description" | "default" | "examples" | "deprecated" | "$defs" | "pattern" => true,
            "$ref" => {
                validate(root, followed(root, schema), value, at);
                true
            }
            "type" => match rule.as_str().expect("a type has a name") {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64(),
                other => panic!("the type {other} is not known here"),
            },
            "enum" => rule.as_array().expect("an enum is a list").contains(value),
            "minimum" => number >= rule.as_i64(),
            "maximum" => number <= rule.as_i64(),
            "minLength" | "minItems" => len.and_then(|len| i64::try_from(len).ok()) >= rule.as_i64(),
            "minProperties" => value.as_object().is_some_and(|entries| !entries.is_empty()),
            "required" => rule
                .as_array()
                .expect("it is a list")
                .iter()
                .all(|key| value.get(key.as_str().unwrap_or_default()).is_some()),
            "items" => {
                for (index, element) in value.as_array().into_iter().flatten().enumerate() {
                    validate(root, rule, element, &format!("{at}[{index}]"));
                }
                true
            }
            "properties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    if let Some(rule) = rule.get(key) {
                        validate(root, rule, inner, &format!("{at}.{key}"));
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = schema["properties"].as_object();
                let further = value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(key, _)| !known.is_some_and(|known| known.contains_key(*key)));
                for (key, inner) in further {
                    assert!(rule.is_object(), "{at}: the schema does not know {key}");
                    validate(root, rule, inner, &format!("{at}.{key}"));
                }
                true
            }
            other => panic!("the word {other} is not known here"),
        };
        assert!(holds, "{at}: {value} breaks {word}: {rule}");
    }
}

/// A ConfigMap's values, as a YAML reader of today has them.
fn decoded(files: &Files) -> Value {
    let values = files.iter().map(|(key, text)| (key.clone(), serde_saphyr::from_str(text).expect(key)));
    Value::Object(values.collect())
}

fn config_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

/// The example directory, and the manifests: each with the keys in it.
fn examples() -> Vec<(PathBuf, Files)> {
    let folder = config_folder();
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("it can be listed");
        entries.map(|entry| entry.expect("it can be listed").path()).collect()
    };
    let read = |file: &Path| fs::read_to_string(file).expect("it can be read");
    let name = |file: &Path| file.file_name().expect("it has a name").to_str().expect("it is text").to_owned();
    let example = folder.join("example");
    let keys = entries(&example).into_iter().map(|file| (name(&file), read(&file))).collect();
    let mut found = vec![(example, keys)];
    for manifest in entries(&folder).into_iter().filter(|file| file.extension().is_some_and(|end| end == "yaml")) {
        let text = read(&manifest);
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("it is YAML");
        let map = objects.into_iter().find(|object| object["kind"] == "ConfigMap").expect("it has a ConfigMap");
        let map: ConfigMap = serde_json::from_value(map).expect("it is a ConfigMap");
        found.push((manifest, map.data.expect("it has keys")));
    }
    assert!(found.len() >= 6, "{found:?}");
    found
}

#[test]
fn every_example_is_good_in_the_strictest_sense() {
    let schema = schema();
    for (path, files) in examples() {
        let checked = Command::new(launch::binary(None)).args(["check-config", "--strict"]).arg(&path).output();
        let checked = checked.expect("the program can be run");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        validate(&schema, &schema, &decoded(&files), &path.display().to_string());
        // Each class of a manifest has its StorageClass.
        if path.is_file() {
            let config = Config::parse(&files).expect("it was checked");
            let manifest = fs::read_to_string(&path).expect("it can be read");
            let objects: Vec<Value> = serde_saphyr::from_multiple(&manifest).expect("it is YAML");
            let classes: BTreeSet<&str> = objects
                .iter()
                .filter(|object| object["kind"] == "StorageClass")
                .filter_map(|object| object["metadata"]["name"].as_str())
                .collect();
            assert_eq!(
                config.classes.iter().map(|class| class.name.as_str()).collect::<BTreeSet<_>>(),
                classes,
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn the_example_directory_has_every_key() {
    let (_, files) = examples().remove(0);
    let keys: BTreeSet<String> = known_keys().into_iter().filter(|key| !key.contains('.')).collect();
    assert_eq!(files.keys().cloned().collect::<BTreeSet<_>>(), keys);
    let map = &files["storageClassMap"];
    for key in known_keys().iter().filter_map(|key| key.strip_prefix("storageClassMap.*.")) {
        let is_shown = map.contains(&format!("{}:", key.rsplit(['.', '*']).next().unwrap_or(key)));
        assert!(is_shown || key.contains("matchFields"), "config/example/storageClassMap lacks {key}");
    }
}

/// The keys that a schema knows below a path, each with its own schema.
fn keys_of<'s>(root: &'s Value, schema: &'s Value, path: &str, found: &mut BTreeMap<String, &'s Value>) {
    let inner = followed(root, schema);
    for (key, value) in inner["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        keys_of(root, value, &path, found);
        found.insert(path, value);
    }
    for word in ["items", "additionalProperties"] {
        if inner[word].is_object() {
            keys_of(root, &inner[word], &format!("{path}.*"), found);
        }
    }
}

fn schema_keys(schema: &Value) -> BTreeMap<String, &Value> {
    let mut found = BTreeMap::new();
    keys_of(schema, schema, "", &mut found);
    found
}

#[test]
fn the_schema_has_the_parsers_keys() {
    let schema = schema();
    let keys: BTreeSet<String> = schema_keys(&schema).into_keys().collect();
    assert_eq!(keys, known_keys().into_iter().collect::<BTreeSet<_>>());
}

#[test]
fn the_schemas_defaults_are_the_parsers() {
    let schema = schema();
    let (mut top, mut class, mut wipe) = (BTreeMap::new(), serde_json::Map::new(), serde_json::Map::new());
    for (path, schema) in schema_keys(&schema) {
        let Some(default) = schema.get("default") else { continue };
        match path.strip_prefix("storageClassMap.*.") {
            None => {
                top.insert(path, default.to_string());
            }
            Some(key) => match key.strip_prefix("wipe.") {
                None => drop(class.insert(key.to_owned(), default.clone())),
                Some(key) => drop(wipe.insert(key.to_owned(), default.clone())),
            },
        }
    }
    assert!(top.len() >= 10 && class.len() >= 5 && wipe.len() >= 2, "{top:?} {class:?} {wipe:?}");
    class.insert("wipe".to_owned(), Value::Object(wipe));
    let with = |mut class: serde_json::Map<String, Value>, mut files: Files| {
        class.insert("hostDir".to_owned(), "/h".into());
        class.insert("mountDir".to_owned(), "/m".into());
        files.insert("storageClassMap".to_owned(), serde_json::json!({ "c": class }).to_string());
        Config::parse(&files).expect("it is valid")
    };
    assert_eq!(with(class, top), with(serde_json::Map::new(), BTreeMap::new()));
}

#[test]
fn the_page_has_the_schemas_keys_and_defaults() {
    let page = text("docs/configuration.md");
    let rows = rows(page.split("\n## Methods\n").next().expect("it has a beginning"));
    let schema = schema();
    let keys = schema_keys(&schema);
    // What is in Kubernetes' own types is not explained here; of `wipe`, its keys are.
    let own = |path: &str| !path.contains("selector.") && !path.contains("jobTolerations.") && !path.ends_with(".wipe");
    let expected: BTreeSet<&str> = keys
        .keys()
        .filter(|path| own(path))
        .map(|path| path.strip_prefix("storageClassMap.*.").unwrap_or(path))
        .collect();
    assert_eq!(rows.iter().map(|(key, _)| key.as_str()).collect::<BTreeSet<_>>(), expected);
    for (key, row) in rows {
        let path = if keys.contains_key(&key) { key.clone() } else { format!("storageClassMap.*.{key}") };
        let required = ["storageClassMap", "hostDir", "mountDir"].contains(&key.as_str());
        let cell = match &keys[&path]["default"] {
            Value::Null if required => "required".to_owned(),
            Value::Null if key == "wipe.passes" => "1 with `zero`, 3 with `overwrite`".to_owned(),
            Value::Null => "none".to_owned(),
            Value::String(text) if text.is_empty() => "none".to_owned(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        assert_eq!(row.split(" | ").nth(2), Some(cell.as_str()), "{row}");
        for word in keys[&path]["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(row.contains(&format!("`{word}`")) || key == "wipe.method", "{row} lacks {word}");
        }
        let is_ours = ["wipe", "dirty", "maxParallelWipes", "withdrawAfter", "holdTaint"]
            .iter()
            .any(|ours| key.starts_with(ours));
        assert_eq!(row.contains("mooring's own"), is_ours, "{row}");
    }
}

fn one_class(keys: &str) -> Config {
    let map = format!("c: {{hostDir: /h, mountDir: /m, {keys}}}");
    Config::parse(&BTreeMap::from([("storageClassMap".to_owned(), map)])).expect("it is valid")
}

#[test]
fn the_pages_example_and_methods_are_read_as_it_says() {
    let page = text("docs/configuration.md");
    let example = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("it has an example");
    let files: Files = serde_saphyr::from_str(example).expect("it is the data of a ConfigMap");
    let parsed = Config::read(&files).expect("the example is valid");
    assert_eq!(parsed.warnings, Vec::new());
    let config = parsed.config;
    let class = &config.classes[0];
    assert_eq!((class.wipe.method.to_string().as_str(), class.wipe.verify), ("overwrite x2", Verify::Full));
    assert_eq!((class.wipe.bandwidth, class.wipe_after.as_secs()), (Some(200 << 20), 1_800));
    assert_eq!((class.dirty, config.max_parallel_wipes), (DirtyPolicy::Quarantine, 2));
    assert_eq!(config.withdraw_after.as_secs(), 60);
    let rows = rows(&page);
    for method in ["auto", "zero", "discard", "overwrite", "signatures", "command"] {
        let config = one_class(&format!("blockCleanerCommand: [/bin/true], wipe: {{method: {method}}}"));
        let zeros = if config.classes[0].wipe.method.ends_in_zeros() { "| yes |" } else { "| no |" };
        let row =
            rows.iter().find(|(cell, _)| cell == method).unwrap_or_else(|| panic!("there is no row for {method}"));
        assert!(row.1.ends_with(zeros), "{}", row.1);
    }
    let scripts: Vec<_> = rows.iter().filter(|(cell, _)| cell.starts_with("/scripts/")).collect();
    assert_eq!(scripts.len(), 4);
    for (script, row) in scripts {
        let method = Method::from_cleaner_command(std::slice::from_ref(script)).expect("it is a script");
        let expected = match &method {
            Method::Zero { passes } | Method::Overwrite { passes } => {
                format!("| `{}`, `passes: {passes}`", method.as_str())
            }
            method => format!("| `{}`", method.as_str()),
        };
        assert!(row.contains(&expected), "{row}");
    }
}

#[test]
fn the_table_of_the_go_provisioner_is_as_long_as_the_page_says() {
    let table: Vec<Value> = serde_json::from_str(&text("tests/fixtures/go-config/table.json")).expect("it is a list");
    assert!(text("docs/configuration.md").contains(&format!("makes of {} ConfigMaps", table.len())));
}
