//! What the documents promise of the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::rbac::v1::ClusterRole;
use mooring::events;
use mooring::limit::Limit;
use mooring::pv;
use mooring::verdict::Reason;

/// A file of the repository.
pub fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
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

#[test]
fn the_agents_manifest_keeps_the_ledger_on_the_host_and_sees_later_mounts() {
    let daemonset: DaemonSet = serde_saphyr::from_str(&text("deploy/manifests/daemonset.yaml")).expect("it is one");
    let pod = daemonset.spec.and_then(|spec| spec.template.spec).expect("it has pods");
    let container = &pod.containers[0];
    let arguments = container.args.as_deref().unwrap_or_default();
    let state_dir = arguments.iter().find_map(|argument| argument.strip_prefix("--state-dir=")).expect("it is named");
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    let at = |path: &str| mounts.iter().find(|mount| mount.mount_path == path).unwrap_or_else(|| panic!("{path}"));
    let volumes = pod.volumes.as_deref().unwrap_or_default();
    let state = volumes.iter().find(|volume| volume.name == at(state_dir).name).expect("a mount has its volume");
    assert!(state.host_path.is_some() && at(state_dir).read_only != Some(true), "{state:?}");
    let example = text("config/configmap.yaml");
    let discovery = example.lines().filter_map(|line| line.trim().strip_prefix("mountDir: "));
    for path in discovery.chain(["/var/lib/kubelet"]) {
        assert_eq!(at(path).mount_propagation.as_deref(), Some("HostToContainer"), "{path}");
    }
    assert_eq!(at("/var/lib/kubelet").read_only, Some(true));
}

/// The rows of the page's tables that begin with a cell of code: that, and the whole row.
pub fn rows(page: &str) -> Vec<(String, String)> {
    let rows = page.lines().filter_map(|line| {
        let (cell, _) = line.strip_prefix("| `")?.split_once("` |")?;
        Some((cell.to_owned(), line.to_owned()))
    });
    rows.collect()
}

/// What the page says in code, but for blocks of it.
fn code(page: &str) -> Vec<&str> {
    page.lines().filter(|line| !line.starts_with("```")).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_event_and_annotation_is_documented_for_the_admin() {
    let page = text("docs/admin.md");
    let rows = rows(page.split("\n## Events\n").nth(1).expect("it has a part about Events"));
    let documented: BTreeSet<&str> =
        rows.iter().map(|(cell, _)| cell.as_str()).filter(|cell| !cell.starts_with("mooring.dev/")).collect();
    let verdicts = Reason::ALL.into_iter().filter(|reason| reason.is_told_by_event(true)).map(Reason::as_str);
    assert_eq!(documented, events::REASONS.into_iter().chain(verdicts).collect());
    // Without a remedy nobody need hear of it.
    assert!(Reason::ALL.iter().all(|reason| !reason.is_told_by_event(true) || !reason.remedy().is_empty()));
    let names = code(&page);
    for name in [
        pv::NODE_LABEL,
        pv::WIPE_FINALIZER,
        pv::IDENTITY,
        pv::LABELS,
        pv::LEDGER_ENTRY,
        pv::ROOT,
        pv::RECLAIMING,
        pv::QUARANTINED,
        pv::PROGRESS,
        pv::RECLAIM,
        pv::HOLD,
        pv::ACCEPT_IDENTITY,
    ] {
        assert!(names.contains(&name), "docs/admin.md does not explain {name}");
    }
}

#[test]
fn every_right_and_every_limit_is_documented() {
    let page = text("docs/rights.md");
    let (rights, limits) = page.split_once("\n## What is lost\n").expect("it has both parts");
    let (limits, _) = limits.split_once("\n## Two security profiles\n").expect("it has that part");
    let role: Vec<String> = text("deploy/manifests/rbac.yaml")
        .split("\n---\n")
        .map(str::to_owned)
        .filter(|part| part.contains("kind: ClusterRole\n"))
        .collect();
    let role: ClusterRole = serde_saphyr::from_str(&role[0]).expect("it is a ClusterRole");
    let granted: BTreeSet<(String, String)> = role
        .rules
        .unwrap_or_default()
        .into_iter()
        .flat_map(|rule| {
            let verbs = rule.verbs;
            let of = move |resource: String| verbs.clone().into_iter().map(move |verb| (resource.clone(), verb));
            rule.resources.unwrap_or_default().into_iter().flat_map(of)
        })
        .collect();
    let documented: BTreeSet<(String, String)> = rows(rights)
        .into_iter()
        .flat_map(|(resource, row)| {
            let verbs: Vec<String> =
                row.split('|').nth(2).expect("it has verbs").split(',').map(|verb| verb.trim().to_owned()).collect();
            verbs.into_iter().map(move |verb| (resource.clone(), verb))
        })
        .collect();
    assert_eq!(documented, granted);
    let listed: Vec<String> = rows(limits).into_iter().map(|(what, _)| what).collect();
    assert_eq!(listed, Limit::ALL.map(Limit::as_str));
    // All of them fit into one Event.
    let note: usize = Limit::ALL.map(|limit| limit.as_str().len() + limit.loss().len() + 4).into_iter().sum();
    assert!(note < 950, "{note}");
}

#[test]
fn every_action_of_a_plan_and_every_difference_of_a_shadow_is_documented() {
    let of = |page: &str, heading: &str| {
        let page = text(page);
        let (_, table) = page.split_once(heading).unwrap_or_else(|| panic!("there is no table {heading}"));
        let table = table.split("\n\n").next().expect("a table ends");
        rows(table).into_iter().map(|(cell, _)| cell).collect::<Vec<_>>()
    };
    assert_eq!(of("docs/plan.md", "| action | what"), mooring::plan::ACTIONS);
    let kinds = mooring::shadow::Kind::ALL.map(mooring::shadow::Kind::as_str);
    assert_eq!(of("docs/shadow.md", "| kind | what"), kinds);
}

#[test]
fn the_shadows_manifest_can_only_read_and_sees_later_mounts() {
    let manifest = text("deploy/manifests/shadow.yaml");
    let parts: Vec<serde_json::Value> = serde_saphyr::from_multiple(&manifest).expect("it is YAML");
    let role = parts.iter().find(|part| part["kind"] == "ClusterRole").expect("it has a role");
    for rule in role["rules"].as_array().expect("it has rules") {
        assert_eq!(rule["verbs"], serde_json::json!(["get", "list", "watch"]), "{rule}");
    }
    let daemonset = parts.into_iter().find(|part| part["kind"] == "DaemonSet").expect("it has pods");
    let daemonset: DaemonSet = serde_json::from_value(daemonset).expect("it is one");
    let pod = daemonset.spec.and_then(|spec| spec.template.spec).expect("it has pods");
    let container = &pod.containers[0];
    assert!(container.args.as_ref().is_some_and(|arguments| arguments.iter().any(|argument| argument == "--shadow")));
    for mount in container.volume_mounts.iter().flatten() {
        assert_eq!(mount.read_only, Some(true), "{}", mount.mount_path);
        let discovery = mount.mount_path.starts_with("/mnt/");
        assert!(!discovery || mount.mount_propagation.as_deref() == Some("HostToContainer"), "{}", mount.mount_path);
    }
}

/// All Rust files below.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_files_and_tests_that_the_documents_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    sources(&root.join("tests/it"), &mut files);
    let all: String = files.iter().map(|file| fs::read_to_string(file).expect("it can be read")).collect();
    let mut tests = 0;
    for page in [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/install.md",
        "docs/chart.md",
        "docs/safety.md",
        "docs/configuration.md",
        "docs/image.md",
        "docs/rights.md",
        "docs/metrics.md",
        "docs/monitoring.md",
        "docs/how-a-local-pv-is-mounted.md",
        "docs/prepare-disks.md",
        "docs/plan.md",
        "docs/shadow.md",
        "docs/migration.md",
    ] {
        let text = text(page);
        for name in code(&text) {
            let is_file = ["src/", "tests/", "deploy/", "config/", "docs/"].iter().any(|start| name.starts_with(start));
            assert!(!is_file || root.join(name).exists(), "{page} names {name}");
            let is_metric = ["mooring_", "local_volume_", "process_"].iter().any(|start| name.starts_with(start));
            if !is_metric
                && name.matches('_').count() >= 3
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            {
                assert!(all.contains(&format!("fn {name}(")), "{page} names the test {name}");
                tests += 1;
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            let folder = root.join(page);
            let folder = folder.parent().expect("a page is in a folder");
            assert!(link.contains("://") || folder.join(target).exists(), "{page} links to {link}");
        }
    }
    assert!(tests > 40, "docs/safety.md names a test for each promise");
}

#[test]
fn every_scenario_that_is_listed_has_its_test_and_every_test_is_listed() {
    let page = text("docs/scenarios.md");
    let row =
        |line: &str| Some((line.strip_prefix("| s")?.split_once(" |")?.0.to_owned(), line.contains("Not there yet")));
    let rows: Vec<(String, bool)> = page.lines().filter_map(row).collect();
    assert_eq!(rows.len(), 22);
    for (number, is_missing) in rows {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/e2e/s{number}.rs"));
        let test = format!("#[tokio::test]\nasync fn s{number}_");
        let has_test = fs::read_to_string(&file).is_ok_and(|code| code.contains(&test));
        assert_ne!(has_test, is_missing, "s{number}");
        let is_run = text("tests/e2e/main.rs").lines().any(|line| line.trim() == format!("s{number}"));
        assert_eq!(has_test, is_run, "s{number} in tests/e2e/main.rs");
    }
}
