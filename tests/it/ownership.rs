//! Whose PV is it? After a Node was made again under its name, in both forms of signing,
//! and among the PVs of others.

use std::path::Path;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, DeleteParams, PostParams, ResourceExt};

use crate::common::{SOON, calls, is_labelled, start, start_with, wait_calls, wait_ready, wait_saying, wait_verdict};
use crate::harness::config_dir::storage_class_map;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::{path_of, phase};
use crate::harness::{Agent, AgentOptions, AuditEntry, ControlPlane, Options, rbac, shared};
use crate::tenancy::Scene;

const SIGNATURE: &str = "pv.kubernetes.io/provisioned-by";
const IDENTITY: &str = "mooring.dev/identity";
const ACCEPT: &str = "mooring.dev/accept-identity";

fn signature(node: &TestNode) -> String {
    format!("local-volume-provisioner-{}-{}", node.name(), node.uid())
}

fn is_signed(pv: &PersistentVolume, by: &str) -> bool {
    pv.annotations().get(SIGNATURE).is_some_and(|signature| signature == by)
}

/// A PV as the Go provisioner makes it for a mounted directory of 64 MiB.
fn of_go(node: &TestNode, class: &str, path: &Path, signature: &str) -> PersistentVolume {
    let entry = path.file_name().and_then(|name| name.to_str()).expect("it has a name");
    let mut pv = node.local_pv(&mooring::pv::pv_name(entry, node.name(), class), class, path);
    pv.metadata.annotations = Some([(SIGNATURE.to_owned(), signature.to_owned())].into());
    let spec = pv.spec.as_mut().expect("it has a spec");
    spec.capacity
        .as_mut()
        .expect("it has a size")
        .entry("storage".to_owned())
        .and_modify(|size| size.0 = "64Mi".into());
    pv
}

/// What the agent does of its own accord after everything before: it has seen it all.
async fn agent_has_seen(node: &TestNode, disks: &Path, name: &str) {
    disk::tmpfs(&disks.join(name), 1 << 20);
    node.wait_pv(&disks.join(name), |pv| phase(pv) == "Available", SOON).await;
}

#[tokio::test]
async fn a_node_that_is_made_again_takes_over_the_volumes_that_are_still_there() {
    let mut scene = Scene::new("again", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    scene.kill().await;
    // One of them is released before it is taken over.
    scene.node.make_again().await;
    scene.node.release(&used[1].1).await;
    scene.stores[1].wait(&scene.node, "Released").await;
    scene.begin();
    let ours = signature(&scene.node);
    let (store, (pv, claim)) = (&scene.stores[0], &used[0]);
    let taken = scene.node.wait_pv(&store.path(), |pv| is_signed(pv, &ours), SOON).await;
    assert_eq!((taken.uid(), phase(&taken)), (pv.uid(), "Bound"));
    wait_verdict(scene.agent(), &store.class, "vol", "Published").await;
    assert!(store.has_secret());
    scene.node.release(claim).await;
    for (store, (pv, _)) in scene.stores.iter().zip(&used) {
        let anew = store.wait_anew(&scene.node, "Available", pv).await;
        assert!(store.is_blank() && is_signed(&anew, &ours));
    }
    scene.end().await;
}

#[tokio::test]
async fn a_node_that_is_made_again_with_other_disks_neither_wipes_nor_offers_them() {
    let mut scene = Scene::new("other", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    scene.kill().await;
    scene.node.make_again().await;
    let mut former = Vec::new();
    for store in &mut scene.stores {
        store.detach();
        former.push(store.exchange(LoopDisk::new(scene.node.dir(), 16 << 20)));
        store.attach();
        store.write_secret();
    }
    let mut bound = Vec::new();
    for store in &scene.stores {
        bound.push(store.wait(&scene.node, "Bound").await.metadata.resource_version);
    }
    scene.begin();
    let mut versions = Vec::new();
    for ((store, (pv, claim)), version) in scene.stores.iter().zip(&used).zip(&bound) {
        wait_saying(scene.agent(), &store.class, "vol", "IdentityChanged", "former Node").await;
        for about in [pv.name_any(), claim.name_any()] {
            scene.node.wait_event(&about, "IdentityChanged", "put the former disk back", SOON).await;
        }
        let now = store.wait(&scene.node, "Bound").await;
        assert_eq!(&now.metadata.resource_version, version, "it was not touched");
        scene.node.release(claim).await;
        versions.push(store.wait(&scene.node, "Released").await.metadata.resource_version);
    }
    agent_has_seen(&scene.node, &scene.stores[0].dir, "after").await;
    let there = scene.node.pvs().await;
    assert_eq!(there.len(), 3, "nothing is offered beside them");
    for ((store, (pv, _)), version) in scene.stores.iter().zip(&used).zip(&versions) {
        let now = store.wait(&scene.node, "Released").await;
        assert_eq!((now.uid(), &now.metadata.resource_version), (pv.uid(), version), "it was not touched");
        assert!(store.has_secret());
        assert_eq!(scene.node.events(&pv.name_any(), "IdentityChanged").await.len(), 1, "it is told once");
    }
    // The former disks are back: theirs are the PVs, and theirs the wipe.
    for (store, former) in scene.stores.iter_mut().zip(former) {
        store.detach();
        let other = store.exchange_as_it_is(former);
        store.attach();
        let pv = store.wait(&scene.node, "Available").await;
        assert!(store.is_blank() && is_signed(&pv, &signature(&scene.node)));
        assert!(other.backing_contains(crate::tenancy::SECRET), "the other one was not touched");
    }
    scene.end().await;
}

#[tokio::test]
async fn a_pv_of_a_former_node_that_names_no_volume_is_left_to_an_admin() {
    let node = TestNode::new(shared(), "unknown").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let former = format!("local-volume-provisioner-{}-5f0c7a0e-1b1a-4f4e-9a50-0c9bd1b8f0aa", node.name());
    let mut claims = Vec::new();
    let paths = [disks.join("accepted"), disks.join("removed")];
    for path in &paths {
        disk::tmpfs(path, 64 << 20);
        let pv = node.create_pv(&of_go(&node, &class, path, &former)).await;
        node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await;
        claims.push((node.bind(&pv.name_any()).await, pv));
        std::fs::write(path.join("data"), "a tenant's").expect("a file can be written");
    }
    let bound = node.wait_pv(&paths[0], |pv| phase(pv) == "Bound", SOON).await;
    let agent = start_with(&node, &[(&class, &disks, "")], &[("minResyncPeriod", "300ms")]);
    let words = "nothing says which volume it was";
    let detail = wait_saying(&agent, &class, "accepted", "IdentityChanged", words).await;
    agent_has_seen(&node, &disks, "after").await;
    let now = node.wait_pv(&paths[0], |_| true, SOON).await;
    assert_eq!(now.metadata.resource_version, bound.metadata.resource_version, "it was not touched");
    // What one of them may have been about is not offered when its PV is gone.
    node.force_delete_pv(&claims[1].1).await;
    let shown = node.wait_pv(&paths[1], |pv| pv.uid() != claims[1].1.uid(), SOON).await;
    assert!(shown.annotations()["mooring.dev/quarantined"].contains("former Node"));
    assert!(paths[1].join("data").exists());
    // The other one is the right one.
    let digest = detail.rsplit(' ').next().expect("the detail ends in the digest");
    node.annotate_pv(&bound.name_any(), ACCEPT, Some(digest)).await;
    let ours = signature(&node);
    let taken = node.wait_pv(&paths[0], |pv| is_signed(pv, &ours), SOON).await;
    assert!(is_labelled(&taken) && taken.uid() == bound.uid());
    let annotations = taken.annotations();
    assert!(annotations.contains_key(IDENTITY) && !annotations.contains_key(ACCEPT));
    assert!(paths[0].join("data").exists());
    node.release(&claims[0].0).await;
    let anew = node.wait_pv(&paths[0], |pv| phase(pv) == "Available" && pv.uid() != bound.uid(), SOON).await;
    assert!(is_signed(&anew, &ours) && !paths[0].join("data").exists());
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn with_the_nodes_name_only_pvs_stay_its_own_and_both_forms_follow_the_setting() {
    const BY_NAME: &[(&str, &str)] = &[("useNodeNameOnly", "true")];
    let mut scene = Scene::new("byname", "Delete").await;
    let by_name = format!("local-volume-provisioner-{}", scene.node.name());
    scene.keys = BY_NAME;
    scene.begin();
    let used = scene.use_all().await;
    let published = async |scene: &Scene| {
        let mut pvs = Vec::new();
        for store in &scene.stores {
            wait_verdict(scene.agent(), &store.class, "vol", "Published").await;
            pvs.push(store.wait(&scene.node, "Bound").await);
        }
        pvs
    };
    let first = published(&scene).await;
    assert!(first.iter().all(|pv| is_signed(pv, &by_name)));
    scene.kill().await;
    scene.node.make_again().await;
    scene.begin();
    let versions = |pvs: &[PersistentVolume]| pvs.iter().map(ResourceExt::resource_version).collect::<Vec<_>>();
    assert_eq!(versions(&published(&scene).await), versions(&first), "nothing is to be written");
    scene.kill().await;

    scene.keys = &[];
    scene.begin();
    let by_uid = signature(&scene.node);
    for (store, (pv, _)) in scene.stores.iter().zip(&used) {
        let signed = scene.node.wait_pv(&store.path(), |pv| is_signed(pv, &by_uid), SOON).await;
        assert_eq!((signed.uid(), phase(&signed)), (pv.uid(), "Bound"));
    }
    let signed = published(&scene).await;
    scene.kill().await;
    scene.keys = BY_NAME;
    scene.begin();
    assert_eq!(versions(&published(&scene).await), versions(&signed), "the UID is this Node's");
    for (_, claim) in &used {
        scene.node.release(claim).await;
    }
    for (store, (pv, _)) in scene.stores.iter().zip(&used) {
        let anew = store.wait_anew(&scene.node, "Available", pv).await;
        assert!(store.is_blank() && is_signed(&anew, &by_name));
    }
    scene.end().await;
}

#[tokio::test]
async fn an_unlabelled_pv_behind_hundreds_of_others_is_found_and_from_then_on_watched() {
    const OTHERS: usize = 250;
    let node = TestNode::new(shared(), "behind").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let pvs: Api<PersistentVolume> = Api::all(node.client());
    // Lists are in the order of names: these come first.
    let others: Vec<_> = (0..OTHERS).map(|number| format!("a-{}-{number}", node.name())).collect();
    let strangers = others.iter().map(|name| {
        let mut pv = node.local_pv(name, &class, Path::new("/elsewhere/volume"));
        let text = serde_json::to_string(&pv.spec).expect("a spec is JSON").replace(node.name(), "another-node");
        pv.spec = serde_json::from_str(&text).expect("it was JSON");
        pv
    });
    let (params, path) = (PostParams::default(), disks.join("v"));
    let made = stream::iter(strangers).map(|pv| {
        let (pvs, params) = (&pvs, &params);
        async move { pvs.create(params, &pv).await }
    });
    let made: Vec<_> = made.buffer_unordered(16).collect().await;
    assert!(made.iter().all(Result::is_ok), "volumes can be made");
    disk::tmpfs(&path, 64 << 20);
    let pv = node.create_pv(&of_go(&node, &class, &path, &signature(&node))).await;
    node.wait_pv(&path, |pv| phase(pv) == "Available", SOON).await;
    let agent = start(&node, &[(&class, &disks, "")]);
    let adopted = node.wait_pv(&path, |pv| is_labelled(pv) && phase(pv) == "Available", SOON).await;
    assert!(adopted.uid() == pv.uid() && adopted.annotations().contains_key(IDENTITY));
    wait_verdict(&agent, &class, "v", "Published").await;
    wait_calls(&agent, "patch", 1.0).await;
    assert_eq!((calls(&agent, "patch").await, calls(&agent, "create").await), (1.0, 0.0));
    let claim = node.bind(&pv.name_any()).await;
    node.release(&claim).await;
    node.wait_pv(&path, |anew| phase(anew) == "Available" && anew.uid() != pv.uid(), SOON).await;
    drop(agent);
    let gone = stream::iter(others).map(|name| {
        let pvs = &pvs;
        async move { pvs.delete(&name, &DeleteParams::default()).await.is_ok() }
    });
    assert!(gone.buffer_unordered(16).all(|gone| async move { gone }).await);
    node.clean_up().await;
}

#[tokio::test]
async fn a_pv_that_a_former_node_owns_is_handed_to_this_one_by_one_write() {
    let plane = ControlPlane::start(Options { audit: true });
    // It removes what a Node that is gone owned, at a moment that it chooses.
    plane.stop("kube-controller-manager");
    let mut node = TestNode::new(&plane, "owner").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let keys = [("setPVOwnerRef", "true"), ("labelsForPV", "env: prod")];
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let owners =
        |pv: &PersistentVolume| pv.owner_references().iter().map(|owner| owner.uid.clone()).collect::<Vec<_>>();
    let mut agent = start_with(&node, &[(&class, &disks, "")], &keys);
    let pv = node.wait_pv(&disks.join("v"), |_| true, SOON).await;
    assert_eq!((owners(&pv), pv.owner_references()[0].kind.as_str()), (vec![node.uid().to_owned()], "Node"));
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    agent.wait_exit(SOON).await;
    node.make_again().await;
    let agent = start_with(&node, &[(&class, &disks, "")], &keys);
    let ours = signature(&node);
    let taken = node.wait_pv(&disks.join("v"), |pv| is_signed(pv, &ours), SOON).await;
    assert_eq!((owners(&taken), taken.uid()), (vec![node.uid().to_owned()], pv.uid()));
    wait_ready(&agent).await;
    drop(agent);
    let agent = start_with(&node, &[(&class, &disks, "")], &keys);
    wait_ready(&agent).await;
    disk::tmpfs(&disks.join("w"), 1 << 20);
    let other = node.wait_pv(&disks.join("w"), |_| true, SOON).await;
    let is_write = |entry: &AuditEntry| {
        entry.resource == "persistentvolumes"
            && entry.user_agent.starts_with("mooring/")
            && !["get", "list", "watch"].contains(&entry.verb.as_str())
    };
    let deadline = std::time::Instant::now() + SOON;
    let writes = loop {
        // The log is written a little later.
        let writes: Vec<_> = plane.audit().into_iter().filter(is_write).collect();
        if writes.iter().any(|entry| entry.name == other.name_any()) {
            break writes;
        }
        assert!(std::time::Instant::now() < deadline, "the audit log lacks the last volume: {writes:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let verbs: Vec<_> = writes.iter().map(|entry| (entry.verb.as_str(), entry.name.as_str())).collect();
    let (v, w) = (pv.name_any(), other.name_any());
    assert_eq!(verbs, [("create", v.as_str()), ("patch", v.as_str()), ("create", w.as_str())]);
    drop(agent);
}

#[tokio::test]
async fn a_path_that_two_foreign_pvs_name_is_offered_when_both_are_gone() {
    let node = TestNode::new(shared(), "two-others").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let mut others = Vec::new();
    for hand in ["one", "two"] {
        let pv = node.local_pv(&format!("{hand}-{}", node.name()), &class, &disks.join("v"));
        others.push(node.create_pv(&pv).await);
    }
    // Who may not patch PVs watches all of them, and sees those of others go.
    let account = format!("go-{}", node.name());
    rbac::apply_old(&node.client(), &account).await;
    let kubeconfig = node.kubeconfig_of(rbac::NAMESPACE, &account).await.display().to_string();
    let map = storage_class_map(&[(&class, &disks, "")]);
    let options = AgentOptions {
        config: &[("storageClassMap", &map)],
        args: &["--v=4"],
        env: &[("KUBECONFIG", &kubeconfig)],
        ..AgentOptions::default()
    };
    let agent = Agent::start(&node, options);
    let both = wait_verdict(&agent, &class, "v", "PathInUse").await;
    let names: Vec<String> = others.iter().map(ResourceExt::name_any).collect();
    assert!(names.iter().all(|name| both.contains(name)), "{both}");
    for gone in [1, 0] {
        node.force_delete_pv(&others[gone]).await;
        node.wait_gone(&others[gone], SOON).await;
        agent_has_seen(&node, &disks, &format!("after {gone}")).await;
        if gone == 1 {
            let left = wait_verdict(&agent, &class, "v", "PathInUse").await;
            assert!(left.contains(&names[0]) && !left.contains(&names[1]), "{left}");
            let on_it = |pv: &&PersistentVolume| path_of(pv) == disks.join("v").display().to_string();
            assert_eq!(node.pvs().await.iter().filter(on_it).count(), 1, "nothing is offered beside it");
        }
    }
    node.wait_pv(&disks.join("v"), |pv| phase(pv) == "Available" && is_labelled(pv), SOON).await;
    drop(agent);
    node.clean_up().await;
}
