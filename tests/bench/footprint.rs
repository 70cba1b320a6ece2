//! What the agent costs while nothing happens: memory, processor time and requests.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use tokio::time::sleep;

use crate::harness::{Agent, ControlPlane, TestNode, disk};
use crate::site::{Site, post_all, twin};
use crate::table::{Table, progress};
use crate::witness::Witness;

const OWN: usize = 1000;
const FEW: usize = 10;
const OTHERS: usize = 20_000;
const NODES: usize = 200;
const IN_FLIGHT: usize = 64;
/// After a burst the agent gives memory back at its next heartbeat, within 10 s.
const SETTLE: Duration = Duration::from_secs(12);
const IDLE: Duration = Duration::from_secs(20);
/// The agent's age when the idle time begins: its watches, which last 60 s, end within.
const IDLE_AGE: Duration = Duration::from_secs(45);
const LIMIT_KIB: f64 = 12_288.0;
const LIMIT_CPU_MS: f64 = 20.0;

/// Measures on that control plane, which records requests, what an agent costs by itself
/// and with volumes of its own. Nothing is claimed here: what claims are kept for is stopped.
pub async fn of_own_volumes(plane: &ControlPlane, table: &mut Table) {
    plane.stop("kube-scheduler");
    plane.stop("kube-controller-manager");
    let own = Site::new(plane, "own").await;
    let mut witness = Witness::start(plane.kubeconfig());
    let before = own.agent().await;
    sleep(SETTLE).await;
    memory(table, &before, "no PVs");
    let begun = Instant::now();
    let points = disk::mount_many(&own.dir, OWN);
    let made = witness.wait_many("the volumes of the mounts", OWN, |sighting| sighting.pv.spec.is_some()).await;
    progress(&format!("{} volumes after {:?}", points.len(), made - begun));
    sleep(SETTLE).await;
    memory(table, &before, &format!("{OWN} own PVs, made by this agent"));
    drop(before);

    let started = tokio::time::Instant::now();
    let after = own.agent().await;
    sleep(SETTLE).await;
    memory(table, &after, &format!("{OWN} own PVs, made before its start"));
    tokio::time::sleep_until(started + IDLE_AGE).await;
    idle(plane, table, &after).await;
}

/// What volumes of other nodes cost an agent.
pub async fn of_others_volumes(plane: &ControlPlane, table: &mut Table) {
    let mut witness = Witness::start(plane.kubeconfig());
    let few = Site::new(plane, "few").await;
    disk::mount_many(&few.dir, FEW);
    let before = few.agent().await;
    let model = witness.wait("a volume", |sighting| sighting.made_at(&few.dir.join("00000"))).await.pv;
    let begun = Instant::now();
    post_all(plane.client().await, strangers(&model, &few.node), IN_FLIGHT).await;
    progress(&format!("{OTHERS} volumes of other nodes after {:?}", begun.elapsed()));
    let late = Site::new(plane, "late").await;
    disk::mount_many(&late.dir, FEW);
    let after = late.agent().await;
    sleep(SETTLE).await;
    memory(table, &before, &format!("{OTHERS} PVs of others, made after its start"));
    memory(table, &after, &format!("{OTHERS} PVs of others, made before its start"));
}

/// Volumes of many nodes, like this one's.
fn strangers(model: &PersistentVolume, node: &TestNode) -> impl Iterator<Item = PersistentVolume> {
    (0..OTHERS).map(move |number| {
        let host = format!("other-{:0width$}", number % NODES, width = node.name().len().saturating_sub(6));
        twin(model, node, (&host, node.uid()), &format!("other-pv-{number:08x}"))
    })
}

fn memory(table: &mut Table, agent: &Agent, what: &str) {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the agent runs");
    let kib = |name: &str| -> f64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells the memory");
        line.trim_start_matches(':').split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
    };
    table.value(&format!("VmRSS, {what}"), "KiB", kib("VmRSS"), Some(LIMIT_KIB));
    table.value("  VmHWM", "KiB", kib("VmHWM"), None);
    table.value("  of VmRSS: heap and stacks", "KiB", kib("RssAnon"), None);
    table.value("  of VmRSS: the program's file", "KiB", kib("RssFile"), None);
}

async fn idle(plane: &ControlPlane, table: &mut Table, agent: &Agent) {
    // Only the agent of this moment calls itself so now.
    let requests = |watches: bool| {
        let audit = plane.audit();
        let ours = audit.iter().filter(|entry| entry.user_agent.starts_with("mooring/"));
        ours.filter(|entry| (entry.verb == "watch") == watches).count()
    };
    let calls_before = requests(false);
    let watches_before = requests(true);
    assert!(calls_before > OWN, "the audit log has the requests that made the volumes");
    let (ticks, times) = (agent.cpu_ticks().expect("the agent runs"), run_times(agent));
    sleep(IDLE).await;
    let (ticks_after, times_after) = (agent.cpu_ticks().expect("the agent runs"), run_times(agent));
    // The audit log is written in batches of about a second at most.
    sleep(Duration::from_secs(1)).await;
    let nanoseconds: u64 =
        times_after.iter().map(|(thread, time)| time - times.get(thread).copied().unwrap_or_default()).sum();
    for (thread, time) in &times_after {
        let spent = time - times.get(thread).copied().unwrap_or_default();
        progress(&format!("{spent:>12} ns of {thread}"));
    }
    let milliseconds = Duration::from_nanos(nanoseconds).as_secs_f64() * 1000.0;
    let seconds = IDLE.as_secs();
    table.value(&format!("CPU time in {seconds} idle s, {OWN} own PVs"), "ms", milliseconds, Some(LIMIT_CPU_MS));
    table.value("  in the kernel's ticks of 10 ms", "ms", (ticks_after - ticks) as f64 * 10.0, None);
    let calls = requests(false) - calls_before;
    table.value(&format!("requests in {seconds} idle s"), "", calls as f64, Some(0.0));
    table.value("  watches renewed", "", (requests(true) - watches_before) as f64, None);
}

/// Nanoseconds on a processor by thread. Ticks are too coarse for an idle process.
fn run_times(agent: &Agent) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("the agent runs");
    let threads = tasks.flatten().map(|task| task.path());
    threads
        .filter_map(|thread| {
            let text = fs::read_to_string(thread.join("schedstat")).ok()?;
            let name = fs::read_to_string(thread.join("comm")).ok()?;
            Some((format!("{} {}", name.trim(), thread.display()), text.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}
