//! What the agent can't promise where it lacks a right, a directory or a view, as under the
//! DaemonSet and `ClusterRole` of the Go provisioner: the closed list that log, Event, metric
//! and `docs/rights.md` share. It runs all the same.

/// Something that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// The right to patch PVs.
    Patch,
    /// The right to list and watch Nodes.
    NodeWatch,
    /// The state directory.
    StateDir,
    /// The kubelet's directory, where pods' mounts show.
    KubeletView,
    /// A capability that the wipe of a directory may take.
    Capabilities,
}

impl Limit {
    /// Every one, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Patch, Self::NodeWatch, Self::StateDir, Self::KubeletView, Self::Capabilities];

    /// The spelling used in logs, metrics and Events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Patch => "patch",
            Self::NodeWatch => "node_watch",
            Self::StateDir => "state_dir",
            Self::KubeletView => "kubelet_view",
            Self::Capabilities => "capabilities",
        }
    }

    /// What can't be promised without it.
    #[must_use]
    pub fn loss(self) -> &'static str {
        match self {
            Self::Patch => {
                "a PV whose claimRef is cleared while its volume is wiped may be bound before it is withdrawn; which \
                 disk a PV of the Go provisioner was made for is not recorded in it; capacities do not grow, and \
                 mooring.dev/reclaim and accept-identity have no effect"
            }
            Self::NodeWatch => "mooring.dev/hold on the Node, and its labels, are seen up to a minute late",
            Self::StateDir => {
                "across a restart, a PV that was deleted by hand is offered again with its data, and a wipe begins anew"
            }
            Self::KubeletView => "a pod that still has a directory mounted does not keep it from being emptied",
            Self::Capabilities => "a directory is not wiped while its tenant has left what takes one of them",
        }
    }

    /// What makes it good.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Patch => "give the ServiceAccount the right to patch persistentvolumes",
            Self::NodeWatch => "give the ServiceAccount the rights to list and watch nodes",
            Self::StateDir => "mount a host directory at /var/lib/mooring, or name one by --state-dir",
            Self::KubeletView => "mount the kubelet's directory read-only, with HostToContainer",
            Self::Capabilities => "add those of docs/rights.md to the securityContext",
        }
    }
}
