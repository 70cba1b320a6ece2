//! Kubernetes Events: what an admin should hear of a volume, on its PV, its claim or this
//! Node. They are sent beside everything else: none is waited for, and one that can't be
//! sent is lost.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::{debug, warn};

use crate::cluster::{ApiError, Cluster};
use crate::deleter::{Receipt, WipeError};
use crate::plan::Target;
use crate::pv::{Claim, OwnedPv};
use crate::volume::ReclaimPolicy;

/// Events that wait to be sent; with more, the newest are dropped.
const QUEUE: usize = 256;
/// The same Event is not sent again within this time.
const REPEAT: Duration = Duration::from_secs(600);
/// In bytes; Events of the newer form take no more than 1,024.
const LONGEST_NOTE: usize = 1_000;
/// The wipe of a volume begins; the Go provisioner's word.
const VOLUME_DELETE: &str = "VolumeDelete";
/// A volume was not wiped; the Go provisioner's word.
const VOLUME_FAILED_DELETE: &str = "VolumeFailedDelete";
/// A volume is wiped and verified.
const VOLUME_WIPED: &str = "VolumeWiped";
/// A PV's reclaim policy is Recycle; the Go provisioner's word.
const VOLUME_UNSUPPORTED_RECLAIM_POLICY: &str = "VolumeUnsupportedReclaimPolicy";
/// A PV's reclaim policy is none that is known; the Go provisioner's word.
const VOLUME_UNKNOWN_RECLAIM_POLICY: &str = "VolumeUnknownReclaimPolicy";
/// An admin's word was taken off a PV.
pub const WORD_IGNORED: &str = "WordIgnored";
/// A PV has another name than the usual one.
pub const NAME_TAKEN: &str = "NameTaken";
/// Most volumes of the node were released at once.
pub const MASS_RELEASE: &str = "MassRelease";
/// A PV was taken from its wipe, which no fence guarded.
pub const HALF_WIPED: &str = "HalfWiped";
/// Something is missing, so that less can be promised.
pub const LIMITED: &str = "Limited";
/// The ledger can't be written.
pub const LEDGER_NOT_WRITABLE: &str = "LedgerNotWritable";
/// The start-up taint stays, because volumes that claims have are not there.
pub const TAINT_HELD: &str = "StartUpTaintHeld";
/// The start-up taint can't be taken off.
pub const TAINT_NOT_REMOVED: &str = "StartUpTaintNotRemoved";
/// A change of the config can't be used.
pub const CONFIG_REJECTED: &str = "ConfigRejected";
/// The reasons of Events that are no verdicts. For those see
/// [`Reason::is_told_by_event`](crate::verdict::Reason::is_told_by_event).
pub const REASONS: [&str; 14] = [
    VOLUME_DELETE,
    VOLUME_FAILED_DELETE,
    VOLUME_WIPED,
    VOLUME_UNSUPPORTED_RECLAIM_POLICY,
    VOLUME_UNKNOWN_RECLAIM_POLICY,
    WORD_IGNORED,
    NAME_TAKEN,
    MASS_RELEASE,
    HALF_WIPED,
    LIMITED,
    LEDGER_NOT_WRITABLE,
    TAINT_HELD,
    TAINT_NOT_REMOVED,
    CONFIG_REJECTED,
];
/// Where Events on objects without a namespace live.
const NAMESPACE: &str = "default";

/// Whom an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum About {
    /// A PV, by name and UID.
    Pv(String, String),
    /// A claim.
    Claim(String, String, String),
    /// This Node, by name.
    Node(String),
}

/// One Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Whom it is about.
    pub about: About,
    /// Whether it needs attention (`Warning`) or not (`Normal`).
    pub warning: bool,
    /// One word in CamelCase, for programs.
    pub reason: &'static str,
    /// A sentence, for people.
    pub note: String,
}

impl Event {
    /// A Warning.
    #[must_use]
    pub fn warning(about: About, reason: &'static str, note: impl Into<String>) -> Self {
        Self { about, warning: true, reason, note: note.into() }
    }

    /// A PV whose claim is gone has a reclaim policy that local volumes don't have.
    #[must_use]
    pub fn unsupported_policy(pv: &OwnedPv, note: String) -> Self {
        let known = pv.reclaim_policy == ReclaimPolicy::Recycle;
        let reason = if known { VOLUME_UNSUPPORTED_RECLAIM_POLICY } else { VOLUME_UNKNOWN_RECLAIM_POLICY };
        Self::warning(About::Pv(pv.name.clone(), pv.uid.clone()), reason, note)
    }

    /// The wipe of a volume begins.
    #[must_use]
    pub fn wipe_begins(target: &Target) -> Self {
        let note = format!("wiping {} by the method {}", target.entry, target.named(target.rules.method.as_str()));
        Self { warning: false, ..Self::warning(about(target), VOLUME_DELETE, note) }
    }

    /// A volume was not wiped.
    #[must_use]
    pub fn failed_delete(target: &Target, error: &WipeError) -> Self {
        Self::warning(about(target), VOLUME_FAILED_DELETE, error.verdict().to_string())
    }

    /// A volume was wiped, and the API server refuses to remove its PV.
    #[must_use]
    pub fn not_removed(target: &Target, error: &dyn std::error::Error) -> Self {
        let note = format!("{} is wiped, but its PV can't be removed, which is tried again: {error}", target.entry);
        Self::warning(about(target), VOLUME_FAILED_DELETE, note)
    }

    /// The receipt of a wipe.
    #[must_use]
    pub fn wiped(target: &Target, receipt: &Receipt, seconds: f64) -> Self {
        let Receipt { method, bytes, verification, .. } = receipt;
        let (method, identity) = (target.named(method), target.identity.digest());
        let note = format!(
            "{} is wiped: method {method}, {bytes} bytes, {seconds:.1} s, verification {verification}, identity {identity}",
            target.entry
        );
        Self { warning: false, ..Self::warning(about(target), VOLUME_WIPED, note) }
    }
}

fn about(target: &Target) -> About {
    About::Pv(target.pv.clone(), target.uid.clone())
}

impl From<&Claim> for About {
    fn from(claim: &Claim) -> Self {
        Self::Claim(claim.namespace.to_string(), claim.name.to_string(), claim.uid.to_string())
    }
}

/// Takes Events to be sent.
#[derive(Clone)]
pub struct Events(Sender<Event>);

impl Events {
    /// Also returns the queue for [`send_all`].
    #[must_use]
    pub fn new() -> (Self, Receiver<Event>) {
        let (sender, queue) = channel(QUEUE);
        (Self(sender), queue)
    }

    /// Sends an Event by and by.
    pub fn send(&self, event: Event) {
        if let Err(error) = self.0.try_send(event) {
            debug!(%error, "An Event is lost");
        }
    }
}

/// Sends what is in the queue, one after another, until nobody can add to it. `component`
/// signs the Events; contract: it is the provisioner's name.
pub async fn send_all(cluster: Cluster, component: String, mut queue: Receiver<Event>) {
    let mut sent: HashMap<Event, Instant> = HashMap::new();
    let mut told = false;
    while let Some(event) = queue.recv().await {
        sent.retain(|_, at| at.elapsed() < REPEAT);
        if sent.contains_key(&event) {
            continue;
        }
        match cluster.record(&encode(&event, &component, Timestamp::now(), fastrand::u64(..))).await {
            Ok(()) => _ = sent.insert(event, Instant::now()),
            Err(error @ ApiError::Forbidden(_)) if !told => {
                told = true;
                warn!(%error, "Events can't be sent");
            }
            Err(error) => debug!(%error, reason = event.reason, "An Event is lost"),
        }
    }
}

/// The API object.
fn encode(event: &Event, component: &str, at: Timestamp, unique: u64) -> v1::Event {
    let reference = |version: &str, kind: &str, namespace: Option<&String>, name: &str, uid: &str| ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.cloned(),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    };
    let involved_object = match &event.about {
        About::Pv(name, uid) => reference("v1", "PersistentVolume", None, name, uid),
        About::Claim(namespace, name, uid) => reference("v1", "PersistentVolumeClaim", Some(namespace), name, uid),
        // The kubelet's Events name the Node as its UID, and `kubectl describe` looks for it.
        About::Node(name) => reference("v1", "Node", None, name, name),
    };
    let name = involved_object.name.as_deref().unwrap_or_default();
    v1::Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{unique:016x}")),
            namespace: Some(involved_object.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned())),
            ..ObjectMeta::default()
        },
        involved_object,
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(event.reason.to_owned()),
        message: Some(event.note[..event.note.floor_char_boundary(LONGEST_NOTE)].to_owned()),
        source: Some(EventSource { component: Some(component.to_owned()), host: None }),
        first_timestamp: Some(Time(at)),
        last_timestamp: Some(Time(at)),
        count: Some(1),
        ..v1::Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Reason;

    fn message(note: &str) -> String {
        let event = Event::warning(About::Node("n1".to_owned()), MASS_RELEASE, note);
        encode(&event, "mooring", Timestamp::UNIX_EPOCH, 1).message.expect("an Event has a message")
    }

    #[test]
    fn what_to_do_is_not_cut_off() {
        for reason in Reason::ALL {
            let note = format!("/{}: {}. To do: {}", "d/".repeat(120), "w".repeat(300), reason.remedy());
            assert_eq!(message(&note), note);
        }
        // In whole characters, whatever they take.
        let long = message(&"\u{20ac}".repeat(500));
        assert!(long.len() <= LONGEST_NOTE && long.chars().all(|c| c == '\u{20ac}'), "{}", long.len());
    }
}
