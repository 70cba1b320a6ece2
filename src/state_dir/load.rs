//! Reads the ledger from its files. A file that is no entry is left as it is: only an
//! admin can know what it was.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use rustix::fs::FileType;
use tracing::warn;

use super::StateDirError;
use super::home::{Home, Version, entry_file, version};
use crate::ledger::file::{self, FileError};
use crate::ledger::{Entry, EntryId, Ledger};

/// No entry is longer, in bytes.
const LONGEST: u64 = 1 << 20;

/// Which version of each entry's file was read or written last.
pub type Seen = BTreeMap<EntryId, Version>;

/// Reads all `*.json`.
pub fn load(home: &Home) -> Result<(Ledger, Seen), StateDirError> {
    let mut entries = Vec::new();
    let mut seen = Seen::new();
    let mut lost = 0;
    for name in home.names()?.iter().filter(|name| name.ends_with(".json")) {
        match read(home, name) {
            Ok((entry, version)) => {
                seen.insert(entry.id, version);
                entries.push(entry);
            }
            Err(error @ FileError::Newer(_)) => {
                return Err(StateDirError::Newer { file: home.path.join(name), error });
            }
            Err(FileError::Garbage(problem)) => {
                lost += 1;
                warn!(
                    file = %home.path.join(name).display(),
                    %problem,
                    "A file of the ledger can't be read, and volumes without an entry are not taken for new: mend it, \
                     or remove it once you know that none of them holds a tenant's data"
                );
            }
        }
    }
    Ok((Ledger::new(entries, lost), seen))
}

/// Reads the entries whose files are not the ones that were seen, and that nobody has
/// locked. One that can't be read stays as it is known.
pub fn changed(home: &Home, seen: &mut Seen) -> Result<Vec<Entry>, StateDirError> {
    let mut entries = Vec::new();
    for name in home.names()? {
        let Some(id) = name.strip_suffix(".json").and_then(|id| EntryId::try_from(id.to_owned()).ok()) else {
            continue;
        };
        let now =
            rustix::fs::statat(&home.dir, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map(|stat| version(&stat));
        if now.is_err() || now.ok().as_ref() == seen.get(&id) {
            continue;
        }
        let Ok(_lock) = home.lock_entry(id) else { continue };
        if let Ok((entry, version)) = read(home, &name) {
            seen.insert(id, version);
            entries.push(entry);
        }
    }
    Ok(entries)
}

fn read(home: &Home, name: &str) -> Result<(Entry, Version), FileError> {
    let garbage = |problem: std::io::Error| FileError::Garbage(problem.to_string());
    let file = home.open_file(name).map_err(|errno| garbage(errno.into()))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| garbage(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(FileError::Garbage("it is no regular file".to_owned()));
    }
    let mut text = Vec::new();
    File::from(file).take(LONGEST).read_to_end(&mut text).map_err(garbage)?;
    let entry = file::read(&text)?;
    if entry_file(entry.id) != name {
        return Err(FileError::Garbage(format!("it is a copy of entry {}", entry.id)));
    }
    Ok((entry, version(&stat)))
}
