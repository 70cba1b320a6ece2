//! Somebody tries to get at a volume between its old claim and the end of its wipe: by
//! clearing `claimRef`, by pointing it at another claim, or by a claim that names the PV.
//! All the while every phase of the PVs and claims is watched, and whenever a claim gets a
//! volume, its disk is read in full.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, ResourceExt};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};

use crate::common::{SOON, start_with, wait_verdict};
use crate::harness::disk::LoopDisk;
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Agent, shared};
use crate::wipe_scene::first_not_zero;

const SIZE: usize = 3 << 20;
/// A wipe takes more than a second.
const SLOW: &str = "volumeMode: Block\nwipe: {bandwidth: 2Mi}";
/// A wipe of a large disk takes two minutes, and a second with the other rules.
const LARGE: u64 = 128 << 20;
const SLOWEST: &str = "volumeMode: Block\nwipe: {bandwidth: 1Mi}";
const QUICK: &str = "volumeMode: Block\nwipe: {bandwidth: 128Mi}";
const LET_GO: &str = r#"{"metadata": {"annotations": {"mooring.dev/hold": null}}}"#;

/// What somebody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Attack {
    /// Takes `claimRef` away.
    Clear,
    /// Points `claimRef` at another claim.
    Repoint,
    /// Points `claimRef` at another claim, UID and all.
    Impersonate,
    /// Makes a claim of the old one's name, which names the PV.
    Prebind,
}

const ALL: [Attack; 4] = [Attack::Clear, Attack::Repoint, Attack::Impersonate, Attack::Prebind];

/// A device whose claim is gone, and which is full of its tenant's data.
struct Volume {
    attack: Attack,
    disk: LoopDisk,
    link: PathBuf,
    pv: PersistentVolume,
    claim: PersistentVolumeClaim,
    /// The claim that wants the PV.
    rival: Option<PersistentVolumeClaim>,
}

impl Volume {
    fn name(&self) -> String {
        self.pv.name_any()
    }

    /// The patch of its PV; none when it is not patched.
    fn patch(&self) -> Option<Value> {
        let rival = self.rival.as_ref().expect("there is one by now");
        let mut claim = json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default",
                                "name": rival.name_any(), "uid": null, "resourceVersion": null });
        match self.attack {
            Attack::Clear => Some(json!({ "spec": { "claimRef": null } })),
            Attack::Repoint => Some(json!({ "spec": { "claimRef": claim } })),
            Attack::Impersonate => {
                claim["uid"] = json!(rival.uid());
                Some(json!({ "spec": { "claimRef": claim } }))
            }
            Attack::Prebind => None,
        }
    }
}

/// A node with a volume for each attack, all of them claimed once and released.
struct Scene {
    node: TestNode,
    class: String,
    disks: PathBuf,
    agent: Agent,
    volumes: Vec<Volume>,
    witness: Witness,
}

/// `held`: the wipes are held.
async fn released(tag: &str, size: u64, rules: &str, keys: &[(&str, &str)], held: bool) -> Scene {
    let node = TestNode::new(shared(), tag).await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let made: Vec<_> = ALL.map(|attack| (attack, LoopDisk::new(node.dir(), size))).into();
    let agent = start_with(&node, &[(&class, &disks, rules)], keys);
    let mut volumes = Vec::new();
    for (attack, disk) in made {
        let link = disk.link(&disks, &format!("{attack:?}"));
        let pv = node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
        let claim = node.bind(&pv.name_any()).await;
        // A wipe comes to it last.
        disk.write_at(size - SIZE as u64, &b"TENANT-SECRET...".repeat(SIZE / 16));
        volumes.push(Volume { attack, disk, link, pv, claim, rival: None });
    }
    let witness = Witness::of(&node, &volumes);
    for volume in &volumes {
        if held {
            node.hold(&volume.name(), true).await;
        }
        node.release(&volume.claim).await;
    }
    Scene { node, class, disks, agent, volumes, witness }
}

impl Scene {
    async fn kill(&mut self) {
        self.agent.signal(nix::sys::signal::Signal::SIGKILL);
        self.agent.wait_exit(SOON).await;
    }

    fn start(&mut self, rules: &str, keys: &[(&str, &str)]) {
        self.agent = start_with(&self.node, &[(&self.class, &self.disks, rules)], keys);
    }

    /// Attacks each volume; with a fence, the API server denies it. `with` is changed
    /// together with `claimRef`.
    async fn attack(&mut self, fenced: bool, with: &str) {
        for volume in &mut self.volumes {
            let name = match volume.attack {
                Attack::Prebind => volume.claim.name_any(),
                _ => format!("{}-rival", volume.claim.name_any()),
            };
            volume.rival = Some(self.node.claim_again(&volume.claim, &name).await);
            let Some(mut patch) = volume.patch() else { continue };
            if fenced {
                wait_denied(&self.node, volume, &patch).await;
            }
            let with: Value = serde_json::from_str(with).expect("it is JSON");
            patch.as_object_mut().expect("it is an object").extend(with.as_object().expect("it is one").clone());
            let result = self.node.patch_pv(&volume.name(), patch).await;
            match result {
                Err(kube::Error::Api(status)) if fenced => {
                    assert_eq!(status.code, 403, "{status:?}");
                    assert!(status.message.contains("the volume is being wiped"), "{status:?}");
                }
                Ok(_) if !fenced => {}
                other => panic!("{:?} of a PV, fenced: {fenced}: {other:?}", volume.attack),
            }
        }
    }

    /// Waits until each volume has been wiped, and its rival has got it.
    async fn wiped_for_the_rivals(self) {
        for volume in &self.volumes {
            let rival = volume.rival.as_ref().expect("it was attacked").uid();
            let is_its = |pv: &PersistentVolume| {
                let claim = pv.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
                phase(pv) == "Bound"
                    && pv.uid() != volume.pv.uid()
                    && claim.and_then(|claim| claim.uid.clone()) == rival
            };
            wait_bound(&self.node, volume, is_its).await;
            assert_eq!(first_not_zero(&volume.disk.backing), None, "{:?}", volume.attack);
        }
        assert_eq!(self.witness.end(&self.volumes).await, [""; 0]);
        drop(self.agent);
        self.node.clean_up().await;
    }
}

/// Waits until the rival is Bound to a PV like this.
async fn wait_bound(node: &TestNode, volume: &Volume, is_its: impl Fn(&PersistentVolume) -> bool) {
    let rival = volume.rival.as_ref().expect("it was attacked");
    let bind = async {
        while !node.nudge(rival).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::join!(node.wait_pv(&volume.link, is_its, SOON), bind);
}

/// Waits until the API server would deny it: it learns of a new policy by a watch of its own.
async fn wait_denied(node: &TestNode, volume: &Volume, patch: &Value) {
    let deadline = std::time::Instant::now() + SOON;
    while let Ok(allowed) = node.try_patch_pv(&volume.name(), patch.clone()).await {
        assert!(std::time::Instant::now() < deadline, "{:?} is allowed: {allowed:?}", volume.attack);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Watches the PVs and claims of a scene, and notes what must not be.
struct Witness {
    faults: Arc<Mutex<Vec<String>>>,
    bound: Bound,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

/// The UIDs of new claims that were seen Bound.
type Bound = Arc<Mutex<BTreeSet<String>>>;

impl Witness {
    fn of(node: &TestNode, volumes: &[Volume]) -> Self {
        let faults = Arc::new(Mutex::new(Vec::new()));
        let bound = Bound::default();
        let of_claims = watch_claims(node, volumes, Arc::clone(&faults), Arc::clone(&bound));
        let of_pvs = watch_pvs(node, volumes, Arc::clone(&faults));
        Self { faults, bound, tasks: [tokio::spawn(of_claims), tokio::spawn(of_pvs)] }
    }

    /// What must not have been. By now each volume's rival is Bound, which is waited for to be seen.
    async fn end(&self, volumes: &[Volume]) -> Vec<String> {
        let rivals: BTreeSet<_> = volumes
            .iter()
            .map(|volume| volume.rival.as_ref().and_then(ResourceExt::uid).expect("it has a UID"))
            .collect();
        let seen = || self.bound.lock().unwrap_or_else(PoisonError::into_inner).is_superset(&rivals);
        let deadline = std::time::Instant::now() + SOON;
        while !seen() {
            assert!(std::time::Instant::now() < deadline, "not all rivals are seen Bound");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!self.tasks.iter().any(tokio::task::JoinHandle::is_finished), "a watch has ended");
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Notes a fault once.
fn note(faults: &Mutex<Vec<String>>, fault: String) {
    let mut faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
    if !faults.contains(&fault) {
        faults.push(fault);
    }
}

/// Whenever a new claim has a volume, nothing of the old tenant is on it.
fn watch_claims(
    node: &TestNode,
    volumes: &[Volume],
    faults: Arc<Mutex<Vec<String>>>,
    bound: Bound,
) -> impl Future<Output = ()> + use<> {
    let tenants: Vec<_> = volumes.iter().map(|volume| volume.claim.uid()).collect();
    let disks: BTreeMap<_, _> = volumes.iter().map(|volume| (volume.name(), volume.disk.backing.clone())).collect();
    let mut events = Box::pin(watcher(node.claims_api(), watcher::Config::default()));
    async move {
        while let Some(event) = events.next().await {
            let (Ok(Event::Apply(claim)) | Ok(Event::InitApply(claim))) = event else { continue };
            let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
            let pv = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_ref());
            let Some(disk) = pv.and_then(|pv| disks.get(pv)) else { continue };
            if phase != Some("Bound") || tenants.contains(&claim.uid()) {
                continue;
            }
            if let Some(place) = first_not_zero(disk) {
                note(&faults, format!("{} has got a volume that is not zero at {place}", claim.name_any()));
            }
            bound.lock().unwrap_or_else(PoisonError::into_inner).extend(claim.uid());
        }
    }
}

/// A volume whose wipe may have begun is not offered or claimed under the old PV.
fn watch_pvs(node: &TestNode, volumes: &[Volume], faults: Arc<Mutex<Vec<String>>>) -> impl Future<Output = ()> + use<> {
    let old: Vec<_> = volumes.iter().map(|volume| volume.pv.uid()).collect();
    let mut events = Box::pin(watcher(Api::<PersistentVolume>::all(node.client()), watcher::Config::default()));
    async move {
        while let Some(event) = events.next().await {
            let (Ok(Event::Apply(pv)) | Ok(Event::InitApply(pv))) = event else { continue };
            let fenced = pv.finalizers().iter().any(|finalizer| finalizer == "mooring.dev/wipe");
            if old.contains(&pv.uid()) && fenced && phase(&pv) != "Released" {
                note(&faults, format!("{} is {} behind the fence", pv.name_any(), phase(&pv)));
            }
        }
    }
}

/// Waits until something that happens now is dealt with.
async fn wait_for_a_later_volume(node: &TestNode, disks: &std::path::Path) -> LoopDisk {
    let later = LoopDisk::new(node.dir(), 1 << 20);
    let link = later.link(disks, "later");
    node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
    later
}

#[tokio::test]
async fn before_the_fence_whoever_takes_the_pv_keeps_its_data() {
    // At leisure, and together with letting go of the wipe: then the agent and the
    // controller-manager see it at the same time.
    for (tag, at_once) in [("taken", false), ("taken-at-once", true)] {
        let mut scene = released(tag, SIZE as u64, SLOW, &[], true).await;
        for volume in &scene.volumes {
            scene.node.wait_pv(&volume.link, |pv| phase(pv) == "Released", SOON).await;
        }
        scene.attack(false, if at_once { LET_GO } else { "{}" }).await;
        let Scene { node, class, disks, agent, volumes, witness } = scene;
        for volume in &volumes {
            if volume.attack != Attack::Prebind {
                wait_bound(&node, volume, |pv| phase(pv) == "Bound" && pv.uid() == volume.pv.uid()).await;
            }
            node.hold(&volume.name(), false).await;
        }
        let prebound = volumes.last().expect("there are some");
        wait_bound(&node, prebound, |pv| phase(pv) == "Bound" && pv.uid() != prebound.pv.uid()).await;
        assert_eq!(first_not_zero(&prebound.disk.backing), None);
        let _later = wait_for_a_later_volume(&node, &disks).await;
        for volume in &volumes[..volumes.len() - 1] {
            wait_verdict(&agent, &class, &format!("{:?}", volume.attack), "Published").await;
            let now = node.wait_pv(&volume.link, |_| true, SOON).await;
            assert_eq!((now.uid(), now.finalizers()), (volume.pv.uid(), volume.pv.finalizers()), "{:?}", volume.attack);
            let data = std::fs::read(&volume.disk.backing).expect("it can be read");
            assert!(data == b"TENANT-SECRET...".repeat(SIZE / 16), "{:?}: the data is kept", volume.attack);
        }
        let kept = witness.end(&volumes).await;
        assert_eq!(kept.len(), volumes.len() - 1, "each has got the data that it was given: {kept:?}");
        drop(agent);
        node.clean_up().await;
    }
}

#[tokio::test]
async fn after_the_finalizer_nobody_gets_the_volume_before_it_is_wiped() {
    fenced_by_an_agent_that_died("finalizer", false).await;
}

#[tokio::test]
async fn after_the_delete_nobody_gets_the_volume_before_it_is_wiped() {
    fenced_by_an_agent_that_died("deleted", true).await;
}

/// An agent went as far as the finalizer, or the DELETE, and the next one is late.
async fn fenced_by_an_agent_that_died(tag: &str, deleted: bool) {
    let mut scene = released(tag, SIZE as u64, SLOW, &[], true).await;
    scene.kill().await;
    for volume in &scene.volumes {
        scene.node.wait_pv(&volume.link, |pv| phase(pv) == "Released", SOON).await;
        let finalizers = [volume.pv.finalizers(), &["mooring.dev/wipe".to_owned()]].concat();
        let annotations = json!({ "mooring.dev/hold": null, "mooring.dev/reclaiming": volume.claim.uid() });
        let patch = json!({ "metadata": { "finalizers": finalizers, "annotations": annotations } });
        scene.node.patch_pv(&volume.name(), patch).await.expect("a finalizer can be added");
        if deleted {
            let api: Api<PersistentVolume> = Api::all(scene.node.client());
            api.delete(&volume.name(), &DeleteParams::default()).await.expect("a PV can be deleted");
        }
    }
    scene.attack(true, "{}").await;
    scene.start(SLOW, &[]);
    scene.wiped_for_the_rivals().await;
}

#[tokio::test]
async fn while_it_waits_for_its_turn_and_in_the_middle_of_its_wipe_nobody_gets_the_volume() {
    for (tag, wipes) in [("turn", "1"), ("middle", "4")] {
        let keys = [("maxParallelWipes", wipes)];
        let mut scene = released(tag, LARGE, SLOWEST, &keys, false).await;
        for volume in &scene.volumes {
            let fenced = |pv: &PersistentVolume| pv.metadata.deletion_timestamp.is_some();
            scene.node.wait_pv(&volume.link, fenced, SOON).await;
        }
        scene.agent.wait_log("Wipe begins", SOON).await;
        scene.attack(true, "{}").await;
        for volume in &scene.volumes {
            assert!(!scene.node.nudge(volume.rival.as_ref().expect("it was attacked")).await, "{:?}", volume.attack);
        }
        // It goes on, and to its end.
        scene.kill().await;
        scene.start(QUICK, &keys);
        scene.wiped_for_the_rivals().await;
    }
}
