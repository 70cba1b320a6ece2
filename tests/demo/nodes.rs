//! The demo on whole nodes: kubelets, containerd, the image as pods, the chart by helm, and
//! tenants that are pods. What it starts ends with the runner's namespaces (`tests/in-own-namespace`).

mod cost;
mod end;
mod kill;
mod reclaim;
mod start;
mod tenants;
mod volumes;

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ResourceExt as _;

use super::harness::evidence::Evidence;
use super::harness::pods::Tenant;
use super::harness::rbac::NAMESPACE;
use super::harness::site::Site;
use super::screen::{Screen, ms};
use super::timeline::Timeline;

/// The class of mounted filesystems, and that of raw devices.
const FAST: &str = "fast";
const RAW: &str = "raw";

/// How many nodes are asked for, if any.
pub fn wanted() -> anyhow::Result<Option<usize>> {
    let Some(text) = std::env::var_os("MOORING_DEMO_NODES").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.parse().ok()).filter(|number| (1..=9).contains(number));
    number.map(Some).context("NODES is a number from 1 to 9, such as 2")
}

/// A cluster, a namespace for tenants in it, and what happens to its volumes.
struct Play<'a> {
    screen: &'a Screen,
    site: &'a Site,
    tenant: Tenant<'a>,
    timeline: Timeline,
}

impl Play<'_> {
    /// The numbers of the nodes.
    fn nodes(&self) -> std::ops::Range<usize> {
        0..self.site.nodes().len()
    }

    /// The pod of a node's agent.
    async fn agent(&self, node: usize) -> Pod {
        self.site.agent_pod(&self.tenant.client(), node).await
    }

    /// What a node's agent has logged since its container started.
    async fn log(&self, node: usize) -> String {
        let pod = self.agent(node).await.name_any();
        self.site.kubectl().must(&["--namespace", NAMESPACE, "logs", &pod], "")
    }
}

/// The whole play.
pub async fn play(screen: &Screen, nodes: usize) -> anyhow::Result<()> {
    let begin = Instant::now();
    ensure!(
        std::env::var_os("MOORING_CGROUP").is_some(),
        "nodes need namespaces of their own: run `make demo NODES=2`"
    );
    screen.title(&format!("mooring: local disks as persistent volumes of pods (nodes: {nodes})"));
    let site = start::cluster(screen, nodes).await?;
    let timeline = Timeline::start(site.plane().kubeconfig())?;
    let mut play = Play { screen, site: &site, tenant: Tenant::new(&site, "demo").await, timeline };
    // The harness panics where a test would fail.
    let acts = AssertUnwindSafe(acts(&mut play)).catch_unwind().await;
    let result = acts.unwrap_or_else(|_| Err(anyhow::anyhow!("a step of the demo did not end as promised")));
    if result.is_err() {
        let chosen = ["--selector=app.kubernetes.io/name=mooring", "--tail=10", "--prefix"];
        let told = site.kubectl().run(&[&["--namespace", NAMESPACE, "logs"], &chosen[..]].concat(), "");
        let lines = String::from_utf8_lossy(&told.stdout).lines().map(str::to_owned).collect::<Vec<_>>();
        screen.lines("The agents' last lines:", lines);
    }
    let summary = result?;
    drop(play);
    end::ended(screen, site).await?;
    screen.summary(&summary, begin.elapsed());
    Ok(())
}

async fn acts(play: &mut Play<'_>) -> anyhow::Result<Vec<String>> {
    let _evidence = Evidence::of(play.site, "demo");
    start::show(play).await?;
    let volumes = volumes::appear(play).await?;
    let pods = tenants::move_in(play, &volumes).await?;
    let ready = kill::agents(play, &volumes, &pods).await?;
    let reclaimed = reclaim::watch(play, &volumes, &pods).await?;
    let cost = cost::measure(play).await?;
    let slowest = volumes.iter().map(|volume| volume.available).max().unwrap_or_default();
    let summary = vec![
        format!("{} volumes Available, the slowest {} after its disk appeared", volumes.len(), ms(slowest)),
        "each pod ran on the node of its volumes, and went on while all agents were killed".to_owned(),
        format!("agents were ready again {} after that", ms(ready)),
        format!("{} volumes wiped, verified and offered again; the slowest took {}", volumes.len(), ms(reclaimed)),
        "no secret can be read back on the hosts, from no mount and from no device".to_owned(),
        cost,
    ];
    end::remove(play, volumes).await?;
    Ok(summary)
}
