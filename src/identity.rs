//! Which volume is this? The keys by which a volume is known again, and a pure
//! comparison of what was recorded with what is there now. Only keys that a tenant
//! cannot write take part: never the content of a device, never its size alone.

use std::fmt;

/// A device number, as `st_rdev` of a node or `st_dev` of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Selects the driver.
    pub major: u32,
    /// Selects the device.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What a volume is known by, within one boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A block device.
    Device {
        /// Its number.
        number: DeviceNumber,
        /// The kernel's sequence number of the disk, new at each attachment
        /// (`/sys/block/*/diskseq`, Linux 5.15); absent on older kernels.
        sequence: Option<u64>,
    },
    /// The root directory of a mounted filesystem subtree.
    Mount {
        /// Device number of the filesystem.
        device: DeviceNumber,
        /// The directory within the filesystem that is mounted; absent when the
        /// mount table did not show the mount.
        root: Option<String>,
        /// Inode number of the mounted directory.
        inode: u64,
    },
}

/// The answer of a comparison. `Unknown` never counts as `Same`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Every key says so.
    Same,
    /// The named key differs.
    Different(String),
    /// The keys do not suffice to tell.
    Unknown(&'static str),
}

impl Identity {
    /// Compares what was recorded (`self`) with what is there `now`.
    #[must_use]
    pub fn compare(&self, now: &Self) -> Comparison {
        match (self, now) {
            (Self::Device { number: a, sequence: seq_a }, Self::Device { number: b, sequence: seq_b }) => {
                if a != b {
                    return Comparison::Different(format!("device number was {a}, is {b}"));
                }
                match (seq_a, seq_b) {
                    (Some(a), Some(b)) if a == b => Comparison::Same,
                    (Some(a), Some(b)) => Comparison::Different(format!("disk sequence number was {a}, is {b}")),
                    (None, None) => Comparison::Same,
                    _ => Comparison::Unknown("the disk sequence number is known on one side only"),
                }
            }
            (
                Self::Mount { device: a, root: root_a, inode: inode_a },
                Self::Mount { device: b, root: root_b, inode: inode_b },
            ) => {
                if a != b {
                    Comparison::Different(format!("filesystem was {a}, is {b}"))
                } else if let (Some(a), Some(b)) = (root_a, root_b)
                    && a != b
                {
                    Comparison::Different(format!("mounted directory was {a}, is {b}"))
                } else if inode_a != inode_b {
                    Comparison::Different(format!("inode of the mounted directory was {inode_a}, is {inode_b}"))
                } else {
                    Comparison::Same
                }
            }
            (Self::Device { .. }, Self::Mount { .. }) => {
                Comparison::Different("was a device, is a directory".to_owned())
            }
            (Self::Mount { .. }, Self::Device { .. }) => {
                Comparison::Different("was a directory, is a device".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(minor: u32, sequence: Option<u64>) -> Identity {
        Identity::Device { number: DeviceNumber { major: 7, minor }, sequence }
    }

    #[test]
    fn a_reattached_device_under_the_same_number_is_another() {
        assert_eq!(device(0, Some(621)).compare(&device(0, Some(621))), Comparison::Same);
        assert_eq!(device(0, None).compare(&device(0, None)), Comparison::Same);
        assert!(matches!(device(0, Some(621)).compare(&device(0, Some(624))), Comparison::Different(_)));
        assert!(matches!(device(0, Some(1)).compare(&device(1, Some(1))), Comparison::Different(_)));
        assert!(matches!(device(0, Some(1)).compare(&device(0, None)), Comparison::Unknown(_)));
    }

    #[test]
    fn another_filesystem_at_the_same_place_is_another() {
        let mount = |minor, inode| Identity::Mount {
            device: DeviceNumber { major: 0, minor },
            root: Some("/".to_owned()),
            inode,
        };
        assert_eq!(mount(40, 1).compare(&mount(40, 1)), Comparison::Same);
        assert!(matches!(mount(40, 1).compare(&mount(41, 1)), Comparison::Different(_)));
        assert!(matches!(mount(40, 1).compare(&mount(40, 2)), Comparison::Different(_)));
        assert!(matches!(mount(40, 1).compare(&device(0, None)), Comparison::Different(_)));
    }
}
