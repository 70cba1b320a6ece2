//! The benchmark: how fast the agent is and what it costs, against a real control
//! plane and real mounts, next to what the API server alone takes in the same run.
//! A figure that misses its target is marked, and fails nothing.
//!
//! `cargo bench` runs all of it, `cargo bench -- burst` one part.

// It writes files and prints; the lints that forbid both are for the agent.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

#[path = "../harness/mod.rs"]
mod harness;

mod burst;
mod footprint;
mod latency;
mod memory;
mod site;
mod table;
mod tree;
mod wipe;
mod witness;

use std::fs;
use std::path::Path;

use harness::{ControlPlane, Options};
use table::Table;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == memory::CHILD) {
        let volume = arguments.next().expect("the parent says what to wipe");
        println!("{}", memory::wipe_and_tell(Path::new(&volume)));
        return;
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == part);
    let mut table = Table::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(async {
        table.note(&format!("load average before: {}", load()));
        if is_wanted("latency") || is_wanted("burst") {
            let plane = ControlPlane::start(Options::default());
            if is_wanted("latency") {
                latency::measure(&plane, &mut table).await;
            }
            if is_wanted("burst") {
                burst::measure(&plane, &mut table).await;
            }
        }
        if is_wanted("footprint") || is_wanted("own") {
            let plane = ControlPlane::start(Options { audit: true });
            footprint::of_own_volumes(&plane, &mut table).await;
            if is_wanted("footprint") {
                footprint::of_others_volumes(&plane, &mut table).await;
            }
        }
        if is_wanted("tree") {
            tree::measure(&mut table);
        }
        if is_wanted("wipe") {
            wipe::measure(&mut table);
        }
        if is_wanted("memory") {
            memory::measure(&mut table);
        }
        table.note(&format!("load average after: {}", load()));
    });
    table.print();
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").expect("the kernel tells the load");
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
