//! What the metrics page tells, in which form, and that its documentation tells the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;

use crate::common::{SOON, start, wait_ready, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Agent, shared};

/// Series of the Go provisioner, without a name and braces.
const GO: &str = "local_volume_provisioner_";

fn name(pv: &PersistentVolume) -> &str {
    pv.metadata.name.as_deref().expect("a PV has a name")
}

async fn available(node: &TestNode, path: &Path) -> PersistentVolume {
    node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await
}

/// GETs the metrics page with that header `Accept`: the answer's type, and the text.
pub async fn scrape(agent: &Agent, accept: &str) -> (String, String) {
    let (address, accept) = (agent.address().await, accept.to_owned());
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(&address).expect("the agent listens");
        stream.set_read_timeout(Some(SOON)).expect("a socket has a timeout");
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\nAccept: {accept}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads the request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    });
    let answer = answer.await.expect("the request does not panic");
    let (head, body) = answer.split_once("\r\n\r\n").expect("it is an HTTP answer");
    let kind = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-type").then(|| value.to_owned())
    });
    (kind.expect("its type is told"), body.to_owned())
}

/// The families that a text describes: name and type.
fn families(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

/// The names of the labels of each family's samples.
pub fn labels(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let families = families(text);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').expect("a sample has a value").0;
        let (name, of_series) = series.split_once('{').unwrap_or((series, "}"));
        let family = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| {
            let base = name.strip_suffix(suffix)?;
            families.get(base).is_some_and(|kind| *kind == "histogram").then_some(base)
        });
        let names = of_series.trim_end_matches('}').split("\",").filter_map(|label| Some(label.split_once("=\"")?.0));
        labels.entry(family.unwrap_or(name)).or_default().extend(names.filter(|name| *name != "le"));
    }
    labels
}

/// The value of each gauge.
fn gauges(text: &str) -> BTreeMap<String, String> {
    let families = families(text);
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let gauges = samples.filter(|(series, _)| {
        let name = series.split('{').next().unwrap_or(series);
        // What the process takes is never the same.
        families.get(name) == Some(&"gauge") && !name.starts_with("process_")
    });
    gauges.map(|(series, value)| (series.to_owned(), value.to_owned())).collect()
}

/// What Prometheus' own checker has against the text.
fn complaints(text: &str) -> String {
    let mut checker = Command::new("promtool");
    checker.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = checker.spawn().expect("promtool can be run (make setup)");
    child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads the text");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() { said } else { format!("{}: {said}", output.status) }
}

/// A node with an agent that has published a filesystem and a device, wiped each of them
/// once, and failed to wipe another filesystem.
pub struct Scene {
    pub node: TestNode,
    pub agent: Agent,
    fast: String,
    raw: String,
    pub _disks: Vec<LoopDisk>,
}

const FILESYSTEM: u64 = 64 << 20;
const DEVICE: u64 = 32 << 20;
const LARGE_DEVICE: u64 = 512 << 20;

pub async fn scene(tag: &str) -> Scene {
    let node = TestNode::new(shared(), tag).await;
    let (fast, raw) = (node.class("fast", "Delete").await, node.class("raw", "Delete").await);
    let (mounts, links) = (node.discovery_dir("mounts"), node.discovery_dir("links"));
    let disk = LoopDisk::new(node.dir(), DEVICE);
    let link = disk.link(&links, "disk");
    let (good, bad) = (mounts.join("good"), mounts.join("bad"));
    disk::tmpfs(&good, FILESYSTEM);
    disk::tmpfs(&bad, FILESYSTEM);
    let raw_keys = "volumeMode: Block\nblockCleanerCommand: [/scripts/dd_zero.sh]";
    let agent = start(&node, &[(&fast, &mounts, ""), (&raw, &links, raw_keys)]);
    for path in [&link, &good, &bad] {
        let pv = available(&node, path).await;
        let claim = node.bind(name(&pv)).await;
        if path == &bad {
            // Emptied it can't be: something else is mounted in it.
            disk::tmpfs(&bad.join("inner"), 1 << 20);
            fs::write(bad.join("inner/file"), "x").expect("a file can be written");
        }
        node.release(&claim).await;
        if path != &bad {
            let uid = pv.metadata.uid.clone();
            node.wait_pv(path, |pv| phase(pv) == "Available" && pv.metadata.uid != uid, SOON).await;
        }
    }
    let failed = format!("{GO}persistentvolume_delete_failed_total{{mode=\"Filesystem\",type=\"process\"}}");
    agent.wait_metric(&failed, |value| value >= 1.0, SOON).await;
    // It has had the answers to what is there already.
    for (mode, count) in [("Filesystem", 3.0), ("Block", 2.0)] {
        let published = format!("{GO}persistentvolume_discovery_total{{mode=\"{mode}\"}}");
        agent.wait_metric(&published, |value| value >= count, SOON).await;
    }
    Scene { node, agent, fast, raw, _disks: vec![disk] }
}

#[tokio::test]
async fn counters_and_gauges_tell_what_was_published_wiped_and_not_wiped() {
    let Scene { node, agent, fast, raw, _disks } = scene("counts").await;
    // What it has counted comes after what it has done.
    let is = async |series: &str, expected: f64| {
        agent.wait_metric(series, |value| (value - expected).abs() < 1e-9, SOON).await;
    };
    let go = async |series: &str, expected: f64| is(&format!("{GO}{series}"), expected).await;
    let of_mode =
        async |name: &str, mode: &str, expected: f64| go(&format!("{name}{{mode=\"{mode}\"}}"), expected).await;

    // Two filesystems and a device, of which one each came anew after its wipe.
    of_mode("persistentvolume_discovery_total", "Filesystem", 3.0).await;
    of_mode("persistentvolume_discovery_total", "Block", 2.0).await;
    of_mode("persistentvolume_discovery_duration_seconds_count", "Filesystem", 3.0).await;
    let sum = format!("{GO}persistentvolume_discovery_duration_seconds_sum{{mode=\"Filesystem\"}}");
    agent.wait_metric(&sum, |sum| sum > 0.0 && sum < 3.0 * SOON.as_secs_f64(), SOON).await;
    of_mode("persistentvolume_capacity_bytes", "Filesystem", 2.0 * FILESYSTEM as f64).await;
    of_mode("persistentvolume_capacity_bytes", "Block", DEVICE as f64).await;
    for mode in ["Filesystem", "Block"] {
        go(&format!("persistentvolume_delete_total{{mode=\"{mode}\",type=\"process\"}}"), 1.0).await;
        go(&format!("persistentvolume_delete_total{{mode=\"{mode}\",type=\"job\"}}"), 0.0).await;
    }
    for (mode, command) in [("Filesystem", "auto"), ("Block", "/scripts/dd_zero.sh")] {
        let labels = format!("mode=\"{mode}\",type=\"process\",capacity=\"500G\",cleanup_command=\"{command}\"");
        go(&format!("persistentvolume_delete_duration_seconds_count{{{labels}}}"), 1.0).await;
    }
    go("persistentvolume_delete_failed_total{mode=\"Block\",type=\"process\"}", 0.0).await;
    // Of two wipes each PV was deleted once, and the third was fenced and deleted.
    go("apiserver_requests_total{method=\"create\"}", 5.0).await;
    agent.wait_metric(&format!("{GO}apiserver_requests_total{{method=\"delete\"}}"), |count| count >= 2.0, SOON).await;
    go("apiserver_requests_failed_total{method=\"create\"}", 0.0).await;
    go("apiserver_requests_duration_seconds_count{method=\"create\"}", 5.0).await;

    // The one that fails is tried again.
    for gauge in ["proctable_running", "proctable_succeeded"] {
        agent.wait_metric(&format!("{GO}{gauge}"), |count| count < 0.5, SOON).await;
    }
    is("mooring_publish_duration_seconds_count", 5.0).await;
    is("mooring_wipes_total{outcome=\"success\"}", 2.0).await;
    is(&format!("mooring_volumes{{class=\"{fast}\",verdict=\"Published\"}}"), 1.0).await;
    is(&format!("mooring_volumes{{class=\"{raw}\",verdict=\"Published\"}}"), 1.0).await;
    is("mooring_quarantined_volumes", 0.0).await;
    go("proctable_failed", 1.0).await;
    node.clean_up().await;
}

#[tokio::test]
async fn a_second_pass_leaves_every_gauge_as_it_was() {
    let node = TestNode::new(shared(), "again").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), FILESYSTEM);
    let agent = start(&node, &[(&class, &disks, "")]);
    available(&node, &disks.join("v")).await;
    let published = format!("mooring_volumes{{class=\"{class}\",verdict=\"Published\"}}");
    agent.wait_metric(&published, |count| count > 0.5, SOON).await;
    let before = gauges(&scrape(&agent, "").await.1);
    assert!(before.len() > 8 && before.get(&published).is_some_and(|count| count == "1"), "{before:?}");
    for pass in 0..3 {
        // What the agent tells of an entry that comes and goes shows that it has gone through all of them.
        let passing = disks.join(format!("passing-{pass}"));
        fs::create_dir(&passing).expect("a directory can be made");
        let ignored = format!("mooring_volumes{{class=\"{class}\",verdict=\"NotAMountPoint\"}}");
        agent.wait_metric(&ignored, |count| count > 0.5, SOON).await;
        fs::remove_dir(&passing).expect("a directory can be removed");
        let deadline = std::time::Instant::now() + SOON;
        while agent.metric(&ignored).await.is_some() {
            assert!(std::time::Instant::now() < deadline, "{ignored} is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // A busy machine may have looked hung for a moment.
        loop {
            let now = gauges(&scrape(&agent, "").await.1);
            if now == before {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{now:?} instead of {before:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    node.clean_up().await;
}

/// A node with an agent that is wiping a device, for longer than any test.
pub struct SlowWipe {
    pub node: TestNode,
    pub agent: Agent,
    pub disk: LoopDisk,
    class: String,
    planned: String,
    done: String,
}

pub async fn slow_wipe(tag: &str) -> SlowWipe {
    let node = TestNode::new(shared(), tag).await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let disk = LoopDisk::new(node.dir(), LARGE_DEVICE);
    let link = disk.link(&disks, "disk");
    let slow = "volumeMode: Block\nwipe: {method: overwrite, passes: 1, bandwidth: 1Mi}";
    let agent = start(&node, &[(&class, &disks, slow)]);
    let pv = available(&node, &link).await;
    let claim = node.bind(name(&pv)).await;
    node.release(&claim).await;
    let (done, planned) = (
        format!("mooring_wipe_done_bytes{{class=\"{class}\"}}"),
        format!("mooring_wipe_planned_bytes{{class=\"{class}\"}}"),
    );
    agent.wait_metric(&planned, |bytes| bytes >= LARGE_DEVICE as f64, SOON).await;
    SlowWipe { node, agent, disk, class, planned, done }
}

#[tokio::test]
async fn how_far_a_wipe_is_shows_while_it_runs() {
    let SlowWipe { node, agent, disk: _disk, class, planned, done } = slow_wipe("running").await;
    let running = format!("{GO}proctable_running");
    agent.wait_metric(&running, |count| count > 0.5, SOON).await;
    let idle = agent.metric(&format!("mooring_wipe_idle_seconds{{class=\"{class}\"}}")).await;
    assert!(idle.is_some_and(|seconds| seconds < 30.0), "{idle:?}");
    let first = agent.wait_metric(&done, |bytes| bytes > 0.0, SOON).await;
    let later = agent.wait_metric(&done, |bytes| bytes > first, SOON).await;
    assert!(later < agent.metric(&planned).await.expect("it runs"));
    node.annotate_node("mooring.dev/hold", Some("true")).await;
    agent.wait_metric(&running, |count| count < 0.5, SOON).await;
    agent.wait_metric("mooring_wipes_total{outcome=\"cancelled\"}", |count| count == 1.0, SOON).await;
    let page = agent.get("/metrics").await.1;
    assert!(!page.contains(&format!("{done} ")) && !page.contains(&format!("{planned} ")), "{page}");
    let failed = format!("{GO}persistentvolume_delete_failed_total{{mode=\"Block\",type=\"process\"}}");
    assert_eq!(agent.metric(&failed).await, Some(0.0), "it was held, and did not fail");
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_volume_that_is_exchanged_is_counted_as_a_mismatch() {
    let node = TestNode::new(shared(), "mismatch").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let volume = disks.join("v");
    let _first = disk::ext4(&volume, 16 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = available(&node, &volume).await;
    node.bind(name(&pv)).await;
    assert_eq!(agent.metric("mooring_identity_mismatches_total").await, Some(0.0));
    // An empty directory is no volume to anybody, but it is missing where a PV names it.
    let missing = format!("mooring_missing_volumes{{class=\"{class}\"}}");
    fs::create_dir(disks.join("no-volume")).expect("a directory can be made");
    wait_verdict(&agent, &class, "no-volume", "NotAMountPoint").await;
    assert_eq!(agent.metric(&missing).await, Some(0.0));
    disk::umount(&volume);
    agent.wait_metric(&missing, |count| count > 0.5, SOON).await;
    let other = LoopDisk::new(node.dir(), 16 << 20);
    other.format_ext4();
    other.mount_ext4(&volume);
    wait_verdict(&agent, &class, "v", "IdentityChanged").await;
    agent.wait_metric("mooring_identity_mismatches_total", |count| count > 0.5, SOON).await;
    assert_eq!(agent.metric("mooring_identity_mismatches_total").await, Some(1.0));
    agent.wait_metric(&missing, |count| count < 0.5, SOON).await;
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn each_client_gets_the_format_that_it_asks_for_and_no_checker_complains() {
    let Scene { node, agent, fast, _disks, .. } = scene("format").await;
    let (kind, plain) = scrape(&agent, "").await;
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(complaints(&plain), "", "{plain}");
    // As the Go client writes it, to the letter.
    for line in [
        format!("# TYPE {GO}persistentvolume_discovery_total counter"),
        format!("# TYPE {GO}persistentvolume_capacity_bytes gauge"),
        format!("{GO}persistentvolume_discovery_duration_seconds_bucket{{le=\"+Inf\",mode=\"Filesystem\"}} 3"),
    ] {
        assert!(plain.lines().any(|other| other == line), "{line} is missing in\n{plain}");
    }
    // How long it took is the machine's.
    let ten = format!("\n{GO}persistentvolume_discovery_duration_seconds_bucket{{le=\"10\",mode=\"Filesystem\"}} ");
    assert!(plain.contains(&ten), "{plain}");
    let series = |text: &str| -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.contains("le=\""));
        samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    let (kind, open) = scrape(&agent, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.ends_with("\n# EOF\n") && !plain.contains("# EOF"), "{open}");
    assert!(open.contains(&format!("# TYPE {GO}persistentvolume_discovery counter\n")), "{open}");
    // Calls may have been made between the two for the first time, and a try to wipe may have
    // begun or ended: what is in the texts before and after has to be in the one between.
    let lasting: BTreeSet<String> = &series(&plain) & &series(&scrape(&agent, "").await.1);
    assert!(lasting.is_subset(&series(&open)), "{plain}\n{open}");
    assert!(plain.contains(&fast));
    node.clean_up().await;
}

#[tokio::test]
async fn every_family_is_documented_and_every_documented_one_is_there() {
    let Scene { node, agent, .. } = scene("documented").await;
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).expect("it is there");
    // | `name` | type | `label`, `label` | meaning | what to do |
    let mut documented: BTreeMap<&str, (&str, BTreeSet<&str>)> = BTreeMap::new();
    let is_row =
        |line: &&str| ["mooring_", "process_", GO].iter().any(|start| line.starts_with(&format!("| `{start}")));
    for row in page.lines().filter(is_row) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{row}");
        let of_labels = cells[2].split('`').skip(1).step_by(2).collect();
        documented.insert(cells[0].trim_matches('`'), (cells[1], of_labels));
    }
    let (_, text) = scrape(&agent, "").await;
    let (families, labels) = (families(&text), labels(&text));
    let told: BTreeMap<&str, &str> = documented.iter().map(|(name, (kind, _))| (*name, *kind)).collect();
    assert_eq!(told, families);
    for (family, names) in labels {
        assert_eq!(documented[family].1, names, "the labels of {family}");
    }
    node.clean_up().await;
}

#[tokio::test]
async fn every_family_is_described_before_anything_has_happened() {
    let Scene { node, agent, .. } = scene("described").await;
    let idle_node = TestNode::new(shared(), "idle").await;
    let class = idle_node.class("fast", "Delete").await;
    let idle = start(&idle_node, &[(&class, &idle_node.discovery_dir("disks"), "")]);
    wait_ready(&idle).await;
    let (busy_text, idle_text) = (scrape(&agent, "").await.1, scrape(&idle, "").await.1);
    assert_eq!(families(&busy_text), families(&idle_text));
    assert_eq!(complaints(&idle_text), "", "{idle_text}");
    drop((agent, idle));
    node.clean_up().await;
    idle_node.clean_up().await;
}
