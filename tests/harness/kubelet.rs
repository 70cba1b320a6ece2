//! The files and command lines of a node's programs: containerd, its network, the kubelet.

use std::fs;
use std::path::Path;

use super::host::Daemon;
use super::image;
use super::supervisor;

/// Where containerd listens, on its own machine.
pub const SOCKET: &str = "/run/containerd/containerd.sock";

/// Where a kubelet says which pods it has, at its node's address, by plain HTTP.
pub const READ_ONLY_PORT: u16 = 10255;

/// A label of each Node, and of its PVs (`nodeLabelsForPV`).
pub const RACK: &str = "example.com/rack";

const CONTAINERD: &str = "/run/mooring/containerd.toml";
const KUBELET: &str = "/run/mooring/kubelet.yaml";
const KUBECONFIG: &str = "/run/mooring/kubeconfig";
const NETWORKS: &str = "/run/mooring/cni";

/// The value of [`RACK`] of the Node of that name.
pub fn rack(node: &str) -> String {
    format!("rack-of-{node}")
}

/// A node's name, address, pod network, cgroup and taint.
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Its address, which this machine has.
    pub address: String,
    /// Its pods' network, such as `10.244.1.0/24`.
    pub subnet: String,
    /// Its pods' cgroup, such as `/PARENT/NAME`.
    pub cgroup: String,
    /// The key of a taint that its Node is registered with.
    pub taint: Option<String>,
}

impl Settings {
    /// Writes what containerd reads, on the node's machine.
    pub fn write_runtime(&self) {
        write(CONTAINERD, &containerd());
        write(&format!("{NETWORKS}/10-pods.conflist"), &self.network());
    }

    /// Writes what the kubelet reads, on the node's machine.
    pub fn write_kubelet(&self, kubeconfig: &Path) {
        write(KUBELET, &self.kubelet());
        write(KUBECONFIG, &fs::read_to_string(kubeconfig).expect("the kubeconfig can be read"));
    }

    fn kubelet(&self) -> String {
        let Self { address, cgroup, .. } = self;
        let taint = |key| format!("registerWithTaints: [{{key: {key}, effect: NoSchedule}}]\n");
        let taint = self.taint.as_ref().map_or_else(String::new, taint);
        format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupRoot: {cgroup}
containerRuntimeEndpoint: unix://{SOCKET}
# Else a container that is killed again and again waits for 10 s, then for 20, …
crashLoopBackOff: {{maxContainerRestartPeriod: 1s}}
enforceNodeAllocatable: []
evictionHard: {{memory.available: 0%, nodefs.available: 0%, imagefs.available: 0%}}
failCgroupV1: false
failSwapOn: false
healthzBindAddress: {address}
imageGCHighThresholdPercent: 100
kubeAPIBurst: 400
kubeAPIQPS: 200
localStorageCapacityIsolation: false
oomScoreAdj: 0
podLogsDir: /var/log/pods
readOnlyPort: {READ_ONLY_PORT}
resolvConf: \"\"
# How soon pods see a change of their ConfigMap; a minute else.
syncFrequency: 5s
volumePluginDir: /var/lib/kubelet/exec
{taint}"
        )
    }

    fn network(&self) -> String {
        let Self { name, subnet, .. } = self;
        format!(
            r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{
    "type": "bridge", "bridge": "{name}", "isGateway": true,
    "ipam": {{"type": "host-local", "dataDir": "/run/mooring/addresses",
        "ranges": [[{{"subnet": "{subnet}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}
}}]}}
"#
        )
    }

    /// The container runtime.
    pub fn containerd() -> Daemon {
        Daemon::new("containerd", &["containerd", "--config", CONTAINERD])
    }

    /// The kubelet.
    pub fn daemon(&self) -> Daemon {
        let cluster = supervisor::binary().display().to_string();
        let (name, address) = (&self.name, &self.address);
        let arguments = [
            &cluster,
            "kubelet",
            "--config",
            KUBELET,
            &format!("--kubeconfig={KUBECONFIG}"),
            &format!("--hostname-override={name}"),
            &format!("--node-labels={RACK}={}", rack(name)),
            &format!("--node-ip={address}"),
            "--root-dir=/var/lib/kubelet",
            "--cert-dir=/var/lib/kubelet/pki",
        ];
        Daemon::new("kubelet", &arguments)
    }
}

fn write(path: &str, text: &str) {
    let dir = Path::new(path).parent().expect("a file is in a directory");
    fs::create_dir_all(dir).expect("a directory can be made on a new machine");
    fs::write(path, text).expect("a file can be written on a new machine");
}

/// `restrict_oom_score_adj`: where `CAP_SYS_RESOURCE` is missing, runc could start nothing without.
/// The plugin `opt` would make `/opt/containerd`.
fn containerd() -> String {
    let pause = image::PAUSE;
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{NETWORKS}"
"#
    )
}
