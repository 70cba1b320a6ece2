//! A configuration directory written the way the kubelet writes a projected
//! `ConfigMap` volume: the keys are links into `..data`, and an update swaps that
//! one link.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::scratch::unique;

/// A directory with one file per `ConfigMap` key.
pub struct ConfigDir {
    path: PathBuf,
}

impl ConfigDir {
    /// Makes the directory with these keys.
    pub fn new(path: PathBuf, files: &[(&str, &str)]) -> Self {
        fs::create_dir_all(&path).expect("a configuration directory can be made");
        let dir = Self { path };
        dir.rewrite(files);
        dir
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces all keys in one step, in the kubelet's order.
    pub fn rewrite(&self, files: &[(&str, &str)]) {
        let data = self.path.join("..data");
        let old = fs::read_link(&data).ok();
        let new = format!("..2026_01_01_00_00_00.{}", unique());
        let new_dir = self.path.join(&new);
        fs::create_dir(&new_dir).expect("the name of a new version is new");
        for (key, value) in files {
            fs::write(new_dir.join(key), value).expect("a key can be written");
        }
        let temporary = self.path.join("..data_tmp");
        symlink(&new, &temporary).expect("a link can be made");
        fs::rename(&temporary, &data).expect("a link can be replaced");
        for (key, _) in files {
            let link = self.path.join(key);
            if !link.is_symlink() {
                symlink(Path::new("..data").join(key), link).expect("a link can be made");
            }
        }
        for entry in fs::read_dir(&self.path).expect("the directory can be read").flatten() {
            // A key that is no longer there has left a link to nothing.
            if entry.path().is_symlink() && !entry.path().exists() {
                fs::remove_file(entry.path()).expect("a link can be removed");
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(self.path.join(old)).expect("the old version can be removed");
        }
    }
}

/// The value of `storageClassMap` for classes with their discovery directory and
/// further lines (`"volumeMode: Block"`, or nothing).
pub fn storage_class_map(classes: &[(&str, &Path, &str)]) -> String {
    let mut text = String::new();
    for (class, dir, further) in classes {
        let dir = dir.display();
        writeln!(text, "{class}:\n  hostDir: {dir}\n  mountDir: {dir}").expect("a string takes text");
        for line in further.lines() {
            writeln!(text, "  {line}").expect("a string takes text");
        }
    }
    text
}
