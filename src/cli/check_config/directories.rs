//! Looks at the directories of the classes on this machine. Nothing is opened, and only
//! links are followed: a mount that hangs is not touched.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use crate::config::{Class, Config};
use crate::node::mountinfo::MountTable;

/// What is odd about the classes' directories: each with the directory.
pub fn look(config: &Config) -> Vec<(String, String)> {
    let mounts = MountTable::read().unwrap_or_default();
    let odd = config.classes.iter().filter_map(|class| Some((class.mount_dir.clone(), problem(class, &mounts)?)));
    odd.collect()
}

fn problem(class: &Class, mounts: &MountTable) -> Option<String> {
    let directory = Path::new(&class.mount_dir);
    let name = &class.name;
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return Some(format!("class {name} can't look into its mountDir here: {error}")),
    };
    let is_mounted = |path: &Path| mounts.iter().any(|(_, mount)| mount.mount_point == path.as_os_str().as_bytes());
    let has_volume = entries.flatten().any(|entry| {
        let is_taken = entry.file_name().to_str().is_some_and(|name| class.pattern.matches(name));
        let is_device = |kind: fs::FileType| {
            kind.is_block_device()
                || (kind.is_symlink()
                    && fs::metadata(entry.path()).is_ok_and(|target| target.file_type().is_block_device()))
        };
        is_taken && (entry.file_type().is_ok_and(is_device) || is_mounted(&entry.path()))
    });
    let own = is_mounted(directory) && !has_volume;
    own.then(|| {
        format!(
            "class {name} has no volume here, and the directory is itself a mount point; a disk that is to be a volume \
             is mounted one level below, such as at {}/disk1",
            class.mount_dir
        )
    })
}
