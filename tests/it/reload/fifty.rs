//! Fifty edits at random, bad ones among them: what is offered after does not depend on the
//! way to the last config. The seed is printed; `MOORING_SEED` sets it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use mooring::config_dir::{self, Files};

use super::{MIB, REJECTED, reloads, wait_in_force};
use crate::common::{SOON, wait_ready};
use crate::harness::agent::{Agent, AgentOptions};
use crate::harness::node::TestNode;
use crate::harness::volumes::{path_of, phase};
use crate::harness::{disk, eventually, shared};

/// A config that is edited at random: three classes with two directories each.
#[derive(Clone)]
struct Draft {
    classes: [ClassDraft; 3],
    label: u32,
    withdraw_after: u32,
}

#[derive(Clone, Copy)]
struct ClassDraft {
    is_there: bool,
    dir: usize,
    pattern: usize,
    method: usize,
}

const PATTERNS: [&str; 3] = ["*", "a*", "b*"];
const METHODS: [&str; 3] = ["zero", "discard", "overwrite"];
/// By directory: the name of a PV does not depend on it, and one of before is in the way of
/// another of its name.
const VOLUMES: [[&str; 3]; 2] = [["a1", "a2", "b1"], ["a3", "b2", "b3"]];

impl Draft {
    fn edit(&mut self, random: &mut fastrand::Rng) {
        let class = &mut self.classes[random.usize(..3)];
        match random.u32(..7) {
            0 | 1 => class.is_there = !class.is_there,
            2 => class.dir = 1 - class.dir,
            3 => class.pattern = random.usize(..3),
            4 => class.method = random.usize(..3),
            5 => self.label = random.u32(..5),
            _ => self.withdraw_after = random.u32(1..100),
        }
        if self.classes.iter().all(|class| !class.is_there) {
            self.classes[0].is_there = true;
        }
    }

    fn files(&self, names: &[String], dirs: &[[PathBuf; 2]]) -> Files {
        let mut map = String::new();
        for ((class, name), dirs) in self.classes.iter().zip(names).zip(dirs).filter(|((class, _), _)| class.is_there) {
            let dir = dirs[class.dir].display();
            let (pattern, method) = (PATTERNS[class.pattern], METHODS[class.method]);
            writeln!(
                map,
                "{name}: {{hostDir: {dir}, mountDir: {dir}, namePattern: '{pattern}', wipe: {{method: {method}}}}}"
            )
            .expect("a string takes text");
        }
        [
            ("storageClassMap", map),
            ("labelsForPV", format!("edit: '{}'", self.label)),
            ("withdrawAfter", format!("{}m", self.withdraw_after)),
        ]
        .map(|(key, text)| (key.to_owned(), text))
        .into()
    }

    /// The paths that are to be offered, by class.
    fn wanted(&self, names: &[String], dirs: &[[PathBuf; 2]]) -> BTreeSet<(String, PathBuf)> {
        let mut wanted = BTreeSet::new();
        for ((class, name), dirs) in self.classes.iter().zip(names).zip(dirs).filter(|((class, _), _)| class.is_there) {
            let start = PATTERNS[class.pattern].trim_end_matches('*');
            let volumes = VOLUMES[class.dir].iter().filter(|volume| volume.starts_with(start));
            wanted.extend(volumes.map(|volume| (name.clone(), dirs[class.dir].join(volume))));
        }
        wanted
    }
}

fn spoilt(files: &Files, random: &mut fastrand::Rng) -> Files {
    let mut files = files.clone();
    match random.u32(..4) {
        0 => _ = files.remove("storageClassMap"),
        1 => files.get_mut("storageClassMap").expect("it is there").push_str("x: {{{\n"),
        2 => files.get_mut("storageClassMap").expect("it is there").push_str("x: {hostDir: relative, mountDir: /x}\n"),
        _ => _ = files.insert("withdrawAfter".to_owned(), "later".to_owned()),
    }
    files
}

fn borrowed(files: &Files) -> Vec<(&str, &str)> {
    files.iter().map(|(key, text)| (key.as_str(), text.as_str())).collect()
}

fn offered(pvs: &BTreeMap<String, PersistentVolume>) -> BTreeSet<(String, PathBuf)> {
    let available = pvs.values().filter(|pv| phase(pv) == "Available" && pv.metadata.deletion_timestamp.is_none());
    let class = |pv: &PersistentVolume| pv.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
    available.map(|pv| (class(pv).unwrap_or_default(), PathBuf::from(path_of(pv)))).collect()
}

#[tokio::test]
async fn after_fifty_edits_the_agent_offers_what_a_fresh_one_would() {
    let seed =
        std::env::var("MOORING_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    eprintln!("MOORING_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let node = TestNode::new(shared(), "fifty").await;
    let mut names = Vec::new();
    for name in ["x", "y", "z"] {
        names.push(node.class(name, "Delete").await);
    }
    let dirs = ["x", "y", "z"].map(|name| ["1", "2"].map(|number| node.discovery_dir(&format!("{name}{number}"))));
    for (dir, volumes) in dirs.iter().flat_map(|dirs| dirs.iter().zip(VOLUMES)) {
        for volume in volumes {
            disk::tmpfs(&dir.join(volume), MIB);
        }
    }
    let class = ClassDraft { is_there: true, dir: 0, pattern: 0, method: 0 };
    let mut draft = Draft { classes: [class; 3], label: 0, withdraw_after: 1 };
    let files = draft.files(&names, &dirs);
    let agent = Agent::start(&node, AgentOptions { config: &borrowed(&files), ..AgentOptions::default() });
    wait_ready(&agent).await;
    let (mut bad, mut last, mut was_seen) = (0, files, true);
    for _ in 0..50 {
        let mark = agent.mark();
        let good = random.u32(..4) > 0;
        let files = if good {
            draft.edit(&mut random);
            draft.files(&names, &dirs)
        } else {
            bad += 1;
            spoilt(&draft.files(&names, &dirs), &mut random)
        };
        // What is in force already shows nothing of whether it was read again.
        let hash = config_dir::hash(&files);
        let shows = agent.metric("mooring_config_hash").await != Some(hash as f64);
        agent.rewrite_config(&borrowed(&files));
        // The others are followed at once, perhaps before they are seen.
        let is_awaited = random.u32(..4) > 0;
        if is_awaited && good {
            wait_in_force(&agent, hash).await;
        } else if is_awaited && was_seen && files != last {
            agent.wait_log_after(mark, REJECTED, SOON).await;
        }
        was_seen = is_awaited && if good { shows } else { was_seen };
        last = files;
    }
    let files = draft.files(&names, &dirs);
    agent.rewrite_config(&borrowed(&files));
    wait_in_force(&agent, config_dir::hash(&files)).await;
    agent.wait_metric("mooring_config_last_reload_successful", |value| value == 1.0, SOON).await;
    eprintln!("{bad} of 50 were bad; {:?} were noticed", reloads(&agent).await);
    // All that it says is offered, beside what was offered before.
    let wanted = draft.wanted(&names, &dirs);
    let all_offered = |pvs: &BTreeMap<_, _>| wanted.is_subset(&offered(pvs)).then(|| pvs.clone());
    let before = node.watch_pvs("all that the config says", SOON, all_offered).await;
    // An admin removes all of it, and what comes back is what the config says.
    let uids: BTreeSet<_> = before.values().map(ResourceExt::uid).collect();
    for name in before.keys() {
        node.delete_pv(name).await;
    }
    let all_anew = |pvs: &BTreeMap<String, PersistentVolume>| {
        offered(pvs) == wanted && pvs.len() == wanted.len() && pvs.values().all(|pv| !uids.contains(&pv.uid()))
    };
    let mut removed: BTreeSet<PathBuf> = before.values().map(|pv| path_of(pv).into()).collect();
    let deadline = Instant::now() + SOON;
    loop {
        let now: BTreeMap<_, _> = node.pvs().await.into_iter().map(|pv| (pv.name_any(), pv)).collect();
        if all_anew(&now) {
            break;
        }
        assert!(Instant::now() < deadline, "{wanted:?} is what the config says, and no more than {:?}", offered(&now));
        // What was about to be made by a former config may come only now, once.
        for (name, pv) in &now {
            let path = PathBuf::from(path_of(pv));
            if !wanted.iter().any(|(_, wanted)| *wanted == path) && removed.insert(path) {
                node.delete_pv(name).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("no class of before is remembered", SOON, || {
        let text = fs::read(node.state_dir().join("classes")).expect("it is written");
        let remembered: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
        remembered["maps"].as_array().map(Vec::len) == Some(1)
    });
    drop(agent);
    // The same directories, looked at by the first agent of another node.
    let other = TestNode::new(shared(), "fresh").await;
    let options = AgentOptions { config: &borrowed(&files), other: Some(node.dir()), ..AgentOptions::default() };
    let agent = Agent::start(&other, options);
    let all_offered = |pvs: &BTreeMap<_, _>| (offered(pvs) == wanted).then_some(());
    other.watch_pvs("the same of a fresh agent", SOON, all_offered).await;
    drop(agent);
    other.clean_up().await;
    node.clean_up().await;
}
