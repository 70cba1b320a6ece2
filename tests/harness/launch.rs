//! Running the agent's program: in a slave mount namespace, with its output
//! collected, and with its life tied to ours.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::is_root;
use super::scratch::{self, mounts_below};

/// The program: as given, else `MOORING_BIN`, else the one Cargo built for this target.
pub fn binary(given: Option<&Path>) -> PathBuf {
    let named = given.map(Path::to_owned).or_else(|| std::env::var_os("MOORING_BIN").map(PathBuf::from));
    let path = named.or_else(|| option_env!("CARGO_BIN_EXE_mooring").map(PathBuf::from));
    path.expect("the caller, MOORING_BIN or Cargo names the program")
}

/// The start of a command line that runs the program. Both helpers exec what follows, so the process id stays the child's own.
pub fn command_line(binary: &Path) -> Command {
    let mut command = plain_command_line(binary);
    if is_root() {
        command = plain_command_line(Path::new("unshare"));
        command.args(["--mount", "--propagation", "slave", "--"]).arg(binary);
    }
    command
}

/// The same, in the namespace of the thread that spawns it.
pub fn plain_command_line(binary: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(binary);
    command
}

/// Puts this thread, and what it starts, into a mount namespace that receives mounts from ours. Of
/// the mounts of tests it has only those below `own`: others would stay there when their tests
/// unmount them, and keep their disks in use. Returns the namespace to go back to ([`leave`]).
pub fn enter_own_namespace(own: &[PathBuf]) -> File {
    let before = File::open("/proc/thread-self/ns/mnt").expect("a thread has a mount namespace");
    unshare(CloneFlags::CLONE_NEWNS).expect("root may make a namespace");
    let follow = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, follow, None::<&str>).expect("mounts can be made to follow others");
    let is_own = |point: &Path| own.iter().any(|own| point.starts_with(own));
    for point in mounts_below(&scratch::parent()).iter().filter(|point| !is_own(point)) {
        // What is mounted below goes along, and may have gone by itself.
        let _ = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    before
}

/// Back from [`enter_own_namespace`]: then it ends with what was started in it.
pub fn leave(before: &File) {
    setns(before, CloneFlags::CLONE_NEWNS).expect("root can enter a mount namespace");
}

/// As [`plain_command_line`], in a namespace whose `/etc/provisioner/config` is the directory.
pub fn old_command_line(binary: &Path, config: &Path) -> Command {
    let script = "mount -t tmpfs tmpfs /etc && mkdir -p /etc/provisioner/config && \
                  mount --bind \"$1\" /etc/provisioner/config && shift && exec \"$@\"";
    let mut command = plain_command_line(Path::new("sh"));
    command.args(["-c", script, "sh"]).arg(config).arg(binary);
    command
}

/// Runs the command on the thread that then collects its output: a parent-death
/// signal follows the thread, and this one lives as long as the output does.
pub fn spawn(command: Command, lines: Arc<Mutex<Vec<String>>>) -> Child {
    spawn_between(|| {}, |()| {}, command, lines)
}

/// The same; before, that thread does something to itself that the command inherits, and undoes it after.
pub fn spawn_between<T>(
    prepare: impl FnOnce() -> T + Send + 'static,
    undo: impl FnOnce(T) + Send + 'static,
    mut command: Command,
    lines: Arc<Mutex<Vec<String>>>,
) -> Child {
    let (sender, started) = channel();
    thread::spawn(move || {
        let done = prepare();
        let (output, input) = std::io::pipe().expect("a pipe can be made");
        command.stdout(input.try_clone().expect("a descriptor can be copied")).stderr(input);
        let child = command.spawn().expect("the agent can be run (needs util-linux's setpriv and unshare)");
        undo(done);
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
