//! Tests of the agent: of what it decides, and of its program against a real control
//! plane and real filesystems and disks.

#![allow(clippy::disallowed_methods)]

#[path = "../harness/mod.rs"]
mod harness;

mod claim;
mod common;
mod docs;
mod golden;
mod harness_test;
mod outage;
mod properties;
mod publish;
mod reclaim;
mod restart;
mod startup;
mod stop;
