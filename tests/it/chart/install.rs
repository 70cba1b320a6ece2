//! The chart on a real API server: installed, upgraded, and gone without a trace.

use std::io::Write;
use std::process::{Command, ExitStatus, Stdio};

use serde_json::{Value, json};

use super::{chart, helm};
use crate::harness::scratch::unique;
use crate::harness::{ControlPlane, Scratch, shared, supervisor};

/// A release in a namespace of its own. No node is chosen: there is no kubelet.
struct Release {
    plane: &'static ControlPlane,
    name: String,
    home: Scratch,
}

impl Release {
    fn helm(&self, arguments: &[&str], values: &str) {
        let ended = self.run(arguments, values);
        assert!(ended.success(), "helm {arguments:?}");
    }

    fn run(&self, arguments: &[&str], values: &str) -> ExitStatus {
        let mut command = Command::new(helm());
        command.args(arguments).arg(&self.name).args(["--namespace", &self.name]);
        if !values.is_empty() {
            command.arg(chart()).args(["--values", "-"]);
        }
        command.env("KUBECONFIG", self.plane.kubeconfig()).env("HOME", self.home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("helm can be run");
        // One that has no values reads none.
        let _ = child.stdin.take().expect("it was asked for").write_all(values.as_bytes());
        child.wait().expect("it ends")
    }

    /// What there is with the release's labels.
    fn objects(&self) -> Vec<Value> {
        let kinds = "serviceaccounts,configmaps,daemonsets,roles,rolebindings,services,networkpolicies,storageclasses,\
                     clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings";
        let label = format!("app.kubernetes.io/instance={}", self.name);
        let output = Command::new(supervisor::binary())
            .args(["kubectl", "get", kinds, "--namespace", &self.name, "--selector", &label, "-o", "json"])
            .env("KUBECONFIG", self.plane.kubeconfig())
            .output()
            .expect("kubectl can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let list: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        list["items"].as_array().expect("it is a list").clone()
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        // What a test that failed leaves, in a cluster that may outlive it.
        let _ = self.run(&["uninstall", "--ignore-not-found"], "");
    }
}

fn one<'o>(objects: &'o [Value], kind: &str) -> &'o Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("there is no {kind}"))
}

#[test]
fn helm_installs_and_upgrades_the_chart_without_a_restart_and_takes_it_away() {
    let name = format!("release-{}-{}", std::process::id(), unique());
    let release = Release { plane: shared(), name, home: Scratch::new("helm") };
    let values = |pattern: &str| {
        format!(
            "nodeSelector: {{example.com/none: here}}\nremoveNodeNotReadyTaint: true\nuseJobForCleaning: true\n\
             networkPolicy: {{enabled: true}}\nclasses:\n- name: {}\n  hostDir: /mnt/disks\n  volumeMode: Block\n  \
             namePattern: '{pattern}'\n  storageClass: true\n",
            release.name
        )
    };
    release.helm(&["install", "--create-namespace"], &values("nvme*"));
    let before = release.objects();
    let kinds = |objects: &[Value], kind: &str| objects.iter().filter(|object| object["kind"] == kind).count();
    // The fence, the own node, the start-up taint.
    assert_eq!(kinds(&before, "ValidatingAdmissionPolicy"), 3);
    assert_eq!((kinds(&before, "ClusterRole"), kinds(&before, "Role"), kinds(&before, "StorageClass")), (2, 1, 1));
    release.helm(&["upgrade"], &values("ssd*"));
    let after = release.objects();
    assert_eq!(before.len(), after.len());
    let map = |objects: &[Value]| one(objects, "ConfigMap")["data"]["storageClassMap"].to_string();
    assert!(map(&before).contains("nvme*") && map(&after).contains("ssd*"));
    let generation = |objects: &[Value]| one(objects, "DaemonSet")["metadata"]["generation"].clone();
    assert_eq!((generation(&before), generation(&after)), (json!(1), json!(1)));
    release.helm(&["uninstall", "--wait"], "");
    assert_eq!(release.objects(), Vec::<Value>::new());
}
