//! The keys of a class that say how its volumes are wiped, and what becomes of those that
//! have not been seen before. They are ours: the Go provisioner ignores them.

use serde::Deserialize;

use crate::method::{self, Method, Verify, WipeRules};

/// What becomes of a volume that has not been seen before, and may hold anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirtyPolicy {
    /// It is offered as it is, as the Go provisioner does.
    #[default]
    Publish,
    /// It is kept from being claimed until an admin decides, unless it is empty.
    Quarantine,
    /// It is wiped first.
    Wipe,
}

impl DirtyPolicy {
    /// Reads the key's value; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "publish" => Some(Self::Publish),
            "quarantine" => Some(Self::Quarantine),
            "wipe" => Some(Self::Wipe),
            _ => None,
        }
    }
}

/// The key `wipe` of a class.
#[derive(Deserialize)]
pub struct RawWipe {
    method: Option<String>,
    passes: Option<u32>,
    verify: Option<String>,
    bandwidth: Option<String>,
}

/// How the volumes of a class are wiped: as `wipe` says, else as the Go provisioner's
/// `blockCleanerCommand` does.
pub fn rules(command: Option<&[String]>, raw: Option<RawWipe>) -> Result<WipeRules, (&'static str, String)> {
    let mut rules = WipeRules::default();
    if let Some(command) = command {
        let method = Method::from_cleaner_command(command);
        rules.method = method.map_err(|error| ("blockCleanerCommand", error.to_string()))?;
    }
    let Some(raw) = raw else { return Ok(rules) };
    if let Some(name) = raw.method {
        let method = Method::new(&name, raw.passes, command);
        rules.method = method.map_err(|error| ("wipe.method", error.to_string()))?;
    } else if raw.passes.is_some() {
        return Err(("wipe.passes", "needs wipe.method: zero or overwrite".to_owned()));
    }
    if let Some(text) = raw.verify {
        rules.verify = Verify::parse(&text).map_err(|error| ("wipe.verify", error.to_string()))?;
    }
    if let Some(text) = raw.bandwidth {
        let bytes = method::bandwidth(&text).map_err(|error| ("wipe.bandwidth", error.to_string()))?;
        rules.bandwidth = Some(bytes);
    }
    Ok(rules)
}
