//! From the path on the command line to the volume that is there, and what is said of it
//! before it is wiped.

use indicatif::BinaryBytes;
use jiff::Timestamp;

use super::{Options, Problem};
use crate::by_hand::{Request, claim_of};
use crate::discovery::{Observed, Sighting};
use crate::identity::Identity;
use crate::ledger::{Entry, EntryId, State};
use crate::node;
use crate::plan::Target;

/// The volume at the path.
#[derive(Clone, Debug)]
pub struct Found {
    pub request: Request,
    pub target: Target,
    bytes: u64,
}

impl Found {
    /// Whether it is a block device, and no directory.
    pub fn is_device(&self) -> bool {
        self.request.identity.is_device()
    }
}

/// Looks what is at the path, as discovery does.
pub fn find(options: &Options) -> Result<Found, Problem> {
    let given = options.path.display();
    let path = std::path::absolute(&options.path).map_err(Problem::refused)?;
    let (Some(directory), Some(entry)) = (path.parent(), path.file_name()) else {
        return Err(Problem::Refused(format!("{given} names no entry of a directory")));
    };
    let (Some(directory), Some(name)) = (directory.to_str(), entry.to_str()) else {
        return Err(Problem::Refused(format!("{given} is not valid UTF-8")));
    };
    let observed = node::look_at(directory, entry)
        .map_err(|error| Problem::Refused(format!("{directory} can't be looked at: {error}")))?;
    let Sighting { identity, bytes, .. } =
        volume(observed).map_err(|what| Problem::Refused(format!("{given} {what}")))?;
    let path = format!("{}/{name}", directory.strip_suffix('/').unwrap_or(directory));
    let record = Entry::new(EntryId(0), "", &path, identity.clone(), Timestamp::UNIX_EPOCH);
    let target = Target {
        pv: String::new(),
        uid: String::new(),
        claim: Box::default(),
        mount_dir: directory.to_owned(),
        entry: name.to_owned(),
        identity: identity.clone(),
        aliases: Vec::new(),
        accepted: options.forced.clone(),
        rules: options.rules.clone(),
        disks: Box::default(),
        record: Box::new(record),
        job: None,
    };
    let request = Request { path, identity, forced: options.forced.clone(), expected: options.expected.clone() };
    Ok(Found { request, target, bytes })
}

fn volume(observed: Observed) -> Result<Sighting, String> {
    Err(match observed {
        Observed::Device(sighting) if sighting.bytes == 0 => "has no medium: its size is 0".to_owned(),
        Observed::Device(sighting) | Observed::MountPoint(sighting) => return Ok(sighting),
        Observed::PlainDirectory => "is no mount point; only a filesystem that is mounted there is emptied".to_owned(),
        Observed::LinkToDirectory => "is a symbolic link to a directory; name the mount point itself".to_owned(),
        Observed::Other(what) => format!("is {what}, and neither a mounted directory nor a block device"),
        Observed::DanglingLink => "is a symbolic link to nothing".to_owned(),
        Observed::Failed(why) => format!("is not to be seen: {why}"),
        Observed::Unresponsive => "does not answer".to_owned(),
    })
}

/// What is to be wiped and how, for the admin to read before it happens.
pub fn describe(found: &Found, known: Option<&Entry>, options: &Options, has_state: bool) -> String {
    let Found { request, bytes, .. } = found;
    let mut lines = vec![format!("{}: {}, {}", request.path, kind(&request.identity), BinaryBytes(*bytes))];
    let mut tell = |what: &str, text: String| lines.push(format!("  {what:<9} {text}"));
    tell("identity", request.identity.digest());
    tell("ledger", known.map_or_else(|| unknown(has_state).to_owned(), standing));
    let rules = &options.rules;
    if found.is_device() {
        let bandwidth = rules.bandwidth.map(|bytes| format!(", at most {}/s", BinaryBytes(bytes)));
        let verify = if rules.method.ends_in_zeros() { rules.verify.as_str() } else { "none" };
        tell("method", format!("{}, verification {verify}{}", rules.method, bandwidth.unwrap_or_default()));
        if rules.method.keeps_data() {
            tell("warning", "the data stays, only what tells what it is goes".to_owned());
        }
        if let Some(cursor) = known.and_then(|entry| entry.resume_point(rules)) {
            tell("resumes", format!("in pass {} at byte {}", cursor.pass + 1, cursor.offset));
        }
    } else {
        tell("method", "everything in the directory is removed, then looked for".to_owned());
    }
    lines.join("\n")
}

fn kind(identity: &Identity) -> String {
    match identity {
        Identity::Device(device) => {
            let part = if device.partition.is_some() { "partition" } else { "block device" };
            let names = [&device.model, &device.serial, &device.wwid, &device.bus_path];
            let names: Vec<_> = names.into_iter().flatten().map(AsRef::as_ref).collect();
            format!("{part} {} ({})", device.number, names.join(", "))
        }
        Identity::Mount(mount) => {
            let (kind, source) = (mount.fs_type.as_deref(), mount.source.as_deref());
            format!("{} of {}", kind.unwrap_or("filesystem"), source.unwrap_or("an unknown source"))
        }
    }
}

fn unknown(has_state: bool) -> &'static str {
    if has_state {
        "knows nothing of it"
    } else {
        "there is no state directory: an interrupted wipe begins anew, and no agent hears of this one"
    }
}

fn standing(entry: &Entry) -> String {
    let state = match &entry.state {
        State::AsFound => "never used".to_owned(),
        State::Clean => "clean".to_owned(),
        State::Offered { pv, .. } => format!("offered by PV {pv}"),
        State::Used { pv, .. } => format!("used, by PV {pv}"),
        State::Wiping { .. } => "half wiped".to_owned(),
        State::Quarantined { reason, .. } => format!("quarantined: {reason}"),
        State::Retired { reason } => format!("retired: {reason}"),
    };
    let claim = claim_of(&entry.state).map(|claim| format!("; claim {claim} had it"));
    format!("{state} since {:.0}{}", entry.as_of, claim.unwrap_or_default())
}
