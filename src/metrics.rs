//! What is told at `/metrics`: counters and histograms that modules add to as things
//! happen, the wipes under way ([`wipes`]), and gauges. Gauges are not kept here: they are
//! read from the state at each scrape, so that they can't drift. The families of the Go
//! provisioner are in [`contract`], each with its name and labels; docs/metrics.md
//! explains all of them.

pub mod contract;
mod process;
mod text;
pub mod wipes;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::deleter::Control;
use crate::limit::Limit;
use crate::report::Status;
use contract::Contract;
use wipes::{Wipe, WipeUnderWay, Wipes};

pub use text::Format;

/// What the names of our own families begin with.
const PREFIX: &str = "mooring";
/// Seconds from a mount to its PV.
const PUBLISH_BUCKETS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Seconds of an API call, up to its deadline.
const CALL_BUCKETS: [f64; 12] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Seconds of a wipe, up to a week.
const WIPE_BUCKETS: [f64; 10] = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0];

/// A gauge of what there is so much of.
type Level = Gauge<u64, AtomicU64>;

/// What is counted.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// What the Go provisioner counts.
    pub contract: Contract,
    /// API calls by verb and outcome.
    pub api_requests: Family<ApiLabels, Counter<u64, AtomicU64>>,
    /// Seconds that API calls took.
    api_seconds: Family<VerbLabels, Histogram, fn() -> Histogram>,
    /// Seconds from when a volume was seen to when it was offered.
    publish_seconds: Histogram,
    /// Volumes found to be another one than was recorded.
    pub identity_mismatches: Counter<u64, AtomicU64>,
    /// Wipes by outcome.
    pub wipes: Family<OutcomeLabels, Counter<u64, AtomicU64>>,
    /// Seconds that finished wipes took.
    pub wipe_seconds: Histogram,
    /// Wipes under way.
    under_way: Wipes,
    /// 1 while the wipes of a mass release wait.
    pub brake: Gauge,
    /// 1 for what is missing.
    limited: Family<LimitLabels, Gauge>,
    /// Changes of the config that were noticed, by outcome.
    pub config_reloads: Family<OutcomeLabels, Counter<u64, AtomicU64>>,
    /// 1 when the config as it is now is the one in force, else 0.
    pub config_last_reload_successful: Gauge,
    /// Hash of the config in force.
    pub config_hash: Gauge,
    /// In a shadow, differences that there are.
    shadow_differences: Family<KindLabels, Gauge>,
    /// In a shadow, differences that have appeared.
    shadow_differences_seen: Family<KindLabels, Counter<u64, AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// Labels of [`Metrics::api_requests`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiLabels {
    /// `get`, `list`, `create`, `patch`, `delete`, `review`.
    pub verb: &'static str,
    /// `success`, `forbidden`, `refused`, `unknown`.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::wipes`] and of [`Metrics::config_reloads`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// `success`, `failed`; of wipes also `cancelled`.
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabels {
    verb: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    what: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabels {
    class: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabels {
    class: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    revision: &'static str,
    rustc: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            contract: Contract::default(),
            api_requests: Family::default(),
            api_seconds: Family::new_with_constructor(|| Histogram::new(CALL_BUCKETS)),
            publish_seconds: Histogram::new(PUBLISH_BUCKETS),
            identity_mismatches: Counter::default(),
            wipes: Family::default(),
            wipe_seconds: Histogram::new(WIPE_BUCKETS),
            under_way: Wipes::default(),
            brake: Gauge::default(),
            limited: Family::default(),
            config_reloads: Family::default(),
            config_last_reload_successful: Gauge::default(),
            config_hash: Gauge::default(),
            shadow_differences: Family::default(),
            shadow_differences_seen: Family::default(),
        };
        // Or the first of each would not be an increase.
        for outcome in ["success", "failed", "cancelled"] {
            drop(metrics.wipes.get_or_create(&OutcomeLabels { outcome }));
        }
        for outcome in ["success", "failed"] {
            drop(metrics.config_reloads.get_or_create(&OutcomeLabels { outcome }));
        }
        metrics
    }
}

impl Metrics {
    /// Shows what is missing.
    pub fn show_limits(&self, missing: &[Limit]) {
        for limit in Limit::ALL {
            let gauge = self.limited.get_or_create(&LimitLabels { what: limit.as_str() });
            gauge.set(i64::from(missing.contains(&limit)));
        }
    }

    /// Counts an API call.
    pub fn api_request(&self, verb: &'static str, outcome: &'static str, took: Duration) {
        self.api_requests.get_or_create(&ApiLabels { verb, outcome }).inc();
        self.api_seconds.get_or_create(&VerbLabels { verb }).observe(took.as_secs_f64());
    }

    /// Counts a volume that is offered now, so long after it was seen.
    pub fn published(&self, took: Duration) {
        self.publish_seconds.observe(took.as_secs_f64());
    }

    /// A wipe begins, whose progress is told by `control`.
    #[must_use]
    pub fn begin_wipe(&self, wipe: Wipe, control: &Arc<Control>) -> WipeUnderWay {
        self.under_way.begin(wipe, Arc::clone(control), self.contract.clone())
    }

    /// Counts a change of the config.
    pub fn config_reload(&self, is_good: bool) {
        let outcome = if is_good { "success" } else { "failed" };
        self.config_reloads.get_or_create(&OutcomeLabels { outcome }).inc();
        self.config_last_reload_successful.set(i64::from(is_good));
    }

    /// Counts a difference that has appeared.
    pub fn shadow_difference_seen(&self, kind: &'static str) {
        self.shadow_differences_seen.get_or_create(&KindLabels { kind }).inc();
    }

    /// So many differences of a kind there are.
    pub fn set_shadow_differences(&self, kind: &'static str, count: usize) {
        let gauge = self.shadow_differences.get_or_create(&KindLabels { kind });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The text of a scrape.
    ///
    /// # Errors
    /// Never in practice: it writes into memory.
    pub fn scrape(&self, status: &Status, format: Format) -> Result<String, fmt::Error> {
        let wipes = self.under_way.count(Instant::now());
        let totals = status.totals();
        let mut registry = Registry::with_prefix(PREFIX);
        let volumes = Family::<VolumeLabels, Level>::default();
        for ((class, reason), count) in status.counts() {
            let labels = VolumeLabels { class: class.to_owned(), verdict: reason.as_str() };
            volumes.get_or_create(&labels).set(u64::from(count));
        }
        registry.register("volumes", "Entries of the discovery directories by class and verdict", Described(volumes));
        let missing = Family::<ClassLabels, Level>::default();
        for (class, count) in status.missing() {
            missing.get_or_create(&ClassLabels { class: class.to_owned() }).set(count.into());
        }
        registry.register(
            "missing_volumes",
            "Persistent volumes at whose path there is no volume that they could be",
            Described(missing),
        );
        registry.register(
            "publish_duration_seconds",
            "Time from when a volume is seen to when its persistent volume is made",
            self.publish_seconds.clone(),
        );
        registry.register(
            "quarantined_volumes",
            "Persistent volumes that keep what may be a tenant's data from being claimed",
            level(totals.quarantined.into()),
        );
        registry.register(
            "identity_mismatches",
            "Times that another volume than the recorded one was found",
            self.identity_mismatches.clone(),
        );
        registry.register("wipes", "Ended wipes", self.wipes.clone());
        registry.register("wipe_duration_seconds", "Duration of wipes that ended well", self.wipe_seconds.clone());
        let (done, planned) = (Family::<ClassLabels, Level>::default(), Family::<ClassLabels, Level>::default());
        for (class, (bytes_done, bytes)) in wipes.bytes.clone() {
            let labels = ClassLabels { class };
            done.get_or_create(&labels).set(bytes_done);
            planned.get_or_create(&labels).set(bytes);
        }
        registry.register(
            "wipe_done_bytes",
            "Bytes done of the devices that are being wiped, over all passes",
            Described(done),
        );
        registry.register(
            "wipe_planned_bytes",
            "Bytes to do in all of the devices that are being wiped, over all passes",
            Described(planned),
        );
        let idle = Family::<ClassLabels, Level>::default();
        for (class, longest) in wipes.idle.clone() {
            idle.get_or_create(&ClassLabels { class }).set(longest.as_secs());
        }
        registry.register(
            "wipe_idle_seconds",
            "Longest time that one of the wipes under way has made no progress",
            Described(idle),
        );
        registry.register("mass_release", "1 while the wipes of a mass release wait", self.brake.clone());
        registry.register(
            "limited",
            "1 for what is missing, so that less can be promised",
            Described(self.limited.clone()),
        );
        registry.register(
            "ledger_not_writable",
            "1 while the state directory can't be written",
            level(totals.ledger_trouble.into()),
        );
        registry.register("config_reloads", "Changes of the config by outcome", Described(self.config_reloads.clone()));
        registry.register(
            "config_last_reload_successful",
            "1 when the config as it is now is the one in force",
            self.config_last_reload_successful.clone(),
        );
        registry.register("config_hash", "Hash of the config in force", self.config_hash.clone());
        registry.register(
            "shadow_differences",
            "Differences between a shadow and what there is, by kind",
            Described(self.shadow_differences.clone()),
        );
        registry.register(
            "shadow_differences_seen",
            "Differences that a shadow has come to count, by kind",
            Described(self.shadow_differences_seen.clone()),
        );
        registry.register(
            "start_up_taint",
            "1 while the start-up taint is on this Node and is to be taken off",
            level(totals.tainted.into()),
        );
        registry.register(
            "start_up_taint_missing_volumes",
            "Volumes of claims that are not there and that the start-up taint waits for",
            level(totals.taint_waits_for.into()),
        );
        registry.register("api_requests", "Calls to the API server", Described(self.api_requests.clone()));
        registry.register(
            "api_request_duration_seconds",
            "Duration of calls to the API server",
            Described(self.api_seconds.clone()),
        );
        let build = Family::<BuildLabels, Level>::default();
        build
            .get_or_create(&BuildLabels {
                version: env!("CARGO_PKG_VERSION"),
                revision: option_env!("MOORING_REVISION").unwrap_or("unknown"),
                rustc: env!("MOORING_RUSTC"),
            })
            .set(1);
        registry.register("build_info", "1, with what this program was built from as labels", build);

        let mut contract = Registry::with_prefix(contract::PREFIX);
        self.contract.register(&mut contract, totals, &wipes);
        let mut process = Registry::default();
        process::register(&mut process);

        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &contract)?;
        prometheus_client::encoding::text::encode_registry(&mut text, &process)?;
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Prometheus => text::to_prometheus(&text),
        })
    }
}

/// A gauge with that value.
fn level(value: u64) -> Level {
    let level = Level::default();
    level.set(value);
    level
}

/// A family that is described at each scrape, also while there is nothing of it to tell.
#[derive(Debug)]
struct Described<M>(M);

impl<M: EncodeMetric> EncodeMetric for Described<M> {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}
