//! Tests of the agent: of what it decides, and of its program against a real control
//! plane and real filesystems and disks.

#![allow(clippy::disallowed_methods)]

#[path = "../harness/mod.rs"]
mod harness;

mod adopted;
mod busy;
mod chart;
mod claim;
mod common;
mod config_check;
mod config_schema;
mod crash;
mod docs;
mod exchange;
mod fence;
mod flags;
mod follow;
mod fuzz_corpus;
mod gate;
mod go_provisioner;
mod golden;
mod golden_agent;
mod harness_test;
mod identity;
mod image;
mod in_use;
mod job;
mod labels;
mod ledger;
mod ledger_faults;
mod metrics;
mod migration;
mod monitoring;
mod mountinfo;
mod names;
mod old_daemonset;
mod outage;
mod ownership;
mod plan_command;
mod profile;
mod prepare_disks;
mod promql;
mod properties;
mod publish;
mod reclaim;
mod reload;
mod restart;
mod rights;
mod root_facts;
mod shadow;
mod startup;
mod stop;
mod taint;
mod tenancy;
mod unfenced;
mod wipe_cli;
mod wipe_command;
mod wipe_device;
mod wipe_interrupted;
mod wipe_scene;
mod wipe_signatures;
mod wipe_tree;
mod words;
