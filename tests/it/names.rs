//! PVs whose 32-bit names collide.

use std::collections::HashMap;
use std::path::Path;

use kube::api::ResourceExt;
use mooring::pv::{long_pv_name, pv_name};

use crate::common::{SOON, start, wait_ready, wait_verdict};
use crate::harness::disk;
use crate::harness::node::TestNode;
use crate::harness::shared;
use crate::harness::volumes::phase;

/// Names of entries, without end and without order.
fn entries() -> impl Iterator<Item = String> {
    (1_u64..).map(|number| format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

#[tokio::test]
async fn two_entries_with_one_name_both_get_a_pv_and_keep_it() {
    let node = TestNode::new(shared(), "twins").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let mut seen = HashMap::new();
    let (first, second) = entries()
        .find_map(|entry| {
            let other = seen.insert(pv_name(&entry, node.name(), &class), entry.clone());
            other.map(|other| (other, entry))
        })
        .expect("they have no end");
    let usual = pv_name(&first, node.name(), &class);
    let paths = [&first, &second].map(|entry| disks.join(entry));
    paths.iter().for_each(|path| disk::tmpfs(path, 1 << 20));
    let agent = start(&node, &[(&class, &disks, "")]);
    let mut pvs = Vec::new();
    for path in &paths {
        pvs.push(node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await);
    }
    let long = [&first, &second].map(|entry| long_pv_name(entry, node.name(), &class));
    let names: Vec<_> = pvs.iter().map(ResourceExt::name_any).collect();
    let index = usize::from(names[0] == usual);
    assert_eq!((&names[index], &names[1 - index]), (&long[index], &usual));
    let note = node.wait_event(&names[index], "NameTaken", "", SOON).await;
    assert!(note.contains(&usual) && note.contains(&paths[index].display().to_string()), "{note}");
    drop(agent);

    // Restarted: everything as it was.
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_ready(&agent).await;
    for entry in [&first, &second] {
        wait_verdict(&agent, &class, entry, "Published").await;
    }
    let mut now: Vec<_> = node.pvs().await.iter().map(|pv| (pv.uid(), pv.resource_version())).collect();
    now.sort();
    let mut before: Vec<_> = pvs.iter().map(|pv| (pv.uid(), pv.resource_version())).collect();
    before.sort();
    assert_eq!(now, before);
    assert_eq!(node.events(&names[index], "NameTaken").await.len(), 1);

    // Used, each is wiped by itself and offered again.
    let mut claims = Vec::new();
    for (path, name) in paths.iter().zip(&names) {
        claims.push(node.bind(name).await);
        std::fs::write(path.join("data"), name).expect("a file can be written");
    }
    for (mine, other) in [(index, 1 - index), (1 - index, index)] {
        node.release(&claims[mine]).await;
        let is_anew = |pv: &_| phase(pv) == "Available" && pv.uid() != pvs[mine].uid();
        let anew = node.wait_pv(&paths[mine], is_anew, SOON).await;
        assert!(!paths[mine].join("data").exists());
        assert_ne!(anew.name_any(), names[other]);
        // The second to be released has been the only one, and the first is wiped by then.
        assert_eq!(paths[other].join("data").exists(), mine == index);
    }
    assert_eq!(node.pvs().await.len(), 2);
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_name_that_another_nodes_pv_has_is_left_to_it() {
    let (node, other) = (TestNode::new(shared(), "here").await, TestNode::new(shared(), "there").await);
    let class = node.class("fast", "Delete").await;
    let mut seen: HashMap<String, [Option<String>; 2]> = HashMap::new();
    let (mine, theirs) = entries()
        .find_map(|entry| {
            for (index, node) in [&node, &other].into_iter().enumerate() {
                let both = seen.entry(pv_name(&entry, node.name(), &class)).or_default();
                both[index] = Some(entry.clone());
                if let [Some(mine), Some(theirs)] = both {
                    return Some((mine.clone(), theirs.clone()));
                }
            }
            None
        })
        .expect("they have no end");
    let name = pv_name(&theirs, other.name(), &class);
    assert_eq!(name, pv_name(&mine, node.name(), &class));
    let begin = |node: &TestNode, entry: &str| {
        let disks = node.discovery_dir("disks");
        disk::tmpfs(&disks.join(entry), 1 << 20);
        // Or what is quarantined by mistake would be found empty and set free.
        std::fs::write(disks.join(entry).join("as-found"), "x").expect("a file can be written");
        (start(node, &[(&class, &disks, "")]), disks.join(entry))
    };
    let (_their_agent, their_path) = begin(&other, &theirs);
    let their_pv = other.wait_pv(&their_path, |pv| phase(pv) == "Available", SOON).await;
    assert_eq!(their_pv.name_any(), name);
    let (agent, path) = begin(&node, &mine);
    let pv = node.wait_pv(&path, |pv| phase(pv) == "Available", SOON).await;
    let long = long_pv_name(&mine, node.name(), &class);
    assert_eq!(pv.name_any(), long);
    node.wait_event(&long, "NameTaken", &name, SOON).await;
    drop(agent);
    let agent = start(&node, &[(&class, path.parent().expect("it is in a directory"), "")]);
    wait_verdict(&agent, &class, &mine, "Published").await;
    // Used, wiped, and offered again by an agent that has not seen the collision yet.
    let claim = node.bind(&long).await;
    std::fs::write(path.join("data"), "a tenant's").expect("a file can be written");
    node.release(&claim).await;
    let anew = node.wait_pv(&path, |anew| phase(anew) == "Available" && anew.uid() != pv.uid(), SOON).await;
    assert!(anew.name_any() == long && !path.join("data").exists());
    assert!(!anew.annotations().contains_key("mooring.dev/quarantined"));
    let untouched = other.wait_pv(&their_path, |_| true, SOON).await;
    assert_eq!(untouched.resource_version(), their_pv.resource_version());
    drop(agent);
    node.clean_up().await;
    other.clean_up().await;
}

#[tokio::test]
async fn a_name_that_somebody_elses_pv_has_is_left_to_it() {
    let node = TestNode::new(shared(), "taken").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let name = pv_name("v", node.name(), &class);
    let theirs = node.create_pv(&node.local_pv(&name, &class, Path::new("/elsewhere"))).await;
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = node.wait_pv(&disks.join("v"), |pv| phase(pv) == "Available", SOON).await;
    assert_eq!(pv.name_any(), long_pv_name("v", node.name(), &class));
    assert_eq!(node.pvs().await.len(), 2);
    assert!(node.pvs().await.iter().any(|pv| pv.uid() == theirs.uid()));
    drop(agent);
    node.clean_up().await;
}
