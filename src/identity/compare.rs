//! The comparison of identities. Keys that outlast a boot decide first; without any,
//! what the kernel calls the disk in this boot; after a boot, where it is plugged in.

use std::fmt::Display;

use super::{DeviceIdentity, MountIdentity, PartitionIdentity};

/// The answer of a comparison. `Unknown` never counts as `Same`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It is the same volume.
    Same,
    /// It is another: the key that says so, such as "serial number was X, is Y".
    Different(String),
    /// The keys do not suffice to tell.
    Unknown(&'static str),
}

/// What the keys that outlast a boot say.
enum Lasting {
    Agree,
    Differ(String),
    Silent,
}

fn was(key: &str, then: impl Display, now: impl Display) -> String {
    format!("{key} was {then}, is {now}")
}

/// Both values, when both are known.
fn both<'a, T>(then: &'a Option<T>, now: &'a Option<T>) -> Option<(&'a T, &'a T)> {
    then.as_ref().zip(now.as_ref())
}

/// Not known to be the same boot counts as another one.
fn same_boot<T: PartialEq>(then: &Option<T>, now: &Option<T>) -> bool {
    both(then, now).is_some_and(|(then, now)| then == now)
}

impl DeviceIdentity {
    pub(super) fn compare(&self, now: &Self) -> Comparison {
        match self.compare_lasting(now) {
            Lasting::Agree => Comparison::Same,
            Lasting::Differ(key) => Comparison::Different(key),
            Lasting::Silent if same_boot(&self.boot, &now.boot) => self.compare_in_boot(now),
            Lasting::Silent => self.compare_by_place(now),
        }
    }

    /// Whether an id of the disk, or the kernel that saw it then, is the same now: two
    /// machines have like disks in like places.
    pub(super) fn is_of_same_machine(&self, now: &Self) -> bool {
        same_boot(&self.boot, &now.boot) || matches!(self.compare_lasting(now), Lasting::Agree)
    }

    fn compare_lasting(&self, now: &Self) -> Lasting {
        let mut agree = false;
        for (name, then, now) in [
            ("WWID", &self.wwid, &now.wwid),
            ("serial number", &self.serial, &now.serial),
            ("UUID", &self.uuid, &now.uuid),
        ] {
            if let Some((then, now)) = both(then, now) {
                if then != now {
                    return Lasting::Differ(was(name, then, now));
                }
                agree = true;
            }
        }
        match (&self.partition, &now.partition) {
            (Some(then), Some(now)) => {
                if let Some(key) = then.difference(now) {
                    return Lasting::Differ(key);
                }
            }
            (Some(_), None) => return Lasting::Differ("was a partition, is a whole disk".to_owned()),
            (None, Some(_)) => return Lasting::Differ("was a whole disk, is a partition".to_owned()),
            (None, None) => {}
        }
        if agree { Lasting::Agree } else { Lasting::Silent }
    }

    /// For a disk without an id, in one boot.
    fn compare_in_boot(&self, now: &Self) -> Comparison {
        if self.number != now.number {
            return Comparison::Different(was("device number", self.number, now.number));
        }
        match (self.sequence, now.sequence) {
            (Some(then), Some(now)) if then == now => Comparison::Same,
            (Some(then), Some(now)) => Comparison::Different(was("disk sequence number", then, now)),
            // Linux before 5.15: another disk may have got the number, but not the place.
            (None, None) => match both(&self.bus_path, &now.bus_path) {
                Some((then, now)) if then == now => Comparison::Same,
                Some((then, now)) => Comparison::Different(was("place", then, now)),
                None => Comparison::Unknown("the disk has no id, and this kernel does not number attachments"),
            },
            _ => Comparison::Unknown("the disk sequence number is known on one side only"),
        }
    }

    /// For a disk without an id, after a boot.
    fn compare_by_place(&self, now: &Self) -> Comparison {
        let same_place = both(&self.bus_path, &now.bus_path).is_some_and(|(then, now)| then == now);
        let same_kind = both(&self.model, &now.model).is_some_and(|(then, now)| then == now) && self.bytes == now.bytes;
        // Differing ones never get here.
        let same_partition = both(&self.partition, &now.partition)
            .is_some_and(|(then, now)| then.uuid.is_some() && then.uuid == now.uuid);
        if same_place && (same_kind || same_partition) {
            Comparison::Same
        } else {
            Comparison::Unknown(
                "the disk has no id that outlasts a boot, and place, model and size do not all say that it is the same",
            )
        }
    }
}

impl PartitionIdentity {
    fn difference(&self, now: &Self) -> Option<String> {
        if self.start != now.start {
            return Some(was("first byte of the partition", self.start, now.start));
        }
        let (then, now) = both(&self.uuid, &now.uuid)?;
        (then != now).then(|| was("UUID of the partition", then, now))
    }
}

impl MountIdentity {
    pub(super) fn compare(&self, now: &Self) -> Comparison {
        let mut lasting = false;
        if let Some((then, now)) = both(&self.uuid, &now.uuid) {
            if then != now {
                return Comparison::Different(was("UUID of the filesystem", then, now));
            }
            lasting = true;
        }
        if let Some((then, now)) = both(&self.disk, &now.disk) {
            match then.compare_lasting(now) {
                Lasting::Differ(key) => return Comparison::Different(format!("of the filesystem's disk, the {key}")),
                Lasting::Agree => lasting = true,
                Lasting::Silent => {}
            }
        }
        if !lasting {
            match self.compare_in_boot(now) {
                Comparison::Same => {}
                other => return other,
            }
        }
        self.compare_directory(now)
    }

    /// As of a disk: two machines have filesystems that are copies of one image.
    pub(super) fn is_of_same_machine(&self, now: &Self) -> bool {
        let same_disk = both(&self.disk, &now.disk).is_some_and(|(then, now)| then.is_of_same_machine(now));
        same_boot(&self.boot, &now.boot) || same_disk
    }

    /// For a filesystem without an id, in one boot.
    fn compare_in_boot(&self, now: &Self) -> Comparison {
        if !same_boot(&self.boot, &now.boot) {
            return Comparison::Unknown("neither the filesystem nor its disk has an id that outlasts a boot");
        }
        if self.device != now.device {
            return Comparison::Different(was("filesystem", self.device, now.device));
        }
        let unnamed = self.uuid.is_none() && now.uuid.is_none();
        if let Some((then, now)) = both(&self.source, &now.source).filter(|(then, now)| unnamed && then != now) {
            return Comparison::Different(was("source of the mount", then, now));
        }
        match both(&self.disk, &now.disk) {
            Some((then, now)) => then.compare_in_boot(now),
            None => Comparison::Same,
        }
    }

    /// Whether it is the same directory, within what is the same filesystem or disk.
    fn compare_directory(&self, now: &Self) -> Comparison {
        let reformatted = both(&self.uuid, &now.uuid).is_none();
        if let Some((then, now)) = both(&self.fs_type, &now.fs_type).filter(|(then, now)| reformatted && then != now) {
            return Comparison::Different(was("type of the filesystem", then, now));
        }
        if self.inode != now.inode {
            return Comparison::Different(was("inode of the mounted directory", self.inode, now.inode));
        }
        match both(&self.root, &now.root) {
            Some((then, now)) if then == now => Comparison::Same,
            Some((then, now)) => Comparison::Different(was("mounted directory", then, now)),
            None => Comparison::Unknown("the mount table did not show which directory is mounted"),
        }
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
