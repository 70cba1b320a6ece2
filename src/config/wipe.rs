//! The keys of a class that say how its volumes are wiped, and what becomes of those that
//! have not been seen before. They are ours: the Go provisioner ignores them.

use crate::method::{self, Method, MethodError, Verify, WipeRules};

use super::fit::{Fitter, Value};

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

/// How the volumes of a class are wiped: as `wipe` says, else as the Go provisioner's
/// `blockCleanerCommand` does. None when something is wrong with it.
pub fn read(fitter: &mut Fitter, entry: &Value, path: &str) -> Option<WipeRules> {
    let mut rules = WipeRules::default();
    let listed = entry.get("blockCleanerCommand");
    let command = listed.map(Value::texts);
    let mut named = listed;
    if let (Some(value), Some(command)) = (listed, &command) {
        let problem = match Method::from_cleaner_command(command) {
            _ if command.is_empty() => "an empty list cleans nothing; name a command, or remove the key".to_owned(),
            Ok(method) => {
                rules.method = method;
                String::new()
            }
            Err(error) => error.to_string(),
        };
        if !problem.is_empty() {
            fitter.error(Some(value.place), format!("{path}.blockCleanerCommand: {problem}"));
            return None;
        }
    }
    if let Some(wipe) = entry.get("wipe") {
        let problem = set(&mut rules, wipe, command.as_deref());
        if let Err((key, problem)) = problem {
            let place = wipe.get(key).map_or(wipe.place, |value| value.place);
            fitter.error(Some(place), format!("{path}.wipe.{key}: {problem}"));
            return None;
        }
        named = wipe.get("method").or(named);
    }
    if let Some(value) = named.filter(|_| rules.method.keeps_data()) {
        let text = format!(
            "{path}: what wipes its devices removes signatures only: all data stays, and the next tenant can read it; \
             use wipe: {{method: auto}}"
        );
        fitter.warn(Some(value.place), text);
    }
    Some(rules)
}

/// Sets what `wipe` says. An error has the key that it is about.
fn set(rules: &mut WipeRules, wipe: &Value, command: Option<&[String]>) -> Result<(), (&'static str, String)> {
    let text = |key| wipe.get(key).and_then(Value::as_text);
    let passes = wipe.get("passes").and_then(Value::as_int);
    // One that is too great for its type is refused with the others.
    let passes = passes.map(|passes| u32::try_from(passes).unwrap_or(u32::MAX));
    if let Some(name) = text("method") {
        let method = Method::new(name, passes, command);
        rules.method = method.map_err(|error| {
            let key = if matches!(error, MethodError::Passes(_)) { "passes" } else { "method" };
            (key, error.to_string())
        })?;
    } else if passes.is_some() {
        return Err(("passes", "needs wipe.method: zero or overwrite".to_owned()));
    }
    if let Some(text) = text("verify") {
        rules.verify = Verify::parse(text).map_err(|error| ("verify", error.to_string()))?;
    }
    if let Some(text) = text("bandwidth") {
        rules.bandwidth = Some(method::bandwidth(text).map_err(|error| ("bandwidth", error.to_string()))?);
    }
    Ok(())
}
