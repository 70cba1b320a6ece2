//! A real control plane (etcd, API server, controller manager, scheduler) for as
//! long as a value lives. The binary that runs it ends everything when its
//! standard input ends, so a killed test supervisor leaves nothing behind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use super::audit::{self, AuditEntry};
use super::rbac;
use super::scratch::Scratch;
use super::supervisor::{Supervisor, binary};

const START_TIMEOUT: Duration = Duration::from_mins(3);
const COMMAND_TIMEOUT: Duration = Duration::from_mins(3);

/// Where pods find the API server: the address of the Service `kubernetes`.
pub const IN_CLUSTER: &str = "10.96.0.1:443";

/// How to start a control plane.
#[derive(Clone, Copy, Default)]
pub struct Options {
    /// Record every request, for [`ControlPlane::audit`].
    pub audit: bool,
}

/// A control plane that answers, with the agent's access rights set up.
pub struct ControlPlane {
    mode: Mode,
    kubeconfig: PathBuf,
    server: String,
    ca: PathBuf,
}

/// Whose control plane it is.
enum Mode {
    /// Ours: it ends with this value.
    Private { supervisor: Mutex<Supervisor>, scratch: Scratch, audit_log: Option<PathBuf> },
    /// One that was there before and stays.
    Existing,
}

/// The control plane that all tests of this supervisor share: one that the environment
/// variable `MOORING_TEST_KUBECONFIG` names, else one that is started at the first call.
pub fn shared() -> &'static ControlPlane {
    static SHARED: OnceLock<ControlPlane> = OnceLock::new();
    SHARED.get_or_init(|| match std::env::var_os("MOORING_TEST_KUBECONFIG") {
        Some(path) => ControlPlane::existing(Path::new(&path)),
        None => ControlPlane::start(Options::default()),
    })
}

impl ControlPlane {
    /// Starts one of its own and returns when it is ready.
    pub fn start(options: Options) -> Self {
        let plane = Self::launch(options, None);
        plane.set_up();
        plane
    }

    /// Starts one for nodes with pods: it answers at [`IN_CLUSTER`], an address that this machine
    /// must have, and the agent's access rights are left to the chart.
    pub fn start_for_pods(options: Options) -> Self {
        Self::launch(options, Some(IN_CLUSTER))
    }

    fn launch(options: Options, listen: Option<&str>) -> Self {
        let scratch = Scratch::new("cluster");
        let data = scratch.path().join("data");
        let mut command = Command::new(binary());
        command.arg("up").arg("--dir").arg(&data);
        if options.audit {
            command.arg("--audit");
        }
        if let Some(listen) = listen {
            command.args(["--listen", listen]);
        }
        if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
            command.arg("--assets").arg(assets);
        }
        let supervisor = Supervisor::spawn(&mut command);
        let ready = supervisor.answer(START_TIMEOUT);
        let description = ready.strip_prefix("ready ").expect("the control plane's first line says that it is ready");
        let description: Value = serde_json::from_str(description).expect("the description is JSON");
        let field = |name: &str| description[name].as_str().map(str::to_owned);
        Self {
            kubeconfig: field("kubeconfig").expect("the description names a kubeconfig").into(),
            server: field("server").expect("the description names the server"),
            ca: field("ca").expect("the description names the CA").into(),
            mode: Mode::Private {
                supervisor: Mutex::new(supervisor),
                scratch,
                audit_log: field("auditLog").map(PathBuf::from),
            },
        }
    }

    /// Uses the cluster that a kubeconfig's current context names.
    pub fn existing(kubeconfig: &Path) -> Self {
        let parsed = Kubeconfig::read_from(kubeconfig).expect("MOORING_TEST_KUBECONFIG names a kubeconfig");
        let cluster = parsed.clusters.first().and_then(|named| named.cluster.clone()).unwrap_or_default();
        let plane = Self {
            mode: Mode::Existing,
            kubeconfig: kubeconfig.to_owned(),
            server: cluster.server.unwrap_or_default(),
            ca: cluster.certificate_authority.unwrap_or_default().into(),
        };
        plane.set_up();
        plane
    }

    /// Sets up access rights, on a thread of its own because callers are often inside a runtime.
    fn set_up(&self) {
        let set_up = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(async { rbac::apply(&self.client().await).await });
        };
        let done = thread::scope(|scope| scope.spawn(set_up).join());
        done.expect("the agent's access rights can be set up");
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A new client with the administrator's rights. It belongs to the runtime it is made in.
    pub async fn client(&self) -> kube::Client {
        client_from(&self.kubeconfig).await
    }

    /// The API server's URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The file with the certificate authority (empty when an existing cluster's kubeconfig has it inline).
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// Whether the cluster was there before and stays, so that tests must tidy up.
    pub fn is_existing(&self) -> bool {
        matches!(self.mode, Mode::Existing)
    }

    /// Where data, logs and credentials are.
    pub fn dir(&self) -> PathBuf {
        let Mode::Private { scratch, .. } = &self.mode else { panic!("an existing cluster has no directory here") };
        scratch.path().join("data")
    }

    /// The supervisor id of the binary.
    pub fn pid(&self) -> u32 {
        self.supervisor(|supervisor| supervisor.pid())
    }

    /// Ends a component in order: `etcd`, `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`.
    pub fn stop(&self, component: &str) {
        self.command(&format!("stop {component}"));
    }

    /// Kills a component with SIGKILL.
    pub fn kill(&self, component: &str) {
        self.command(&format!("kill {component}"));
    }

    /// Starts a stopped component again and returns when it answers.
    pub fn start_component(&self, component: &str) {
        self.command(&format!("start {component}"));
    }

    /// The requests that have been finished so far.
    pub fn audit(&self) -> Vec<AuditEntry> {
        let Mode::Private { audit_log: Some(path), .. } = &self.mode else { panic!("started without an audit log") };
        audit::read(path)
    }

    fn command(&self, line: &str) {
        let answer = self.supervisor(|supervisor| {
            supervisor.tell(line);
            supervisor.answer(COMMAND_TIMEOUT)
        });
        assert_eq!(answer, format!("ok {line}"));
    }

    fn supervisor<T>(&self, work: impl FnOnce(&mut Supervisor) -> T) -> T {
        let Mode::Private { supervisor, .. } = &self.mode else { panic!("an existing cluster is not ours to stop") };
        work(&mut supervisor.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A client with the rights that a kubeconfig gives.
pub async fn client_from(kubeconfig: &Path) -> kube::Client {
    let parsed = Kubeconfig::read_from(kubeconfig).expect("the kubeconfig can be read");
    let config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await;
    kube::Client::try_from(config.expect("the kubeconfig is complete")).expect("a client can be made of it")
}
