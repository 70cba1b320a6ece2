//! What the agents take while nothing happens: memory, processor time, requests.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::sleep;

use super::Play;
use super::start::image_size;
use crate::harness::rbac::NAMESPACE;
use crate::harness::site::container_id;
use crate::screen::ms;

const IDLE: Duration = Duration::from_secs(10);
/// An agent gives memory back at its next heartbeat after work, within 10 s.
const SETTLE: Duration = Duration::from_secs(1);
/// More than any idle agent takes, also one of a debug build.
const LIMIT_MIB: f64 = 64.0;
const LIMIT_CPU: Duration = Duration::from_millis(250);
const WIDTHS: [usize; 4] = [8, 12, 16, 14];

/// Waits, and shows what each agent has taken meanwhile. Returns a sentence on it.
pub async fn measure(play: &Play<'_>) -> anyhow::Result<String> {
    let seconds = IDLE.as_secs();
    play.screen.act(&format!("6  What an agent takes, in {seconds} s without work"));
    sleep(SETTLE).await;
    let mut agents = Vec::new();
    for node in play.nodes() {
        let pod = play.agent(node).await;
        let pid = play.site.node(node).container_pid(container_id(&pod).context("it runs")?);
        agents.push((node, pid, run_times(pid)?));
    }
    let (calls, watches) = requests(play);
    ensure!(calls > 0, "the audit log has no request of an agent");
    sleep(IDLE).await;
    play.screen.row(&WIDTHS, &["NODE", "RESIDENT", "OF IT THE HEAP", "CPU TIME"], true);
    let (mut most, mut busiest) = (0.0_f64, Duration::ZERO);
    for (node, pid, before) in &agents {
        let name = play.site.node(*node).name();
        let since = |(thread, time): (String, u64)| time - before.get(&thread).copied().unwrap_or_default();
        let cpu = Duration::from_nanos(run_times(*pid)?.into_iter().map(since).sum());
        let (resident, heap) = (mib(*pid, "VmRSS")?, mib(*pid, "RssAnon")?);
        let cells = [format!("{resident:.1} MiB"), format!("{heap:.1} MiB")];
        play.screen.row(&WIDTHS, &[name, &cells[0], &cells[1], &ms(cpu)], false);
        ensure!(resident < LIMIT_MIB, "the agent on {name} has {resident:.1} MiB");
        ensure!(cpu < LIMIT_CPU, "the agent on {name} took {cpu:?}");
        (most, busiest) = (most.max(resident), busiest.max(cpu));
    }
    // The audit log may lag behind a little.
    sleep(SETTLE).await;
    let (calls_after, watches_after) = requests(play);
    let (calls, watches) = (calls_after - calls, watches_after - watches);
    let what = format!("requests of all agents to the API server, but for {watches} watches renewed");
    play.screen.checked(&what, &calls.to_string());
    ensure!(calls == 0, "idle agents have sent {calls} requests");
    let image = image_size(play)?;
    Ok(format!(
        "an idle agent took {most:.1} MiB at most, {} of CPU time in {seconds} s; its image {image}",
        ms(busiest)
    ))
}

/// How many requests of agents the API server has finished: watches, which last about a minute, apart.
fn requests(play: &Play<'_>) -> (usize, usize) {
    let user = format!("system:serviceaccount:{NAMESPACE}:mooring");
    let audit = play.site.plane().audit();
    let (watches, calls): (Vec<_>, Vec<_>) =
        audit.into_iter().filter(|entry| entry.user == user).partition(|entry| entry.verb == "watch");
    (calls.len(), watches.len())
}

/// Nanoseconds on a processor by thread; ticks are too coarse for an idle process.
fn run_times(pid: i32) -> anyhow::Result<BTreeMap<String, u64>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).context("the agent runs")?.flatten();
    let one = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        Some((thread.file_name().to_string_lossy().into_owned(), text.split_whitespace().next()?.parse().ok()?))
    };
    Ok(threads.filter_map(one).collect())
}

fn mib(pid: i32, name: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent runs")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("a number of KiB")?;
    Ok(kib / 1024.0)
}
