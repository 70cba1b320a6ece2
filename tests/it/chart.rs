//! The Helm chart: what it makes of values is what a real API server and the agent take, and
//! wrong values are refused by name.

mod install;
mod manifests;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use mooring::config::Config;
use serde_json::{Value, json};

use crate::harness::supervisor;
use crate::harness::{launch, rbac, shared};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The program: as the environment variable says, else the built one.
fn helm() -> PathBuf {
    let built = Path::new(ROOT).join(".build/helm");
    let path = std::env::var_os("MOORING_HELM_BIN").map_or(built, PathBuf::from);
    assert!(path.exists(), "{} is missing; run `make helm`", path.display());
    path
}

fn chart() -> PathBuf {
    Path::new(ROOT).join("deploy/chart/mooring")
}

/// The files of example values, by name.
fn examples() -> BTreeMap<String, PathBuf> {
    let files = fs::read_dir(chart().join("ci")).expect("it can be listed");
    let files = files.map(|file| file.expect("it can be listed").path());
    let named = |file: PathBuf| (file.file_stem().expect("it has a name").to_string_lossy().into_owned(), file);
    let found: BTreeMap<String, PathBuf> = files.map(named).collect();
    assert!(found.len() >= 8, "{found:?}");
    found
}

/// Runs helm with values as YAML.
fn run(arguments: &[&str], values: &str) -> Output {
    let mut command = Command::new(helm());
    command.args(arguments).arg(chart()).args(["--kube-version", "1.33.0", "--values", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("helm can be run");
    child.stdin.take().expect("it was asked for").write_all(values.as_bytes()).expect("helm reads it");
    child.wait_with_output().expect("it ends")
}

fn template(values: &str) -> Result<Vec<Value>, String> {
    let output = run(&["template", "mooring", "--namespace", rbac::NAMESPACE], values);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).expect("helm makes text");
    Ok(serde_saphyr::from_multiple(&text).expect("it is YAML"))
}

fn render(values: &str) -> Vec<Value> {
    template(values).unwrap_or_else(|error| panic!("{values}\n{error}"))
}

fn of_kind<'o>(objects: &'o [Value], kind: &str) -> Vec<&'o Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn one<'o>(objects: &'o [Value], kind: &str) -> &'o Value {
    let [object] = of_kind(objects, kind)[..] else { panic!("there is not one {kind}") };
    object
}

/// The ConfigMap's keys.
fn keys(objects: &[Value]) -> BTreeMap<String, String> {
    serde_json::from_value(one(objects, "ConfigMap")["data"].clone()).expect("its data are texts")
}

fn pod(objects: &[Value]) -> PodSpec {
    let daemonset: DaemonSet = serde_json::from_value(one(objects, "DaemonSet").clone()).expect("it is one");
    daemonset.spec.and_then(|spec| spec.template.spec).expect("it has pods")
}

fn container(objects: &[Value]) -> Container {
    pod(objects).containers.remove(0)
}

#[test]
fn helm_finds_nothing_wrong_with_the_chart() {
    let chart = fs::read_to_string(chart().join("Chart.yaml")).expect("it can be read");
    let chart: Value = serde_saphyr::from_str(&chart).expect("it is YAML");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(version), &json!(version)));
    for values in std::iter::once(String::new())
        .chain(examples().into_values().map(|path| fs::read_to_string(path).expect("it can be read")))
    {
        let output = run(&["lint", "--strict"], &values);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{values}\n{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(!said.contains("[WARNING]"), "{said}");
    }
}

#[test]
fn the_agent_takes_each_examples_config_without_a_word() {
    for (name, path) in examples() {
        let objects = render(&fs::read_to_string(path).expect("it can be read"));
        let mut command = launch::command_line(&launch::binary(None));
        command.args(["check-config", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program can be run");
        let text = one(&objects, "ConfigMap").to_string();
        child.stdin.take().expect("it was asked for").write_all(text.as_bytes()).expect("it is read");
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !said.contains("warning") && said.contains(": good"), "{name}: {said}");
    }
}

#[test]
fn values_of_the_go_provisioners_chart_make_the_same_config() {
    let mut compared = 0;
    for (name, path) in examples() {
        let expected = Path::new(ROOT).join("tests/fixtures/old-chart").join(path.file_name().expect("it has a name"));
        let Ok(expected) = fs::read_to_string(expected) else {
            assert!(!name.starts_with("old-"), "{name} has no fixture");
            continue;
        };
        let expected: BTreeMap<String, String> = serde_saphyr::from_str(&expected).expect("it is a ConfigMap's data");
        let made = keys(&render(&fs::read_to_string(path).expect("it can be read")));
        // Without a key more, and with the same meaning of each.
        assert_eq!(made.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        assert_eq!(
            Config::parse(&made).expect("it is valid"),
            Config::parse(&expected).expect("it is valid"),
            "{name}"
        );
        compared += 1;
    }
    assert!(compared >= 3);
}

/// Kinds that the API server knows only with the Prometheus operator; their form is looked at here instead.
const OPERATORS: [&str; 3] = ["ServiceMonitor", "PodMonitor", "PrometheusRule"];

#[test]
fn a_real_api_server_takes_all_that_the_chart_makes() {
    let plane = shared();
    for (name, path) in examples() {
        let objects = render(&fs::read_to_string(path).expect("it can be read"));
        let known: Vec<String> = objects
            .iter()
            .filter(|object| !OPERATORS.iter().any(|kind| object["kind"] == *kind))
            .map(Value::to_string)
            .collect();
        let mut command = Command::new(supervisor::binary());
        command.args(["kubectl", "apply", "--dry-run=server", "--validate=strict", "-f", "-"]);
        command
            .env("KUBECONFIG", plane.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl can be run");
        let text = known.join("\n---\n");
        child.stdin.take().expect("it was asked for").write_all(text.as_bytes()).expect("kubectl reads it");
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(
            said.lines().filter(|line| line.ends_with("(server dry run)")).count(),
            known.len(),
            "{name}: {said}"
        );
    }
}

#[test]
fn monitors_look_where_the_agents_are() {
    let objects = render(
        "serviceMonitor: {enabled: true, namespace: monitoring}\npodMonitor: {enabled: true, additionalLabels: {a: 1}}\n",
    );
    let labels = &one(&objects, "DaemonSet")["spec"]["template"]["metadata"]["labels"];
    let service = one(&objects, "Service");
    assert_eq!((&service["spec"]["selector"], &service["spec"]["clusterIP"]), (labels, &json!("None")));
    let (of_services, of_pods) = (one(&objects, "ServiceMonitor"), one(&objects, "PodMonitor"));
    assert_eq!(of_pods["metadata"]["labels"]["a"], "1");
    assert_eq!(of_services["metadata"]["namespace"], "monitoring");
    for (monitor, endpoints) in [(of_services, "endpoints"), (of_pods, "podMetricsEndpoints")] {
        assert_eq!(monitor["spec"]["namespaceSelector"]["matchNames"], json!([rbac::NAMESPACE]));
        assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);
        let endpoint = &monitor["spec"][endpoints][0];
        let node = json!({ "sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node" });
        assert_eq!((&endpoint["port"], &endpoint["relabelings"][0]), (&json!("metrics"), &node));
    }
    // What the Service's monitor selects, the Service bears.
    for (label, value) in labels.as_object().expect("they are a map") {
        assert_eq!(&service["metadata"]["labels"][label], value);
    }
}

#[test]
fn the_alerts_are_those_of_the_project() {
    let alerts = fs::read_to_string(chart().join("files/alerts.yaml")).expect("it can be read");
    if let Ok(original) = fs::read_to_string(Path::new(ROOT).join("deploy/monitoring/alerts.yaml")) {
        assert!(alerts == original, "the chart's files/alerts.yaml is out of date: run `make manifests`");
    }
    let alerts: Value = serde_saphyr::from_str(&alerts).expect("it is YAML");
    let objects = render("prometheusRule: {enabled: true, additionalLabels: {release: prometheus}}");
    let rule = one(&objects, "PrometheusRule");
    assert!(alerts["groups"].as_array().is_some_and(|groups| !groups.is_empty()));
    assert_eq!((&rule["spec"], &rule["metadata"]["labels"]["release"]), (&alerts, &json!("prometheus")));
}

#[test]
fn wrong_values_are_refused_by_name() {
    let class = |more: &str| format!("classes: [{{name: a, hostDir: /mnt/a, {more}}}]");
    for (values, told) in [
        ("clases: []".to_owned(), "clases"),
        ("classes: []".to_owned(), "classes"),
        ("serviceMonitor: {enable: true}".to_owned(), "enable"),
        ("securityProfile: blocks".to_owned(), "securityProfile"),
        ("minResyncPeriod: 5 minutes".to_owned(), "minResyncPeriod"),
        ("kubeletDir: var/lib/kubelet".to_owned(), "kubeletDir"),
        ("useJobForCleaning: 'yes'".to_owned(), "useJobForCleaning"),
        ("image: {tag: 1.1}".to_owned(), "tag"),
        ("nodeSelector: {disks: true}".to_owned(), "/nodeSelector/disks"),
        ("enableWindows: true".to_owned(), "enableWindows"),
        ("nodeCleanupController: {enabled: true}".to_owned(), "nodeCleanupController"),
        (
            "removeNodeNotReadyTaint: true\nprovisionerNotReadyNodeTaintKey: ''".to_owned(),
            "provisionerNotReadyNodeTaintKey",
        ),
        (class("volumeMode: block"), "volumeMode"),
        (class("fstype: xfs"), "fstype"),
        (class("blockCleanerCommand: []"), "blockCleanerCommand"),
        (class("wipe: {metod: zero}"), "metod"),
        (class("storageClass: {reclaimPolicy: Recycle}"), "reclaimPolicy"),
        ("classes: [{name: Fast_Disks, hostDir: /mnt/a}]".to_owned(), "name"),
        ("classes: [{name: a}]".to_owned(), "hostDir"),
        (
            "classes: [{name: a, hostDir: /a}, {name: a, hostDir: /b}]".to_owned(),
            "classes: there are two of the name a",
        ),
        (
            "classes: [{name: a, hostDir: /a, mountDir: /m}, {name: b, hostDir: /b, mountDir: /m}]".to_owned(),
            "mountDir /m",
        ),
        (class("volumeMode: Block") + "\nprivileged: false", "a has volumeMode Block"),
    ] {
        let error = template(&values).expect_err(&values);
        assert!(error.contains(told), "{values}\n{error}");
    }
}

#[test]
fn a_change_of_classes_restarts_no_agent() {
    let template = |values: &str| one(&render(values), "DaemonSet")["spec"]["template"].clone();
    let before = template(
        "classes:\n- {name: a, hostDir: /mnt/a, volumeMode: Block}\n- {name: b, hostDir: /mnt/b}\nlabelsForPV: {a: b}\n",
    );
    let after = template(
        "classes:\n- {name: b, hostDir: /mnt/b/, namePattern: 'nvme*', dirty: wipe, storageClass: true}\n\
         - {name: a, hostDir: /mnt/a, volumeMode: Block, wipe: {method: zero, passes: 2}, wipeAfter: 5m}\n\
         - {name: c, hostDir: /mnt/b, fsType: xfs}\nnodeLabels: [zone]\nmaxParallelWipes: 1\nwithdrawAfter: 5s\n",
    );
    assert_eq!(before, after);
    // Another directory is another mount.
    assert_ne!(before, template("classes: [{name: a, hostDir: /mnt/c, volumeMode: Block}]"));
}

#[test]
fn each_agent_has_its_mounts() {
    let objects = render(&fs::read_to_string(&examples()["many-classes"]).expect("it can be read"));
    let (pod, container) = (pod(&objects), container(&objects));
    let mounts = container.volume_mounts.expect("it has mounts");
    let volumes = pod.volumes.expect("it has volumes");
    let host = |path: &str| {
        let mount = mounts.iter().find(|mount| mount.mount_path == path).unwrap_or_else(|| panic!("no {path}"));
        let volume = volumes.iter().find(|volume| volume.name == mount.name).expect("a mount has its volume");
        (volume.host_path.as_ref().expect("it is the host's").path.clone(), mount.clone())
    };
    for (mount, directory) in
        [("/mnt/disks", "/mnt/disks"), ("/mnt/raw", "/mnt/raw-disks"), ("/mnt/Archive Disks", "/mnt/Archive Disks")]
    {
        let (path, mount) = host(mount);
        assert_eq!((path.as_str(), mount.mount_propagation.as_deref()), (directory, Some("HostToContainer")));
    }
    let (state, mount) = host("/var/lib/mooring");
    assert_eq!((state.as_str(), mount.read_only), ("/var/lib/mooring", None));
    let (_, kubelet) = host("/var/lib/kubelet");
    assert_eq!((kubelet.mount_propagation.as_deref(), kubelet.read_only), (Some("HostToContainer"), Some(true)));
    assert_eq!(host("/dev").0, "/dev");
    // config, dev, state, kubelet and three directories, each once.
    assert_eq!((mounts.len(), volumes.len()), (7, 7));
    // Directories below /dev are there with it.
    let objects = render("classes: [{name: a, hostDir: /dev/disk/by-id}]");
    let mounts = container_mounts(&objects);
    assert!(mounts.contains(&"/dev".to_owned()) && !mounts.iter().any(|path| path.starts_with("/dev/")), "{mounts:?}");
    // Elsewhere on the host, but where the agent and `mooring plan` look for it.
    let objects = render("stateDir: /opt/state\nkubeletDir: /opt/kubelet\n");
    let text = one(&objects, "DaemonSet").to_string();
    assert!(text.contains(r#""path":"/opt/state""#) && !text.contains("/var/lib/kubelet"), "{text}");
    assert!(container_mounts(&objects).contains(&"/var/lib/mooring".to_owned()));
}

fn container_mounts(objects: &[Value]) -> Vec<String> {
    container(objects).volume_mounts.into_iter().flatten().map(|mount| mount.mount_path).collect()
}

#[test]
fn an_agent_is_privileged_unless_the_values_say_that_there_are_no_devices() {
    let context = |values: &str| container(&render(values)).security_context.expect("it has one");
    let class = |more: &str| format!("classes: [{{name: a, hostDir: /mnt/a, {more}}}]\n");
    for devices in [
        // Links to devices may be in any directory, as they were under the old chart.
        class(""),
        class("volumeMode: Block"),
        class("") + "privileged: true",
        class("") + "securityProfile: block",
        "classes: [{name: a, hostDir: /dev/disk/by-id}]".to_owned(),
    ] {
        assert_eq!(context(&devices).privileged, Some(true), "{devices}");
        assert!(container_mounts(&render(&devices)).contains(&"/dev".to_owned()), "{devices}");
    }
    for directories in [
        class("") + "securityProfile: filesystem",
        class("fsType: xfs") + "privileged: false",
        class("fsType: xfs") + "privileged: true\nsecurityProfile: filesystem",
    ] {
        let context = context(&directories);
        assert_eq!(
            (context.privileged, context.allow_privilege_escalation),
            (Some(false), Some(false)),
            "{directories}"
        );
        let capabilities = context.capabilities.expect("it says which");
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]), "{directories}");
        assert_eq!(context.seccomp_profile.expect("it has one").type_, "RuntimeDefault");
        assert_eq!((context.read_only_root_filesystem, context.run_as_user), (Some(true), Some(0)));
        assert!(!container_mounts(&render(&directories)).contains(&"/dev".to_owned()), "{directories}");
    }
    assert_eq!(context("securityContext: {readOnlyRootFilesystem: false}").read_only_root_filesystem, Some(false));
}

#[test]
fn directories_of_former_classes_stay_mounted_and_each_is_what_it_says() {
    let values = "classes: [{name: a, hostDir: /mnt/-a}, {name: \"1e3\", hostDir: /mnt-/a, storageClass: true}]\n\
                  formerDirectories: [{hostDir: /mnt/old, mountDir: /former}]\nnodeCleanupController: null\n\
                  podLabels: {app.kubernetes.io/name: mine, team: a}";
    let objects = render(values);
    let pod = &of_kind(&objects, "DaemonSet")[0]["spec"]["template"];
    let list = |key: &Value| key.as_array().cloned().unwrap_or_default();
    let (mounts, volumes) = (list(&pod["spec"]["containers"][0]["volumeMounts"]), list(&pod["spec"]["volumes"]));
    for (host, mounted) in [("/mnt/-a", "/mnt/-a"), ("/mnt-/a", "/mnt-/a"), ("/mnt/old", "/former")] {
        let mount = mounts.iter().find(|mount| mount["mountPath"] == mounted).expect(mounted);
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect(host);
        assert_eq!(volume["hostPath"]["path"], host);
    }
    assert_eq!(of_kind(&objects, "StorageClass")[0]["metadata"]["name"], "1e3");
    assert_eq!(pod["metadata"]["labels"]["team"], "a");
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/name"], "mooring", "the selector finds it");
}

#[test]
fn rights_come_only_with_what_they_are_for() {
    let may = |objects: &[Value], what: &str| {
        let roles = of_kind(objects, "ClusterRole").into_iter().chain(of_kind(objects, "Role"));
        let rules: Vec<Value> = roles.flat_map(|role| role["rules"].as_array().cloned().unwrap_or_default()).collect();
        let (resource, verb) = what.split_once('/').expect("resource/verb");
        rules.iter().any(|rule| {
            rule["resources"].as_array().is_some_and(|list| list.contains(&json!(resource)))
                && rule["verbs"].as_array().is_some_and(|list| list.contains(&json!(verb)))
        })
    };
    let plain = render("");
    assert!(may(&plain, "persistentvolumes/patch") && !may(&plain, "jobs/create") && !may(&plain, "nodes/patch"));
    assert!(!may(&plain, "nodes/update") && !plain.iter().any(|object| object.to_string().contains("start-up-taint")));
    let jobs = render("useJobForCleaning: true");
    assert!(may(&jobs, "jobs/create") && !may(&jobs, "nodes/patch"));
    let image = container(&jobs).env.into_iter().flatten().find(|env| env.name == "JOB_CONTAINER_IMAGE");
    assert_eq!(image.and_then(|env| env.value), container(&jobs).image);
    let taint = render("removeNodeNotReadyTaint: true");
    assert!(may(&taint, "nodes/patch") && !may(&taint, "nodes/update"));
    let policies = |objects: &[Value]| of_kind(objects, "ValidatingAdmissionPolicy").len();
    assert_eq!(policies(&taint), policies(&plain) + 1);
    assert_eq!(policies(&render("admissionPolicy: {enabled: false}")), 0);
    // What the policy of the own node takes for granted of host names, it may not with a selector.
    let takes = |values: &str, expected: &str| {
        let objects = render(values);
        let variables = of_kind(&objects, "ValidatingAdmissionPolicy")
            .into_iter()
            .flat_map(|policy| policy["spec"]["variables"].as_array().cloned().unwrap_or_default());
        let variable = variables.into_iter().find(|variable| variable["name"] == "hostNamesAreNodeNames");
        assert_eq!(variable.expect("the policy has it")["expression"], expected, "{values}");
    };
    takes("", "true");
    takes("admissionPolicy: {hostNamesAreNodeNames: false}", "false");
    takes("classes: [{name: a, hostDir: /a, selector: [{matchExpressions: [{key: k, operator: Exists}]}]}]", "false");
    let none = render("rbac: {create: false}\nserviceAccount: {create: false, name: given}\nuseJobForCleaning: true");
    for kind in ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"] {
        assert!(of_kind(&none, kind).is_empty(), "{kind}");
    }
    assert_eq!(pod(&none).service_account_name.as_deref(), Some("given"));
}

#[test]
fn other_names_are_other_names_everywhere() {
    let values = "fullnameOverride: disks\nserviceAccount: {name: agent}\nremoveNodeNotReadyTaint: true\n\
                  useJobForCleaning: true\nserviceMonitor: {enabled: true}\n";
    let output = run(&["template", "other", "--namespace", "elsewhere"], values);
    let text = String::from_utf8(output.stdout).expect("it is text");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("it is YAML");
    for object in &objects {
        let (kind, name) = (&object["kind"], object["metadata"]["name"].as_str().expect("it has a name"));
        let own = name == "disks" || name.starts_with("disks-");
        assert!(own || kind == "StorageClass" || (kind == "ServiceAccount" && name == "agent"), "{kind} {name}");
        for subject in object["subjects"].as_array().into_iter().flatten() {
            assert_eq!((&subject["name"], &subject["namespace"]), (&json!("agent"), &json!("elsewhere")), "{name}");
        }
    }
    let named = text.matches("system:serviceaccount:elsewhere:agent").count();
    assert_eq!(named, 2, "the policies of the own node and of the start-up taint name it");
    assert!(!text.contains("mooring-system"), "{text}");
}
