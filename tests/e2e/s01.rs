//! A directory gets a new mount while the agent runs: it becomes a PV.

use std::time::{Duration, Instant};

use kube::api::ResourceExt;

use crate::harness::volumes::{is_on, phase};
use crate::stage;

pub const CLASSES: &[(&str, &str)] = &[("s01", "{}")];

const SIZE: u64 = 64 << 20;
const WITHIN: Duration = Duration::from_secs(1);
const TRIES: usize = 30;

#[tokio::test]
async fn s01_a_new_mount_is_a_pv_of_its_node_within_a_second() {
    // The time is the point: nobody else may take it.
    let scene = stage::alone("s01").await;
    for node in 0..2 {
        let began = Instant::now();
        let path = scene.node(node).mount_tmpfs("s01", "disk-0", SIZE);
        let pv = scene.wait_available("s01", node, "disk-0").await;
        let mut took = began.elapsed();

        let name = pv.name_any();
        assert!(is_on(&pv, scene.node(node).name()), "{name} is for this node only");
        assert!(!is_on(&pv, scene.node(1 - node).name()), "{name} is not for the other one");
        let spec = pv.spec.as_ref().expect("a PV has a spec");
        assert_eq!(spec.local.as_ref().map(|local| local.path.as_str()), path.to_str());
        assert_eq!(spec.capacity.as_ref().map(|capacity| capacity["storage"].0.as_str()), Some("64Mi"));
        assert_eq!(spec.volume_mode.as_deref(), Some("Filesystem"));
        assert_eq!(phase(&pv), "Available");
        // The machine may have something else to do; but who is as quick three times in a row is so
        // not by chance.
        let (mut tries, mut in_a_row) = (1, u32::from(took < WITHIN));
        while in_a_row < 3 && tries < TRIES {
            let entry = format!("disk-{tries}");
            let began = Instant::now();
            scene.node(node).mount_tmpfs("s01", &entry, SIZE);
            scene.wait_available("s01", node, &entry).await;
            took = began.elapsed();
            eprintln!("node {node}: mounted and Available after {took:?}");
            in_a_row = if took < WITHIN { in_a_row + 1 } else { 0 };
            tries += 1;
        }
        assert!(in_a_row == 3, "{tries} took as long as {took:?}");
        let pvs = scene.pvs_of("s01").await;
        let here = pvs.iter().filter(|pv| is_on(pv, scene.node(node).name())).count();
        assert_eq!(here, tries, "one each");
    }
}
