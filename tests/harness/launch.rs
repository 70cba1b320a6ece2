//! Running the agent's program: in a slave mount namespace, with its output
//! collected, and with its life tied to ours.

use std::io::{BufRead, BufReader, PipeReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::is_root;

/// The program: as given, else `MOORING_BIN`, else the one Cargo built for this target.
pub fn binary(given: Option<&Path>) -> PathBuf {
    let named = given.map(Path::to_owned).or_else(|| std::env::var_os("MOORING_BIN").map(PathBuf::from));
    let path = named.or_else(|| option_env!("CARGO_BIN_EXE_mooring").map(PathBuf::from));
    path.expect("the caller, MOORING_BIN or Cargo names the program")
}

/// The start of a command line that runs the program. Both helpers exec what follows, so the process id stays the child's own.
pub fn command_line(binary: &Path) -> Command {
    command_line_in(binary, is_root())
}

/// The same; whether in a namespace of its own is told.
pub fn command_line_in(binary: &Path, own_namespace: bool) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    if own_namespace {
        command.args(["unshare", "--mount", "--propagation", "slave", "--"]);
    }
    command.arg(binary);
    command
}

/// As [`command_line`], in a namespace whose `/etc/provisioner/config` is the directory.
pub fn old_command_line(binary: &Path, config: &Path) -> Command {
    let script = "mount -t tmpfs tmpfs /etc && mkdir -p /etc/provisioner/config && \
                  mount --bind \"$1\" /etc/provisioner/config && shift && exec \"$@\"";
    let mut command = command_line(Path::new("sh"));
    command.args(["-c", script, "sh"]).arg(config).arg(binary);
    command
}

/// Runs the command on the thread that then collects its output: a parent-death
/// signal follows the thread, and this one lives as long as the output does.
pub fn spawn(command: Command, lines: Arc<Mutex<Vec<String>>>) -> Child {
    spawn_after(|| {}, command, lines)
}

/// The same; before, that thread does something to itself that the command inherits.
pub fn spawn_after(
    prepare: impl FnOnce() + Send + 'static,
    mut command: Command,
    lines: Arc<Mutex<Vec<String>>>,
) -> Child {
    let (sender, started) = channel();
    thread::spawn(move || {
        prepare();
        let (output, input) = std::io::pipe().expect("a pipe can be made");
        command.stdout(input.try_clone().expect("a descriptor can be copied")).stderr(input);
        let child = command.spawn().expect("the agent can be run (needs util-linux's setpriv and unshare)");
        // The command holds the pipe's other end.
        drop(command);
        sender.send(child).expect("the starter waits");
        collect(output, &lines);
    });
    started.recv().expect("the agent was started")
}

fn collect(output: PipeReader, lines: &Mutex<Vec<String>>) {
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}
