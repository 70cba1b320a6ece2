//! How the agent ends, and goes on after: in order, killed, and with a thread that the
//! kernel holds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::{SOON, start, wait_ready, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::frozen::FrozenMount;
use crate::harness::node::TestNode;
use crate::harness::throttle::Throttle;
use crate::harness::volumes::phase;
use crate::harness::{Agent, shared};

const SIZE: u64 = 256 << 20;

/// A node with a Released device whose wipe takes about 100 s, and the agent at it.
async fn in_the_middle_of_a_wipe(node: &TestNode) -> (String, PathBuf, LoopDisk, Agent, Throttle) {
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let disk = LoopDisk::new(node.dir(), SIZE);
    let link = disk.link(&disks, "disk");
    let agent = start(node, &[(&class, &disks, "volumeMode: Block")]);
    let throttle = Throttle::new(agent.pid(), &disk.device, SIZE / 100);
    let pv = node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
    // Both ends are marked first.
    for offset in [0, SIZE / 16 * 15, SIZE - 512] {
        disk.write_at(offset, &[&b"TENANT-SECRET"[..], &[b'.'; 499]].concat());
    }
    let claim = node.bind(pv.metadata.name.as_deref().expect("it has a name")).await;
    node.release(&claim).await;
    node.wait_pv(&link, |pv| pv.metadata.deletion_timestamp.is_some(), SOON).await;
    agent.wait_log("Wipe begins", SOON).await;
    (class, disks, disk, agent, throttle)
}

/// A device whose disk has stopped answering in the middle of its wipe.
struct Held {
    node: TestNode,
    disks: PathBuf,
    frozen: FrozenMount,
    disk: LoopDisk,
    agent: Agent,
    pv: String,
}

async fn held_in_a_wipe(tag: &str) -> Held {
    let node = TestNode::new(shared(), tag).await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let frozen = FrozenMount::new(&node.root().join("frozen"), 64 << 20);
    let disk = LoopDisk::attach(node.root().join("frozen/nbd"));
    let link = disk.link(&disks, "disk");
    let agent = start(&node, &[(&class, &disks, "wipe: {bandwidth: 1Mi}")]);
    let pv = node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
    let pv = pv.metadata.name.expect("it has a name");
    let claim = node.bind(&pv).await;
    node.release(&claim).await;
    agent.wait_log("Wipe begins", SOON).await;
    // Not before: whoever else asks a frozen disk what is beneath it has it open from then on.
    frozen.freeze(true);
    let idle = format!("mooring_wipe_idle_seconds{{class=\"{class}\"}}");
    agent.wait_metric(&idle, |seconds| seconds >= 5.0, SOON).await;
    Held { node, disks, frozen, disk, agent, pv }
}

async fn is_finished_by_the_next_agent(node: &TestNode, class: &str, disks: &Path, disk: &LoopDisk) {
    let link = disks.join("disk");
    let pv = node.wait_pv(&link, |_| true, SOON).await;
    assert!(pv.metadata.deletion_timestamp.is_some(), "no claim can get at it");
    let finalizers = pv.metadata.finalizers.unwrap_or_default();
    assert!(finalizers.iter().any(|finalizer| finalizer == "mooring.dev/wipe"), "{finalizers:?}");
    assert!(disk.backing_contains(b"TENANT-SECRET"), "the wipe was in its middle");
    let agent = start(node, &[(class, disks, "volumeMode: Block")]);
    let uid = pv.metadata.uid;
    node.wait_pv(&link, |pv| pv.metadata.uid != uid && phase(pv) == "Available", SOON).await;
    assert!(!disk.backing_contains(b"TENANT-SECRET"));
    assert!(disk.read_all().iter().all(|byte| *byte == 0));
    drop(agent);
}

#[tokio::test]
async fn sigterm_in_the_middle_of_a_wipe_ends_the_agent_and_the_next_one_goes_on() {
    let node = TestNode::new(shared(), "term").await;
    let (class, disks, disk, mut agent, throttle) = in_the_middle_of_a_wipe(&node).await;
    let start = Instant::now();
    agent.signal(Signal::SIGTERM);
    let status = agent.wait_exit(Duration::from_secs(60)).await;
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(50), "it has not waited for the wipe: {:?}", start.elapsed());
    agent.wait_log("Stopped", SOON).await;
    drop((agent, throttle));
    is_finished_by_the_next_agent(&node, &class, &disks, &disk).await;
    node.clean_up().await;
}

#[tokio::test]
async fn an_agent_that_is_killed_in_the_middle_of_a_wipe_is_followed_by_one_that_goes_on() {
    let node = TestNode::new(shared(), "kill").await;
    let (class, disks, disk, mut agent, throttle) = in_the_middle_of_a_wipe(&node).await;
    agent.signal(Signal::SIGKILL);
    agent.wait_exit(Duration::from_secs(60)).await;
    drop((agent, throttle));
    is_finished_by_the_next_agent(&node, &class, &disks, &disk).await;
    node.clean_up().await;
}

#[tokio::test]
async fn an_entry_that_hangs_delays_no_other_and_is_taken_up_when_it_answers() {
    let node = TestNode::new(shared(), "hang").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let frozen = FrozenMount::new(&disks.join("a-frozen"), 1 << 20);
    disk::tmpfs(&disks.join("b-good"), 1 << 20);
    frozen.freeze(true);
    let mut agent = start(&node, &[(&class, &disks, "")]);
    node.wait_pv(&disks.join("b-good"), |_| true, SOON).await;
    wait_verdict(&agent, &class, "a-frozen", "Unresponsive").await;
    wait_ready(&agent).await;
    assert_eq!(agent.get("/healthz").await.0, 200, "one bad disk is no reason to restart the agent");
    // More come and go meanwhile, and one thread stays stuck, not one for each look.
    for round in 0..5 {
        disk::tmpfs(&disks.join(format!("c-{round}")), 1 << 20);
        node.wait_pv(&disks.join(format!("c-{round}")), |_| true, SOON).await;
    }
    let logs = agent.logs();
    let about = |line: &&String| line.contains("The kernel does not answer") && line.contains("a-frozen");
    let stuck = logs.iter().filter(about).count();
    assert_eq!(stuck, 1);
    frozen.freeze(false);
    agent.wait_log("The kernel answers again", SOON).await;
    let detail = wait_verdict(&agent, &class, "a-frozen", "ZeroCapacity").await;
    assert!(!detail.is_empty());
    // Frozen again, it does not keep the agent from ending either.
    frozen.freeze(true);
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait_exit(SOON).await.success());
    frozen.freeze(false);
    drop(frozen);
    node.clean_up().await;
}

#[tokio::test]
async fn a_thread_that_the_kernel_holds_is_named_and_holds_up_nothing_else() {
    let Held { node, disks, frozen, disk, mut agent, pv: name } = held_in_a_wipe("held").await;
    // Others are published and wiped meanwhile.
    let other = disks.join("other");
    disk::tmpfs(&other, 1 << 20);
    let pv = node.wait_pv(&other, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(pv.metadata.name.as_deref().expect("it has a name")).await;
    node.release(&claim).await;
    let uid = pv.metadata.uid;
    node.wait_pv(&other, |pv| pv.metadata.uid != uid && phase(pv) == "Available", SOON).await;
    assert_eq!(agent.get("/healthz").await.0, 200);

    // It is held until it is let go, below.
    agent.signal(Signal::SIGTERM);
    let line = agent.wait_log("The kernel holds this thread", SOON).await;
    assert!(line.contains(&name) && line.contains("wipe-"), "{line}");
    agent.wait_log("Stopped", SOON).await;
    // The kernel lets a process go only with its last thread.
    frozen.freeze(false);
    assert!(agent.wait_exit(SOON).await.success());
    drop((disk, frozen));
    node.clean_up().await;
}

#[tokio::test]
async fn a_second_signal_ends_the_agent_at_once() {
    let Held { node, frozen, disk, mut agent, .. } = held_in_a_wipe("twice").await;
    agent.signal(Signal::SIGTERM);
    agent.wait_log("Stopping", SOON).await;
    agent.signal(Signal::SIGTERM);
    agent.wait_log("Second signal: ending at once", SOON).await;
    frozen.freeze(false);
    assert_eq!(agent.wait_exit(SOON).await.code(), Some(1));
    assert!(!agent.logs().iter().any(|line| line.contains("Stopped")), "it did not wait");
    drop((disk, frozen));
    node.clean_up().await;
}
