//! The program that runs a control plane, and the lines it is talked to with.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// The running binary and its line protocol.
pub struct Supervisor {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Supervisor {
    /// Starts it with its standard error going where ours goes.
    pub fn spawn(command: &mut Command) -> Self {
        // A Ctrl-C in the terminal is for us to act upon, in order.
        command.process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("cannot run {}: {error}; run `make cluster`", command.get_program().display())
        });
        let stdout = child.stdout.take().expect("standard output was asked for");
        let (lines, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Self { stdin: child.stdin.take(), child, answers }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends one line.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open as long as the value lives");
        writeln!(stdin, "{line}").expect("the control plane's supervisor is alive");
    }

    /// The next line it sends.
    pub fn answer(&self, timeout: Duration) -> String {
        self.answers.recv_timeout(timeout).unwrap_or_else(|error| {
            panic!("no answer from the control plane ({error}); its own message is on standard error")
        })
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // It ends by itself once its standard input has ended.
        let _ = self.child.wait();
    }
}

/// The program: the one that `MOORING_CLUSTER_BIN` names, else the built one.
pub fn binary() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join(".build/cluster");
    let path = std::env::var_os("MOORING_CLUSTER_BIN").map_or(built, PathBuf::from);
    assert!(path.exists(), "{} is missing; run `make cluster`", path.display());
    path
}

/// The process ids of all descendants of a process.
pub fn descendants(pid: u32) -> HashSet<u32> {
    let mut found = HashSet::new();
    let mut open = vec![pid];
    while let Some(pid) = open.pop() {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace().map(|child| child.parse().expect("a process id is a number"));
            open.extend(children.filter(|child: &u32| found.insert(*child)));
        }
    }
    found
}
