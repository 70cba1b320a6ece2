//! Which volume is this? The keys by which a volume is known again, and a pure
//! comparison of what was recorded with what is there now. Only keys that a tenant
//! cannot write take part: never the content of a device, never its size alone.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A device number, as `st_rdev` of a node or `st_dev` of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

impl From<DeviceNumber> for String {
    fn from(number: DeviceNumber) -> Self {
        number.to_string()
    }
}

impl TryFrom<String> for DeviceNumber {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (major, minor) = text.split_once(':').ok_or_else(|| format!("{text:?} is no device number"))?;
        match (major.parse(), minor.parse()) {
            (Ok(major), Ok(minor)) => Ok(Self { major, minor }),
            _ => Err(format!("{text:?} is no device number")),
        }
    }
}

/// A UUID, such as a boot id or that of a filesystem; written with its four dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(pub u128);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> Self {
        uuid.to_string()
    }
}

impl TryFrom<String> for Uuid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hex: String = text.chars().filter(|c| *c != '-').collect();
        (hex.len() == 32)
            .then(|| u128::from_str_radix(&hex, 16).ok().map(Self))
            .flatten()
            .ok_or_else(|| format!("{text:?} is no UUID"))
    }
}

/// What a volume is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// A block device.
    Device(DeviceIdentity),
    /// The root directory of a mounted filesystem subtree.
    Mount(MountIdentity),
}

/// The keys of a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceIdentity {
    /// The boot in which `number` and `sequence` hold.
    pub boot: Option<Uuid>,
    /// Its number.
    pub number: DeviceNumber,
    /// The kernel's sequence number of the disk, new at each attachment
    /// (`/sys/block/*/diskseq`, Linux 5.15); absent on older kernels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// The keys of a mounted directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountIdentity {
    /// The boot in which `device` holds.
    pub boot: Option<Uuid>,
    /// Device number of the filesystem.
    pub device: DeviceNumber,
    /// The directory within the filesystem that is mounted; absent when the
    /// mount table did not show the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Box<str>>,
    /// Inode number of the mounted directory.
    pub inode: u64,
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
            (Self::Device(then), Self::Device(now)) => then.compare(now),
            (Self::Mount(then), Self::Mount(now)) => then.compare(now),
            (Self::Device(_), Self::Mount(_)) => Comparison::Different("was a device, is a directory".to_owned()),
            (Self::Mount(_), Self::Device(_)) => Comparison::Different("was a directory, is a device".to_owned()),
        }
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self, Self::Device(_))
    }
}

impl DeviceIdentity {
    fn compare(&self, now: &Self) -> Comparison {
        if self.number != now.number {
            return Comparison::Different(format!("device number was {}, is {}", self.number, now.number));
        }
        match (self.sequence, now.sequence) {
            (Some(a), Some(b)) if a == b => Comparison::Same,
            (Some(a), Some(b)) => Comparison::Different(format!("disk sequence number was {a}, is {b}")),
            (None, None) => Comparison::Same,
            _ => Comparison::Unknown("the disk sequence number is known on one side only"),
        }
    }
}

impl MountIdentity {
    fn compare(&self, now: &Self) -> Comparison {
        if self.device != now.device {
            Comparison::Different(format!("filesystem was {}, is {}", self.device, now.device))
        } else if let (Some(a), Some(b)) = (&self.root, &now.root)
            && a != b
        {
            Comparison::Different(format!("mounted directory was {a}, is {b}"))
        } else if self.inode != now.inode {
            Comparison::Different(format!("inode of the mounted directory was {}, is {}", self.inode, now.inode))
        } else {
            Comparison::Same
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(minor: u32, sequence: Option<u64>) -> Identity {
        Identity::Device(DeviceIdentity { boot: None, number: DeviceNumber { major: 7, minor }, sequence })
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
        let mount = |minor, inode| {
            Identity::Mount(MountIdentity {
                boot: None,
                device: DeviceNumber { major: 0, minor },
                root: Some("/".into()),
                inode,
            })
        };
        assert_eq!(mount(40, 1).compare(&mount(40, 1)), Comparison::Same);
        assert!(matches!(mount(40, 1).compare(&mount(41, 1)), Comparison::Different(_)));
        assert!(matches!(mount(40, 1).compare(&mount(40, 2)), Comparison::Different(_)));
        assert!(matches!(mount(40, 1).compare(&device(0, None)), Comparison::Different(_)));
    }
}
