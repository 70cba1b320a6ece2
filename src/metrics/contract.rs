//! The families of the Go provisioner, by its names and with its labels and buckets, so
//! that its dashboards and alerts go on working. Where its numbers are wrong, these are
//! right: see docs/metrics.md.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::wipes::{By, Counts, Wipe};
use super::{Described, Level, level};
use crate::method::Method;
use crate::report::Totals;
use crate::volume::{Capacity, VolumeMode};

/// What its names begin with.
pub const PREFIX: &str = "local_volume_provisioner";
/// The default buckets of Prometheus' client for Go, in seconds.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Of the label `capacity`, in GiB.
const CAPACITY_STEP: u64 = 500;

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The counters and histograms of the Go provisioner.
#[derive(Clone, Debug)]
pub struct Contract {
    discovered: Family<ModeLabels, Counter>,
    discovery_seconds: Histograms<ModeLabels>,
    deleted: Family<DeleteLabels, Counter>,
    delete_failed: Family<DeleteLabels, Counter>,
    delete_seconds: Histograms<DeleteTimeLabels>,
    requests: Family<MethodLabels, Counter>,
    requests_failed: Family<MethodLabels, Counter>,
    request_seconds: Histograms<MethodLabels>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeleteLabels {
    mode: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeleteTimeLabels {
    mode: &'static str,
    r#type: &'static str,
    capacity: String,
    cleanup_command: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Default for Contract {
    /// Everything that can be counted stands at zero, or the first of a thing would not be
    /// an increase.
    fn default() -> Self {
        let contract = Self {
            discovered: Family::default(),
            discovery_seconds: Family::new_with_constructor(histogram),
            deleted: Family::default(),
            delete_failed: Family::default(),
            delete_seconds: Family::new_with_constructor(histogram),
            requests: Family::default(),
            requests_failed: Family::default(),
            request_seconds: Family::new_with_constructor(histogram),
        };
        for mode in [VolumeMode::Filesystem, VolumeMode::Block].map(VolumeMode::as_str) {
            drop(contract.discovered.get_or_create(&ModeLabels { mode }));
            drop(contract.discovery_seconds.get_or_create(&ModeLabels { mode }));
            for by in [By::Process, By::Job] {
                let labels = DeleteLabels { mode, r#type: by.as_str() };
                drop(contract.deleted.get_or_create(&labels));
                drop(contract.delete_failed.get_or_create(&labels));
            }
        }
        for method in ["create", "delete"] {
            let labels = MethodLabels { method };
            drop(contract.requests.get_or_create(&labels));
            drop(contract.requests_failed.get_or_create(&labels));
            drop(contract.request_seconds.get_or_create(&labels));
        }
        contract
    }
}

impl Contract {
    /// A PV was made, so long after its volume was seen.
    pub fn discovered(&self, mode: VolumeMode, took: Duration) {
        let labels = ModeLabels { mode: mode.as_str() };
        self.discovered.get_or_create(&labels).inc();
        self.discovery_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A volume was wiped and its PV removed, so long after the wipe began.
    pub fn reclaimed(&self, wipe: &Wipe, took: Duration) {
        let (mode, by) = (wipe.mode.as_str(), wipe.by.as_str());
        self.deleted.get_or_create(&DeleteLabels { mode, r#type: by }).inc();
        let labels = DeleteTimeLabels {
            mode,
            r#type: by,
            capacity: capacity_label(wipe.capacity),
            cleanup_command: cleanup_command(&wipe.method).to_owned(),
        };
        self.delete_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A volume was not wiped, or its PV not removed.
    pub fn reclaim_failed(&self, mode: VolumeMode, by: By) {
        let labels = DeleteLabels { mode: mode.as_str(), r#type: by.as_str() };
        self.delete_failed.get_or_create(&labels).inc();
    }

    /// A PV was to be made (`create`) or deleted (`delete`).
    pub fn requested(&self, method: &'static str, failed: bool, took: Duration) {
        let labels = MethodLabels { method };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if failed {
            self.requests_failed.get_or_create(&labels).inc();
        }
    }

    pub(super) fn register(&self, registry: &mut Registry, totals: &Totals, wipes: &Counts) {
        let capacity = Family::<ModeLabels, Level>::default();
        for mode in [VolumeMode::Filesystem, VolumeMode::Block] {
            let bytes = totals.capacity(mode);
            capacity.get_or_create(&ModeLabels { mode: mode.as_str() }).set(bytes);
        }
        registry.register(
            "persistentvolume_capacity_bytes",
            "Capacity of this node's volumes that have a PV",
            capacity,
        );
        registry.register("persistentvolume_discovery", "Persistent volumes made", self.discovered.clone());
        registry.register(
            "persistentvolume_discovery_duration_seconds",
            "Time from when a volume is seen to when its persistent volume is made",
            self.discovery_seconds.clone(),
        );
        registry.register(
            "persistentvolume_delete",
            "Released persistent volumes wiped and removed",
            self.deleted.clone(),
        );
        registry.register(
            "persistentvolume_delete_failed",
            "Failed attempts to wipe and remove a Released persistent volume",
            self.delete_failed.clone(),
        );
        registry.register(
            "persistentvolume_delete_duration_seconds",
            "Time from when a wipe begins to when its persistent volume is removed",
            Described(self.delete_seconds.clone()),
        );
        registry.register(
            "apiserver_requests",
            "Requests to make and delete persistent volumes",
            self.requests.clone(),
        );
        registry.register("apiserver_requests_failed", "Those of them that failed", self.requests_failed.clone());
        registry.register(
            "apiserver_requests_duration_seconds",
            "Duration of requests to make and delete persistent volumes",
            self.request_seconds.clone(),
        );
        registry.register("proctable_running", "Wipes that run", level(wipes.running.into()));
        registry.register(
            "proctable_succeeded",
            "Wipes that succeeded, of persistent volumes that are still to be removed",
            level(wipes.succeeded.into()),
        );
        registry.register(
            "proctable_failed",
            "Wipes that failed and are to be tried again",
            level(totals.failed.into()),
        );
    }
}

/// The next multiple of 500 GiB, in the Go provisioner's spelling.
fn capacity_label(capacity: Option<Capacity>) -> String {
    let bytes = capacity.map_or(0, Capacity::bytes);
    format!("{}G", bytes.div_ceil(CAPACITY_STEP << 30) * CAPACITY_STEP)
}

/// The command that the Go provisioner would run; where there is none, the method's name.
fn cleanup_command(method: &Method) -> &str {
    match method {
        Method::Command(command) => command.first().map_or("", String::as_str),
        Method::Overwrite { .. } => "/scripts/shred.sh",
        Method::Zero { .. } => "/scripts/dd_zero.sh",
        Method::Discard => "/scripts/blkdiscard.sh",
        Method::Signatures => "/scripts/quick_reset.sh",
        Method::Auto => method.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_are_told_as_the_go_provisioner_tells_them() {
        for (bytes, label) in
            [(0_u64, "0G"), (1, "500G"), (500 << 30, "500G"), ((500 << 30) + 1, "1000G"), (1_200 << 30, "1500G")]
        {
            let capacity = Capacity::parse(&format!("{bytes}"));
            assert_eq!(capacity_label(capacity), label);
        }
        assert_eq!(capacity_label(None), "0G");
    }

    #[test]
    fn each_script_of_the_go_provisioner_is_told_by_its_name() {
        for script in ["/scripts/shred.sh", "/scripts/dd_zero.sh", "/scripts/blkdiscard.sh", "/scripts/quick_reset.sh"]
        {
            let method = Method::from_cleaner_command(&[script.to_owned()]).expect("it is a script");
            assert_eq!(cleanup_command(&method), script);
        }
        let own = Method::from_cleaner_command(&["/own".to_owned(), "x".to_owned()]).expect("it is a command");
        assert_eq!((cleanup_command(&own), cleanup_command(&Method::Auto)), ("/own", "auto"));
    }
}
