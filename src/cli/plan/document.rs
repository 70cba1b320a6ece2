//! The plan as data: what JSON and YAML show, and what the table is made of. The names of
//! its fields are documented in `docs/plan.md` and stay.

use k8s_openapi::api::core::v1::PersistentVolume;
use serde::Serialize;

use super::Options;
use super::facts::Facts;
use crate::config::Config;
use crate::plan::{Action, EntryStatus, Foresight, Step};
use crate::pv;
use crate::verdict::Reason;

/// Counts up when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// The plan of one node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// Version of this form.
    pub version: u32,
    /// Name of the Node.
    pub node: String,
    /// Whether no cluster was asked.
    pub offline: bool,
    /// What is assumed, a sentence each.
    pub assumed: Vec<String>,
    /// What becomes of each entry.
    pub entries: Vec<Entry>,
    /// What would be done, in order.
    pub actions: Vec<Doing>,
}

/// One entry, as the agent's page `/volumes` shows it.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub class: String,
    pub entry: String,
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pv: Option<String>,
    pub verdict: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub remedy: &'static str,
}

/// One thing that would be done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Doing {
    /// Which one; a closed list.
    pub action: &'static str,
    /// The PV that it is about.
    pub pv: String,
    /// Its class.
    pub class: String,
    /// Its path.
    pub path: String,
    /// Seconds from now on, if nothing else happens; 0 is now.
    pub after_seconds: u64,
    /// What is done, in words.
    pub detail: String,
    /// The PV that would be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Box<PersistentVolume>>,
}

impl Document {
    /// The plan in words and data.
    pub fn new(options: &Options, facts: &Facts, foresight: Foresight) -> Self {
        let actions: Vec<_> = foresight.steps.iter().map(|step| doing(step, facts)).collect();
        let mut entries: Vec<_> = foresight.plan.entries.into_iter().map(Entry::from).collect();
        for entry in entries.iter_mut().filter(|entry| entry.verdict == Reason::Pending.as_str()) {
            // Nothing is under way here.
            if actions.iter().any(|doing| doing.object.is_some() && doing.is_about(entry)) {
                "its PV would be made now".clone_into(&mut entry.detail);
            }
        }
        Self {
            version: VERSION,
            node: options.node_name.clone(),
            offline: options.offline,
            assumed: facts.assumed.clone(),
            entries,
            actions,
        }
    }

    /// What concerns that path, entry, class or PV; `None` when nothing does.
    pub fn only(mut self, name: &str, config: &Config) -> Option<Self> {
        let seen_here = |entry: &Entry| {
            config.class(&entry.class).is_some_and(|class| {
                let rest = name.strip_prefix(class.mount_dir.trim_end_matches('/'));
                rest.and_then(|rest| rest.strip_prefix('/')) == Some(entry.entry.as_str())
            })
        };
        let actions = &self.actions;
        self.entries.retain(|entry| {
            let names = [&entry.class, &entry.entry, &entry.path];
            names.into_iter().chain(&entry.pv).any(|own| own == name)
                || seen_here(entry)
                || actions.iter().any(|doing| doing.pv == name && doing.is_about(entry))
        });
        let kept = &self.entries;
        self.actions.retain(|doing| doing.pv == name || kept.iter().any(|entry| doing.is_about(entry)));
        (!self.entries.is_empty() || !self.actions.is_empty()).then_some(self)
    }
}

impl Doing {
    fn is_about(&self, entry: &Entry) -> bool {
        self.class == entry.class && self.path == entry.path
    }
}

impl From<EntryStatus> for Entry {
    fn from(status: EntryStatus) -> Self {
        let EntryStatus { class, entry, path, pv, verdict } = status;
        let (reason, detail) = (verdict.reason, verdict.detail);
        Self { class, entry, path, pv, verdict: reason.as_str(), detail, remedy: reason.remedy() }
    }
}

fn doing(step: &Step, facts: &Facts) -> Doing {
    let action = &step.action;
    let owned = facts.cluster.owned.get(action.pv());
    let (class, path, object) = match action {
        Action::Create(creation) => {
            let volume = &creation.volume;
            (volume.class.clone(), volume.path.clone(), Some(Box::new(pv::encode(volume))))
        }
        _ => {
            let (class, path) = owned.map(|owned| (owned.class.clone(), owned.path.clone())).unwrap_or_default();
            (class, path, None)
        }
    };
    Doing {
        action: action.name(),
        pv: action.pv().to_owned(),
        class,
        path,
        after_seconds: step.after.as_secs() + u64::from(step.after.subsec_nanos() > 0),
        detail: action.describe(),
        object,
    }
}
