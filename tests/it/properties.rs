//! What holds for every input: of the decision, and of the way a volume is written
//! into a PV and read back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use mooring::config::Config;
use mooring::discovery::{Candidate, Finding, Sighting};
use mooring::identity::{DeviceIdentity, DeviceNumber, Identity, Uuid};
use mooring::ledger::{Entry, Ledger, State};
use mooring::memory::Memory;
use mooring::plan::{Action, Creation, Plan, World, plan};
use mooring::pv::{self, Claim, Decoded, OwnedPv, Phase, Volume};
use mooring::verdict::{Reason, Verdict};
use mooring::volume::{AccessMode, Capacity, NodeFacts, ReclaimPolicy, StorageClassFacts, VolumeMode};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 ._\\\\-]{1,12}"
}

fn volume() -> impl Strategy<Value = Volume> {
    let names = (text(), text(), text(), text());
    let rest = (
        btree_map("[a-z./]{1,10}", "[a-z]{0,5}", 0..4),
        option::of((text(), text())),
        option::of(text()),
        any::<u64>(),
        any::<[bool; 2]>(),
        prop_oneof![
            Just(AccessMode::ReadWriteOnce),
            Just(AccessMode::ReadWriteMany),
            Just(AccessMode::ReadWriteOncePod)
        ],
        vec(text(), 0..3),
        vec((text(), vec(text(), 0..3)), 1..3),
    );
    let ours = (btree_map("mooring\\.dev/[a-z]{1,8}", text(), 0..3), option::of((text(), text(), text())));
    (names, rest, ours).prop_map(|((name, provisioner, class, path), rest, (annotations, claim))| {
        let (labels, owner, fs_type, bytes, [block, retain], access_mode, mount_options, terms) = rest;
        let term = |(key, values)| NodeSelectorTerm {
            match_expressions: Some(vec![NodeSelectorRequirement { key, operator: "In".into(), values: Some(values) }]),
            ..NodeSelectorTerm::default()
        };
        Volume {
            name,
            provisioner,
            labels,
            owner,
            class,
            path,
            fs_type,
            capacity: Capacity::rounded_down(bytes),
            mode: if block { VolumeMode::Block } else { VolumeMode::Filesystem },
            access_mode,
            reclaim_policy: if retain { ReclaimPolicy::Retain } else { ReclaimPolicy::Delete },
            mount_options,
            affinity: terms.into_iter().map(term).collect(),
            annotations,
            claim: claim.map(|(namespace, name, uid)| Claim {
                namespace: namespace.into(),
                name: name.into(),
                uid: uid.into(),
            }),
        }
    })
}

proptest! {
    #[test]
    fn a_volume_survives_being_written_into_a_pv(volume in volume()) {
        let encoded = pv::encode(&volume);
        prop_assert_eq!(pv::decode(&encoded), Some(volume.clone()));
        // Also as the API server sends it.
        let json = serde_json::to_string(&encoded).expect("a PV is JSON");
        prop_assert_eq!(pv::decode(&serde_json::from_str(&json).expect("it was JSON")), Some(volume));
    }
}

/// A small world in which names, paths and classes collide often.
#[derive(Clone, Debug)]
struct Scene {
    findings: Vec<Finding>,
    owned: BTreeMap<String, OwnedPv>,
    suspects: BTreeSet<String>,
    foreign: BTreeMap<String, BTreeSet<String>>,
    classes: BTreeMap<String, StorageClassFacts>,
    ledger: Ledger,
}

fn node() -> NodeFacts {
    NodeFacts {
        name: "n1".into(),
        uid: "node-uid".into(),
        hostname: "n1".into(),
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        hold: false,
        taints: Vec::new(),
    }
}

/// How a Node signs that had the name before.
const FORMER: &str = "local-volume-provisioner-n1-5f0c7a0e-1b1a-4f4e-9a50-0c9bd1b8f0aa";

/// Classes a and b share a directory, c has its own.
fn config() -> Config {
    let map = "{a: {hostDir: /h, mountDir: /m}, b: {hostDir: /h, mountDir: /m, namePattern: '[^z]*'}, c: {hostDir: /x, mountDir: /x}}";
    let keys = [("storageClassMap", map), ("labelsForPV", "env: prod"), ("nodeLabelsForPV", "[zone, rack]")];
    let keys = keys.map(|(key, text)| (key.to_owned(), text.to_owned()));
    Config::parse(&BTreeMap::from(keys)).expect("the config is valid")
}

/// The disk of an entry: each has its own.
fn identity(path: &str) -> Identity {
    let minor = path.bytes().map(u32::from).sum();
    let number = DeviceNumber { major: 7, minor };
    Identity::Device(DeviceIdentity { boot: Some(Uuid(1)), number, sequence: Some(1), ..DeviceIdentity::default() })
}

fn candidate(path: &str) -> Candidate {
    Candidate { sighting: Sighting::new(identity(path), 1 << 26), capacity: Capacity::rounded_down(1 << 26) }
}

/// One PV as (class, entry, phase, policy is Retain, fenced, terminating, labelled, suspect),
/// and whether it is of a former Node, whether that had another disk, whether its labels
/// and mount options are old, and whether it has the name that another entry's should have.
type PvSeed = ((u8, u8, u8, bool, bool, bool, bool, bool), [bool; 4]);

fn scene() -> impl Strategy<Value = Scene> {
    let entries = btree_map(0_u8..5, any::<bool>(), 0..5);
    let other_entries = btree_map(0_u8..5, any::<bool>(), 0..5);
    let pvs = vec(
        (
            (0_u8..3, 0_u8..6, 0_u8..5, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
            any::<[bool; 4]>(),
        ),
        0..5,
    );
    let foreign = vec((0_u8..2, 0_u8..6), 0..3);
    (entries, other_entries, pvs, foreign, vec(any::<bool>(), 3)).prop_map(|(h, x, pvs, foreign, present)| {
        let config = config();
        let mut findings = Vec::new();
        for class in &config.classes {
            for (entry, good) in if class.name == "c" { &x } else { &h } {
                let name = entry_name(*entry);
                findings.push(Finding {
                    class: class.name.clone(),
                    host_path: class.host_path(&name),
                    selected: class.pattern.matches(&name),
                    outcome: if *good {
                        Ok(candidate(&class.host_path(&name)))
                    } else {
                        Err(Verdict::new(Reason::NotAMountPoint, ""))
                    },
                    former: None,
                    entry: name,
                });
            }
        }
        let mut scene = Scene {
            findings,
            owned: BTreeMap::new(),
            suspects: BTreeSet::new(),
            foreign: foreign
                .into_iter()
                .map(|(dir, entry)| (path(dir, entry), [format!("foreign-{entry}")].into()))
                .collect(),
            classes: ["a", "b", "c"]
                .into_iter()
                .zip(present)
                .filter(|(_, present)| *present)
                .map(|(name, _)| (name.to_owned(), storage_class()))
                .collect(),
            ledger: Ledger::default(),
        };
        pvs.into_iter().for_each(|seed| scene.add_pv(&config, seed));
        scene
    })
}

fn storage_class() -> StorageClassFacts {
    StorageClassFacts { reclaim_policy: ReclaimPolicy::Delete, mount_options: Vec::new() }
}

fn entry_name(entry: u8) -> String {
    ["z0", "e1", "e2", "e 3", "e\\4", "gone"][usize::from(entry)].to_owned()
}

fn path(dir: u8, entry: u8) -> String {
    format!("{}/{}", ["/h", "/x"][usize::from(dir)], entry_name(entry))
}

impl Scene {
    fn add_pv(
        &mut self,
        config: &Config,
        ((class, entry, phase, retain, fenced, terminating, labelled, suspect), [former, strange, old, renamed]): PvSeed,
    ) {
        let class = &config.classes[usize::from(class)];
        let other = entry_name((entry + 1) % 6);
        let entry = entry_name(entry);
        let capacity = Capacity::rounded_down(1 << 26);
        let disk = if former && strange { "another disk".to_owned() } else { class.host_path(&entry) };
        let identity = identity(&disk);
        let mut volume = pv::volume(config, class, &storage_class(), &node(), &entry, capacity, &identity);
        if retain {
            volume.reclaim_policy = ReclaimPolicy::Retain;
        }
        if former {
            volume.provisioner = FORMER.to_owned();
        }
        if old {
            volume.labels.extend([("env".to_owned(), "test".to_owned()), ("old".to_owned(), String::new())]);
            volume.annotations.insert(pv::LABELS.to_owned(), "old".to_owned());
            volume.mount_options.push("noatime".to_owned());
        }
        if renamed {
            volume.name = pv::pv_name(&other, &node().name, &class.name);
        }
        // Two PVs may name one path: restored from a backup under another name.
        if self.owned.values().any(|owned| owned.path == volume.path) {
            volume.name.push_str("-restored");
        }
        let phases = [Phase::Pending, Phase::Available, Phase::Bound, Phase::Released, Phase::Failed];
        if suspect {
            self.suspects.insert(volume.name.clone());
        }
        let mut owned = owned_pv(&volume, phases[usize::from(phase)], fenced, terminating);
        owned.labelled = labelled;
        self.owned.insert(owned.name.clone(), owned);
    }

    fn plan(&self) -> Plan {
        plan(&World {
            config: &config(),
            node: &node(),
            classes: &self.classes,
            findings: &self.findings,
            unseen: &BTreeMap::new(),
            owned: &self.owned,
            suspects: &self.suspects,
            foreign: &self.foreign,
            ledger: &self.ledger,
            ledger_trouble: None,
            durable: true,
            may_patch: true,
            memory: &Memory::default(),
            now: Instant::now(),
            clock: Timestamp::UNIX_EPOCH,
            random: 1,
        })
    }

    /// What the API server and the ledger would have after the plan was carried out well.
    fn apply(&mut self, plan: Plan) {
        plan.records.into_iter().for_each(|entry| self.ledger.insert(entry));
        for action in plan.actions {
            let pv = action.pv().to_owned();
            match action {
                Action::Create(creation) => {
                    let Creation { volume, target, .. } = *creation;
                    let phase = if volume.claim.is_some() { Phase::Released } else { Phase::Available };
                    let owned = owned_pv(&volume, phase, false, false);
                    assert!(self.owned.insert(pv, owned).is_none(), "no PV is made over another");
                    self.ledger.insert(*target.record);
                }
                Action::Adopt(adoption) => {
                    let owned = self.owned.get_mut(&pv).expect("it is ours");
                    owned.labelled = true;
                    owned.identity = adoption.identity.or(owned.identity.take());
                    owned.former &= adoption.signature.is_none();
                    if let Some(changes) = adoption.labels {
                        owned.labels = Arc::new(owned.labels.with(&changes));
                    }
                    owned.mount_options = adoption.mount_options.unwrap_or_else(|| owned.mount_options.clone());
                }
                Action::LookAgain { pv } => _ = self.suspects.remove(&pv),
                Action::Grow { to, .. } => self.owned.get_mut(&pv).expect("it is ours").capacity = Some(to),
                // The controller-manager follows later.
                Action::Keep(_) => self.owned.get_mut(&pv).expect("it is ours").claim = None,
                Action::DropWord(_) => self.owned.get_mut(&pv).expect("it is ours").word = None,
                Action::Withdraw { entry, .. } => {
                    self.owned.remove(&pv);
                    entry.into_iter().for_each(|entry| self.ledger.insert(*entry));
                }
                Action::Retire { entry, .. } => {
                    self.owned.remove(&pv);
                    self.ledger.insert(*entry);
                }
                Action::FreeIfBlank { target, .. } | Action::Reclaim(target) => {
                    self.owned.remove(&pv);
                    self.ledger.insert(Entry { state: State::Clean, ..*target.record });
                }
            }
        }
    }
}

/// A PV whose volume is to be wiped now.
pub fn fenced_pv() -> OwnedPv {
    let config = config();
    let class = &config.classes[0];
    let capacity = Capacity::rounded_down(1 << 26);
    let volume = pv::volume(&config, class, &storage_class(), &node(), "e", capacity, &identity("e"));
    owned_pv(&volume, Phase::Released, true, true)
}

fn owned_pv(volume: &Volume, phase: Phase, fenced: bool, terminating: bool) -> OwnedPv {
    let mut object = pv::encode(volume);
    object.metadata.uid = Some(format!("uid-{}", volume.name));
    object.metadata.resource_version = Some("1".to_owned());
    match pv::sort(&object, &node(), false) {
        Decoded::Owned(owned) => {
            let claim = Claim { namespace: "tenant".into(), name: "data".into(), uid: "claim-uid".into() };
            let claimed = matches!(phase, Phase::Bound | Phase::Released | Phase::Failed);
            let claim = owned.claim.clone().or(claimed.then(|| Box::new(claim)));
            OwnedPv { labelled: true, phase, claim, fenced, terminating, free_of_finalizers: !fenced, ..*owned }
        }
        other => panic!("a PV of ours, not {other:?}"),
    }
}

fn offers(finding: &Finding, volume: &Volume) -> bool {
    let same = finding.host_path == volume.path && finding.class == volume.class;
    same && finding.selected && finding.outcome.is_ok()
}

proptest! {
    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(scene in scene()) {
        let mut scene = scene;
        // A look again shows what is to be done, a reclaim frees the path for a new PV.
        for _ in 0..6 {
            let plan = scene.plan();
            scene.apply(plan);
        }
        prop_assert_eq!(scene.plan().actions, []);
    }

    #[test]
    fn no_action_names_a_pv_or_path_of_others(scene in scene()) {
        let foreign_pvs: BTreeSet<&String> = scene.foreign.values().flatten().collect();
        for action in scene.plan().actions {
            let pv = action.pv().to_owned();
            prop_assert!(!foreign_pvs.contains(&pv));
            match action {
                Action::Create(creation) => {
                    let volume = &creation.volume;
                    prop_assert!(!scene.owned.contains_key(&pv));
                    prop_assert!(!scene.foreign.contains_key(&volume.path));
                    prop_assert!(scene.owned.values().all(|owned| owned.path != volume.path));
                    let found = scene.findings.iter().any(|finding| offers(finding, volume));
                    prop_assert!(found);
                }
                Action::Adopt(adoption) => {
                    let owned = &scene.owned[&pv];
                    prop_assert_eq!(&adoption.pv.uid, &owned.uid);
                    prop_assert_eq!(adoption.signature.is_some(), owned.former);
                    let is_strange = owned.identity.as_deref() == Some(&identity("another disk"));
                    prop_assert!(!(owned.former && is_strange), "it is of another Node's disk");
                    prop_assert!(adoption.mount_options.is_none() || owned.is_unclaimed());
                }
                Action::Grow { .. } => prop_assert!(false, "nothing has grown"),
                Action::Withdraw { pv: unclaimed, .. } => {
                    let owned = &scene.owned[&pv];
                    prop_assert!(owned.phase == Phase::Available && owned.claim.is_none() && !owned.terminating);
                    prop_assert!(!owned.former);
                    prop_assert_eq!(&unclaimed.seen().uid, &owned.uid);
                }
                Action::Keep(_) | Action::DropWord(_) | Action::Retire { .. } | Action::FreeIfBlank { .. } => {
                    prop_assert!(false, "nobody has asked for it");
                }
                Action::LookAgain { .. } => prop_assert!(scene.suspects.contains(&pv)),
                Action::Reclaim(target) => {
                    let owned = &scene.owned[&pv];
                    let released = owned.phase == Phase::Released && owned.reclaim_policy == ReclaimPolicy::Delete;
                    prop_assert!(owned.fenced || released && !owned.terminating);
                    prop_assert!(!owned.former);
                    prop_assert!(!scene.suspects.contains(&pv));
                    let named_by = scene.owned.values().filter(|other| other.path == owned.path).count();
                    prop_assert!(named_by == 1 && !scene.foreign.contains_key(&owned.path), "nobody else names the path");
                    prop_assert!(!(owned.terminating && owned.phase == Phase::Bound));
                    prop_assert_eq!(format!("{}/{}", target.mount_dir.replace("/m", "/h"), target.entry), owned.path.clone());
                }
            }
        }
    }

    #[test]
    fn no_two_actions_are_about_one_pv_or_path_and_every_entry_has_one_verdict(scene in scene()) {
        let plan = scene.plan();
        let pvs: Vec<&str> = plan.actions.iter().map(Action::pv).collect();
        prop_assert_eq!(pvs.iter().collect::<BTreeSet<_>>().len(), pvs.len());
        let paths: Vec<&String> = plan.actions.iter().filter_map(|action| match action {
            Action::Create(creation) => Some(&creation.volume.path),
            _ => None,
        }).collect();
        prop_assert_eq!(paths.iter().collect::<BTreeSet<_>>().len(), paths.len());
        for finding in &scene.findings {
            let verdicts = plan.entries.iter().filter(|e| e.class == finding.class && e.path == finding.host_path);
            prop_assert_eq!(verdicts.count(), 1);
        }
    }

    #[test]
    fn only_a_pv_that_is_signed_by_this_node_is_ours(
        rest in "(-node-uid|-another-[0-9a-f]{8}-1b1a-4f4e-9a50-0c9bd1b8f0aa|-other|-5f0c7a0e-1b1a-4f4e-9a50-0c9bd1b8f0aa|)",
        label in option::of("n[12]"),
        name_only in any::<bool>(),
        here in any::<bool>(),
    ) {
        let class = config().classes[0].clone();
        let on = NodeFacts { hostname: if here { "n1" } else { "n2" }.to_owned(), ..node() };
        let mut volume = pv::volume(&config(), &class, &storage_class(), &on, "e", Capacity::rounded_down(4096), &identity("e"));
        volume.provisioner = format!("local-volume-provisioner-n1{rest}");
        if let Some(label) = &label {
            volume.labels.insert("kubernetes.io/hostname".to_owned(), label.clone());
        }
        let mut object = pv::encode(&volume);
        (object.metadata.uid, object.metadata.resource_version) = (Some("u".into()), Some("1".into()));
        let by_name = rest.is_empty();
        let ours = rest == "-node-uid" || name_only && (by_name || label.as_deref() == Some("n1"));
        // Those of a node `n1-other` or `n1-another-…` only look like it.
        let former = !ours && (by_name || rest.starts_with("-5f0c7a0e"));
        match pv::sort(&object, &node(), name_only) {
            Decoded::Owned(owned) => prop_assert_eq!((!owned.former, owned.former), (ours, former && here)),
            Decoded::Foreign(_) => prop_assert!(!ours && former != here),
            Decoded::Elsewhere => prop_assert!(!ours && !former && !here),
        }
    }
}
