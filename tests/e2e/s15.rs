//! The agents are killed at random while volumes are published, wiped and removed, then upgraded, then
//! rescheduled. No volume is offered dirty, and all are offered in the end.

use std::cell::RefCell;
use std::fs;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{PostParams, ResourceExt};
use serde_json::json;
use tokio::time::sleep;

use crate::harness::disk::LoopDisk;
use crate::harness::pods::PodSpec;
use crate::harness::site::{SOON, container_id};
use crate::harness::volumes::phase;
use crate::offers::{Offers, dirt};
use crate::stage::{self, Scene};

/// A device takes three seconds to be wiped; after one the journal knows how far it is.
pub const CLASSES: &[(&str, &str)] =
    &[("s15", "{}"), ("s15-raw", r#"{"volumeMode": "Block", "wipe": {"method": "zero", "bandwidth": "6Mi"}}"#)];

const SIZE: u64 = 16 << 20;
const SECRET: &str = "the old tenant's secret";
/// How often each volume has a tenant while agents are killed.
const ROUNDS: usize = 2;
/// How often each node's agent is.
const KILLS: usize = 4;
/// Names the seed of another run, which it has printed.
const SEED: &str = "MOORING_SEED";

/// A volume and its next tenants.
struct Ward<'a> {
    scene: &'a Scene,
    offers: &'a Offers,
    node: usize,
    name: String,
    /// A device, or a filesystem.
    disk: Option<LoopDisk>,
    /// The PV that was last used.
    last: RefCell<Option<PersistentVolume>>,
}

#[tokio::test]
async fn s15_whenever_the_agent_is_killed_upgraded_or_moved_no_dirty_volume_is_offered() {
    let scene = stage::alone("s15").await;
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    eprintln!("{SEED}={seed}");
    let offers = Offers::of(&scene, &["s15", "s15-raw"], SECRET);
    let ward = |node: usize, name: &str, is_device: bool| {
        let at = scene.node(node);
        let disk = is_device.then(|| at.link_disk("s15-raw", name, SIZE).1);
        if !is_device {
            at.mount_tmpfs("s15", name, SIZE);
        }
        let (scene, offers): (&Scene, _) = (&scene, &offers);
        Ward { scene, offers, node, name: name.to_owned(), disk, last: None.into() }
    };
    let kinds = [("pod", false), ("tree", false), ("disk", true)];
    let wards = (0..2).flat_map(|node| kinds.map(|(name, is_device)| ward(node, name, is_device)));
    let wards: Vec<_> = wards.collect();

    let tenants = join_all(wards.iter().map(async |ward| {
        for _ in 0..ROUNDS {
            ward.have_a_tenant().await;
        }
    }));
    let kills = async {
        for node in [0, 1].repeat(KILLS) {
            sleep(Duration::from_millis(random.u64(0..1200))).await;
            // One that was just killed may still be called running.
            let hit = async || {
                let agent = scene.agent_pod(node).await;
                let is_hit = scene.node(node).try_kill_container(container_id(&agent).expect("it runs"));
                is_hit.then_some(())
            };
            scene.until("an agent is killed", SOON, hit).await;
        }
    };
    let upgrade = scene.helm_upgrade(json!({ "podAnnotations": { "test": "s15" } }));
    tokio::join!(tenants, kills, upgrade);
    eprintln!("{} tenants have come and gone, and agents were killed {} times", wards.len() * ROUNDS, 2 * KILLS);

    // The same with another template alone; then with other pods.
    tokio::join!(join_all(wards.iter().map(Ward::have_a_tenant)), scene.helm_upgrade(json!({})));
    tokio::join!(scene.delete_agent(0), scene.delete_agent(1));
    for ward in &wards {
        ward.wait_offer().await;
        assert_eq!(ward.dirt(), None, "{}", ward.name);
    }
    for class in ["s15", "s15-raw"] {
        let pvs = scene.pvs_of(class).await;
        assert_eq!(pvs.len(), wards.iter().filter(|ward| ward.class() == class).count(), "one for each volume");
        for pv in pvs {
            assert_eq!((phase(&pv), &pv.metadata.deletion_timestamp), ("Available", &None));
        }
    }
    offers.assert_clean();
}

impl Ward<'_> {
    fn class(&self) -> &'static str {
        if self.disk.is_some() { "s15-raw" } else { "s15" }
    }

    fn claim(&self) -> String {
        format!("{}-{}", self.name, self.node)
    }

    fn dirt(&self) -> Option<String> {
        let node = self.scene.node(self.node);
        let path = node.discovery(self.class()).join(&self.name);
        node.on_host(|| dirt(&path, SECRET))
    }

    /// Waits until it is offered anew, and looked at.
    async fn wait_offer(&self) -> PersistentVolume {
        let last = self.last.borrow().clone();
        let pv = match last {
            Some(last) => self.scene.wait_anew(self.class(), self.node, &self.name, &last).await,
            None => self.scene.wait_available(self.class(), self.node, &self.name).await,
        };
        self.offers.wait(self.scene, &pv).await;
        pv
    }

    /// A tenant gets it, leaves much on it, and goes.
    async fn have_a_tenant(&self) {
        let pv = self.wait_offer().await;
        let (scene, node, claim) = (self.scene, self.scene.node(self.node), self.claim());
        let mode = if self.disk.is_some() { "Block" } else { "Filesystem" };
        // Not by kubectl, which would hold up the other tenants.
        let object = json!({
            "metadata": { "name": claim },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": self.class(), "volumeMode": mode,
                "volumeName": pv.name_any(), "resources": { "requests": { "storage": "1Mi" } },
            },
        });
        let object: PersistentVolumeClaim = serde_json::from_value(object).expect("this is a claim");
        scene.api().create(&PostParams::default(), &object).await.expect("a claim can be made");
        scene.wait_bound(&claim).await;
        if self.name == "pod" {
            scene.run(&PodSpec::new(&claim).claim(&claim, "/data")).await;
            let found = scene.sh(&claim, &format!("ls -A /data; echo \"{SECRET}\" > /data/file"));
            assert_eq!(found, "", "the tenant sees nothing of the last one");
            scene.delete_pod(&claim).await;
        } else if let Some(disk) = &self.disk {
            let times = usize::try_from(SIZE).expect("it fits") / SECRET.len();
            node.on_host(|| disk.write_at(0, &SECRET.as_bytes().repeat(times)));
        } else {
            let path = node.discovery("s15").join(&self.name);
            node.on_host(|| {
                for number in 0..1000 {
                    let dir = path.join(format!("{}", number % 10));
                    fs::create_dir_all(&dir).expect("a directory can be made");
                    fs::write(dir.join(number.to_string()), SECRET).expect("a file can be written");
                }
            });
        }
        *self.last.borrow_mut() = Some(pv);
        scene.delete_claim(&claim).await;
    }
}
