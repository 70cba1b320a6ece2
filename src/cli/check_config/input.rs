//! Finds the ConfigMap's keys in files, and for a place in a key's text the place in its file.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use super::Finding;
use super::manifest::{self, Text};
use crate::config::{Place, known_keys};

/// The keys of one ConfigMap.
#[derive(Debug, Default)]
pub struct Input {
    /// What is checked, as the user calls it.
    pub name: String,
    /// What is wrong before any key is looked at.
    pub findings: Vec<Finding>,
    /// The keys: each with its text, and where that is.
    pub keys: BTreeMap<String, Source>,
}

/// A key's text, and where it is.
#[derive(Debug)]
pub struct Source {
    /// The file.
    pub file: String,
    /// The text, and its place when it is only a part of the file.
    pub text: Text,
}

impl Input {
    /// Whether its keys are all there: else what is missing was told.
    pub fn is_complete(&self) -> bool {
        self.findings.is_empty() || !self.keys.is_empty()
    }

    /// The keys and their texts.
    pub fn files(&self) -> BTreeMap<String, String> {
        self.keys.iter().map(|(key, source)| (key.clone(), source.text.value.clone())).collect()
    }

    /// Where a place in a key's text is.
    pub fn locate(&self, key: &str, place: Option<Place>) -> (String, Option<Place>) {
        match self.keys.get(key) {
            Some(source) => (source.file.clone(), source.text.place(place)),
            None => (self.name.clone(), None),
        }
    }
}

/// Reads what the path names: one ConfigMap, or all of a manifest that are the agent's.
///
/// # Errors
/// Why there is none.
pub fn read(path: &Path) -> Result<Vec<Input>, String> {
    let name = path.display().to_string();
    let cant = |error: io::Error| format!("{name} can't be read: {error}");
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(|error| format!("the standard input can't be read: {error}"))?;
        return Ok(manifest::read("<stdin>", &text));
    }
    if fs::metadata(path).map_err(cant)?.is_dir() {
        return Ok(vec![directory(path, name)?]);
    }
    let text = fs::read_to_string(path).map_err(cant)?;
    let key = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if known_keys().iter().any(|known| known == key) {
        let source = Source { file: name.clone(), text: Text::whole(text) };
        return Ok(vec![Input { name, keys: BTreeMap::from([(key.to_owned(), source)]), ..Input::default() }]);
    }
    Ok(manifest::read(&name, &text))
}

/// A projected ConfigMap volume: the files whose names do not begin with "..".
fn directory(path: &Path, name: String) -> Result<Input, String> {
    let mut input = Input { name, ..Input::default() };
    let entries = fs::read_dir(path).map_err(|error| format!("{} can't be read: {error}", input.name))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{} can't be read: {error}", input.name))?;
        let Ok(key) = entry.file_name().into_string() else { continue };
        if key.starts_with("..") || !entry.path().is_file() {
            continue;
        }
        let file = entry.path().display().to_string();
        match fs::read_to_string(entry.path()) {
            Ok(value) => {
                input.keys.insert(key, Source { file, text: Text::whole(value) });
            }
            Err(error) => input.findings.push(Finding::error(&file, None, format!("it can't be read: {error}"))),
        }
    }
    Ok(input)
}
