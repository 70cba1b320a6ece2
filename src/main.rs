//! The program: reads the command line, sets up logging, and dispatches.

mod args;

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mooring::admin::{self, View};
use mooring::cleanup_job::Site;
use mooring::cli;
use mooring::cluster::Cluster;
use mooring::config::Config;
use mooring::config_dir::{self, Loaded, Reading};
use mooring::controller::{Controller, Parts};
use mooring::events::Events;
use mooring::ledger::Ledger;
use mooring::metrics::Metrics;
use mooring::node::ioctl;
use mooring::state_dir::StateDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tracing::{error, info, warn};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use args::{AgentArgs, Command, LogFormat, PlanArgs, WipeArgs};

/// How often something that is missing at the start is looked for again.
const RETRY: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let (cli, ignored) = match args::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let args = match cli.command {
        Command::Agent(args) => args,
        Command::Plan(args) => return plan(args),
        Command::Wipe(args) => return wipe(args),
        Command::CheckConfig(args) => return cli::check_config::run(&args.options()).into(),
    };
    ioctl::keep_heap_small();
    start_logging(&args);
    if !ignored.is_empty() {
        warn!(flags = ignored.join(" "), "Flags without a meaning here were ignored");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "The runtime can't start");
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(agent(args)) {
        Ok(()) => 0,
        Err(error) => {
            error!(error = format!("{error:#}"), "The agent can't start");
            1
        }
    };
    // Not by returning: a thread that the kernel holds must not hold up the others.
    std::process::exit(code)
}

/// `mooring plan`.
fn plan(args: PlanArgs) -> ExitCode {
    start_plain_logging();
    let planned = config_dir::read(&args.config_dir).map_err(anyhow::Error::from).and_then(|files| {
        let config = Config::parse(&files)?;
        let node_name = args.node_name.filter(|name| !name.is_empty());
        let node_name = node_name.context("which Node is it? Name it by --node-name or MY_NODE_NAME")?;
        let options = cli::plan::Options {
            config,
            node_name,
            state_dir: args.state_dir,
            only: args.only,
            offline: args.offline,
            output: args.output.into(),
        };
        Ok(cli::plan::run(&options)?)
    });
    let code = match planned {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("mooring plan: {error:#}");
            1
        }
    };
    // A thread that the kernel holds must not hold up the exit.
    std::process::exit(code)
}

/// For commands: warnings only, and as plain lines.
fn start_plain_logging() {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_target(false);
    tracing_subscriber::registry().with(Targets::new().with_default(LevelFilter::WARN)).with(lines).init();
}

/// `mooring wipe`.
fn wipe(args: WipeArgs) -> ExitCode {
    let options = args.options().unwrap_or_else(|error| error.exit());
    start_plain_logging();
    let code = match cli::wipe::run(&options) {
        Ok(()) => 0,
        Err(problem) => {
            eprintln!("mooring wipe: {problem}");
            problem.exit_code()
        }
    };
    // A thread that the kernel holds must not hold up the exit.
    std::process::exit(code.into())
}

fn start_logging(args: &AgentArgs) {
    let level = if args.verbosity >= 4 { LevelFilter::DEBUG } else { LevelFilter::INFO };
    // What kube says of a failed call, its caller says too, once and with the remedy.
    let targets = Targets::new().with_default(LevelFilter::WARN).with_targets([
        ("kube_client", LevelFilter::OFF),
        ("kube_runtime", LevelFilter::OFF),
        ("mooring", level),
    ]);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(targets);
    match args.log_format {
        LogFormat::Text => {
            registry.with(lines.with_ansi(std::io::stderr().is_terminal()).with_target(false)).init();
        }
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_current_span(false)).init(),
    }
}

async fn agent(args: AgentArgs) -> anyhow::Result<()> {
    let shutdown = shutdown()?;
    let node_name = args
        .node_name
        .filter(|name| !name.is_empty())
        .context("MY_NODE_NAME is not set: set it to spec.nodeName in the DaemonSet's manifest")?;
    let set = |variable: Option<String>| variable.filter(|value| !value.is_empty());
    let jobs = Site { namespace: set(args.namespace), image: set(args.job_image) };
    let listener = admin::listen(&args.listen_address).await?;
    info!(version = env!("CARGO_PKG_VERSION"), node = node_name, "mooring starts");
    info!(address = %listener.local_addr()?, "HTTP server listening");
    let shadow = args.shadow.then_some(args.shadow_grace);
    if shadow.is_some() {
        info!("This is a shadow: it changes nothing, and tells what it would do otherwise");
    }
    let metrics = Arc::new(Metrics::default());
    let (view, shown) = watch::channel(View::default());
    let pages = admin::serve(listener, &args.metrics_path, shown, Arc::clone(&metrics));

    let work = async {
        let start = async {
            let mut readings = config_dir::watch(args.config_dir.clone(), args.config_sync_period)
                .context("no thread is to be had for the config directory")?;
            let mut config = first_config(&args.config_dir, &mut readings, &view).await?;
            let (state, ledger) = open_state(args.state_dir.as_deref(), args.shadow, &view).await;
            let remembered = recall_classes(state.as_ref(), &mut config, args.shadow).await;
            let (cluster, watches) = Cluster::connect(Arc::clone(&metrics))
                .await
                .context("the API server can't be reached: set KUBECONFIG, or run in a pod with a ServiceAccount")?;
            let cluster = if args.shadow { cluster.read_only() } else { cluster };
            anyhow::Ok((config, readings, remembered, cluster, watches, state, ledger))
        };
        let (config, readings, remembered, cluster, watches, state, ledger) = tokio::select! {
            parts = start => parts?,
            () = requested(shutdown.clone()) => {
                info!("Stopped");
                return Ok(());
            }
        };
        let events = Events::new();
        if config.config.use_job_for_cleaning && jobs.namespace.is_none() {
            warn!("MY_NAMESPACE is not set: the Jobs of useJobForCleaning are made in the namespace default");
        }
        let parts = Parts {
            config,
            readings,
            remembered,
            node_name,
            cluster,
            watches,
            view,
            metrics,
            ledger,
            state,
            events,
            jobs,
            shadow,
        };
        let controller = Controller::start(parts)?;
        controller.run(requested(shutdown)).await;
        anyhow::Ok(())
    };
    tokio::select! {
        result = work => result,
        result = pages => result.context("the HTTP server failed"),
    }
}

/// Waits until the config directory holds a config that can be used.
async fn first_config(
    directory: &Path,
    readings: &mut UnboundedReceiver<Reading>,
    view: &watch::Sender<View>,
) -> anyhow::Result<Loaded> {
    loop {
        match tokio::time::timeout(RETRY, readings.recv()).await {
            Ok(reading) => match reading.context("the thread that reads the config has ended")? {
                Ok(config) => return Ok(config),
                Err(problem) => {
                    error!(directory = %directory.display(), problem, "The config can't be used; waiting for a better one");
                    view.send_modify(|view| view.readiness = Err(format!("a usable config: {problem}")));
                }
            },
            Err(_) => view.send_modify(|view| view.heartbeat = std::time::Instant::now()),
        }
    }
}

/// Adds the classes that are configured no more, as far as the state directory knows them.
/// Returns what it has of them. What can't be used is set aside, but by a shadow, which
/// changes nothing.
async fn recall_classes(state: Option<&StateDir>, config: &mut Loaded, shadow: bool) -> Vec<u8> {
    let Some(state) = state else { return Vec::new() };
    let (remembered, problems) = match state.read_classes().await {
        Ok(None) => return Vec::new(),
        Ok(Some(text)) => {
            let problems = config.config.recall(&text);
            (text, problems)
        }
        Err(error) => (Vec::new(), vec![error.to_string()]),
    };
    if problems.is_empty() {
        return remembered;
    }
    for problem in problems {
        warn!(
            problem,
            "The classes of before can't be read from the state directory; PVs of a class that was removed are refused \
             until it is added again"
        );
    }
    if shadow {
        return remembered;
    }
    match state.set_classes_aside().await {
        Ok(()) => info!("What was there is kept as classes.unusable in the state directory"),
        Err(error) => warn!(%error, "What was there is written over"),
    }
    Vec::new()
}

/// Opens the state directory: waits for as long as another agent has it or it can't be
/// used. Without one, the ledger lives as long as this process. A shadow only reads it.
async fn open_state(named: Option<&Path>, shadow: bool, view: &watch::Sender<View>) -> (Option<StateDir>, Ledger) {
    let directory = named.unwrap_or(Path::new(cli::wipe::STATE_DIR));
    if shadow && !directory.is_dir() {
        return (None, Ledger::default());
    }
    if named.is_none() && !directory.is_dir() {
        warn!(
            directory = cli::wipe::STATE_DIR,
            "No state directory: across a restart, a PV that was deleted by hand is offered again with its data, and a \
             wipe begins anew. Mount a host directory there, or name one by --state-dir"
        );
        return (None, Ledger::default());
    }
    let mut told = String::new();
    loop {
        let opened = if shadow {
            StateDir::read_only(directory).map(|(ledger, _)| (None, ledger))
        } else {
            StateDir::open(directory, named.is_some()).map(|(state, ledger)| (Some(state), ledger))
        };
        match opened {
            Ok((state, ledger)) => {
                let (entries, lost) = (ledger.entries().count(), ledger.lost());
                info!(directory = %directory.display(), entries, lost, "State directory opened");
                return (state, ledger);
            }
            Err(error) => {
                let problem = error.to_string();
                if problem != told {
                    error!(directory = %directory.display(), problem, "The state directory can't be used; waiting for it");
                    view.send_modify(|view| view.readiness = Err(format!("the state directory: {problem}")));
                    told = problem;
                }
                view.send_modify(|view| view.heartbeat = std::time::Instant::now());
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Turns true at the first SIGTERM or SIGINT; the second one ends the process at once.
fn shutdown() -> anyhow::Result<watch::Receiver<bool>> {
    let (first, begun) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if *first.borrow() {
                warn!("Second signal: ending at once");
                std::process::exit(1);
            }
            first.send_replace(true);
        }
    });
    Ok(begun)
}

/// Completes when the agent is to stop.
async fn requested(mut shutdown: watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = shutdown.wait_for(|begun| *begun).await;
}
