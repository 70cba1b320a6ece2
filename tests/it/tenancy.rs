//! The scene of the tests about what is on a volume: one filesystem and one device, each
//! offered by one agent, on which tenants leave what nobody else may see.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ResourceExt;

use crate::common::{SOON, start_with};
use crate::harness::agent::Agent;
use crate::harness::config_dir::storage_class_map;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::{path_of, phase};
use crate::harness::{ControlPlane, shared};

/// What a tenant leaves.
pub const SECRET: &[u8] = b"TENANT-SECRET";
const SIZE: u64 = 16 << 20;
const LONG: Duration = Duration::from_secs(3600);

/// A filesystem or a device.
pub struct Store {
    /// Its class, which has no other.
    pub class: String,
    /// Its discovery directory.
    pub dir: PathBuf,
    /// Its name there.
    pub entry: &'static str,
    /// The disk that it is on.
    pub disk: LoopDisk,
    is_device: bool,
}

impl Store {
    /// An ext4 filesystem on a disk, or the disk itself.
    pub async fn new(node: &TestNode, is_device: bool, policy: &str) -> Self {
        let kind = if is_device { "raw" } else { "fs" };
        let (class, dir) = (node.class(kind, policy).await, node.discovery_dir(kind));
        let store = Self { class, dir, entry: "vol", disk: LoopDisk::new(node.dir(), SIZE), is_device };
        if !is_device {
            store.disk.format_ext4();
            fs::create_dir(store.path()).expect("a mount point can be made");
        }
        store.attach();
        store
    }

    /// Mounts it, or links to it.
    pub fn attach(&self) {
        if self.is_device {
            self.disk.link(&self.dir, self.entry);
        } else {
            self.disk.mount_ext4(&self.path());
        }
    }

    /// Unmounts it, or removes the link to it.
    pub fn detach(&self) {
        if self.is_device {
            fs::remove_file(self.path()).expect("a link can be removed");
        } else {
            disk::umount(&self.path());
        }
    }

    /// Puts another disk in its place; the former one must be detached. It comes with a
    /// filesystem of its own where the former one did.
    pub fn exchange(&mut self, other: LoopDisk) -> LoopDisk {
        if !self.is_device {
            other.format_ext4();
        }
        self.exchange_as_it_is(other)
    }

    /// The same with what is on the disk.
    pub fn exchange_as_it_is(&mut self, other: LoopDisk) -> LoopDisk {
        std::mem::replace(&mut self.disk, other)
    }

    /// The path that its PV carries.
    pub fn path(&self) -> PathBuf {
        self.dir.join(self.entry)
    }

    /// Leaves the secret on it.
    pub fn write_secret(&self) {
        if self.is_device {
            for offset in [1 << 20, SIZE / 2, SIZE - (1 << 20)] {
                self.disk.write_at(offset, &[SECRET, &[b'.'; 512 - SECRET.len()]].concat());
            }
        } else {
            fs::create_dir_all(self.path().join("dir")).expect("a directory can be made");
            fs::write(self.path().join("dir/secret"), SECRET).expect("a file can be written");
        }
    }

    /// Whether all of the secret is on it still.
    pub fn has_secret(&self) -> bool {
        if self.is_device {
            let all = self.disk.read_all();
            memchr::memmem::find_iter(&all, SECRET).count() == 3
        } else {
            fs::read(self.path().join("dir/secret")).is_ok_and(|content| content == SECRET)
        }
    }

    /// Whether nothing is on it.
    pub fn is_blank(&self) -> bool {
        if self.is_device {
            return self.disk.read_all().iter().all(|byte| *byte == 0);
        }
        let names = fs::read_dir(self.path()).expect("the directory can be read").flatten();
        names.into_iter().all(|entry| entry.file_name() == "lost+found")
    }

    /// What an admin does by hand to have it clean.
    pub fn empty_by_hand(&self) {
        if self.is_device {
            self.disk.write_at(0, &vec![0; usize::try_from(SIZE).expect("it is small")]);
        } else {
            fs::remove_dir_all(self.path().join("dir")).expect("a directory can be removed");
        }
    }

    /// Waits for its PV to be in that phase.
    pub async fn wait(&self, node: &TestNode, wanted: &str) -> PersistentVolume {
        node.wait_pv(&self.path(), |pv| phase(pv) == wanted && pv.metadata.deletion_timestamp.is_none(), SOON).await
    }

    /// Waits for a PV in that phase, another than before.
    pub async fn wait_anew(&self, node: &TestNode, wanted: &str, before: &PersistentVolume) -> PersistentVolume {
        let is_it = |pv: &PersistentVolume| {
            phase(pv) == wanted && pv.uid() != before.uid() && pv.metadata.deletion_timestamp.is_none()
        };
        node.wait_pv(&self.path(), is_it, SOON).await
    }
}

/// A node with one store of each kind.
pub struct Scene {
    pub node: TestNode,
    /// The filesystem, then the device.
    pub stores: Vec<Store>,
    /// Further lines of each class.
    pub fields: &'static str,
    /// Further keys of the config.
    pub keys: &'static [(&'static str, &'static str)],
    agent: Option<Agent>,
}

impl Scene {
    /// Not begun: no agent runs.
    pub async fn new(tag: &str, policy: &str) -> Self {
        Self::on(shared(), tag, policy).await
    }

    /// On another control plane than the shared one.
    pub async fn on(plane: &ControlPlane, tag: &str, policy: &str) -> Self {
        let node = TestNode::new(plane, tag).await;
        let stores = vec![Store::new(&node, false, policy).await, Store::new(&node, true, policy).await];
        Self { node, stores, fields: "", keys: &[], agent: None }
    }

    /// Starts the agent.
    pub fn begin(&mut self) {
        assert!(self.agent.is_none(), "one agent runs already");
        self.agent = Some(self.with_classes(|classes| start_with(&self.node, classes, self.keys)));
    }

    /// Has the agent read the config anew: it has other fields now.
    pub fn reload(&self) {
        let map = self.with_classes(storage_class_map);
        let config: Vec<_> = [("storageClassMap", map.as_str())].into_iter().chain(self.keys.iter().copied()).collect();
        self.agent().rewrite_config(&config);
    }

    fn with_classes<T>(&self, work: impl FnOnce(&[(&str, &Path, &str)]) -> T) -> T {
        let fields: Vec<_> = self
            .stores
            .iter()
            .map(|store| {
                format!("volumeMode: {}\n{}", if store.is_device { "Block" } else { "Filesystem" }, self.fields)
            })
            .collect();
        let classes: Vec<(&str, &Path, &str)> = self
            .stores
            .iter()
            .zip(&fields)
            .map(|(store, fields)| (store.class.as_str(), store.dir.as_path(), fields.as_str()))
            .collect();
        work(&classes)
    }

    /// Kills the agent, as a power cut would.
    pub async fn kill(&mut self) {
        let mut agent = self.agent.take().expect("an agent runs");
        agent.signal(nix::sys::signal::Signal::SIGKILL);
        agent.wait_exit(SOON).await;
    }

    /// The agent that runs.
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent runs")
    }

    /// Claims the PV of each store, and leaves the secret on it.
    pub async fn use_all(&self) -> Vec<(PersistentVolume, PersistentVolumeClaim)> {
        let mut used = Vec::new();
        for store in &self.stores {
            let pv = store.wait(&self.node, "Available").await;
            let claim = self.node.bind(&pv.name_any()).await;
            store.write_secret();
            assert!(store.has_secret());
            used.push((pv, claim));
        }
        used
    }

    /// Waits until the agent's ledger has something in that state for each store, on disk.
    pub async fn wait_ledger(&self, state: &str) {
        self.wait_ledger_text(&format!("\"is\":\"{state}\"")).await;
    }

    /// Waits until the agent's ledger has an entry with that text for each store, on disk.
    pub async fn wait_ledger_text(&self, words: &str) {
        let files = || fs::read_dir(self.node.state_dir()).into_iter().flatten().flatten().map(|file| file.path());
        let count = || {
            // Not those that are being written.
            let whole = files().filter(|path| path.extension().is_some_and(|end| end == "json"));
            let texts = whole.filter_map(|path| fs::read_to_string(path).ok());
            texts.filter(|text| text.contains(words)).count()
        };
        let deadline = std::time::Instant::now() + SOON;
        while count() < self.stores.len() {
            assert!(std::time::Instant::now() < deadline, "the ledger does not say {words} of each store");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Carries out the steps; meanwhile no PV may offer a store that has the secret.
    pub async fn never_offered<T>(&self, steps: impl Future<Output = T>) -> T {
        let watch = self.node.watch_pvs("the end of the test", LONG, |pvs| {
            for store in &self.stores {
                let offers = |pv: &PersistentVolume| Path::new(path_of(pv)) == store.path() && phase(pv) == "Available";
                assert!(!(pvs.values().any(offers) && store.has_secret()), "{} is offered", store.path().display());
            }
            None::<()>
        });
        tokio::select! {
            result = steps => result,
            () = watch => unreachable!("it never finds anything"),
        }
    }

    /// Ends the agent, and removes what a cluster should not keep.
    pub async fn end(mut self) {
        self.agent = None;
        self.node.clean_up().await;
    }
}
