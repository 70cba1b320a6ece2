//! What the tests of the agent share: how it is started, and what it says of an entry.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::agent::{Agent, AgentOptions};
use crate::harness::config_dir::storage_class_map;
use crate::harness::node::TestNode;

/// Long enough for a busy machine; no test passes or fails by being quick.
pub const SOON: Duration = Duration::from_mins(1);

/// Starts an agent with classes of (name, directory, further fields).
pub fn start(node: &TestNode, classes: &[(&str, &Path, &str)]) -> Agent {
    start_with(node, classes, &[])
}

/// As [`start`], with further keys of the ConfigMap.
pub fn start_with(node: &TestNode, classes: &[(&str, &Path, &str)], keys: &[(&str, &str)]) -> Agent {
    let map = storage_class_map(classes);
    let config: Vec<_> = [("storageClassMap", map.as_str())].into_iter().chain(keys.iter().copied()).collect();
    Agent::start(node, AgentOptions { config: &config, args: &["--v=4"], ..AgentOptions::default() })
}

/// An entry's verdict and its sentence.
pub async fn verdict(agent: &Agent, class: &str, entry: &str) -> Option<(String, String)> {
    let (_, body) = agent.get("/volumes").await;
    let lines: Vec<Value> = serde_json::from_str(&body).expect("/volumes is a JSON list");
    let line = lines.into_iter().find(|line| line["class"] == class && line["entry"] == entry)?;
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    Some((text("verdict"), text("detail")))
}

/// Waits until an entry has the verdict; returns its sentence.
pub async fn wait_verdict(agent: &Agent, class: &str, entry: &str, expected: &str) -> String {
    wait_saying(agent, class, entry, expected, "").await
}

/// Waits until an entry has the verdict and its sentence these words: there may be another
/// reason for the same verdict before. Returns the sentence.
pub async fn wait_saying(agent: &Agent, class: &str, entry: &str, expected: &str, words: &str) -> String {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let now = verdict(agent, class, entry).await;
        if let Some((verdict, detail)) = &now
            && verdict == expected
            && detail.contains(words)
        {
            return detail.clone();
        }
        assert!(std::time::Instant::now() < deadline, "{class}/{entry} is {now:?}, not {expected} with {words:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the agent has looked at everything once.
pub async fn wait_ready(agent: &Agent) {
    let deadline = std::time::Instant::now() + SOON;
    while agent.get("/ready").await.0 != 200 {
        assert!(std::time::Instant::now() < deadline, "the agent is not ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Takes our label off a PV: the watch of this node's PVs then loses sight of it.
pub async fn strip_label(node: &TestNode, pv: &PersistentVolume) {
    let api: Api<PersistentVolume> = Api::all(node.client());
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "mooring.dev/node": null } } }));
    let name = pv.metadata.name.as_deref().expect("it has a name");
    api.patch(name, &PatchParams::default(), &patch).await.expect("a label can be removed");
}

/// Whether our label is on a PV.
pub fn is_labelled(pv: &PersistentVolume) -> bool {
    pv.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key("mooring.dev/node"))
}

/// Waits until an agent has counted that many calls of that verb.
pub async fn wait_calls(agent: &Agent, verb: &str, count: f64) {
    let deadline = std::time::Instant::now() + SOON;
    while calls(agent, verb).await < count - 0.5 {
        assert!(std::time::Instant::now() < deadline, "the agent has not made {count} calls to {verb}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How many calls to the API server of that verb an agent has counted, whatever their end.
pub async fn calls(agent: &Agent, verb: &str) -> f64 {
    let mut sum = 0.0;
    for outcome in ["success", "forbidden", "refused", "unknown"] {
        let series = format!("mooring_api_requests_total{{verb=\"{verb}\",outcome=\"{outcome}\"}}");
        sum += agent.metric(&series).await.unwrap_or_default();
    }
    sum
}
