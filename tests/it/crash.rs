//! The agent is killed, again and again and wherever it is, while tenants come and go. At
//! no time is a volume offered or bound with anything of its last tenant on it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, DeleteParams, ResourceExt};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::common::{SOON, start};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::{Volumes, path_of, phase};
use crate::harness::{Agent, shared};
use crate::wipe_scene::first_not_zero;

/// How often an agent is killed, on how many nodes at the same time.
const KILLS: usize = 200;
const NODES: usize = 3;
/// How often each phase must be hit at least.
const LEAST: usize = 10;
/// Volumes of a node.
const DISKS: usize = 3;
const TREES: usize = 3;
const SIZE: usize = 8 << 20;
/// The wipe of a disk takes about half a second.
const RAW: &str = "volumeMode: Block\nwipe: {bandwidth: 16Mi, verify: full}";
/// Files of a tenant: their removal takes tens of milliseconds.
const FILES: usize = 1500;
/// The end of it all.
const LIMIT: Duration = Duration::from_mins(5);

/// What the agent is at with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Publishing,
    Fencing,
    WipingDevice,
    RemovingTree,
    Verifying,
    RemovingPv,
}

const PHASES: [Phase; 6] =
    [Phase::Publishing, Phase::Fencing, Phase::WipingDevice, Phase::RemovingTree, Phase::Verifying, Phase::RemovingPv];

/// A volume and its tenants.
struct Ward {
    path: PathBuf,
    content: Content,
    tenancy: Mutex<Tenancy>,
}

enum Content {
    Device(LoopDisk),
    Tree,
}

/// PVs by their UIDs.
#[derive(Default)]
struct Tenancy {
    /// Those that a tenant has or had: what is on the volume then is the tenant's.
    taken: BTreeSet<String>,
    /// Those whose tenant has left.
    left: BTreeSet<String>,
}

impl Ward {
    /// What of a tenant is on the volume.
    fn residue(&self) -> Option<String> {
        match &self.content {
            Content::Device(disk) => first_not_zero(&disk.backing).map(|place| format!("byte {place} is not zero")),
            Content::Tree => {
                let mut entries = fs::read_dir(&self.path).expect("the directory can be read");
                entries.next().map(|entry| format!("{:?} is in it", entry.expect("it can be read").file_name()))
            }
        }
    }

    /// The tenant writes.
    fn fill(&self) {
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

    fn tenancy(&self) -> std::sync::MutexGuard<'_, Tenancy> {
        self.tenancy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self) -> String {
        self.path.file_name().expect("it has a name").to_string_lossy().into_owned()
    }
}

/// A node, its volumes, and what was seen there.
struct Site {
    node: TestNode,
    raw: (String, PathBuf),
    trees: (String, PathBuf),
    wards: Vec<Ward>,
    volumes: watch::Sender<Volumes>,
    faults: Mutex<Vec<String>>,
    tenants: AtomicUsize,
    /// PVs that somebody removed.
    lost: AtomicUsize,
    over: AtomicBool,
}

async fn site(tag: &str) -> Site {
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
    fn agent(&self) -> Agent {
        start(&self.node, &[(&self.raw.0, &self.raw.1, RAW), (&self.trees.0, &self.trees.1, "")])
    }

    fn fault(&self, text: String) {
        eprintln!("fault: {text}");
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// Looks at each PV that is offered or bound, until this is dropped.
    async fn guard(&self) -> Infallible {
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
    async fn tenants_of(&self, ward: &Ward) {
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

    /// Starts agents and kills them, each when it comes to another phase.
    async fn kill(&self, kills: usize) -> BTreeMap<Phase, usize> {
        let mut hits: BTreeMap<Phase, usize> = PHASES.map(|phase| (phase, 0)).into();
        for number in 0..kills {
            let mut agent = self.agent();
            let aim = PHASES[number % PHASES.len()];
            self.wait_for(aim, &agent).await;
            agent.signal(Signal::SIGKILL);
            agent.wait_exit(SOON).await;
            let lines = agent.logs();
            for ward in &self.wards {
                let Some(phase) = self.phase_of(ward, &lines) else { continue };
                *hits.entry(phase).or_default() += 1;
                if phase == Phase::Publishing {
                    self.have_a_tenant(ward).await;
                }
            }
            if number % 3 == 0 || aim == Phase::Publishing {
                self.lose_a_pv().await;
            }
        }
        hits
    }

    /// If the volume is offered, a tenant comes and goes before the next agent starts.
    async fn have_a_tenant(&self, ward: &Ward) {
        let of_it = |pv: &PersistentVolume| ward.path == Path::new(path_of(pv));
        let Some(pv) = self.node.pvs().await.into_iter().find(of_it) else { return };
        if ["", "Pending", "Available", "Bound"].contains(&phase(&pv)) {
            self.node.wait_pv(&ward.path, |pv| phase(pv) == "Released", SOON).await;
        }
    }

    /// Somebody removes the PV of a volume that is to be wiped, or is being wiped, finalizer
    /// and all: then only the ledger tells what is on it.
    async fn lose_a_pv(&self) {
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
        self.node.patch_pv(&pv.name_any(), free).await.expect("finalizers can be removed");
        let _ = api.delete(&pv.name_any(), &DeleteParams::default()).await;
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// An admin lets each quarantined volume be wiped, until this is dropped.
    async fn admin(&self) -> Infallible {
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

    /// Waits for the beginning of the phase on any volume, and a bit, but not for ever.
    async fn wait_for(&self, aim: Phase, agent: &Agent) {
        let spread = match aim {
            Phase::WipingDevice => 400,
            Phase::RemovingTree => 20,
            Phase::Publishing | Phase::Fencing | Phase::Verifying | Phase::RemovingPv => 8,
        };
        let deadline = Instant::now() + Duration::from_secs(3);
        let (mut from, mut begun) = (0, false);
        while !begun && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if aim == Phase::Verifying {
                begun = ledger(&self.node).values().any(is_verifying);
            } else {
                let lines = agent.logs_after(from);
                begun = lines.iter().any(|line| begins(line, aim));
                from += lines.len();
            }
        }
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..=spread * 1000))).await;
    }

    /// What an agent that died was at with a volume, as its log and its ledger say; none when
    /// it was at nothing.
    fn phase_of(&self, ward: &Ward, lines: &[String]) -> Option<Phase> {
        let volumes = self.volumes.borrow();
        let pv = volumes.values().find(|pv| ward.path == Path::new(path_of(pv))).map(ResourceExt::name_any);
        let (path, entry) = (format!("\"{}\"", ward.path.display()), format!("\"{}\"", ward.entry()));
        let is_about = |line: &&String| {
            line.contains(&path)
                || line.contains(&entry)
                || pv.as_ref().is_some_and(|pv| line.contains(&format!("\"pv\":\"{pv}\"")))
        };
        let is_telling = |line: &&String| {
            line.contains("\"Volume is published\"") || PHASES.iter().any(|phase| begins(line, *phase))
        };
        let last = lines.iter().rev().filter(is_about).find(is_telling)?;
        let phase = PHASES.into_iter().find(|phase| begins(last, *phase))?;
        let entry = ledger(&self.node).remove(&ward.path);
        Some(if entry.as_ref().is_some_and(is_verifying) { Phase::Verifying } else { phase })
    }
}

/// Whether the line says that the agent comes to the phase.
fn begins(line: &str, phase: Phase) -> bool {
    let wipe = |kind: &str| line.contains("\"Wipe begins\"") && line.contains(&format!("\"entry\":\"{kind}-"));
    match phase {
        Phase::Publishing => line.contains("its PV is being made"),
        Phase::Fencing => line.contains("\"step\":\"Fence\"") || line.contains("\"step\":\"Delete\""),
        Phase::WipingDevice => wipe("disk"),
        Phase::RemovingTree => wipe("tree"),
        Phase::Verifying => false,
        Phase::RemovingPv => line.contains("\"Volume is wiped and verified\""),
    }
}

/// The ledger's entries by path.
fn ledger(node: &TestNode) -> BTreeMap<PathBuf, Value> {
    let files = fs::read_dir(node.state_dir()).into_iter().flatten().flatten().map(|file| file.path());
    let entries = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
    // One may be replaced meanwhile.
    let entries = entries.filter_map(|file| serde_json::from_slice(&fs::read(file).ok()?).ok());
    entries.filter_map(|entry: Value| Some((PathBuf::from(entry["path"].as_str()?), entry))).collect()
}

/// All is overwritten, and the volume is not clean yet.
fn is_verifying(entry: &Value) -> bool {
    entry["state"]["is"] == "wiping" && entry["state"]["cursor"]["pass"].as_u64().is_some_and(|pass| pass > 0)
}

#[tokio::test]
async fn whenever_the_agent_is_killed_no_tenant_gets_anothers_data() {
    let mut sites = Vec::new();
    for number in 0..NODES {
        sites.push(site(&format!("crash-{number}")).await);
    }
    let begun = Instant::now();
    let ends = futures::future::join_all(sites.iter().map(run)).await;
    let mut hits = BTreeMap::new();
    for (phase, count) in ends.into_iter().flatten() {
        *hits.entry(phase).or_insert(0) += count;
    }
    let tenants: usize = sites.iter().map(|site| site.tenants.load(Ordering::Relaxed)).sum();
    let lost: usize = sites.iter().map(|site| site.lost.load(Ordering::Relaxed)).sum();
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{KILLS} kills, {tenants} tenants, {lost} PVs removed, {seconds:.0} s; phases that were hit: {hits:?}");
    for site in &sites {
        assert_eq!(*site.faults.lock().unwrap_or_else(PoisonError::into_inner), [""; 0]);
    }
    for phase in PHASES {
        assert!(hits[&phase] >= LEAST, "{phase:?} was hit {} times only", hits[&phase]);
    }
    for site in sites {
        site.node.clean_up().await;
    }
}

/// Tenants, guard and kills on one node; at the end all volumes are offered anew.
async fn run(site: &Site) -> BTreeMap<Phase, usize> {
    tokio::select! {
        hits = live(site) => hits,
        never = site.guard() => match never {},
        never = site.admin() => match never {},
    }
}

async fn live(site: &Site) -> BTreeMap<Phase, usize> {
    let kills = async {
        let hits = site.kill(KILLS.div_ceil(NODES)).await;
        let agent = site.agent();
        site.over.store(true, Ordering::Relaxed);
        (hits, agent)
    };
    let tenants = futures::future::join_all(site.wards.iter().map(|ward| site.tenants_of(ward)));
    let ((hits, agent), _) = tokio::join!(kills, tenants);
    for ward in &site.wards {
        let is_new = |pv: &PersistentVolume| {
            phase(pv) == "Available" && !ward.tenancy().left.contains(&pv.uid().unwrap_or_default())
        };
        site.node.wait_pv(&ward.path, is_new, SOON).await;
        assert_eq!(ward.residue(), None, "{}", ward.entry());
    }
    drop(agent);
    hits
}
