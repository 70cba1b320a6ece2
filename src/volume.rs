//! The words of the field, as types: volume mode, access mode, reclaim policy,
//! capacity, the name of a directory entry, and the volume itself. Everything
//! else is built of these; nothing here knows where a value comes from.

use std::collections::BTreeMap;
use std::fmt;

/// How a volume is given to a pod: `spec.volumeMode` of the Kubernetes API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VolumeMode {
    /// Mounted into the pod as a directory.
    #[default]
    Filesystem,
    /// Handed to the pod as a raw block device.
    Block,
}

impl VolumeMode {
    /// The API's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filesystem => "Filesystem",
            Self::Block => "Block",
        }
    }

    /// Reads the API's spelling; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Filesystem, Self::Block].into_iter().find(|mode| mode.as_str() == text)
    }
}

impl fmt::Display for VolumeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who may mount a volume: `spec.accessModes` of the Kubernetes API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    /// Read and written by the pods of one node.
    #[default]
    ReadWriteOnce,
    /// Read by many nodes.
    ReadOnlyMany,
    /// Read and written by many nodes.
    ReadWriteMany,
    /// Read and written by one pod.
    ReadWriteOncePod,
}

impl AccessMode {
    const ALL: [Self; 4] = [Self::ReadWriteOnce, Self::ReadOnlyMany, Self::ReadWriteMany, Self::ReadWriteOncePod];

    /// The API's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "ReadWriteOnce",
            Self::ReadOnlyMany => "ReadOnlyMany",
            Self::ReadWriteMany => "ReadWriteMany",
            Self::ReadWriteOncePod => "ReadWriteOncePod",
        }
    }

    /// Reads the API's spelling; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text)
    }
}

/// What becomes of a volume whose claim is gone: `persistentVolumeReclaimPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReclaimPolicy {
    /// Wiped and offered anew.
    Delete,
    /// Kept as it is until an admin acts.
    Retain,
    /// Obsolete, and not supported for local volumes.
    Recycle,
    /// A policy that this program does not know; nothing is done.
    Unknown(String),
}

impl ReclaimPolicy {
    /// The API's spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Delete => "Delete",
            Self::Retain => "Retain",
            Self::Recycle => "Recycle",
            Self::Unknown(text) => text,
        }
    }

    /// Whether it says what becomes of a local volume.
    #[must_use]
    pub fn is_supported(&self) -> bool {
        matches!(self, Self::Delete | Self::Retain)
    }

    /// Reads the API's spelling. Never fails: an unknown policy is kept as such.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "Delete" => Self::Delete,
            "Retain" => Self::Retain,
            "Recycle" => Self::Recycle,
            other => Self::Unknown(other.to_owned()),
        }
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A volume's size in bytes, as it stands in `spec.capacity.storage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capacity(u64);

impl Capacity {
    /// A measured size, rounded down the way the Go provisioner does: to whole GiB
    /// from 10 GiB on, to whole MiB from 10 MiB on, else left alone.
    #[must_use]
    pub fn rounded_down(bytes: u64) -> Self {
        let unit = if bytes >= 10 * GIB {
            GIB
        } else if bytes >= 10 * MIB {
            MIB
        } else {
            1
        };
        Self(bytes - bytes % unit)
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Reads a Kubernetes quantity with a binary suffix, a decimal suffix or none.
    /// Fractions and exponents are not read: this program never writes them.
    #[must_use]
    pub fn parse(quantity: &str) -> Option<Self> {
        let digits = quantity.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.len());
        let (number, suffix) = quantity.split_at(digits);
        let factor: u64 = match suffix {
            "" => 1,
            "Ki" => KIB,
            "Mi" => MIB,
            "Gi" => GIB,
            "Ti" => GIB << 10,
            "Pi" => GIB << 20,
            "Ei" => GIB << 30,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "P" => 1_000_000_000_000_000,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor).map(Self)
    }
}

/// The canonical form of a Kubernetes quantity in `BinarySI` format: the largest
/// suffix that leaves a whole number.
impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0;
        let mut suffix = "";
        for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
            if value == 0 || !value.is_multiple_of(KIB) {
                break;
            }
            value /= KIB;
            suffix = next;
        }
        write!(f, "{value}{suffix}")
    }
}

/// The hash FNV-1a of 32 bits, by which the Go provisioner makes names.
pub fn fnv1a_32(bytes: impl IntoIterator<Item = u8>) -> u32 {
    bytes.into_iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The hash FNV-1a of 64 bits: the same in every version of this program, and no proof
/// against who wants two texts to have the same.
pub fn fnv1a_64(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The facts of the Node that PVs are made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Value of the label `kubernetes.io/hostname`.
    pub hostname: String,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// Whether an admin holds up all wipes of this node.
    pub hold: bool,
    /// The keys of `spec.taints`, in their order.
    pub taints: Vec<Box<str>>,
}

/// What a PV takes from its StorageClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageClassFacts {
    /// `reclaimPolicy`, `Delete` when absent.
    pub reclaim_policy: ReclaimPolicy,
    /// `mountOptions`.
    pub mount_options: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_are_written_like_kubernetes_quantities() {
        for (bytes, text) in [
            (0, "0"),
            (512, "512"),
            (4 * MIB, "4Mi"),
            (4_198_400, "4100Ki"),
            (9_668_919_296, "9221Mi"),
            (10 * GIB, "10Gi"),
            (1 << 40, "1Ti"),
        ] {
            assert_eq!(Capacity(bytes).to_string(), text);
            assert_eq!(Capacity::parse(text), Some(Capacity(bytes)));
        }
        assert_eq!(Capacity::parse("5G"), Some(Capacity(5_000_000_000)));
        for bad in ["", "Gi", "1.5Gi", "-1", "1e3", "99999999Ei", "1 Gi"] {
            assert_eq!(Capacity::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn capacities_are_rounded_down_from_ten_units_on() {
        for (bytes, rounded) in [
            (10 * MIB - 1, 10 * MIB - 1),
            (10 * MIB + 1, 10 * MIB),
            (10 * GIB - 1, 10 * GIB - MIB),
            (11 * GIB - 1, 10 * GIB),
        ] {
            assert_eq!(Capacity::rounded_down(bytes).bytes(), rounded);
        }
    }
}
