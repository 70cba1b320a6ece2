//! A real database on a local PV is killed, and moved as far as that goes: it keeps every committed row.

use std::fs;
use std::path::Path;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ResourceExt;
use serde_json::json;

use crate::harness::scratch::Scratch;
use crate::harness::site::{SOON, container_id};
use crate::mariadb::{self, CLIENT, IMAGE};
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[("s07", "{}")];

const SIZE: u64 = 192 << 20;
const POD: &str = "mariadb-0";

#[tokio::test]
async fn s07_a_database_keeps_all_committed_rows_when_it_is_killed_and_made_anew() {
    let images = Scratch::new("mariadb");
    let tar = images.path().join("mariadb.tar");
    mariadb::build(images.path(), &tar);
    let scene = stage::alone("s07").await;
    let node = scene.node(0);
    node.import(&tar);
    let (path, disk) = node.mount_ext4("s07", "disk", SIZE);
    scene.wait_available("s07", 0, "disk").await;
    scene.apply(&stateful_set());
    let first = scene.wait_running(POD).await;
    ask(&scene, "create database test; create table test.data (id int primary key, text varchar(64));").await;

    // A client that goes on and on, and notes each row whose commit it was told of.
    let insert = "echo \"insert into data values ($i, 'row $i'); select $i;\"";
    let client = format!("i=0; while :; do i=$((i + 1)); {insert}; done | {CLIENT} test > /data/committed");
    scene.sh(POD, &format!("({client}) < /dev/null > /dev/null 2> /data/errors &"));
    let committed = || {
        let notes = node.on_host(|| fs::read_to_string(path.join("committed"))).unwrap_or_default();
        // The last line may be half a one.
        let whole = notes.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().last().map_or(0, |line| line.parse().expect("it notes numbers"))
    };
    scene.until("rows are committed", SOON, async || (committed() >= 100).then_some(())).await;
    scene.stop_kubelet(0);
    let more = committed() + 50;
    scene.until("more are committed", SOON, async || (committed() >= more).then_some(())).await;
    node.kill_container(container_id(&first).expect("it runs"));
    scene.start_kubelet(0).await;
    let is_other = |pod: &Pod| container_id(pod).is_some() && container_id(pod) != container_id(&first);
    let second = scene.wait_pod(POD, "runs in another container", is_other).await;
    assert_eq!(second.uid(), first.uid(), "it is the same pod");
    let committed: u32 = committed();
    let rows = rows(&scene).await;
    eprintln!("{committed} commits were told of before the kill, and {rows} rows are there after it");
    // One may have been committed without a word.
    assert!(rows == committed || rows == committed + 1, "{rows} rows of {committed}");

    ask(&scene, "insert into test.data values (1000000, 'the last row');").await;
    scene.delete::<Pod>(POD).await;
    let third = scene.wait_running(POD).await;
    assert_ne!(third.uid(), first.uid(), "it is another pod");
    assert_eq!(node_of(&third), node_of(&first), "where its data are");
    assert_eq!(self::rows(&scene).await, rows + 1);
    let file = node.on_host(|| fs::read(path.join("db/test/data.ibd"))).expect("the host sees the table");
    assert!(memchr::memmem::find(&file, b"the last row").is_some(), "the host sees the rows");

    scene.delete::<StatefulSet>("mariadb").await;
    scene.until("its pod is gone", SOON, async || {
        scene.api::<Pod>().get_opt(POD).await.expect("a pod can be read").is_none().then_some(())
    })
    .await;
    let (_, pv) = scene.wait_bound("data-mariadb-0").await;
    scene.delete_claim("data-mariadb-0").await;
    scene.wait_anew("s07", 0, "disk", &pv).await;
    assert!(!node.on_host(|| Path::new(&path).join("db").exists()), "it is wiped");
    drop(disk);
}

fn stateful_set() -> String {
    let container = json!({
        "name": "mariadb", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", mariadb::serve()],
        "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
    });
    let claim = json!({
        "metadata": { "name": "data" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "s07",
            "resources": { "requests": { "storage": "64Mi" } },
        },
    });
    let labels = json!({ "app": "mariadb" });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "mariadb" },
        "spec": {
            "serviceName": "mariadb", "replicas": 1, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "dnsPolicy": "Default", "containers": [container] } },
            "volumeClaimTemplates": [claim],
        },
    });
    set.to_string()
}

/// Has the server do something, as soon as it answers.
async fn ask(scene: &Scene, query: &str) -> String {
    let client: Vec<_> = CLIENT.split(' ').collect();
    scene.until("the server answers", SOON, async || scene.try_exec(POD, &[client.as_slice(), &["-e", "select 1"]].concat()).ok()).await;
    scene.exec(POD, &[client.as_slice(), &["-e", query]].concat())
}

/// How many rows there are; none is missing before the last one of the client's.
async fn rows(scene: &Scene) -> u32 {
    let answer = ask(scene, "select count(*), max(id) from test.data where id < 1000000; select count(*) from test.data").await;
    let numbers: Vec<u32> = answer.split_whitespace().map(|word| word.parse().expect("it is a number")).collect();
    assert_eq!(numbers[0], numbers[1], "no row is missing in between");
    numbers[2]
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}
