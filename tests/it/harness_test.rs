//! The harness itself: what the other tests rely on.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, Secret};
use kube::api::{Api, ListParams, ResourceExt};
use nix::sys::signal::Signal;

use crate::harness::cluster::client_from;
use crate::harness::supervisor::descendants;
use crate::harness::volumes::phase;
use crate::harness::{Agent, AgentOptions, AuditEntry, ConfigDir, ControlPlane, LoopDisk, Options, Scratch, TestNode};
use crate::harness::{disk, eventually, http, require_own_namespace, shared, storage_class_map};

const SOON: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_control_plane_ends_with_its_value_and_leaves_no_process() {
    let plane = ControlPlane::start(Options { audit: true });
    let nodes: Api<Node> = Api::all(plane.client().await);
    nodes.list(&ListParams::default()).await.expect("the API server answers");
    let is_ours = |entry: &AuditEntry| {
        (&*entry.user, &*entry.verb, &*entry.resource, entry.code) == ("admin", "list", "nodes", 200)
    };
    eventually("our request in the audit log", SOON, || plane.audit().iter().any(is_ours));

    plane.kill("kube-apiserver");
    assert!(nodes.list(&ListParams::default()).await.is_err(), "a killed API server does not answer");
    plane.start_component("kube-apiserver");
    nodes.list(&ListParams::default()).await.expect("the API server answers again");

    let processes = descendants(plane.pid());
    assert!(processes.len() >= 5, "the supervisor and four components: {processes:?}");
    let dir = plane.dir();
    drop(plane);
    for pid in processes {
        eventually("its end", SOON, || !Path::new(&format!("/proc/{pid}")).exists());
    }
    assert!(!dir.exists(), "its data is gone");
}

#[tokio::test]
async fn a_volume_made_by_hand_binds_and_is_released() {
    let node = TestNode::new(shared(), "by-hand").await;
    let class = node.class("fast", "Retain").await;
    let path = node.discovery_dir("disks").join("a");
    let name = format!("pv-{}", node.name());
    let mut volume = node.local_pv(&name, &class, &path);
    volume.spec.as_mut().expect("it has a spec").persistent_volume_reclaim_policy = Some("Retain".to_owned());
    node.create_pv(&volume).await;
    node.wait_pv(&path, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&name).await;
    node.release(&claim).await;
    let released = node.wait_pv(&path, |pv| phase(pv) == "Released", SOON).await;
    assert_eq!(node.pvs().await.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), [name.as_str()]);
    let volumes: Api<PersistentVolume> = Api::all(node.client());
    volumes.delete(&name, &kube::api::DeleteParams::default()).await.expect("a volume can be deleted");
    node.wait_gone(&released, SOON).await;
    node.clean_up().await;
}

#[tokio::test]
async fn the_agents_account_may_do_what_the_agent_does_and_no_more() {
    let node = TestNode::new(shared(), "account").await;
    let client = client_from(node.kubeconfig()).await;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.list(&ListParams::default()).await.expect("the agent may list volumes");
    let secrets: Api<Secret> = Api::all(client);
    let refused = secrets.list(&ListParams::default()).await.expect_err("the agent may not list secrets");
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");
    node.clean_up().await;
}

#[test]
fn a_loop_disk_detaches_when_its_last_user_closes() {
    require_own_namespace();
    let scratch = Scratch::new("loop");
    let disk = LoopDisk::new(scratch.path(), 16 << 20);
    let (device, backing) = (disk.device.clone(), disk.backing.clone());
    assert!(disk.is_attached());
    // Across the boundary of two read blocks.
    disk.write_at((1 << 20) - 3, b"secret");
    assert!(disk.backing_contains(b"secret") && !disk.backing_contains(b"public"));
    assert_eq!(disk.read_all().len(), 16 << 20);
    let user = fs::File::open(&device).expect("the device can be opened");
    drop(disk);
    std::thread::sleep(Duration::from_millis(100));
    assert!(disk::is_attached(&device, &backing), "another user keeps it");
    drop(user);
    eventually("its detaching", SOON, || !disk::is_attached(&device, &backing));
}

#[test]
fn an_ext4_disk_lives_as_long_as_its_mount() {
    require_own_namespace();
    let scratch = Scratch::new("ext4-test");
    let point = scratch.path().join("mounted here");
    let disk = disk::ext4(&point, 32 << 20);
    fs::write(point.join("file"), "content").expect("the filesystem takes files");
    let (device, backing) = (disk.device.clone(), disk.backing.clone());
    drop(disk);
    assert!(disk::is_attached(&device, &backing), "the mount keeps it");
    disk::umount(&point);
    eventually("its detaching", SOON, || !disk::is_attached(&device, &backing));
}

#[test]
fn a_configuration_is_swapped_in_one_step() {
    let scratch = Scratch::new("config");
    let dir = ConfigDir::new(scratch.path().join("config"), &[("kept", "1"), ("removed", "1")]);
    let first = fs::read_link(dir.path().join("..data")).expect("..data is a link");
    dir.rewrite(&[("kept", "2"), ("added", "2")]);
    assert_ne!(fs::read_link(dir.path().join("..data")).expect("..data is a link"), first);
    assert_eq!(fs::read_link(dir.path().join("kept")).expect("a key is a link"), Path::new("..data/kept"));
    assert_eq!(fs::read_to_string(dir.path().join("kept")).expect("a key can be read"), "2");
    assert_eq!(fs::read_to_string(dir.path().join("added")).expect("a key can be read"), "2");
    assert!(!dir.path().join("removed").is_symlink(), "a removed key leaves no link");
    assert!(!dir.path().join(first).exists(), "the old version is gone");
}

/// Answers every request with the same page, from a thread that ends with the process.
fn serve(page: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection can be accepted");
            let mut request = BufReader::new(stream.try_clone().expect("a descriptor can be copied")).lines();
            while request.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            // A client that has gone is no concern of this one's.
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{page}");
        }
    });
    address
}

/// A stand-in for the agent's program: says where it serves and what it was given, then sleeps.
fn stand_in(dir: &Path) -> PathBuf {
    let path = dir.join("stand-in");
    let script = "#!/bin/sh\n\
        echo \"{\\\"fields\\\":{\\\"message\\\":\\\"HTTP server listening\\\",\\\"address\\\":\\\"$SERVED\\\"}}\"\n\
        echo \"$MY_NODE_NAME $*\" >&2\n\
        exec sleep 600\n";
    fs::write(&path, script).expect("a script can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script can be made executable");
    path
}

#[tokio::test]
async fn an_agents_pages_logs_mounts_and_numbers_can_be_read() {
    let node = TestNode::new(shared(), "agent").await;
    let disks = node.discovery_dir("disks");
    let map = storage_class_map(&[("fast", &disks, "volumeMode: Block")]);
    let address = serve("# HELP volumes x\nvolumes{class=\"a b\"} 3\n");
    let mut agent = Agent::start(
        &node,
        AgentOptions {
            config: &[("storageClassMap", &map)],
            args: &["--further"],
            env: &[("SERVED", &address)],
            binary: Some(&stand_in(node.dir())),
            stateless: true,
            ..AgentOptions::default()
        },
    );
    let given = agent.wait_log("--further", SOON).await;
    assert!(given.starts_with(&format!("{} agent --config-dir ", node.name())), "{given}");
    assert_eq!(agent.get("/").await.0, 200);
    assert_eq!(agent.metric("volumes{class=\"a b\"}").await, Some(3.0));
    assert_eq!(fs::read_to_string(agent.config_dir().join("storageClassMap")).expect("the key is there"), map);

    // What is mounted after its start is seen in its namespace, and so is its end.
    let mounts = || fs::read_to_string(format!("/proc/{}/mountinfo", agent.pid())).expect("the agent lives");
    disk::mount_many(&disks, 3);
    assert_eq!(mounts().matches("/disks/0000").count(), 3);
    disk::umount(&disks.join("00001"));
    assert_eq!(mounts().matches("/disks/0000").count(), 2);
    let own = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("a process has a mount namespace");
    assert_ne!(own("self"), own(&agent.pid().to_string()), "the agent has a namespace of its own");

    assert!(agent.rss_kib().is_some_and(|size| size > 100) && agent.cpu_ticks().is_some());
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait_exit(SOON).await.signal(), Some(Signal::SIGTERM as i32));
    node.clean_up().await;
}

#[test]
fn a_series_is_found_by_its_exact_name() {
    let page = "# HELP up x\nup_total 7\nup{a=\"b c\"} 2.5\nup 1 1700000000\n";
    assert_eq!(http::metric(page, "up"), Some(1.0));
    assert_eq!(http::metric(page, "up{a=\"b c\"}"), Some(2.5));
    assert_eq!(http::metric(page, "down"), None);
}
