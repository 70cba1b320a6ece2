//! One entry of `storageClassMap`, made valid.

use std::time::Duration;

use k8s_openapi::api::core::v1::NodeSelectorTerm;

use crate::pattern::{NamePattern, PatternError};
use crate::volume::{AccessMode, VolumeMode};

use super::duration::{self, DurationError};
use super::fit::{Fitter, Value};
use super::problem::{Place, suggestion};
use super::wipe::{self, DirtyPolicy};
use super::{Class, keys};

/// Reads a class. What is wrong with it goes to `fitter`; it is a class all the same, to be
/// compared with others, when its directories and entries are known.
pub fn read(fitter: &mut Fitter, name: &str, at: Place, entry: &Value) -> Option<Class> {
    let path = format!("{}.{name}", keys::CLASSES);
    if !is_subdomain(name) {
        let text = format!("{path}: no StorageClass can have this name; use lower-case letters, digits, - and .");
        fitter.warn(Some(at), text);
    }
    let host_dir = directory(fitter, entry, at, &path, "hostDir");
    let mount_dir = directory(fitter, entry, at, &path, "mountDir");
    let mode = choice(fitter, entry, &path, "volumeMode", &["Filesystem", "Block"], VolumeMode::parse);
    let access_modes = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];
    let access_mode = choice(fitter, entry, &path, "accessMode", &access_modes, AccessMode::parse);
    let pattern = match entry.get("namePattern").and_then(|value| Some((value.place, value.as_text()?))) {
        None => Some(NamePattern::default()),
        Some((place, text)) => {
            let note = |error: PatternError| fitter.error(Some(place), format!("{path}.namePattern: {error}"));
            NamePattern::parse(text).map_err(note).ok()
        }
    };
    let selector = entry.get("selector").map(Value::elements).unwrap_or_default();
    for (index, term) in selector.iter().enumerate() {
        check_term(fitter, term, &format!("{path}.selector[{index}]"));
    }
    let wipe = wipe::read(fitter, entry, &path);
    let wipe_after = time(fitter, entry, &path, "wipeAfter").unwrap_or_default();
    let dirty = choice(fitter, entry, &path, "dirty", &["publish", "quarantine", "wipe"], DirtyPolicy::parse);
    Some(Class {
        name: name.to_owned(),
        host_dir: host_dir?,
        mount_dir: mount_dir?,
        mode: mode.unwrap_or_default(),
        access_mode: access_mode.unwrap_or_default(),
        fs_type: entry.get("fsType").and_then(Value::as_text).map(str::to_owned),
        pattern: pattern?,
        selector: selector.iter().map(Value::decode::<NodeSelectorTerm>).collect(),
        wipe: wipe.unwrap_or_default(),
        wipe_after,
        dirty: dirty.unwrap_or_default(),
    })
}

/// One of some words; none when it is absent or none of them.
fn choice<T>(
    fitter: &mut Fitter,
    entry: &Value,
    path: &str,
    key: &str,
    words: &[&str],
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let value = entry.get(key)?;
    let text = value.as_text()?;
    let found = parse(text);
    if found.is_none() {
        let (last, first) = words.split_last().expect("there is a choice");
        let expected = format!("{} or {last}", first.join(", "));
        let suggestion = suggestion(text, words.iter().copied());
        fitter.error(Some(value.place), format!("{path}.{key}: {text:?} is unknown; expected {expected}{suggestion}"));
    }
    found
}

/// A duration of zero or more; none when it is absent or can't be used.
pub fn time(fitter: &mut Fitter, entry: &Value, path: &str, key: &str) -> Option<Duration> {
    let value = entry.get(key)?;
    let text = value.as_text()?;
    match duration::parse(text) {
        Ok(duration) => Some(duration),
        Err(error) => {
            fitter.error(Some(value.place), format!("{path}.{key}: {}", duration_problem(text, error)));
            None
        }
    }
}

/// What is wrong with a duration, and what one looks like.
pub fn duration_problem(text: &str, error: DurationError) -> String {
    match error {
        DurationError::Malformed => format!("{text:?} is no duration such as 30s or 1h30m"),
        DurationError::NoUnit => format!("{text:?} lacks a unit; write 30s or 1h30m"),
        DurationError::TooLong => format!("{text:?} is longer than 292 years"),
        DurationError::Negative => format!("{text:?} is below zero; expected a duration such as 30s or 1h30m"),
    }
}

/// An absolute path without `.`, `..` and needless slashes.
fn directory(fitter: &mut Fitter, entry: &Value, at: Place, path: &str, key: &str) -> Option<String> {
    let value = entry.get(key);
    let Some(text) = value.and_then(Value::as_text) else {
        let place = value.map_or(at, |value| value.place);
        fitter.error(Some(place), format!("{path}.{key}: is missing; name an absolute path"));
        return None;
    };
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let problem = if !text.starts_with('/') || text.contains('\0') {
        format!("{text:?} is no absolute path")
    } else if parts.contains(&"..") {
        format!("{text:?} must not contain \"..\"")
    } else if parts.is_empty() {
        "the root directory can't be a discovery directory".to_owned()
    } else {
        return Some(format!("/{}", parts.join("/")));
    };
    fitter.error(value.map(|value| value.place), format!("{path}.{key}: {problem}"));
    None
}

/// The API server would refuse every PV with a term that is not as it should be.
fn check_term(fitter: &mut Fitter, term: &Value, path: &str) {
    for list in ["matchExpressions", "matchFields"] {
        for (index, requirement) in term.get(list).map(Value::elements).unwrap_or_default().iter().enumerate() {
            let path = format!("{path}.{list}[{index}]");
            let text = |key| requirement.get(key).and_then(Value::as_text).unwrap_or_default();
            let values = requirement.get("values").map(Value::elements).unwrap_or_default().len();
            let place = requirement.get("operator").map_or(requirement.place, |operator| operator.place);
            let problem = match text("operator") {
                _ if text("key").is_empty() => "key: is missing; name a label".to_owned(),
                "In" | "NotIn" if values == 0 => "values: are missing; name at least one".to_owned(),
                "Exists" | "DoesNotExist" if values > 0 => "values: must be absent with this operator".to_owned(),
                "Gt" | "Lt" if values != 1 => "values: must be one number with this operator".to_owned(),
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => continue,
                "" => "operator: is missing; expected In, NotIn, Exists, DoesNotExist, Gt or Lt".to_owned(),
                word => {
                    let words = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
                    let suggestion = suggestion(word, words);
                    format!("operator: {word:?} is unknown; expected {}{suggestion}", words.join(", "))
                }
            };
            fitter.error(Some(place), format!("{path}.{problem}"));
        }
    }
}

/// Whether an object of the API can have the name.
fn is_subdomain(name: &str) -> bool {
    let is_label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// What is wrong with a label, if anything: the API server would refuse every PV with it.
pub fn label_problem(key: &str, value: &str) -> Option<String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|prefix| !is_subdomain(prefix)) || name.is_empty() || !is_label_text(name) {
        return Some(format!("{key:?} can't be the key of a label"));
    }
    let rule = "at most 63 letters, digits, -, _ and ., a letter or digit first and last";
    (!is_label_text(value)).then(|| format!("{value:?} can't be the value of a label; use {rule}"))
}

fn is_label_text(text: &str) -> bool {
    let inner = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let ends = [text.bytes().next(), text.bytes().last()];
    inner && text.len() <= 63 && ends.into_iter().flatten().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_that_the_api_takes() {
        for (key, value) in [("a", ""), ("a.b/c_d", "1.2"), ("topology.kubernetes.io/zone", "Zone-1")] {
            assert_eq!(label_problem(key, value), None, "{key}={value}");
        }
        let long = "x".repeat(64);
        for (key, value) in [
            ("", "x"),
            ("/a", "x"),
            ("A/a", "x"),
            ("a/b/c", "x"),
            ("-a", "x"),
            (long.as_str(), "x"),
            ("a", "x y"),
            ("a", "+Inf"),
            ("a", "x-"),
            ("a", long.as_str()),
            ("a", "ä"),
        ] {
            assert!(label_problem(key, value).is_some(), "{key}={value}");
        }
    }
}
