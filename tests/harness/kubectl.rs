//! kubectl, out of the control plane's binary, with the administrator's rights.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::supervisor;

/// A kubeconfig to use it with.
#[derive(Clone)]
pub struct Kubectl {
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// With the rights that the kubeconfig gives.
    pub fn new(kubeconfig: &Path) -> Self {
        Self { kubeconfig: kubeconfig.to_owned() }
    }

    /// Runs it to its end, whatever that is, with that standard input.
    pub fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(supervisor::binary());
        command.arg("kubectl").arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the cluster's binary can be run");
        // One that fails at once need not read it.
        let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
        child.wait_with_output().expect("kubectl ends")
    }

    /// What it says; it must succeed.
    pub fn must(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {}: {errors}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
