//! What the documents promise of the code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::ConfigMap;
use mooring::config::Config;
use mooring::verdict::Reason;

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

#[test]
fn the_example_configs_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example");
    let files: BTreeMap<String, String> = fs::read_dir(folder)
        .expect("the example is there")
        .map(|file| {
            let file = file.expect("it can be read");
            let name = file.file_name().into_string().expect("a key is text");
            (name, fs::read_to_string(file.path()).expect("a key can be read"))
        })
        .collect();
    let example = Config::parse(&files).expect("config/example is valid");
    assert!(!example.classes.is_empty());
    let manifest = text("config/configmap.yaml");
    let manifest = manifest.split("\n---\n").next().expect("it has a first part");
    let manifest: ConfigMap = serde_saphyr::from_str(manifest).expect("its first part is the ConfigMap");
    Config::parse(&manifest.data.expect("it has keys")).expect("config/configmap.yaml is valid");
}

#[test]
fn every_verdict_is_documented_with_its_remedy() {
    let page = text("docs/verdicts.md");
    for reason in Reason::ALL {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{}` |", reason.as_str())));
        let row = row.unwrap_or_else(|| panic!("docs/verdicts.md has no row for {}", reason.as_str()));
        // The page marks field names and values as such; the remedy is plain text.
        assert!(row.replace('`', "").contains(reason.remedy()), "the remedy of {} differs: {row}", reason.as_str());
    }
}
