//! What the integration tests, the demo and the benchmark share: a real control
//! plane, nodes with disks, and the agent as a child process. Included by each of
//! those targets as a module; none of them uses all of it.
//!
//! Whatever is started here ends with the process that started it, however that
//! process ends: the control plane by the end of its standard input, agents by
//! their parent-death signal, mounts by the mount namespace, loop devices by
//! autoclear, and directories by the next run's sweep.

#![allow(dead_code, unused_imports)]
// It makes and removes its own files, and waits for its own helpers.
#![allow(clippy::disallowed_methods)]

pub mod admin;
pub mod agent;
pub mod audit;
pub mod cgroup;
pub mod cluster;
pub mod config_dir;
pub mod confine;
pub mod disk;
pub mod evidence;
pub mod frozen;
pub mod hands;
pub mod helm;
pub mod host;
pub mod http;
pub mod image;
pub mod kubectl;
pub mod kubelet;
pub mod launch;
pub mod node;
pub mod pods;
pub mod prometheus;
pub mod proxy;
pub mod rbac;
pub mod real_node;
pub mod scratch;
pub mod site;
pub mod supervisor;
pub mod throttle;
pub mod volumes;
pub mod zram;

pub use agent::{Agent, AgentOptions};
pub use audit::AuditEntry;
pub use cluster::{ControlPlane, Options, shared};
pub use config_dir::{ConfigDir, storage_class_map};
pub use disk::LoopDisk;
pub use node::TestNode;
pub use scratch::Scratch;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Whether this process may mount things.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Panics when this process could mount things and is not known to be in a mount
/// namespace of its own, without which they would outlive it. It is known when the
/// `runner` script says which namespace it was started in, or when the namespace of
/// process 1 can be read (in a sandbox it often cannot).
pub fn require_own_namespace() {
    let own = fs::read_link("/proc/self/ns/mnt").expect("a process has a mount namespace");
    let left = std::env::var_os("MOORING_OUTER_NAMESPACE").map(PathBuf::from);
    // With process ids of its own, process 1 is one of ours.
    let other = left.or_else(|| fs::read_link("/proc/1/ns/mnt").ok());
    assert!(
        !is_root() || other.is_some_and(|other| other != own),
        "these tests mount things, so as root they need a mount namespace of their own; run them with \
         `make test`, or through the script tests/in-own-namespace (cargo's `runner`)"
    );
}

/// Waits, blocking, until the condition holds; panics after `timeout`, saying `what` was waited for.
pub fn eventually(what: &str, timeout: Duration, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {timeout:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
