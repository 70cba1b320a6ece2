//! What the agent takes of the machine, by the names that Prometheus' clients give it.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing::debug;

/// Adds what is read from `/proc` now; nothing when that can't be read.
pub(super) fn register(registry: &mut Registry) {
    let (Ok(stat), Ok(booted)) =
        (procfs::process::Process::myself().and_then(|me| me.stat()), procfs::boot_time_secs())
    else {
        debug!("What this process takes can't be read from /proc");
        return;
    };
    let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
    let cpu = Counter::<f64, AtomicU64>::default();
    cpu.inc_by(seconds(stat.utime.saturating_add(stat.stime)));
    registry.register("process_cpu_seconds", "Processor time of the agent, user and system", cpu);
    let memory = super::level(stat.rss.saturating_mul(procfs::page_size()));
    registry.register("process_resident_memory_bytes", "Resident memory of the agent", memory);
    let started = Gauge::<f64, AtomicU64>::default();
    started.set(booted as f64 + seconds(stat.starttime));
    registry.register("process_start_time_seconds", "When the agent was started, in seconds since 1970", started);
}
