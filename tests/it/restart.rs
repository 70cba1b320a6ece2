//! What the agent writes, counted by the API server's audit log: nothing that is not
//! needed, after a restart as in peace.

use std::time::Duration;

use crate::common::{SOON, is_labelled, start, strip_label, wait_ready};
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{AuditEntry, ControlPlane, Options, disk};

fn requests(plane: &ControlPlane) -> Vec<AuditEntry> {
    let all = plane.audit();
    all.into_iter()
        .filter(|entry| entry.user.ends_with(":mooring") && entry.user_agent.starts_with("mooring/"))
        .collect()
}

fn is_write(entry: &AuditEntry) -> bool {
    // To ask what one may do is a POST, and changes nothing.
    !["get", "list", "watch"].contains(&entry.verb.as_str()) && entry.resource != "selfsubjectaccessreviews"
}

#[tokio::test]
async fn a_restart_writes_nothing_and_an_unlabelled_pv_is_adopted_by_one_patch() {
    let plane = ControlPlane::start(Options { audit: true });
    let node = TestNode::new(&plane, "restart").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let volumes = disk::mount_many(&disks, 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_ready(&agent).await;
    let all_available = |pvs: &std::collections::BTreeMap<_, _>| {
        (pvs.len() == 20 && pvs.values().all(|pv| phase(pv) == "Available")).then_some(())
    };
    node.watch_pvs("20 volumes", SOON, all_available).await;
    let writes = requests(&plane).into_iter().filter(is_write).count();
    assert_eq!(writes, 20, "one create for each volume");

    // Restarted, with everything as it was.
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    drop(agent);
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_ready(&agent).await;
    // In peace: nothing but watches, which last a minute each.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let settled = requests(&plane).len();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let idle = requests(&plane).split_off(settled);
    assert!(idle.iter().all(|entry| entry.verb == "watch"), "{idle:?}");
    let writes = requests(&plane).into_iter().filter(is_write).count();
    assert_eq!(writes, 20, "a restart writes nothing");
    assert_eq!(node.pvs().await.len(), volumes.len(), "no volume twice");
    drop(agent);

    // One loses its label while no agent runs: it is as the Go provisioner leaves them.
    let pv = node.wait_pv(&volumes[7], |_| true, SOON).await;
    strip_label(&node, &pv).await;
    let agent = start(&node, &[(&class, &disks, "")]);
    let adopted = node.wait_pv(&volumes[7], is_labelled, SOON).await;
    assert_eq!(adopted.metadata.uid, pv.metadata.uid);
    wait_ready(&agent).await;
    let pv_name = pv.metadata.name.as_deref().expect("it has a name");
    let writes: Vec<_> = requests(&plane).into_iter().filter(is_write).skip(20).collect();
    assert_eq!(
        writes.iter().map(|entry| (entry.verb.as_str(), entry.name.as_str())).collect::<Vec<_>>(),
        [("patch", pv_name)]
    );
}
