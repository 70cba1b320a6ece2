//! An entry as the text of its file: JSON with a version, so that an older agent refuses
//! what it would misread.

use serde::{Deserialize, Serialize};

use super::Entry;

/// The version of the files that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// Why the text of a file can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It was written by a newer program.
    #[error(
        "made by a newer mooring (version {0} of its form; this one reads {VERSION}): run that one, or a newer one, on \
         this node"
    )]
    Newer(u32),
    /// It is no entry.
    #[error("{0}")]
    Garbage(String),
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    #[serde(flatten)]
    entry: &'a Entry,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The text of an entry's file.
#[must_use]
pub fn write(entry: &Entry) -> Vec<u8> {
    let written = Written { version: VERSION, entry };
    let mut text = serde_json::to_vec(&written).expect("an entry is plain data");
    text.push(b'\n');
    text
}

/// Reads the text of an entry's file.
///
/// # Errors
/// When a newer program wrote it, or nothing that this one knows.
pub fn read(text: &[u8]) -> Result<Entry, FileError> {
    let garbage = |error: serde_json::Error| FileError::Garbage(error.to_string());
    let Version { version } = serde_json::from_slice(text).map_err(garbage)?;
    if version > VERSION {
        return Err(FileError::Newer(version));
    }
    serde_json::from_slice(text).map_err(garbage)
}
