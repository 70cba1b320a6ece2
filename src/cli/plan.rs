//! `mooring plan`: what the agent of this node would do now, and why it offers what it
//! offers. One scan, one read of the cluster and of the ledger, and the agent's own
//! decision; nothing is changed and no lock is taken.

mod document;
mod facts;
mod table;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::discovery;
use crate::memory::Memory;
use crate::node;
use crate::plan::{World, foresee};
use crate::state_dir::StateDirError;
use document::Document;
use facts::Facts;

/// How far into the future it is looked: waits of the config are mostly shorter, and what
/// waits longer says so in its verdict.
const HORIZON: Duration = Duration::from_secs(3600);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The config.
    pub config: Config,
    /// Name of this Node.
    pub node_name: String,
    /// The state directory; none: the agent's default, if it is there.
    pub state_dir: Option<PathBuf>,
    /// A path, an entry, a class or a PV: nothing else is shown.
    pub only: Option<String>,
    /// Whether no cluster is asked.
    pub offline: bool,
    /// The form of the output.
    pub output: Output,
}

/// A form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// The same, for both.
    Yaml,
}

/// Why there is no plan. Says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No API server can be asked.
    #[error("{0}; set KUBECONFIG, run it in the agent's pod, or ask no cluster by --offline")]
    Cluster(String),
    /// The ledger can't be read.
    #[error("the ledger can't be read: {0}")]
    State(#[from] StateDirError),
    /// Nothing has that name.
    #[error("nothing here is called {0}: name a path, an entry, a class or a PV, or nothing to see all")]
    Nothing(String),
    /// The output could not be written.
    #[error("the output can't be written: {0}")]
    Output(String),
}

/// Prints the plan.
///
/// # Errors
/// Why not.
pub fn run(options: &Options) -> Result<(), Problem> {
    let facts = facts::gather(options)?;
    let document = decide(options, &facts)?;
    let text = match options.output {
        Output::Table => table::render(&document),
        Output::Json => serde_json::to_string_pretty(&document).expect("a plan is plain data") + "\n",
        Output::Yaml => serde_saphyr::to_string(&document).map_err(|error| Problem::Output(error.to_string()))?,
    };
    io::stdout().write_all(text.as_bytes()).map_err(|error| Problem::Output(error.to_string()))
}

/// Decides as the agent does.
fn decide(options: &Options, facts: &Facts) -> Result<Document, Problem> {
    let (config, cluster) = (&facts.config, &facts.cluster);
    let snapshot = node::scan_once(config.mount_dirs());
    let (findings, unseen) = (discovery::discover(config, &snapshot), discovery::unseen(config, &snapshot));
    let now = Instant::now();
    let mut memory = Memory::default();
    // By how long the agent has known it, nobody can say: the API server's clock counts.
    let long_ago = now.checked_sub(LONG_AGO).unwrap_or(now);
    memory.note_wanted(cluster.owned.keys().cloned().collect(), long_ago);
    let world = World {
        config,
        node: &cluster.node,
        classes: &cluster.classes,
        findings: &findings,
        unseen: &unseen,
        owned: &cluster.owned,
        suspects: &std::collections::BTreeSet::new(),
        foreign: &cluster.foreign,
        ledger: &facts.ledger,
        ledger_trouble: None,
        durable: facts.durable,
        may_patch: true,
        memory: &memory,
        now,
        clock: jiff::Timestamp::now(),
        random: fastrand::u64(..),
    };
    let foresight = foresee(&world, HORIZON);
    let document = Document::new(options, facts, foresight);
    match &options.only {
        Some(only) => document.only(only, config).ok_or_else(|| Problem::Nothing(only.clone())),
        None => Ok(document),
    }
}

/// Longer than any wait.
const LONG_AGO: Duration = Duration::from_secs(10 * 365 * 86_400);
