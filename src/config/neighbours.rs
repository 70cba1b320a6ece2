//! What is odd about classes next to each other: one entry that two of them take, and
//! directories that lie in each other. The Go provisioner runs with all of that.

use super::Class;
use super::fit::Fitter;
use super::problem::Place;

/// So many classes are compared with each other; what is found in them shows the rest.
const ENOUGH: usize = 100;
/// Patterns that are longer, in bytes, are not compared: no name of a file is.
const LONG: usize = 255;

/// Compares the classes with each other. They are in the order of their names.
pub fn check(fitter: &mut Fitter, classes: &[Class], places: &[Place]) {
    for (index, second) in classes.iter().enumerate().take(ENOUGH) {
        for (other, first) in classes.iter().enumerate().take(ENOUGH) {
            if other < index && (first.mount_dir == second.mount_dir || first.host_dir == second.host_dir) {
                same_directory(fitter, first, second, places[index]);
            }
            // The class whose entry leads to the other's directory is told of it.
            if let Some(entry) = entry_above(&second.host_dir, &first.host_dir)
                && second.pattern.matches(entry)
            {
                let text = format!(
                    "storageClassMap.{}: the directory of class {}, {}, lies below its own, and when {}/{entry} is a \
                     mount point, that is taken for a volume; move one of them, or leave {entry:?} out by namePattern",
                    second.name, first.name, first.host_dir, second.host_dir
                );
                fitter.warn(Some(places[index]), text);
            }
        }
    }
}

fn same_directory(fitter: &mut Fitter, first: &Class, second: &Class, place: Place) {
    let (name, other) = (&second.name, &first.name);
    if first.mount_dir == second.mount_dir && first.host_dir != second.host_dir {
        let text = format!(
            "storageClassMap.{name}: class {other} has the same mountDir, {}, with another hostDir; the paths of one \
             class's PVs are wrong",
            first.mount_dir
        );
        fitter.warn(Some(place), text);
    }
    let (ours, theirs) = (second.pattern.to_string(), first.pattern.to_string());
    if ours.len().max(theirs.len()) > LONG || !first.pattern.overlaps(&second.pattern) {
        return;
    }
    let entries = if ours == theirs {
        format!("takes the same entries ({ours})")
    } else {
        format!("can take the same entries ({theirs} and {ours})")
    };
    let text = format!(
        "storageClassMap.{name}: class {other} has the same directory, {}, and {entries}; each is published by \
         {other} only; tell them apart by namePattern",
        first.host_dir
    );
    fitter.warn(Some(place), text);
}

/// The entry of `directory` in which, or below which, `path` lies.
fn entry_above<'p>(directory: &str, path: &'p str) -> Option<&'p str> {
    path.strip_prefix(directory)?.strip_prefix('/')?.split('/').next()
}
