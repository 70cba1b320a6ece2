//! What the agent writes, counted by the API server's audit log: nothing that is not
//! needed, after a restart as in peace.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{SOON, is_labelled, start, strip_label, wait_ready, wait_verdict};
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{AuditEntry, ControlPlane, Options, disk, eventually};

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
    let writes = || requests(&plane).into_iter().filter(is_write).count();
    // The log is written a little later.
    eventually("20 writes in the log", SOON, || writes() >= 20);
    assert_eq!(writes(), 20, "one create for each volume");
    for volume in &volumes {
        let entry = volume.file_name().and_then(|name| name.to_str()).expect("it has a name");
        wait_verdict(&agent, &class, entry, "Published").await;
    }

    // Restarted, with everything as it was.
    drop(agent);
    let before = requests(&plane).len();
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_ready(&agent).await;
    // In peace: nothing but watches, which last a minute each, after what the start takes.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let mut asked = BTreeMap::new();
    for entry in requests(&plane).split_off(before).into_iter().filter(|entry| entry.verb != "watch") {
        *asked.entry(format!("{} {}", entry.verb, entry.resource)).or_insert(0) += 1;
    }
    let needed = [
        ("create selfsubjectaccessreviews", 1),
        ("list nodes", 1),
        // Those of this node, and all once.
        ("list persistentvolumes", 2),
        ("list storageclasses", 1),
    ];
    assert_eq!(asked, needed.map(|(what, count)| (what.to_owned(), count)).into());
    assert_eq!(writes(), 20, "a restart writes nothing");
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
    eventually("a write more in the log", SOON, || writes() > 20);
    let writes: Vec<_> = requests(&plane).into_iter().filter(is_write).skip(20).collect();
    assert_eq!(
        writes.iter().map(|entry| (entry.verb.as_str(), entry.name.as_str())).collect::<Vec<_>>(),
        [("patch", pv_name)]
    );
}
