//! Starts the cluster, and shows what it consists of.

use std::thread;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{FAST, Play, RAW};
use crate::harness::Options;
use crate::harness::helm::{self, RELEASE};
use crate::harness::image::AGENT_TAG;
use crate::harness::site::Site;
use crate::screen::Screen;

const WIDTHS: [usize; 4] = [8, 9, 24, 16];

/// A cluster whose agents are ready. It is started on a thread of its own, so that a Ctrl-C need not wait.
pub async fn cluster(screen: &Screen, nodes: usize) -> anyhow::Result<Site> {
    screen.act(&format!("1  A cluster of {nodes}: each node has a kubelet, containerd, and an agent"));
    screen.note("control plane, nodes, image, chart: they take a quarter of a minute or more");
    let start = Instant::now();
    let classes = vec![helm::class(FAST, &json!({})), helm::class(RAW, &json!({"volumeMode": "Block"}))];
    let (ready, started) = oneshot::channel();
    thread::Builder::new().name("cluster".to_owned()).spawn(move || {
        // When nobody waits any more, it goes at once.
        drop(ready.send(Site::start_with(nodes, classes, Options { audit: true })));
    })?;
    let site = started.await.context("the cluster does not start")?;
    screen.done("etcd, API server, controllers, scheduler, nodes, and agents are ready", start.elapsed());
    Ok(site)
}

/// Shows nodes, image and release.
pub async fn show(play: &Play<'_>) -> anyhow::Result<()> {
    let screen = play.screen;
    screen.row(&WIDTHS, &["NODE", "KUBELET", "RUNTIME", "AGENT"], true);
    let nodes: Api<Node> = Api::all(play.tenant.client());
    for number in play.nodes() {
        let name = play.site.node(number).name();
        let node = nodes.get(name).await?;
        let info = node.status.and_then(|status| status.node_info).context("a kubelet tells what it is")?;
        let agent = play.agent(number).await.name_any();
        screen.row(&WIDTHS, &[name, &info.kubelet_version, &info.container_runtime_version, &agent], false);
    }
    screen.checked(&format!("the image mooring:{AGENT_TAG}, as containerd has it"), &image_size(play)?);
    let releases: Vec<Value> = serde_json::from_str(&play.site.helm().run(&["list", "--output", "json"]))?;
    let release = releases.iter().find(|release| release["name"] == RELEASE).context("helm knows no such release")?;
    let text = |key: &str| release[key].as_str().unwrap_or_default().to_owned();
    ensure!(text("status") == "deployed", "the release is {}", text("status"));
    screen.checked(&format!("helm: chart {}, release {RELEASE}", text("chart")), &text("status"));
    Ok(())
}

/// How large the agent's image is, in containerd's words.
pub fn image_size(play: &Play<'_>) -> anyhow::Result<String> {
    let table = play.site.node(0).ctr(&["images", "ls"]);
    let ours = |line: &&str| {
        line.split_whitespace().next().is_some_and(|name| name.ends_with(&format!("/mooring:{AGENT_TAG}")))
    };
    let line = table.lines().find(ours).context("containerd has no such image")?;
    // REF TYPE DIGEST SIZE, which is a number and its unit.
    let size: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    Ok(size.join(" "))
}
