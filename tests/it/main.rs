//! Integration tests: the agent's program against a real control plane and real
//! filesystems and disks.

#[path = "../harness/mod.rs"]
mod harness;

mod harness_test;
