//! The file that keeps the classes of the config, of now and of before: by their rules PVs
//! are reclaimed whose class was removed while no agent ran.

use std::fs::File;
use std::io::Read;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::StateDirError;
use super::home::Home;

/// Its name. It is no entry, so it does not end like one.
const CLASSES: &str = "classes";
const TEMPORARY: &str = "classes.tmp";
/// What one that can't be used is called from then on.
const ASIDE: &str = "classes.unusable";
/// It is no longer, in bytes: a ConfigMap has 1 MiB at most.
const LONGEST: u64 = 16 << 20;

/// Its content; `None` when there is none yet.
pub fn read(home: &Home) -> Result<Option<Vec<u8>>, StateDirError> {
    let file = match home.open_file(CLASSES) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened.map_err(failed("opening", home))?,
    };
    let mut text = Vec::new();
    let read = File::from(file).take(LONGEST).read_to_end(&mut text);
    read.map_err(|error| failed("reading", home)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    Ok(Some(text))
}

/// Replaces its content, durably.
pub fn save(home: &Home, text: &[u8]) -> Result<(), StateDirError> {
    if !home.is_in_place() {
        return Err(StateDirError::Replaced(home.path.clone()));
    }
    let new = home.write_new(TEMPORARY.to_owned(), text).map_err(failed("writing", home))?;
    new.arrive().map_err(failed("writing", home))?;
    rustix::fs::renameat(&home.dir, TEMPORARY, &home.dir, CLASSES).map_err(|errno| {
        // What stays is written over the next time.
        let _ = rustix::fs::unlinkat(&home.dir, TEMPORARY, AtFlags::empty());
        failed("putting in place", home)(errno)
    })?;
    rustix::fs::fsync(&home.dir).map_err(failed("written, but perhaps not for good: syncing the directory of", home))
}

/// Gives it another name, under which nobody looks for it.
pub fn set_aside(home: &Home) -> Result<(), StateDirError> {
    rustix::fs::renameat(&home.dir, CLASSES, &home.dir, ASIDE).map_err(failed("setting aside", home))
}

fn failed(step: &'static str, home: &Home) -> impl Fn(Errno) -> StateDirError {
    let path = home.path.join(CLASSES);
    move |errno| StateDirError::Io { step, path: path.clone(), errno }
}
