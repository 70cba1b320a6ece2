//! What is going to be done if nothing else happens: the plan of now, and those of the
//! times at which it would be decided again. An adoption is taken for done, for what
//! follows from it is what people want to know. For a dry run and for a shadow.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Action, Adoption, Plan, World, plan};
use crate::pv::OwnedPv;

/// What is going to be done.
#[derive(Clone, Debug)]
pub struct Foresight {
    /// The plan of now, with adoptions taken for done and without its actions.
    pub plan: Plan,
    /// The actions, in the order of their times.
    pub steps: Vec<Step>,
}

/// An action and when it is begun.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// From now on.
    pub after: Duration,
    /// What is done.
    pub action: Action,
}

/// Decides for now and, up to the `horizon`, for each time at which it would be decided
/// again. What has been begun is taken to be under way from then on.
#[must_use]
pub fn foresee(world: &World<'_>, horizon: Duration) -> Foresight {
    let (mut owned, mut memory) = (world.owned.clone(), world.memory.clone());
    let (mut steps, mut adopted) = (Vec::new(), BTreeSet::new());
    let (mut first, mut after) = (None, Duration::ZERO);
    loop {
        let now = world.now + after;
        let then = World { owned: &owned, memory: &memory, now, clock: world.clock + after, ..*world };
        let mut plan = plan(&then);
        let (adoptions, others): (Vec<_>, Vec<_>) = std::mem::take(&mut plan.actions)
            .into_iter()
            .partition(|action| matches!(action, Action::Adopt(_)) && !adopted.contains(action.pv()));
        if !adoptions.is_empty() {
            for action in adoptions {
                adopted.insert(action.pv().to_owned());
                if let Action::Adopt(adoption) = &action
                    && let Some(owned) = owned.get_mut(&adoption.pv.name)
                {
                    adoption.apply_to(owned);
                }
                steps.push(Step { after, action });
            }
            continue;
        }
        for action in others {
            memory.begin(action.pv());
            steps.push(Step { after, action });
        }
        memory.note_missing(plan.missing.clone(), now);
        memory.note_wanted(plan.wanted.clone(), now);
        memory.note_mass_release(plan.mass_release, now);
        let next = plan.wake_at.map(|at| at.saturating_duration_since(world.now));
        first.get_or_insert(plan);
        match next.map(|next| next.max(after + TICK)).filter(|next| *next <= horizon) {
            Some(next) => after = next,
            None => return Foresight { plan: first.expect("the first plan was made"), steps },
        }
    }
}

/// Times that are closer to each other than this are one.
const TICK: Duration = Duration::from_secs(1);

impl Adoption {
    /// Makes the PV look as it is once it is adopted.
    pub fn apply_to(&self, owned: &mut OwnedPv) {
        owned.labelled = true;
        owned.former = false;
        if let Some(changes) = &self.labels {
            owned.labels = Arc::new(owned.labels.with(changes));
        }
        if let Some(options) = &self.mount_options {
            owned.mount_options.clone_from(options);
        }
        if self.former_owner.is_some() {
            owned.owner = self.owner.as_ref().map(|(_, uid)| uid.as_str().into());
        }
        let Some(identity) = &self.identity else { return };
        owned.identity = Some(identity.clone());
        owned.garbled = false;
        owned.accepted = None;
        owned.entry = self.entry.as_deref().and_then(|text| u128::from_str_radix(text, 16).ok());
    }
}

#[cfg(test)]
#[path = "foresee_tests.rs"]
mod tests;
