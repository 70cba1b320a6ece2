//! All agents are killed while tenants work: nothing happens to these.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::api::ResourceExt as _;

use super::Play;
use super::tenants::{self, JOURNAL, Pod};
use super::volumes::Volume;
use crate::harness::site::{SOON, container_id};
use crate::harness::volumes::phase;
use crate::screen::ms;

const WIDTHS: [usize; 5] = [6, 10, 10, 15, 14];

/// Kills them and returns how long it took until all others were ready.
pub async fn agents(play: &Play<'_>, volumes: &[Volume], pods: &[Pod]) -> anyhow::Result<Duration> {
    play.screen.act("4  All agents are killed while the pods work");
    let mut killed = Vec::new();
    for node in play.nodes() {
        let container = container_id(&play.agent(node).await).context("it runs")?.to_owned();
        killed.push((node, container));
    }
    let before = journals(play, volumes, pods)?;
    let start = Instant::now();
    for (node, container) in &killed {
        play.site.node(*node).kill_container(container);
    }
    for (node, container) in &killed {
        let another = async || {
            let pod = play.agent(*node).await;
            (container_id(&pod) != Some(container.as_str()) && is_ready(&pod)).then_some(())
        };
        play.tenant.until("another agent is ready", SOON, another).await;
    }
    let took = start.elapsed();
    let after = journals(play, volumes, pods)?;
    play.screen.done("SIGKILL; the kubelets start them again, and they are ready", took);
    play.screen.row(&WIDTHS, &["POD", "CONTAINER", "RESTARTS", "LINES WRITTEN", "LONGEST PAUSE"], true);
    for (pod, (before, after)) in pods.iter().zip(before.iter().zip(&after)) {
        let object = play.tenant.wait_running(&pod.name).await;
        ensure!(container_id(&object) == Some(pod.container.as_str()), "{} has another container", pod.name);
        let restarts = object.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let restarts: i32 = restarts.map(|container| container.restart_count).sum();
        ensure!(restarts == 0, "{} was restarted", pod.name);
        ensure!(after.starts_with(before), "{}'s lines are not all there", pod.name);
        let meanwhile = &after[before.len().saturating_sub(1)..];
        let lines = meanwhile.len() - 1;
        let pause = meanwhile.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        ensure!(lines > 0, "{} wrote nothing meanwhile", pod.name);
        let (lines, pause) = (lines.to_string(), ms(Duration::from_secs_f64(pause)));
        play.screen.row(&WIDTHS, &[&pod.name, "same", &restarts.to_string(), &lines, &pause], false);
    }
    for volume in volumes {
        let pv = play.tenant.pvs().get(&volume.pv).await?;
        let kept = pv.uid().as_deref() == Some(volume.uid.as_str()) && phase(&pv) == "Bound";
        ensure!(kept && pv.metadata.deletion_timestamp.is_none(), "{} is not what it was: {pv:?}", volume.pv);
    }
    tenants::still_have_them(play, volumes, pods)?;
    play.screen.checked("PVs are the same and Bound, secrets and all lines are there", "yes");
    Ok(took)
}

/// What each pod has written so far: uptimes in seconds. A line may be half written.
fn journals(play: &Play<'_>, volumes: &[Volume], pods: &[Pod]) -> anyhow::Result<Vec<Vec<f64>>> {
    let of = |pod: &Pod| {
        let volume = volumes.iter().find(|volume| volume.node == pod.node && !volume.raw).context("a pod has one")?;
        let text = play.site.node(pod.node).on_host(|| fs::read_to_string(volume.path.join(JOURNAL)))?;
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| line.trim_end().parse().with_context(|| format!("{} wrote {line:?}", pod.name))).collect()
    };
    pods.iter().map(of).collect()
}

fn is_ready(pod: &PodObject) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|at| at.type_ == "Ready").any(|at| at.status == "True")
}
