//! A cgroup for a node's pods, in each controller (v1) or in the one tree (v2). The `runner`
//! script names the parent of all and removes it.

use std::fs;
use std::path::{Path, PathBuf};

/// The parent of all, made by the first node.
pub fn parent() -> String {
    std::env::var("MOORING_CGROUP").expect("the runner script (tests/in-own-namespace) names a cgroup")
}

/// Makes the cgroup `/PARENT/NAME` and returns that path.
pub fn make(name: &str) -> String {
    let parent = parent();
    for root in roots() {
        if root.join("cgroup.controllers").exists() {
            enable_all(&root);
        }
        for path in [root.join(&parent), root.join(&parent).join(name)] {
            fs::create_dir_all(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
            prepare(&path);
        }
    }
    format!("/{parent}/{name}")
}

/// Where controllers are mounted.
fn roots() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("the mount table can be read");
    let of_kind = |kind: &str| -> Vec<PathBuf> {
        let lines = table.lines().filter(|line| line.contains(&format!(" - {kind} ")));
        lines.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
    };
    let v1 = of_kind("cgroup");
    let roots = if v1.is_empty() { of_kind("cgroup2") } else { v1 };
    assert!(!roots.is_empty(), "no cgroup filesystem is mounted; a kubelet needs one");
    roots
}

/// A new cpuset (v1) has neither CPUs nor memory; a new group (v2) gives no controllers to those below.
fn prepare(path: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(own) = fs::read_to_string(path.join(file)) else { continue };
        let above = path.parent().map(|above| fs::read_to_string(above.join(file)).unwrap_or_default());
        if own.trim().is_empty() && !path.join("cgroup.controllers").exists() {
            fs::write(path.join(file), above.unwrap_or_default()).expect("a cpuset can be filled in");
        }
    }
    if path.join("cgroup.controllers").exists() {
        enable_all(path);
    }
}

fn enable_all(path: &Path) {
    let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        // The kubelet names those it misses.
        let _ = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}
