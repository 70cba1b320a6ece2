//! What there is to look at after a failure: logs and objects, in a folder of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::real_node::RealNode;
use super::scratch::unique;
use super::site::Site;

/// Collected when this is dropped by a panic.
pub struct Evidence<'a> {
    site: &'a Site,
    test: String,
}

impl<'a> Evidence<'a> {
    /// Of what happens in the cluster during that test.
    pub fn of(site: &'a Site, test: &str) -> Self {
        Self { site, test: test.to_owned() }
    }
}

impl Drop for Evidence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let dir = folder(&self.test);
            collect(self.site, &dir);
            eprintln!("logs and objects of {}: {}", self.test, dir.display());
        }
    }
}

/// Below `.build/e2e`, or what `MOORING_E2E_LOGS` names.
fn folder(test: &str) -> PathBuf {
    let parent = std::env::var_os("MOORING_E2E_LOGS").map(PathBuf::from);
    let parent = parent.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".build/e2e"));
    let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    parent.join(format!("{test}-{now}-{}", unique()))
}

/// A node that is not the cluster's own: the same of it as [`Evidence`] collects, in a folder of its own.
pub fn of_node(node: &RealNode, test: &str) {
    collect_node(node, &folder(test));
}

fn collect_node(node: &RealNode, dir: &Path) {
    let logs = node.on_host(|| {
        let tables = Command::new("cat").arg("/proc/self/mountinfo").output();
        let mut logs = vec![("mountinfo".to_owned(), tables.map(|output| output.stdout).unwrap_or_default())];
        for path in node.logs() {
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            logs.push((name, fs::read(&path).unwrap_or_default()));
        }
        let _ = fs::create_dir_all(dir.join(node.name()));
        // Each container's, those of its former runs as well.
        let _ = Command::new("cp").args(["-r", "/var/log/pods"]).arg(dir.join(node.name())).status();
        logs
    });
    for (name, text) in logs {
        write(dir, &format!("{}/{name}", node.name()), &text);
    }
}

fn write(dir: &Path, name: &str, text: &[u8]) {
    let path = dir.join(name);
    let _ = path.parent().map(fs::create_dir_all);
    let _ = fs::write(path, text);
}

/// What can't be had must not hide the failure, so nothing here panics.
fn collect(site: &Site, dir: &Path) {
    site.nodes().iter().for_each(|node| collect_node(node, dir));
    for file in fs::read_dir(site.plane().dir()).into_iter().flatten().flatten() {
        if file.path().extension().is_some_and(|extension| extension == "log") {
            let name = format!("control-plane/{}", file.file_name().display());
            write(dir, &name, &fs::read(file.path()).unwrap_or_default());
        }
    }
    for kind in ["pv", "pvc", "pod", "event", "node", "storageclass", "daemonset", "statefulset", "job", "configmap"] {
        let request = ["get", kind, "--all-namespaces", "--output=yaml", "--request-timeout=10s"];
        let output = site.kubectl().run(&request, "");
        write(dir, &format!("objects/{kind}.yaml"), &[output.stdout, output.stderr].concat());
    }
}
