//! The plain manifests: what the chart makes, and what kustomize takes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{ROOT, helm, of_kind, one};
use crate::docs::text;
use crate::harness::{Scratch, supervisor};

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn the_manifests_are_what_the_chart_makes() {
    let scratch = Scratch::new("manifests");
    let folder = Path::new(ROOT).join("deploy/manifests");
    let out = scratch.path().join("out");
    fs::create_dir(&out).expect("a folder can be made");
    let made = Command::new(folder.join("generate")).arg(helm()).arg(&out).output();
    let made = made.expect("the script can be run");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut files = Vec::new();
    files_below(&out, &mut files);
    for file in &files {
        let name = file.strip_prefix(&out).expect("it is below");
        let there = fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{}: {error}", name.display()));
        let now = fs::read_to_string(file).expect("it can be read");
        assert!(there == now, "deploy/manifests/{} is not what the chart makes: run `make manifests`", name.display());
    }
    let mut all = Vec::new();
    files_below(&folder, &mut all);
    let by_hand: BTreeSet<String> = all
        .iter()
        .filter(|file| fs::read_to_string(file).is_ok_and(|text| !text.contains("# Generated from ")))
        .filter_map(|file| file.file_name()?.to_str().map(str::to_owned))
        .collect();
    let expected = ["kustomization.yaml", "shadow.yaml", "values.yaml"];
    assert_eq!(by_hand, expected.map(str::to_owned).into());
    assert_eq!(all.len(), files.len() + 4 + 3, "each other file is made");
}

/// The objects of a kustomization.
fn kustomized(folder: &Path) -> Vec<Value> {
    let output = Command::new(supervisor::binary()).args(["kubectl", "kustomize"]).arg(folder).output();
    let output = output.expect("kubectl can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("it is text");
    serde_saphyr::from_multiple(&text).expect("it is YAML")
}

#[test]
fn kustomize_takes_the_manifests_and_their_options() {
    let base = Path::new(ROOT).join("deploy/manifests");
    let plain = kustomized(&base);
    let image = &one(&plain, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["image"];
    let jobs = text("deploy/manifests/components/jobs/kustomization.yaml");
    assert!(jobs.contains(&format!("value: {}\n", image.as_str().expect("it is named"))), "{jobs}");
    assert_eq!(of_kind(&plain, "Role").len() + of_kind(&plain, "ServiceMonitor").len(), 0);
    let scratch = Scratch::new("overlay");
    // It takes no absolute paths.
    std::os::unix::fs::symlink(&base, scratch.path().join("base")).expect("a link can be made");
    fs::create_dir(scratch.path().join("overlay")).expect("a folder can be made");
    let overlay = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../base]\n\
                   components: [../base/components/jobs, ../base/components/start-up-taint, \
                   ../base/components/service-monitor]\nimages: [{name: mooring, newName: registry/m, newTag: '7'}]\n";
    fs::write(scratch.path().join("overlay/kustomization.yaml"), overlay).expect("a file can be written");
    let all = kustomized(&scratch.path().join("overlay"));
    let container = &one(&all, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry/m:7");
    let env = container["env"].as_array().expect("it has variables");
    assert!(env.iter().any(|variable| variable["name"] == "JOB_CONTAINER_IMAGE"), "{env:?}");
    assert!(env.iter().any(|variable| variable["name"] == "MY_NODE_NAME"), "{env:?}");
    for kind in ["Role", "RoleBinding", "Service", "ServiceMonitor"] {
        one(&all, kind);
    }
    let roles = of_kind(&all, "ClusterRole");
    assert!(roles.iter().any(|role| role["metadata"]["name"] == "mooring-start-up-taint"));
}

#[test]
fn the_manifests_namespace_lets_the_agent_in_and_their_config_is_the_example() {
    let rbac: Vec<Value> = serde_saphyr::from_multiple(&text("deploy/manifests/rbac.yaml")).expect("it is YAML");
    let labels = &one(&rbac, "Namespace")["metadata"]["labels"];
    for mode in ["enforce", "audit", "warn"] {
        assert_eq!(labels[format!("pod-security.kubernetes.io/{mode}")], json!("privileged"));
        assert!(text("docs/install.md").contains(&format!("pod-security.kubernetes.io/{mode}=privileged")));
    }
    let values: Value = serde_saphyr::from_str(&text("deploy/manifests/values.yaml")).expect("it is YAML");
    let objects = super::render(&values.to_string());
    let example: Vec<Value> = serde_saphyr::from_multiple(&text("config/configmap.yaml")).expect("it is YAML");
    let parsed = |objects: &[Value]| mooring::config::Config::parse(&super::keys(objects)).expect("it is valid");
    assert_eq!(parsed(&objects), parsed(&example));
    let name = |objects: &[Value]| one(objects, "ConfigMap")["metadata"]["name"].clone();
    assert_eq!(name(&objects), name(&example));
}

/// The blocks of YAML of a page.
fn blocks(page: &str) -> Vec<String> {
    let blocks = page.split("```yaml\n").skip(1);
    blocks.map(|rest| rest.split("```").next().expect("a block ends").to_owned()).collect()
}

#[test]
fn what_the_page_on_installing_shows_can_be_used() {
    let blocks = blocks(&text("docs/install.md"));
    let objects: Vec<Value> = blocks.iter().map(|text| serde_saphyr::from_str(text).expect(text)).collect();
    let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    // The values are values.
    let values = &blocks[objects.iter().position(|object| object["classes"].is_array()).expect("it has values")];
    assert_eq!(of_kind(&super::render(values), "StorageClass").len(), 2);
    // OpenShift lets in what the chart makes, of both profiles.
    let openshift = of("SecurityContextConstraints");
    for profile in ["block", "filesystem"] {
        let pod = super::pod(&super::render(&format!("securityProfile: {profile}")));
        let context = pod.containers[0].security_context.clone().expect("it has one");
        let add = context.capabilities.and_then(|sets| sets.add).unwrap_or_default();
        let allowed = openshift["allowedCapabilities"].as_array().expect("it is a list");
        assert!(add.iter().all(|capability| allowed.contains(&json!(capability))), "{add:?}");
        assert!(context.privileged != Some(true) || openshift["allowPrivilegedContainer"] == true);
    }
    assert_eq!(openshift["users"], json!(["system:serviceaccount:mooring-system:mooring"]));
    // The kinds of volumes of the pods, and the token's.
    assert_eq!(openshift["volumes"], json!(["configMap", "hostPath", "projected"]));
    // The options are there.
    for component in of("Kustomization")["components"].as_array().expect("it has some") {
        let folder = Path::new(ROOT).join("deploy").join(component.as_str().expect("it is a path"));
        assert!(folder.join("kustomization.yaml").exists(), "{component}");
    }
    let kyverno = of("PolicyException");
    for exception in kyverno["spec"]["exceptions"].as_array().expect("it has some") {
        let rules = exception["ruleNames"].as_array().expect("it has rules");
        // A rule for pods has a twin for what makes pods.
        for rule in rules.iter().filter_map(Value::as_str).filter(|rule| !rule.starts_with("autogen-")) {
            assert!(rules.contains(&json!(format!("autogen-{rule}"))), "{exception}");
        }
    }
}

#[test]
fn the_profiles_are_those_of_the_page_on_rights() {
    let page = text("docs/rights.md");
    let (_, part) = page.split_once("\n## Two security profiles\n").expect("it has that part");
    let described = blocks(part.split("\n## ").next().expect("a part ends"));
    let described: Vec<Value> = described.iter().map(|text| serde_saphyr::from_str(text).expect(text)).collect();
    assert_eq!(described.len(), 2);
    for (profile, described) in ["filesystem", "block"].into_iter().zip(described) {
        let objects = super::render(&format!("securityProfile: {profile}"));
        let container = &one(&objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
        let mut context = container["securityContext"].clone();
        let fields = context.as_object_mut().expect("it is an object");
        // What it is without being said.
        fields.retain(|field, value| field != "privileged" || *value != json!(false));
        assert_eq!(context, described, "{profile}");
    }
}
