//! `mooring`: a local static PersistentVolume provisioner for Kubernetes.
//!
//! Discovery finds volumes, the cache holds this node's PVs, the deleter wipes and
//! removes Released ones, and the controller is the one loop that drives them.
//! Modules are listed from the bottom up: each may use those above it only
//! (`make lint` checks it). The first group is pure: no clock, file, task or client.

// The functional core.
pub mod volume;
pub mod verdict;
pub mod limit;
pub mod identity;
pub mod root;
pub mod pattern;
pub mod method;
pub mod config;
pub mod discovery;
pub mod pv;
pub mod ledger;
pub mod reclaim;
pub mod by_hand;
pub mod brake;
pub mod memory;
pub mod plan;
pub mod cleanup_job;
#[cfg(test)]
mod testing;
pub mod report;
pub mod taint;

// The imperative shell.
pub mod config_dir;
pub mod state_dir;
pub mod node;
pub mod deleter;
pub mod metrics;
pub mod cluster;
pub mod events;
pub mod cache;
pub mod admin;
pub mod controller;
pub mod cli;
