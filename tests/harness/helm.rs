//! The chart, installed by helm as an admin does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::disk::run;
use super::image;
use super::kubelet::RACK;
use super::rbac::NAMESPACE;
use super::real_node::DISKS;
use super::scratch::{Scratch, unique};

/// The release's name.
pub const RELEASE: &str = "mooring";

/// A label that every PV gets (`labelsForPV`), and its value.
pub const LABEL: &str = "example.com/medium";
/// The value of [`LABEL`].
pub const LABEL_VALUE: &str = "nvme";

/// helm with a kubeconfig and a directory for what it keeps.
pub struct Helm {
    kubeconfig: PathBuf,
    scratch: Scratch,
}

impl Helm {
    /// With the rights that the kubeconfig gives.
    pub fn new(kubeconfig: &Path) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), scratch: Scratch::new("helm") }
    }

    /// Installs or upgrades the chart; returns before its pods run.
    pub fn apply(&self, values: &Value) {
        let file = self.scratch.path().join(format!("values-{}.json", unique()));
        fs::write(&file, values.to_string()).expect("a file can be written");
        let file = file.display().to_string();
        let chart = chart().display().to_string();
        self.run(&["upgrade", "--install", "--create-namespace", "--values", &file, RELEASE, &chart]);
    }

    /// Removes the release.
    pub fn uninstall(&self) {
        self.run(&["uninstall", "--wait", RELEASE]);
    }

    /// Any other command, in the agent's namespace.
    pub fn run(&self, arguments: &[&str]) -> String {
        let mut helm = Command::new(binary());
        helm.env("HELM_CACHE_HOME", self.scratch.path()).env("HELM_CONFIG_HOME", self.scratch.path());
        helm.env("HELM_DATA_HOME", self.scratch.path()).arg("--kubeconfig").arg(&self.kubeconfig);
        run(helm.args(["--namespace", NAMESPACE]).args(arguments))
    }
}

/// The chart: the one that `MOORING_CHART` names, else the project's.
pub fn chart() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(std::env::var("MOORING_CHART").unwrap_or_else(|_| "deploy/chart/mooring".to_owned()))
}

fn binary() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".build/helm");
    assert!(path.exists(), "{} is missing; run `make helm`", path.display());
    path
}

/// The values that name the tests' image and these classes, each with its discovery directory and `StorageClass`.
pub fn values(classes: &[Value]) -> Value {
    let repository = "mooring";
    json!({
        "image": { "repository": repository, "tag": image::AGENT_TAG, "pullPolicy": "Never" },
        "classes": classes,
        "labelsForPV": { LABEL: LABEL_VALUE },
        "nodeLabels": [RACK],
    })
}

/// A class of that name with its discovery directory `/mnt/disks/NAME`; `further` are more of its
/// fields, as the chart's values have them.
pub fn class(name: &str, further: &Value) -> Value {
    let mut class = json!({ "name": name, "hostDir": format!("{DISKS}/{name}"), "storageClass": true });
    let fields = class.as_object_mut().expect("it is an object");
    fields.extend(further.as_object().cloned().unwrap_or_default());
    class
}
