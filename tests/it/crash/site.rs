//! A node whose volumes tenants take, fill and leave, one after another. A watch reads each
//! volume when its PV is offered, and each tenant before it writes.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, DeleteParams, ResourceExt};
use serde_json::json;
use tokio::sync::watch;

use crate::common::{SOON, start};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::{Volumes, path_of, phase};
use crate::harness::{Agent, shared};
use crate::wipe_scene::first_not_zero;

/// Volumes of a node.
const DISKS: usize = 3;
const TREES: usize = 3;
const SIZE: usize = 8 << 20;
/// The wipe of a disk takes about half a second.
const RAW: &str = "volumeMode: Block\nwipe: {bandwidth: 16Mi, verify: full}";
/// Files of a tenant: their removal takes tens of milliseconds.
const FILES: usize = 1500;
/// The end of it all, on the slowest of machines.
pub const LIMIT: Duration = Duration::from_mins(20);

/// A volume and its tenants.
pub struct Ward {
    pub path: PathBuf,
    content: Content,
    tenancy: Mutex<Tenancy>,
}

pub enum Content {
    Device(LoopDisk),
    Tree,
}

/// PVs by their UIDs.
#[derive(Default)]
pub struct Tenancy {
    /// Those that a tenant has or had: what is on the volume then is the tenant's.
    taken: BTreeSet<String>,
    /// Those whose tenant has left.
    pub left: BTreeSet<String>,
}

impl Ward {
    /// What of a tenant is on the volume.
    pub fn residue(&self) -> Option<String> {
        match &self.content {
            Content::Device(disk) => first_not_zero(&disk.backing).map(|place| format!("byte {place} is not zero")),
            Content::Tree => {
                let mut entries = fs::read_dir(&self.path).expect("the directory can be read");
                entries.next().map(|entry| format!("{:?} is in it", entry.expect("it can be read").file_name()))
            }
        }
    }

    /// The tenant writes.
    pub fn fill(&self) {
        match &self.content {
            Content::Device(disk) => disk.write_at(0, &b"TENANT-SECRET...".repeat(SIZE / 16)),
            Content::Tree => {
                for file in 0..FILES {
                    let dir = self.path.join(format!("d{}", file % 10));
                    fs::create_dir_all(&dir).expect("a directory can be made");
                    fs::write(dir.join(file.to_string()), "TENANT-SECRET").expect("a file can be written");
                }
            }
        }
    }

    pub fn tenancy(&self) -> MutexGuard<'_, Tenancy> {
        self.tenancy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn entry(&self) -> String {
        self.path.file_name().expect("it has a name").to_string_lossy().into_owned()
    }
}

/// A node, its volumes, and what was seen there.
pub struct Site {
    pub node: TestNode,
    raw: (String, PathBuf),
    trees: (String, PathBuf),
    pub wards: Vec<Ward>,
    pub volumes: watch::Sender<Volumes>,
    pub faults: Mutex<Vec<String>>,
    pub tenants: AtomicUsize,
    /// PVs that somebody removed.
    pub lost: AtomicUsize,
    pub over: AtomicBool,
}

pub async fn site(tag: &str) -> Site {
    let node = TestNode::new(shared(), tag).await;
    let raw = (node.class("raw", "Delete").await, node.discovery_dir("raw"));
    let trees = (node.class("trees", "Delete").await, node.discovery_dir("trees"));
    let mut wards = Vec::new();
    let tenancy = Mutex::default;
    for number in 0..DISKS {
        let disk = LoopDisk::new(node.dir(), SIZE as u64);
        let path = disk.link(&raw.1, &format!("disk-{number}"));
        wards.push(Ward { path, content: Content::Device(disk), tenancy: tenancy() });
    }
    for number in 0..TREES {
        let path = trees.1.join(format!("tree-{number}"));
        disk::tmpfs(&path, 64 << 20);
        wards.push(Ward { path, content: Content::Tree, tenancy: tenancy() });
    }
    let volumes = watch::Sender::new(Volumes::new());
    Site {
        node,
        raw,
        trees,
        wards,
        volumes,
        faults: Mutex::default(),
        tenants: AtomicUsize::new(0),
        lost: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    }
}

impl Site {
    pub fn agent(&self) -> Agent {
        start(&self.node, &[(&self.raw.0, &self.raw.1, RAW), (&self.trees.0, &self.trees.1, "")])
    }

    fn fault(&self, text: String) {
        eprintln!("fault: {text}");
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// Looks at each PV that is offered or bound, until this is dropped.
    pub async fn guard(&self) -> Infallible {
        let seen: RefCell<BTreeSet<(String, String)>> = RefCell::default();
        let look = |volumes: &Volumes| {
            for pv in volumes.values() {
                let key = (pv.uid().unwrap_or_default(), phase(pv).to_owned());
                if seen.borrow_mut().insert(key) {
                    self.look_at(pv, &seen.borrow());
                }
            }
            self.volumes.send_replace(volumes.clone());
            None
        };
        self.node.watch_pvs("the end", LIMIT, look).await
    }

    /// A PV in a phase that it was not seen in before.
    fn look_at(&self, pv: &PersistentVolume, seen: &BTreeSet<(String, String)>) {
        if !["Available", "Bound"].contains(&phase(pv)) {
            return;
        }
        let uid = pv.uid().unwrap_or_default();
        let ward = self.wards.iter().find(|ward| ward.path == Path::new(path_of(pv))).expect("no other path is there");
        if seen.contains(&(uid.clone(), "Released".to_owned())) {
            self.fault(format!("{} is {} after it was Released", ward.entry(), phase(pv)));
        }
        // The lock keeps the next tenant out while the volume is read.
        let tenancy = ward.tenancy();
        if !tenancy.taken.contains(&uid)
            && let Some(residue) = ward.residue()
        {
            self.fault(format!("{} is {}, and {residue}", ward.entry(), phase(pv)));
        }
    }

    /// One tenant after another, until all is over.
    pub async fn tenants_of(&self, ward: &Ward) {
        while let Some(pv) = self.offered(ward).await {
            let uid = pv.uid().unwrap_or_default();
            self.check(ward, "before it is claimed", |tenancy| tenancy.taken.insert(uid.clone()));
            let claim = self.node.bind(&pv.name_any()).await;
            self.check(ward, "when it is bound", |_| true);
            ward.fill();
            self.tenants.fetch_add(1, Ordering::Relaxed);
            ward.tenancy().left.insert(uid);
            self.node.release(&claim).await;
        }
    }

    fn check(&self, ward: &Ward, when: &str, then: impl FnOnce(&mut Tenancy) -> bool) {
        let mut tenancy = ward.tenancy();
        if let Some(residue) = ward.residue() {
            self.fault(format!("{} {when}: {residue}", ward.entry()));
        }
        then(&mut tenancy);
    }

    /// Waits for a PV that nobody has had; none when all is over.
    async fn offered(&self, ward: &Ward) -> Option<PersistentVolume> {
        let mut volumes = self.volumes.subscribe();
        loop {
            if self.over.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(pv) = self.fresh(ward, &volumes.borrow_and_update()) {
                return Some(pv);
            }
            // The end comes without a change.
            let _ = tokio::time::timeout(Duration::from_millis(200), volumes.changed()).await;
        }
    }

    fn fresh(&self, ward: &Ward, volumes: &Volumes) -> Option<PersistentVolume> {
        let is_it = |pv: &&PersistentVolume| {
            let uid = pv.uid().unwrap_or_default();
            ward.path == Path::new(path_of(pv)) && phase(pv) == "Available" && !ward.tenancy().taken.contains(&uid)
        };
        volumes.values().find(is_it).cloned()
    }

    /// If the volume is offered, a tenant comes and goes before the next agent starts.
    pub async fn have_a_tenant(&self, ward: &Ward) {
        let of_it = |pv: &PersistentVolume| ward.path == Path::new(path_of(pv));
        let Some(pv) = self.node.pvs().await.into_iter().find(of_it) else { return };
        if ["", "Pending", "Available", "Bound"].contains(&phase(&pv)) {
            self.node.wait_pv(&ward.path, |pv| phase(pv) == "Released", SOON).await;
        }
    }

    /// Somebody removes the PV of a volume that is to be wiped, or is being wiped, finalizer
    /// and all: then only the ledger tells what is on it.
    pub async fn lose_a_pv(&self) {
        let of_a_wipe = |pv: &PersistentVolume| {
            let is_left = |ward: &Ward| ward.tenancy().left.contains(&pv.uid().unwrap_or_default());
            phase(pv) == "Released" && self.wards.iter().any(is_left)
        };
        // The last one to be released is the one of which an agent may know the least.
        let released = self.node.pvs().await.into_iter().filter(of_a_wipe);
        let since = |pv: &PersistentVolume| pv.status.as_ref()?.last_phase_transition_time.as_ref().map(|time| time.0);
        let Some(pv) = released.max_by_key(since) else { return };
        let free = json!({ "metadata": { "finalizers": null } });
        let api: Api<PersistentVolume> = Api::all(self.node.client());
        // Terminating, it goes with its finalizers.
        match self.node.patch_pv(&pv.name_any(), free).await {
            Ok(_) => {}
            // Gone by itself meanwhile.
            Err(kube::Error::Api(status)) if status.code == 404 => return,
            Err(error) => panic!("finalizers can't be removed: {error}"),
        }
        let _ = api.delete(&pv.name_any(), &DeleteParams::default()).await;
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// An admin lets each quarantined volume be wiped, until this is dropped.
    pub async fn admin(&self) -> Infallible {
        let mut volumes = self.volumes.subscribe();
        loop {
            let all: Vec<_> = volumes.borrow_and_update().values().cloned().collect();
            for pv in all.iter().filter(|pv| pv.annotations().contains_key("mooring.dev/quarantined")) {
                let policy = pv.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
                if policy == Some("Retain") && !pv.annotations().contains_key("mooring.dev/reclaim") {
                    let word = json!({ "metadata": { "annotations": { "mooring.dev/reclaim": "wipe" } } });
                    // It may be gone by now, and is looked at again if not.
                    let _ = self.node.patch_pv(&pv.name_any(), word).await;
                }
            }
            volumes.changed().await.expect("the sender lives as long as the site");
        }
    }
}
