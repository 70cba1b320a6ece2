//! What the thread does: locks the entry, claims the volume, asks the ledger once more,
//! wipes, verifies, and writes down each of it.

use jiff::Timestamp;

use super::{Found, Problem, with_hint};
use crate::by_hand::{ByHand, claim_of};
use crate::deleter::{self, Claimed, Control, Cursor, Job, Journal, MarkId, WipeError};
use crate::ledger::{self, Entry, EntryId, State};
use crate::method::WipeRules;
use crate::state_dir::StateDir;

/// One wipe.
pub struct Work {
    pub state: Option<StateDir>,
    /// The ledger's entry, or what it is to be named.
    pub id: EntryId,
    pub leave: ByHand,
    pub found: Found,
    pub rules: WipeRules,
}

/// A volume that is wiped and verified.
pub struct Done {
    receipt: ledger::Receipt,
    /// What a PV may still do with it.
    still_used_by: Option<Box<str>>,
}

impl Done {
    /// The receipt, as a line.
    pub fn receipt(&self, found: &Found) -> String {
        let ledger::Receipt { method, amount, seconds, verification, identity, .. } = &self.receipt;
        let unit = if found.is_device() { "bytes" } else { "entries removed" };
        let line = format!(
            "{} is wiped: method {method}, {amount} {unit}, {seconds:.1} s, verification {verification}, identity \
             {identity}",
            found.request.path
        );
        match &self.still_used_by {
            Some(pv) => format!("{line}\nThe ledger goes on calling it used: PV {pv} may still offer it"),
            None => line,
        }
    }
}

/// The entry on its way to the state directory.
struct Record {
    state: Option<StateDir>,
    entry: Entry,
}

impl Record {
    fn save(&self) -> Result<(), WipeError> {
        let Some(state) = &self.state else { return Ok(()) };
        state.save(&self.entry).wait().map_err(|error| WipeError::Ledger(error.to_string()))
    }
}

impl Journal for Record {
    fn checkpoint(&mut self, at: Cursor) -> Result<(), WipeError> {
        if let State::Wiping { cursor, .. } = &mut self.entry.state {
            *cursor = Some(at);
        }
        self.save()
    }
}

impl Work {
    /// How an interrupted wipe is taken up again.
    pub fn resume_hint(&self) -> String {
        let path = &self.found.request.path;
        let how = match &self.state {
            Some(_) if self.found.is_device() => "it goes on where it was",
            _ => "it begins anew",
        };
        format!("{path} is half wiped: run the same command again, {how}")
    }

    /// Wipes and verifies.
    pub fn run(self, control: &Control) -> Result<Done, Problem> {
        let hint = self.resume_hint();
        let Self { state, id, leave, found, rules } = self;
        // Dropped last.
        let _lock = match &state {
            Some(state) => Some(state.lock_entry(id).wait().map_err(Problem::refused)?),
            None => None,
        };
        let claimed = deleter::claim_by_hand(leave, &found.target).map_err(|error| with_hint(&error))?;
        let mut record = begin(state, id, &found, &rules)?;
        record.save().map_err(Problem::refused)?;
        let receipt = wipe(claimed, &mut record, &rules, &found, control).map_err(|error| match error {
            WipeError::Cancelled => Problem::Interrupted(hint),
            error => Problem::Failed(format!("{error}. {hint}")),
        })?;
        let pv = match &record.entry.state {
            State::Used { pv, .. } => Some(pv.clone()),
            _ => None,
        };
        if pv.is_none() {
            record.entry.state = State::Clean;
        }
        record.entry.as_of = receipt.at;
        record.entry.sign(receipt.clone());
        record
            .save()
            .map_err(|error| Problem::Failed(format!("it is wiped and verified, but {error}; run it again")))?;
        Ok(Done { receipt, still_used_by: pv })
    }
}

/// Asks the ledger again: since the volume is claimed, no agent can offer it any more, and
/// what one did before is in the ledger by now.
fn begin(state: Option<StateDir>, id: EntryId, found: &Found, rules: &WipeRules) -> Result<Record, Problem> {
    let ledger = match &state {
        Some(state) => state.read().wait().map_err(Problem::refused)?,
        None => ledger::Ledger::default(),
    };
    let leave = ByHand::check(&ledger, &found.request).map_err(Problem::refused)?;
    if leave.known().is_some_and(|entry| entry.id != id) {
        return Err(Problem::refused("the ledger has changed meanwhile; look again, by --dry-run"));
    }
    Ok(Record { state, entry: leave.begin(id, &rules.method.to_string(), Timestamp::now()) })
}

fn wipe(
    claimed: Claimed<ByHand>,
    record: &mut Record,
    rules: &WipeRules,
    found: &Found,
    control: &Control,
) -> Result<ledger::Receipt, WipeError> {
    let entry = record.entry.clone();
    let node = format!("{}/{}", found.target.mount_dir, found.target.entry);
    let root = entry.root.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let (mark, from) = (MarkId(entry.id.0), entry.resume_point(rules));
    let job = Job { rules, mark, from, node: &node, root: root.as_ref(), journal: record };
    let verified = deleter::wipe(claimed, job, control)?;
    let deleter::Receipt { method, bytes, seconds, verification } = verified.receipt().clone();
    let (pv, uid) = match entry.state {
        State::Used { ref pv, ref uid, .. } => (pv.clone(), uid.clone()),
        _ => (Box::default(), Box::default()),
    };
    Ok(ledger::Receipt {
        at: Timestamp::now(),
        method: method.into(),
        amount: if found.is_device() { bytes } else { control.progress().0 },
        seconds,
        verification: verification.into(),
        identity: entry.identity.digest().into(),
        claim: claim_of(&entry.state).cloned(),
        pv,
        uid,
    })
}
