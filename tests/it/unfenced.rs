//! Where no fence keeps a claim off a PV: its volume counts as clean only once the PV is
//! seen to be gone. Until then somebody may get it, and the agent may not be there to see.

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use mooring::ledger::State;
use mooring::state_dir::StateDir;
use nix::sys::signal::Signal;

use crate::common::SOON;
use crate::harness::proxy::{Faults, Proxy};
use crate::harness::volumes::phase;
use crate::harness::{Agent, eventually, shared};
use crate::old_daemonset::{Old, SECRET, SIZE, fill};
use crate::outage::start_behind;
use crate::wipe_scene::first_not_zero;

/// What the ledger has on disk of the only volume.
fn on_disk(old: &Old) -> State {
    let (_, ledger) = StateDir::open_beside_agent(&old.node.state_dir()).expect("the state directory can be read");
    let mut entries = ledger.entries();
    let entry = entries.next().expect("it has an entry").clone();
    assert_eq!(entries.count(), 0, "it has only one");
    entry.state
}

/// An agent that may not patch PVs, and reaches the API server by the proxy.
fn start(old: &Old, proxy: &Proxy) -> Agent {
    start_behind(proxy, &old.node, &old.raw.0, &old.raw.1, "volumeMode: Block")
}

#[tokio::test]
async fn a_volume_is_not_clean_before_its_unfenced_pv_is_gone() {
    let old = Old::new(shared(), "order").await;
    let proxy = Proxy::start_as(&old.node, old.kubeconfig.as_ref());
    let (disk, link) = old.disk("disk", SIZE);
    let mut agent = start(&old, &proxy);
    let pv = old.available(&link).await;
    let claim = old.node.bind(&pv.name_any()).await;
    fill(&disk, 0, SIZE);
    proxy.set(Faults { hold_deletes: true, ..Faults::default() });
    old.node.release(&claim).await;
    eventually("the agent deletes the PV", SOON, || proxy.faults().waiting_deletes > 0);
    assert_eq!(first_not_zero(&disk.backing), None, "it is wiped by then");
    assert!(!matches!(on_disk(&old), State::Clean | State::AsFound), "its PV may get a claim yet");
    // It does, and nobody sees that; nor that the PV is deleted with what is on it.
    agent.signal(Signal::SIGKILL);
    agent.wait_exit(SOON).await;
    drop(agent);
    old.node.clear_claim(&pv.name_any()).await;
    old.available(&link).await;
    let claim = old.node.bind(&pv.name_any()).await;
    fill(&disk, 0, SIZE);
    old.node.force_delete_pv(&pv).await;
    old.node.wait_gone(&pv, SOON).await;
    old.node.release(&claim).await;

    // The deletion that was kept comes too late: it is of that very PV.
    proxy.set(Faults::default());
    let agent = start(&old, &proxy);
    let quarantined = |now: &PersistentVolume| now.annotations().contains_key("mooring.dev/quarantined");
    let held = old.node.wait_pv(&link, |now| now.uid() != pv.uid(), SOON).await;
    assert!(quarantined(&held), "{held:?}");
    let held = old.node.wait_pv(&link, |now| phase(now) == "Released", SOON).await;
    assert!(disk.backing_contains(SECRET), "nobody has said that it may go");
    // Emptied by hand, it is clean when that PV is gone, and not before.
    proxy.set(Faults { hold_deletes: true, ..Faults::default() });
    disk.write_at(0, &vec![0; usize::try_from(SIZE).expect("it is small")]);
    eventually("the agent deletes the PV", SOON, || proxy.faults().waiting_deletes > 0);
    assert!(matches!(on_disk(&old), State::Quarantined { .. }), "{:?}", on_disk(&old));
    proxy.set(Faults::default());
    old.anew(&link, &held).await;
    drop(disk);
    old.end(agent).await;
}
