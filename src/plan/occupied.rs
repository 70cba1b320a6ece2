//! Which entries are one and the same volume under several names, or parts of each
//! other: of these, only one may have a PV.

use std::collections::{BTreeMap, HashMap};

use crate::discovery::{Finding, Sighting};
use crate::identity::{Comparison, DeviceNumber, Identity};

/// The storage that entries take up.
#[derive(Default)]
pub struct Occupied<'a> {
    /// Whole devices, by number.
    devices: HashMap<DeviceNumber, usize>,
    /// Directories of filesystems, in the order of their paths.
    roots: BTreeMap<(DeviceNumber, &'a str), usize>,
    /// Filesystems that are mounted, by device: any one of their entries.
    filesystems: HashMap<DeviceNumber, usize>,
    /// What devices and filesystems lie on: any one of them.
    below: HashMap<DeviceNumber, usize>,
    /// All, by the keys of their identities.
    identities: HashMap<u64, Vec<(usize, &'a Identity)>>,
    rivals: HashMap<usize, usize>,
}

impl<'a> Occupied<'a> {
    /// Goes through the volumes of the findings: those that have a PV come first, the
    /// others in their order. Entries that the class does not take have no part in it.
    pub fn of(findings: &'a [Finding], has_pv: impl Fn(&Finding) -> bool) -> Self {
        let mut occupied = Self::default();
        for first in [true, false] {
            for (index, finding) in findings.iter().enumerate() {
                let Ok(candidate) = &finding.outcome else { continue };
                let with_pv = has_pv(finding);
                if with_pv != first || !(with_pv || finding.selected) {
                    continue;
                }
                let twin = occupied.twin(&candidate.sighting.identity);
                match occupied.conflict(&candidate.sighting).or(twin) {
                    Some(rival) => {
                        occupied.rivals.insert(index, rival);
                        // Neither may be wiped while the other one has a PV, too, or while it
                        // is not known which of them the PV is about.
                        if with_pv || twin.is_some() {
                            occupied.rivals.entry(rival).or_insert(index);
                        }
                    }
                    None => occupied.take(index, &candidate.sighting),
                }
            }
        }
        occupied
    }

    /// The entry that is the same volume as this one and comes first.
    pub fn rival_of(&self, index: usize) -> Option<usize> {
        self.rivals.get(&index).copied()
    }

    fn take(&mut self, index: usize, sighting: &'a Sighting) {
        match &*sighting.identity {
            Identity::Device(device) => _ = self.devices.insert(device.number, index),
            Identity::Mount(mount) => {
                // A root that is not known counts as all of the filesystem.
                self.roots.insert((mount.device, mount.root.as_deref().unwrap_or("/")), index);
                self.filesystems.insert(mount.device, index);
            }
        }
        for key in sighting.identity.keys() {
            self.identities.entry(key).or_default().push((index, &sighting.identity));
        }
        for below in &sighting.below {
            self.below.insert(*below, index);
        }
    }

    fn conflict(&self, sighting: &Sighting) -> Option<usize> {
        let lies_on =
            || sighting.below.iter().find_map(|below| self.devices.get(below).or_else(|| self.filesystems.get(below)));
        let found = match &*sighting.identity {
            Identity::Device(device) => {
                let number = device.number;
                let same = self.devices.get(&number).or_else(|| self.filesystems.get(&number));
                same.or_else(|| self.below.get(&number)).copied()
            }
            Identity::Mount(mount) => {
                let on_device = self.devices.get(&mount.device).or_else(|| self.below.get(&mount.device)).copied();
                on_device.or_else(|| self.overlap(mount.device, mount.root.as_deref().unwrap_or("/")))
            }
        };
        found.or_else(|| lies_on().copied())
    }

    /// An entry that can't be told from this one, though it is another device: copies of
    /// one filesystem on disks without ids.
    fn twin(&self, identity: &Identity) -> Option<usize> {
        let candidates = identity.keys().into_iter().filter_map(|key| self.identities.get(&key)).flatten();
        let is_twin =
            |other: &Identity| other.device() != identity.device() && other.compare(identity) == Comparison::Same;
        candidates.into_iter().find(|(_, other)| is_twin(other)).map(|(index, _)| *index)
    }

    /// An entry whose directory is this one, above it, or below it.
    fn overlap(&self, device: DeviceNumber, root: &str) -> Option<usize> {
        let mut above = Some(root);
        while let Some(path) = above {
            if let Some(found) = self.roots.get(&(device, path)) {
                return Some(*found);
            }
            above = match path.rfind('/') {
                _ if path == "/" => None,
                Some(0) => Some("/"),
                Some(at) => Some(&path[..at]),
                None => None,
            };
        }
        let inside = if root == "/" { "/".to_owned() } else { format!("{root}/") };
        let (key, found) = self.roots.range((device, inside.as_str())..).next()?;
        (key.0 == device && key.1.starts_with(&inside)).then_some(*found)
    }
}
