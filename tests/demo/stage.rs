//! What the demo plays on: a control plane, a Node, an agent, and disks. Dropping it
//! takes all of that down; `take_down` does so in order and makes sure of it.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use serde_json::Value;

use super::harness::disk::{is_attached, tmpfs};
use super::harness::volumes::path_of;
use super::harness::{Agent, AgentOptions, ControlPlane, LoopDisk, TestNode, storage_class_map};
use super::plane;
use super::screen::Screen;
use super::timeline::Timeline;

pub const MIB: u64 = 1 << 20;

/// Fields end in this order: agent, disks, node (with all mounts), control plane.
pub struct Stage {
    pub agent: Option<Agent>,
    pub disks: Vec<LoopDisk>,
    pub timeline: Timeline,
    pub node: TestNode,
    pub fast: PathBuf,
    pub raw: PathBuf,
    pub kept: PathBuf,
    _plane: ControlPlane,
}

/// A volume that the agent has published.
pub struct Published {
    /// Such as `fast/scratch`.
    pub label: String,
    pub path: PathBuf,
    pub pv: String,
    pub uid: String,
    pub after: Duration,
    /// Which of the stage's disks it is on.
    pub disk: Option<usize>,
}

impl Published {
    pub fn is_device(&self) -> bool {
        self.path.is_symlink()
    }
}

impl Stage {
    pub async fn set_up(screen: &Screen) -> anyhow::Result<Self> {
        screen.act("1  A cluster with one Node");
        let start = Instant::now();
        let plane = plane::start().await?;
        let version = plane.client().await.apiserver_version().await?.git_version;
        screen.done(&format!("etcd, API server and controllers of Kubernetes {version}"), start.elapsed());
        let timeline = Timeline::start(plane.kubeconfig())?;
        let node = TestNode::new(&plane, "demo").await;
        let [fast, raw, kept] = ["fast", "raw", "kept"].map(|name| node.discovery_dir(name));
        Ok(Self { agent: None, disks: Vec::new(), timeline, node, fast, raw, kept, _plane: plane })
    }

    /// Starts the agent, then lets disks appear and waits for their PVs.
    pub async fn mount_all(&mut self, screen: &Screen) -> anyhow::Result<Vec<Published>> {
        let (fast, raw) = (self.node.class("fast", "Delete").await, self.node.class("raw", "Delete").await);
        let kept = self.node.class("kept", "Retain").await;
        screen.note("StorageClass fast discovers filesystems, StorageClass raw block devices");
        for directory in ["scratch", "ext4", "not-mounted"] {
            std::fs::create_dir(self.fast.join(directory))?;
        }
        nix::unistd::mkfifo(&self.fast.join("a-fifo"), Mode::S_IRWXU)?;
        std::fs::create_dir(self.raw.join("a-directory"))?;
        let map = storage_class_map(&[
            (&fast, &self.fast, ""),
            (&raw, &self.raw, "volumeMode: Block"),
            (&kept, &self.kept, ""),
        ]);
        let start = Instant::now();
        let agent =
            Agent::start(&self.node, AgentOptions { config: &[("storageClassMap", &map)], ..Default::default() });
        self.agent.insert(agent).wait_log("Ready: every entry was looked at", Duration::from_secs(30)).await;
        screen.done("mooring runs as ServiceAccount mooring and is ready", start.elapsed());

        screen.act("2  Disks appear, and so do their PersistentVolumes");
        let ext4 = self.disk("ext4.img", 64 * MIB)?;
        let made = Command::new("mkfs.ext4").arg("-q").arg(&self.disks[ext4].device).status()?;
        ensure!(made.success(), "mkfs.ext4 failed");
        let device = self.disk("raw.img", 256 * MIB)?;
        let fast = self.fast.clone();
        Ok(vec![
            self.publish(screen, &fast.join("scratch"), None, "a tmpfs is mounted", |_, path| tmpfs(path, 64 * MIB))
                .await?,
            self.publish(screen, &fast.join("ext4"), Some(ext4), "an ext4 filesystem is mounted", |stage, path| {
                stage.disks[ext4].mount_ext4(path);
            })
            .await?,
            self.publish(screen, &self.raw.join("disk"), Some(device), "a block device is linked", |stage, _| {
                stage.disks[device].link(&stage.raw, "disk");
            })
            .await?,
        ])
    }

    /// Attaches a new disk; returns which of the stage's it is.
    pub fn disk(&mut self, name: &str, bytes: u64) -> anyhow::Result<usize> {
        let backing = self.node.dir().join(name);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&backing)?;
        file.set_len(bytes)?;
        self.disks.push(LoopDisk::attach(backing));
        Ok(self.disks.len() - 1)
    }

    /// Lets a volume appear and waits for its PV.
    pub async fn publish(
        &mut self,
        screen: &Screen,
        path: &Path,
        disk: Option<usize>,
        what: &str,
        appear: impl FnOnce(&Self, &Path),
    ) -> anyhow::Result<Published> {
        let label = self.short(&path.to_string_lossy());
        // What was seen before must not count as what follows.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let start = Instant::now();
        appear(self, path);
        let what_for = format!("a PV for {label}");
        let seen = self.timeline.wait(&what_for, |seen| Path::new(path_of(&seen.pv)) == path).await?;
        let after = seen.at.saturating_duration_since(start);
        screen.done(&format!("{what} at {label} -> {}", seen.name()), after);
        Ok(Published { label, path: path.to_owned(), pv: seen.name(), uid: seen.uid(), after, disk })
    }

    /// Takes the long names of this run out of a text: directories and classes.
    pub fn short(&self, text: &str) -> String {
        let root = format!("{}/", self.node.root().display());
        text.replace(&root, "").replace(&format!("{}-", self.node.name()), "")
    }

    fn log(&self) -> Vec<String> {
        self.agent.as_ref().map(Agent::logs).unwrap_or_default()
    }

    pub fn last_log_lines(&self, count: usize) -> Vec<String> {
        let log = self.log();
        log[log.len().saturating_sub(count)..].iter().map(|line| self.short(line)).collect()
    }

    /// The fields of the agent's lines with that message.
    pub fn log_events(&self, message: &str) -> Vec<Value> {
        let events = self.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        events.filter(|event| event["message"] == message).collect()
    }

    /// The log from the first wipe on, as text.
    pub fn told(&self) -> Vec<String> {
        let events = self.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        let lines = events.skip_while(|event| event["message"] != "Volume is being wiped").map(|event| {
            let mut text = format!(
                "{} {}",
                event["level"].as_str().unwrap_or_default(),
                event["message"].as_str().unwrap_or_default()
            );
            for key in ["path", "pv", "seconds"] {
                match &event[key] {
                    Value::Null => {}
                    Value::String(value) => text += &format!(" {key}={value}"),
                    value => text += &format!(" {key}={:.4}", value.as_f64().unwrap_or_default()),
                }
            }
            self.short(&text)
        });
        lines.collect()
    }

    /// Ends everything in order and makes sure that it has.
    pub async fn take_down(mut self, screen: &Screen) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agent.take() {
            let start = Instant::now();
            agent.signal(Signal::SIGTERM);
            let status = agent.wait_exit(Duration::from_secs(15)).await;
            ensure!(status.success(), "the agent ended with {status} after SIGTERM");
            screen.act("9  The end");
            screen.done("SIGTERM: the agent stops in order", start.elapsed());
        }
        let scratch = self.node.dir().to_owned();
        let disks: Vec<_> = self.disks.iter().map(|disk| (disk.device.clone(), disk.backing.clone())).collect();
        drop(self);
        for (device, backing) in disks {
            let deadline = Instant::now() + Duration::from_secs(5);
            while is_attached(&device, &backing) {
                ensure!(Instant::now() < deadline, "{} is still attached", device.display());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        ensure!(!scratch.exists(), "{} is still there", scratch.display());
        screen.checked("mounts, loop devices, files and processes of the demo", "removed");
        Ok(())
    }
}
