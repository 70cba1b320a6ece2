//! The command line of old manifests, with the real program.

use crate::common::SOON;
use crate::harness::agent::{Agent, AgentOptions};
use crate::harness::config_dir::storage_class_map;
use crate::harness::node::TestNode;
use crate::harness::{disk, shared};

#[tokio::test]
async fn an_old_manifests_flags_run_the_agent_without_a_subcommand() {
    let node = TestNode::new(shared(), "flags").await;
    let class = node.class("fs", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let map = storage_class_map(&[(&class, &disks, "")]);
    let agent = Agent::start(
        &node,
        AgentOptions {
            config: &[("storageClassMap", &map)],
            bare: true,
            args: &[
                "-logtostderr",
                "--alsologtostderr=false",
                "--stderrthreshold",
                "INFO",
                "-log_dir=/var/log",
                "--vmodule",
                "cache=5,deleter=4",
                "--skip_headers",
                "-discovery-period=10s",
                "--config-sync-period",
                "1m30s",
                "-metrics-path",
                "/old-metrics",
                "-v=4",
            ],
            ..AgentOptions::default()
        },
    );
    node.wait_pv(&disks.join("v"), |_| true, SOON).await;
    assert_eq!(agent.get("/old-metrics").await.0, 200);
    agent.wait_log("without a meaning here", SOON).await;
    let logs = agent.logs();
    let warnings: Vec<_> = logs.iter().filter(|line| line.contains("without a meaning here")).collect();
    assert_eq!(warnings.len(), 1, "{logs:?}");
    for flag in ["-logtostderr", "--alsologtostderr=false", "--stderrthreshold", "-log_dir", "--vmodule", "--skip"] {
        assert!(warnings[0].contains(flag), "{flag} in {}", warnings[0]);
    }
    // What -v=4 shows.
    agent.wait_log("\"DEBUG\"", SOON).await;
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_flag_that_nobody_knows_ends_the_program_with_the_one_that_is_meant() {
    let node = TestNode::new(shared(), "unknown").await;
    for (args, words) in [
        (["-listen-adress=:9090", "-v=4"], "--listen-address"),
        (["--config-sync-period=often", "-v=4"], "expected a duration such as 10s"),
        (["--no-such-flag", "--logtostderr"], "--no-such-flag"),
    ] {
        let mut agent = Agent::start(&node, AgentOptions { bare: true, args: &args, ..AgentOptions::default() });
        agent.wait_log(words, SOON).await;
        assert_eq!(agent.wait_exit(SOON).await.code(), Some(2));
    }
    node.clean_up().await;
}
