//! A node that runs pods: a machine of its own ([`Host`]) with containerd and a kubelet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::disk::{self, LoopDisk, run};
use super::host::{Daemon, Host};
use super::kubelet::{READ_ONLY_PORT, SOCKET, Settings};
use super::scratch::Scratch;
use super::{cgroup, eventually, http};

/// Below it are the discovery directories, one a class.
pub const DISKS: &str = "/mnt/disks";

const START_TIMEOUT: Duration = Duration::from_mins(2);

/// A node.
pub struct RealNode {
    settings: Settings,
    containerd: Daemon,
    kubelet: Daemon,
    host: Host,
    /// For the files behind disks; the same path on every machine.
    scratch: Scratch,
}

impl RealNode {
    /// The node of that number, with a runtime that runs and a kubelet that does not yet
    /// ([`Self::join`]).
    pub fn new(number: usize) -> Self {
        Self::with_taint(number, None)
    }

    /// As [`Self::new`]; its Node is registered with a taint of that key.
    pub fn with_taint(number: usize, taint: Option<&str>) -> Self {
        let name = format!("node-{number}");
        let address = format!("10.97.0.{}", number + 1);
        give_address(&address);
        let subnet = format!("10.244.{number}.0/24");
        let taint = taint.map(ToOwned::to_owned);
        let settings = Settings { cgroup: cgroup::make(&name), name, address, subnet, taint };
        let node = Self {
            containerd: Settings::containerd(),
            kubelet: settings.daemon(),
            host: Host::new(),
            scratch: Scratch::new(&settings.name),
            settings,
        };
        node.host.enter(|| fs::create_dir(DISKS)).expect("a directory can be made on a new machine");
        node.start_containerd();
        node
    }

    /// Starts the kubelet, which makes the Node object; returns at once.
    pub fn join(&self, kubeconfig: &Path) {
        self.host.enter(|| self.settings.write_kubelet(kubeconfig));
        self.kubelet.start(&self.host);
    }

    /// Its name, and the value of its label `kubernetes.io/hostname`.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Whether its kubelet runs and knows its pods, and among them those of that namespace. One that
    /// has ended is started again: it does not wait for containerd to be ready.
    pub fn has_pods_of(&self, namespace: &str) -> bool {
        self.kubelet.revive(&self.host);
        let page = http::get(&format!("{}:{READ_ONLY_PORT}", self.settings.address), "/pods");
        page.is_ok_and(|(status, pods)| status == 200 && pods.contains(&format!(r#""namespace":"{namespace}""#)))
    }

    /// Does something on the machine: mounts, files, programs ([`disk`] is made for it). Paths
    /// are the machine's own. It blocks.
    pub fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.enter(work)
    }

    /// Runs a program on the machine that must succeed, and returns what it says.
    pub fn exec_on_host(&self, arguments: &[&str]) -> String {
        let [program, arguments @ ..] = arguments else { panic!("no program") };
        self.on_host(|| run(Command::new(program).args(arguments)))
    }

    /// A class's discovery directory on the machine, made when it is missing.
    pub fn discovery(&self, class: &str) -> PathBuf {
        let path = Path::new(DISKS).join(class);
        self.on_host(|| fs::create_dir_all(&path)).expect("a discovery directory can be made");
        path
    }

    /// A directory on this machine's own filesystem, for the files behind disks.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Mounts a tmpfs as an entry of a class.
    pub fn mount_tmpfs(&self, class: &str, entry: &str, bytes: u64) -> PathBuf {
        let path = self.discovery(class).join(entry);
        self.on_host(|| disk::tmpfs(&path, bytes));
        path
    }

    /// Makes an ext4 filesystem on a new disk and mounts it as an entry of a class. Keep the disk.
    pub fn mount_ext4(&self, class: &str, entry: &str, bytes: u64) -> (PathBuf, LoopDisk) {
        let path = self.discovery(class).join(entry);
        let made = self.on_host(|| {
            let made = LoopDisk::new(self.dir(), bytes);
            remove_links_to(&made.device);
            made.format_ext4();
            made.mount_ext4(&path);
            made
        });
        (path, made)
    }

    /// A new disk, linked as an entry of a class. Keep it.
    pub fn link_disk(&self, class: &str, entry: &str, bytes: u64) -> (PathBuf, LoopDisk) {
        let dir = self.discovery(class);
        self.on_host(|| {
            let made = LoopDisk::new(self.dir(), bytes);
            remove_links_to(&made.device);
            (made.link(&dir, entry), made)
        })
    }

    /// Unmounts; one that is busy for longer than a moment is a failure of the test.
    pub fn umount(&self, path: &Path) {
        self.on_host(|| disk::umount(path));
    }

    /// Imports an image ([`super::image::build`]).
    pub fn import(&self, tar: &Path) {
        self.ctr(&["images", "import", &tar.display().to_string()]);
    }

    /// Talks to containerd about the kubelet's containers and images.
    pub fn ctr(&self, arguments: &[&str]) -> String {
        self.on_host(|| run(Command::new("ctr").args(["--address", SOCKET, "--namespace", "k8s.io"]).args(arguments)))
    }

    /// The process id of a container, as the test sees it.
    pub fn container_pid(&self, container_id: &str) -> i32 {
        self.find_container(container_id).unwrap_or_else(|| panic!("no container {container_id} runs"))
    }

    fn find_container(&self, container_id: &str) -> Option<i32> {
        let id = container_id.strip_prefix("containerd://").unwrap_or(container_id);
        let tasks = self.ctr(&["tasks", "ls"]);
        let line = tasks.lines().find(|line| line.starts_with(id))?;
        line.split_whitespace().nth(1)?.parse().ok().filter(|&pid| pid > 0)
    }

    /// Kills a container's first process with SIGKILL.
    pub fn kill_container(&self, container_id: &str) {
        kill(Pid::from_raw(self.container_pid(container_id)), Signal::SIGKILL).expect("a process can be killed");
    }

    /// As [`Self::kill_container`], if it runs; whether it did.
    pub fn try_kill_container(&self, container_id: &str) -> bool {
        let pid = self.find_container(container_id);
        pid.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
    }

    /// Where its daemons write, on the machine.
    pub fn logs(&self) -> [String; 2] {
        [self.kubelet.log(), self.containerd.log()]
    }

    fn start_containerd(&self) {
        self.host.enter(|| self.settings.write_runtime());
        self.containerd.start(&self.host);
        eventually(&format!("containerd of {} answers", self.name()), START_TIMEOUT, || {
            self.containerd.assert_running();
            self.on_host(|| {
                let asked = Command::new("ctr").args(["--address", SOCKET, "version"]).output();
                asked.expect("containerd's ctr can be run").status.success()
            })
        });
    }
}

/// A disk that is gone has left its link, and another one has its name now.
fn remove_links_to(device: &Path) {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for entry in entries(Path::new(DISKS)).flat_map(|class| entries(&class).collect::<Vec<_>>()) {
        if fs::read_link(&entry).is_ok_and(|to| to == device) {
            fs::remove_file(&entry).expect("a link can be removed");
        }
    }
}

/// What disturbs whoever else uses the node.
pub struct Disturb<'a>(pub &'a RealNode);

impl Disturb<'_> {
    /// Starts the kubelet; returns at once.
    pub fn start_kubelet(&self) {
        self.0.kubelet.start(&self.0.host);
    }

    /// Stops the kubelet; its pods go on.
    pub fn stop_kubelet(&self) {
        self.0.kubelet.stop();
    }

    /// Starts containerd; returns when it answers.
    pub fn start_containerd(&self) {
        self.0.start_containerd();
    }

    /// Stops containerd; its containers go on.
    pub fn stop_containerd(&self) {
        self.0.containerd.stop();
    }

    /// As when the power goes: its daemons and containers end. Its mounts and files stay.
    pub fn power_off(&self) {
        self.0.kubelet.kill();
        for id in self.0.ctr(&["tasks", "ls", "--quiet"]).lines() {
            let kill = ["--address", SOCKET, "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", id];
            // One that has ended by itself meanwhile is as dead.
            let _ = self.0.on_host(|| Command::new("ctr").args(kill).output());
        }
        self.0.containerd.kill();
    }

    /// Starts what does not run; returns at once.
    pub fn recover(&self) {
        for daemon in [&self.0.containerd, &self.0.kubelet].into_iter().filter(|daemon| daemon.is_stopped()) {
            daemon.start(&self.0.host);
        }
    }

    /// Starts it again; returns at once.
    pub fn power_on(&self) {
        self.start_containerd();
        self.start_kubelet();
    }
}

/// Gives this machine's own network (`tests/in-own-namespace`) an address.
pub fn give_address(address: &str) {
    run(Command::new("ip").args(["address", "add", &format!("{address}/32"), "dev", "lo"]));
}
