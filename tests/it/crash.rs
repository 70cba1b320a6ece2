//! The agent is killed, again and again and wherever it is, while tenants come and go. At
//! no time is a volume offered or bound with anything of its last tenant on it.

mod site;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{SOON, start, wait_verdict};
use crate::harness::disk::LoopDisk;
use crate::harness::frozen::FrozenMount;
use crate::harness::node::TestNode;
use crate::harness::volumes::{path_of, phase};
use crate::harness::{Agent, shared};
use crate::wipe_scene::{bytes_written, first_not_zero};
use site::{LIMIT, Site, Ward, site};

/// How often an agent is killed, on how many nodes at the same time.
const KILLS: usize = 200;
const NODES: usize = 3;
/// How often each phase must be hit at least on each node.
const LEAST: usize = 4;
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
impl Site {
    /// Starts agents and kills them, each when it comes to another phase. A phase that was hit too
    /// rarely is aimed at again: on a busy machine the blow comes late.
    async fn kill(&self, kills: usize) -> BTreeMap<Phase, usize> {
        let mut hits: BTreeMap<Phase, usize> = PHASES.map(|phase| (phase, 0)).into();
        let deadline = Instant::now() + LIMIT / 2;
        for number in 0.. {
            let wanted: Vec<Phase> = PHASES.into_iter().filter(|phase| number < kills || hits[phase] < LEAST).collect();
            if wanted.is_empty() || Instant::now() > deadline {
                break;
            }
            let mut agent = self.agent();
            let aim = wanted[number % wanted.len()];
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
    let tenants: usize = sites.iter().map(|site| site.tenants.load(Ordering::Relaxed)).sum();
    let lost: usize = sites.iter().map(|site| site.lost.load(Ordering::Relaxed)).sum();
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{KILLS} kills, {tenants} tenants, {lost} PVs removed, {seconds:.0} s; phases that were hit: {ends:?}");
    for site in &sites {
        assert_eq!(*site.faults.lock().unwrap_or_else(PoisonError::into_inner), [""; 0]);
    }
    for hits in ends {
        assert!(hits.values().all(|count| *count >= LEAST), "{hits:?}");
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

/// The first place of the device that the ledger says is not known to be wiped, in the middle of a wipe.
fn cursor(node: &TestNode, path: &Path) -> Option<u64> {
    let entry = ledger(node).remove(path)?;
    let cursor = &entry["state"]["cursor"];
    cursor["offset"].as_u64().filter(|_| entry["state"]["is"] == "wiping" && cursor["pass"] == 0)
}

/// Has the device used, released and wiped by an agent that is killed when a part of it is done. Returns
/// the PV, and how far it was; none when the blow came too late.
async fn kill_in_the_middle(
    node: &TestNode,
    classes: &[(&str, &Path, &str)],
    disk: &LoopDisk,
    link: &Path,
) -> Option<(PersistentVolume, u64)> {
    let size = fs::metadata(&disk.backing).expect("it is a file").len();
    let mut agent = start(node, classes);
    let pv = node.wait_pv(link, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&pv.name_any()).await;
    for place in 0..64 {
        disk.write_at(place * size / 64, &b"TENANT-SECRET...".repeat(256));
    }
    node.release(&claim).await;
    agent.wait_log("Wipe begins", SOON).await;
    // It is written down each second.
    let deadline = Instant::now() + SOON;
    let is_at_it = || agent.logs().iter().all(|line| !line.contains("\"Volume is wiped and verified\""));
    while is_at_it() && cursor(node, link).is_none_or(|at| at < size / 8) {
        assert!(Instant::now() < deadline, "the cursor is at {:?}", cursor(node, link));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.signal(Signal::SIGKILL);
    agent.wait_exit(SOON).await;
    cursor(node, link).map(|at| (pv, at))
}

#[tokio::test]
async fn a_wipe_that_was_killed_in_its_middle_is_not_begun_anew() {
    const SIZE: u64 = 1 << 30;
    let node = TestNode::new(shared(), "cursor").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let disk = LoopDisk::new(node.dir(), SIZE);
    let link = disk.link(&disks, "disk");
    let class_with = |rules| [(class.as_str(), disks.as_path(), rules)];
    // It takes four seconds; a busy machine may sleep through them.
    let slow = class_with("volumeMode: Block\nwipe: {method: zero, bandwidth: 256Mi}");
    let mut killed = None;
    for _ in 0..10 {
        killed = kill_in_the_middle(&node, &slow, &disk, &link).await;
        if killed.is_some() {
            break;
        }
    }
    let (pv, at) = killed.expect("one of ten wipes is killed in its middle");
    assert!(at < SIZE && first_not_zero(&disk.backing).is_some(), "it was at {at}");
    let before = bytes_written(&disk.device);
    let agent = start(&node, &class_with("volumeMode: Block\nwipe: {method: zero}"));
    node.wait_pv(&link, |now| phase(now) == "Available" && now.uid() != pv.uid(), SOON).await;
    let written = bytes_written(&disk.device) - before;
    eprintln!("killed at {} %, {} % written after", at * 100 / SIZE, written * 100 / SIZE);
    assert!(written < SIZE - at + SIZE / 10, "{written} bytes were written after the restart");
    assert!(written >= SIZE - at, "{written} bytes are not all of what was left");
    assert_eq!(first_not_zero(&disk.backing), None);
    drop(agent);
    node.clean_up().await;
}

/// Whether a thread that wipes waits for a disk, uninterruptibly.
fn a_wipe_is_held(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    stats.into_iter().any(|stat| stat.contains("(wipe-") && stat.contains(") D "))
}

#[tokio::test]
async fn an_agent_that_the_kernel_holds_leaves_its_node_to_the_next_one() {
    // Dropped last: the kernel keeps it until the disk answers.
    let mut first: Agent;
    let node = TestNode::new(shared(), "heir").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let frozen = FrozenMount::new(&node.root().join("frozen"), 56 << 20);
    let disk = LoopDisk::attach(node.root().join("frozen/nbd"));
    let link = disk.link(&disks, "held");
    let classes = [(class.as_str(), disks.as_path(), "")];
    first = start(&node, &[(&class, &disks, "wipe: {bandwidth: 1Mi}")]);
    let held = node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&held.name_any()).await;
    disk.write_at(32 << 20, &b"TENANT-SECRET...".repeat(256));
    node.release(&claim).await;
    first.wait_log("Wipe begins", SOON).await;
    // Not before: whoever else asks a frozen disk what is beneath it has it open from then on.
    frozen.freeze(true);
    let deadline = Instant::now() + SOON;
    while !a_wipe_is_held(first.pid()) {
        assert!(Instant::now() < deadline, "the kernel does not hold the thread that wipes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let begun = Instant::now();
    first.signal(Signal::SIGTERM);
    let line = first.wait_log("The kernel holds this thread", SOON).await;
    assert!(line.contains(&held.name_any()), "{line}");
    // What the kubelet gives a pod that does not say otherwise.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // While the old process can't end, the next agent does all that is to be done.
    let second = start(&node, &classes);
    second.wait_log("State directory opened", SOON).await;
    assert!(first.is_there(), "the kernel still holds the first one");
    let other = LoopDisk::new(node.dir(), 4 << 20);
    let place = other.link(&disks, "other");
    let pv = node.wait_pv(&place, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&pv.name_any()).await;
    other.write_at(0, &b"TENANT-SECRET...".repeat(256));
    node.release(&claim).await;
    node.wait_pv(&place, |now| phase(now) == "Available" && now.uid() != pv.uid(), SOON).await;
    assert_eq!(first_not_zero(&other.backing), None);
    let sentence = wait_verdict(&second, &class, "held", "Busy").await;
    eprintln!("of the volume that is held: {sentence}");

    frozen.freeze(false);
    first.wait_exit(SOON).await;
    node.wait_pv(&link, |now| phase(now) == "Available" && now.uid() != held.uid(), SOON).await;
    assert!(disk.read_all().iter().all(|byte| *byte == 0));
    drop((second, other, disk, frozen));
    node.clean_up().await;
}
