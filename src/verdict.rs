//! What became of an entry of a discovery directory, and why: the closed list
//! that logs, metrics, Events and the HTTP pages share. Each verdict has a reason
//! that never changes its spelling, a sentence, and a remedy.

use std::fmt;

/// The stable name of a verdict, fit for a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A PV offers it.
    Published,
    /// A PV is about to be made or changed, or something it needs is not known yet.
    Pending,
    /// A directory that is not itself a mount point.
    NotAMountPoint,
    /// A directory where the class wants block devices.
    ModeMismatch,
    /// The class is configured here but the API server has no such StorageClass.
    NoStorageClass,
    /// No pattern of the class matches the name.
    ExcludedByPattern,
    /// Another class or name offers the same volume.
    DuplicateOf,
    /// It may hold a tenant's data, and no PV says so any more.
    Dirty,
    /// It may hold a tenant's data; a PV that nobody can claim shows it.
    Quarantined,
    /// Somebody uses the volume, so it can't be wiped yet.
    Busy,
    /// Its last tenant's data is being wiped.
    Wiping,
    /// Another disk or filesystem than the one that was published.
    IdentityChanged,
    /// A device or filesystem without room.
    ZeroCapacity,
    /// Neither a directory nor a block device, or a name that no PV can carry.
    Unsupported,
    /// The kernel did not answer when asked about it.
    Unresponsive,
    /// The discovery directory can't be read: it is not there, or not mounted into the pod.
    DirectoryUnreadable,
    /// A PV exists, but the volume is gone.
    Vanished,
    /// The volume is smaller than its PV says, and a claim has it.
    Shrunk,
    /// Something that must not be done was asked for.
    Refused,
    /// Another PV of this node already names the path.
    PathInUse,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 20] = [
        Self::Published,
        Self::Pending,
        Self::NotAMountPoint,
        Self::ModeMismatch,
        Self::NoStorageClass,
        Self::ExcludedByPattern,
        Self::DuplicateOf,
        Self::Dirty,
        Self::Quarantined,
        Self::Busy,
        Self::Wiping,
        Self::IdentityChanged,
        Self::ZeroCapacity,
        Self::Unsupported,
        Self::Unresponsive,
        Self::DirectoryUnreadable,
        Self::Vanished,
        Self::Shrunk,
        Self::Refused,
        Self::PathInUse,
    ];

    /// The spelling used in logs, metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Published => "Published",
            Self::Pending => "Pending",
            Self::NotAMountPoint => "NotAMountPoint",
            Self::ModeMismatch => "ModeMismatch",
            Self::NoStorageClass => "NoStorageClass",
            Self::ExcludedByPattern => "ExcludedByPattern",
            Self::DuplicateOf => "DuplicateOf",
            Self::Dirty => "Dirty",
            Self::Quarantined => "Quarantined",
            Self::Busy => "Busy",
            Self::Wiping => "Wiping",
            Self::IdentityChanged => "IdentityChanged",
            Self::ZeroCapacity => "ZeroCapacity",
            Self::Unsupported => "Unsupported",
            Self::Unresponsive => "Unresponsive",
            Self::DirectoryUnreadable => "DirectoryUnreadable",
            Self::Vanished => "Vanished",
            Self::Shrunk => "Shrunk",
            Self::Refused => "Refused",
            Self::PathInUse => "PathInUse",
        }
    }

    /// Whether an admin should hear of it by an Event of this reason. What is nothing to
    /// hear of where no volume was ever offered is a volume that is missing where a PV
    /// offers it.
    #[must_use]
    pub fn is_told_by_event(self, has_pv: bool) -> bool {
        match self {
            Self::Dirty
            | Self::Quarantined
            | Self::Busy
            | Self::IdentityChanged
            | Self::Unresponsive
            | Self::DirectoryUnreadable
            | Self::Vanished
            | Self::Shrunk
            | Self::Refused
            | Self::PathInUse => true,
            Self::NotAMountPoint | Self::ModeMismatch | Self::ZeroCapacity | Self::Unsupported => has_pv,
            Self::Published
            | Self::Pending
            | Self::NoStorageClass
            | Self::ExcludedByPattern
            | Self::DuplicateOf
            | Self::Wiping => false,
        }
    }

    /// Whether it says that there is nothing which could be a volume.
    #[must_use]
    pub fn is_no_volume(self) -> bool {
        matches!(
            self,
            Self::NotAMountPoint | Self::ModeMismatch | Self::ZeroCapacity | Self::Unsupported | Self::Vanished
        )
    }

    /// What an admin can do about it; empty where nothing needs doing.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Published | Self::Pending | Self::Wiping | Self::ExcludedByPattern => "",
            Self::NotAMountPoint => "mount a filesystem on it (a bind mount will do), or ignore it if it is no volume",
            Self::ModeMismatch => "set volumeMode: Filesystem for the class, or put a link to a block device there",
            Self::NoStorageClass => "create the StorageClass, or take the class out of storageClassMap",
            Self::DuplicateOf => "remove one of the two, or set namePattern so that only one class matches",
            Self::Dirty => "see the detail; mooring wipe on the node makes it fit to be offered again",
            Self::Quarantined => {
                "empty it, or annotate the PV with mooring.dev/reclaim: wipe (destroys the data), keep (offers it as it \
                 is) or retire (withdraws it)"
            }
            Self::Busy => "stop whatever uses it",
            Self::IdentityChanged => {
                "put the former disk back; if this one is right, annotate the PV with mooring.dev/accept-identity: and \
                 the digest from the detail"
            }
            Self::ZeroCapacity => "attach a medium, or remove the entry",
            Self::Unsupported => "replace it by a mounted directory or a link to a block device, or remove it",
            Self::Unresponsive => "look after the disk or the server behind it; it is taken up again when it answers",
            Self::DirectoryUnreadable => {
                "make the directory and mount it into the agent's pod, or correct mountDir; the chart mounts those of its \
                 classes and formerDirectories, any other by additionalVolumes and additionalVolumeMounts"
            }
            Self::Vanished => "mount or attach it again; delete the PV if it will not come back",
            Self::Shrunk => "give the volume its former size back, or move the claim's data elsewhere",
            Self::Refused => "see the detail",
            Self::PathInUse => "delete the other PV, or remove the entry",
        }
    }
}

/// A reason with its sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The stable name.
    pub reason: Reason,
    /// One sentence with this case's names and numbers; may be empty.
    pub detail: String,
}

impl Verdict {
    /// A verdict with a sentence of its own.
    #[must_use]
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.as_str())?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}
