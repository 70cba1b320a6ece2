//! The agent under test: the real binary as a child process, in a mount namespace
//! of its own that receives mounts from ours, with its own `ServiceAccount`.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::thread::CapabilitySet;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::config_dir::ConfigDir;
use super::node::TestNode;
use super::scratch::unique;
use super::{confine, http, is_root, launch, rbac};

const POLL: Duration = Duration::from_millis(5);
const START_TIMEOUT: Duration = Duration::from_mins(1);
const END_TIMEOUT: Duration = Duration::from_secs(5);
const LINES_SHOWN: usize = 60;

/// How to run an agent.
#[derive(Clone, Copy, Default)]
pub struct AgentOptions<'a> {
    /// `ConfigMap` keys and their values.
    pub config: &'a [(&'a str, &'a str)],
    /// Further arguments of `mooring agent`.
    pub args: &'a [&'a str],
    /// Whether the subcommand is left out.
    pub bare: bool,
    /// Whether it runs without a state directory.
    pub stateless: bool,
    /// Whether it runs as in the DaemonSet of the Go provisioner: no subcommand or flag but
    /// `args`, and its configuration where that has it.
    pub as_old: bool,
    /// Run as in a container without privileges but these; see [`confine`].
    pub confined: Option<CapabilitySet>,
    /// The directory of another node, whose volumes it sees as well.
    pub other: Option<&'a Path>,
    /// Further environment variables; they win over the harness's own.
    pub env: &'a [(&'a str, &'a str)],
    /// The program, where Cargo does not name it (a demo): else `MOORING_BIN`, else Cargo's.
    pub binary: Option<&'a Path>,
}

/// A running agent. It is killed when this is dropped, or when the process dies.
pub struct Agent {
    child: Child,
    ended: bool,
    config: ConfigDir,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    /// Starts an agent for the node; returns at once.
    pub fn start(node: &TestNode, options: AgentOptions) -> Self {
        let config = ConfigDir::new(node.dir().join(format!("config-{}", unique())), options.config);
        let binary = launch::binary(options.binary);
        let mut command = if options.as_old {
            launch::old_command_line(&binary, config.path())
        } else {
            let mut command = launch::plain_command_line(&binary);
            command.args((!options.bare).then_some("agent")).arg("--config-dir").arg(config.path());
            command.args(["--listen-address", "127.0.0.1:0", "--log-format", "json"]);
            command
        };
        command.args(options.args);
        if !options.stateless {
            command.arg("--state-dir").arg(node.state_dir());
        }
        command.env("MY_NODE_NAME", node.name()).env("MY_NAMESPACE", rbac::NAMESPACE);
        command.env("KUBECONFIG", node.kubeconfig()).envs(options.env.iter().copied()).stdin(Stdio::null());
        let lines = Arc::default();
        let writable = [node.root().to_owned(), node.state_dir()];
        let own = [Some(node.dir()), options.other].into_iter().flatten().map(Path::to_owned).collect::<Vec<_>>();
        let confined = options.confined;
        let prepare = move || {
            let before = is_root().then(|| launch::enter_own_namespace(&own));
            if let Some(capabilities) = confined {
                confine::confine(capabilities, &writable.each_ref().map(PathBuf::as_path));
            }
            // Out of a confinement there is no way back.
            before.filter(|_| confined.is_none())
        };
        let undo = |before: Option<_>| before.iter().for_each(launch::leave);
        let child = launch::spawn_between(prepare, undo, command, Arc::clone(&lines));
        Self { child, ended: false, config, lines }
    }

    /// Replaces the configuration the way the kubelet does.
    pub fn rewrite_config(&self, files: &[(&str, &str)]) {
        self.config.rewrite(files);
    }

    /// The configuration directory.
    pub fn config_dir(&self) -> &Path {
        self.config.path()
    }

    /// Everything it has written so far, standard output and error.
    pub fn logs(&self) -> Vec<String> {
        self.lines().clone()
    }

    /// Those after the first `mark` ones.
    pub fn logs_after(&self, mark: usize) -> Vec<String> {
        self.lines().iter().skip(mark).cloned().collect()
    }

    /// How many lines it has written so far, for [`Agent::wait_log_after`].
    pub fn mark(&self) -> usize {
        self.lines().len()
    }

    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a line that contains the text and returns it.
    pub async fn wait_log(&self, text: &str, timeout: Duration) -> String {
        self.wait_log_after(0, text, timeout).await
    }

    /// Waits for such a line after the first `mark` ones.
    pub async fn wait_log_after(&self, mark: usize, text: &str, timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        loop {
            let found = self.lines().iter().skip(mark).find(|line| line.contains(text)).cloned();
            if let Some(line) = found {
                return line;
            }
            assert!(Instant::now() < deadline, "the agent did not log {text:?} within {timeout:?}");
            sleep(POLL).await;
        }
    }

    /// Where it serves HTTP, once it says so.
    pub async fn address(&self) -> String {
        let line = self.wait_log("HTTP server listening", START_TIMEOUT).await;
        if let Some((_, address)) = line.split_once(" address=") {
            return address.trim().to_owned();
        }
        let event: Value = serde_json::from_str(&line).expect("the agent logs JSON");
        let address = event.pointer("/fields/address").or_else(|| event.get("address")).and_then(Value::as_str);
        address.expect("the agent says at which address it listens").to_owned()
    }

    /// GETs one of its pages: status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let (address, path) = (self.address().await, path.to_owned());
        let answer = tokio::task::spawn_blocking(move || http::get(&address, &path)).await;
        answer.expect("the request does not panic").expect("the agent answers HTTP")
    }

    /// The value of a series at `/metrics`, named with its labels as they are written there.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        http::metric(&self.get("/metrics").await.1, series)
    }

    /// Waits until a series has a value that fulfils the predicate.
    pub async fn wait_metric(&self, series: &str, predicate: impl Fn(f64) -> bool, timeout: Duration) -> f64 {
        let deadline = Instant::now() + timeout;
        loop {
            let value = self.metric(series).await;
            if let Some(value) = value.filter(|value| predicate(*value)) {
                return value;
            }
            assert!(Instant::now() < deadline, "{series} is {value:?} after {timeout:?}");
            sleep(POLL).await;
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB; `None` once it has ended.
    pub fn rss_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Processor time so far, user and system, in clock ticks (1/100 s); `None` once it has ended.
    pub fn cpu_ticks(&self) -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        // Fields 14 and 15; the name before them may contain blanks.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(!self.ended, "the agent has ended; its process id may be another's");
        let pid = i32::try_from(self.pid()).expect("process ids are small");
        kill(Pid::from_raw(pid), signal).expect("the agent has not been waited for");
    }

    /// Whether its process has not ended.
    pub fn is_there(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits for its end.
    pub async fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                self.ended = true;
                return status;
            }
            assert!(Instant::now() < deadline, "the agent did not end within {timeout:?}");
            sleep(POLL).await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A no-op after its end was seen.
        let _ = self.child.kill();
        // One that the kernel holds ends when its disk answers, which may wait for us.
        let deadline = std::time::Instant::now() + END_TIMEOUT;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && std::time::Instant::now() < deadline {
            thread::sleep(POLL);
        }
        if thread::panicking() {
            let logs = self.logs();
            let shown = &logs[logs.len().saturating_sub(LINES_SHOWN)..];
            eprintln!("the agent's last lines:\n{}", shown.join("\n"));
        }
    }
}
