//! Counters and histograms that modules add to as things happen. Gauges are not kept
//! here: they are read from the state at each scrape, so that they can't drift.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::report::Status;

/// What is counted.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// API calls by verb and outcome.
    pub api_requests: Family<ApiLabels, Counter<u64, AtomicU64>>,
    /// Seconds that API calls took, by verb.
    api_seconds: Histogram,
    /// Wipes by outcome.
    pub wipes: Family<OutcomeLabels, Counter<u64, AtomicU64>>,
    /// Seconds that finished wipes took.
    pub wipe_seconds: Histogram,
    /// 1 while the wipes of a mass release wait.
    pub brake: Gauge,
    /// In a shadow, differences that there are.
    shadow_differences: Family<KindLabels, Gauge>,
    /// In a shadow, differences that have appeared.
    shadow_differences_seen: Family<KindLabels, Counter<u64, AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: Text,
}

/// Labels of [`Metrics::api_requests`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiLabels {
    /// `get`, `list`, `create`, `patch`, `delete`.
    pub verb: &'static str,
    /// `success`, `refused`, `unknown`.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::wipes`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// `success`, `failed`, `cancelled`.
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabels {
    class: String,
    verdict: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Text(&'static str);

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        EncodeLabelValue::encode(&self.0, encoder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            api_requests: Family::default(),
            api_seconds: Histogram::new([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]),
            wipes: Family::default(),
            wipe_seconds: Histogram::new([0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0]),
            brake: Gauge::default(),
            shadow_differences: Family::default(),
            shadow_differences_seen: Family::default(),
        }
    }
}

impl Metrics {
    /// Counts an API call.
    pub fn api_request(&self, verb: &'static str, outcome: &'static str, took: Duration) {
        self.api_requests.get_or_create(&ApiLabels { verb, outcome }).inc();
        self.api_seconds.observe(took.as_secs_f64());
    }

    /// Counts a difference that has appeared.
    pub fn shadow_difference_seen(&self, kind: &'static str) {
        self.shadow_differences_seen.get_or_create(&KindLabels { kind: Text(kind) }).inc();
    }

    /// So many differences of a kind there are.
    pub fn set_shadow_differences(&self, kind: &'static str, count: usize) {
        let gauge = self.shadow_differences.get_or_create(&KindLabels { kind: Text(kind) });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The text of a scrape, in the OpenMetrics format.
    ///
    /// # Errors
    /// Never in practice: it writes into memory.
    pub fn scrape(&self, status: &Status) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("mooring");
        registry.register("api_requests", "Calls to the API server", self.api_requests.clone());
        registry.register(
            "api_request_duration_seconds",
            "Duration of calls to the API server",
            self.api_seconds.clone(),
        );
        registry.register("wipes", "Ended wipes", self.wipes.clone());
        registry.register("wipe_duration_seconds", "Duration of wipes that ended well", self.wipe_seconds.clone());
        registry.register("mass_release", "1 while the wipes of a mass release wait", self.brake.clone());
        registry.register(
            "shadow_differences",
            "Differences between a shadow and what there is, by kind",
            self.shadow_differences.clone(),
        );
        registry.register(
            "shadow_differences_seen",
            "Differences that a shadow has come to count, by kind",
            self.shadow_differences_seen.clone(),
        );
        let volumes = Family::<VolumeLabels, Gauge>::default();
        for ((class, reason), count) in status.counts() {
            let labels = VolumeLabels { class: class.to_owned(), verdict: Text(reason.as_str()) };
            volumes.get_or_create(&labels).set(i64::from(count));
        }
        registry.register("volumes", "Entries of the discovery directories by class and verdict", volumes);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}
