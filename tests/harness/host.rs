//! One machine among several on this one: a mount namespace of its own, in which the same
//! paths (`/var/lib/kubelet`, `/mnt`, …) are its own.

use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::require_own_namespace;

/// What each machine has for itself. They are there on every Linux, so nothing is left on this one.
const OWN: &[&str] = &["/mnt", "/run", "/var/lib", "/var/log"];

/// What a kubelet sets for the whole machine. It shall find that it has done so already.
const TUNABLES: &[&str] = &[
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// A mount namespace.
pub struct Host {
    namespace: File,
}

impl Host {
    /// A new one. Whatever is mounted in it, containers in it can see, as on a machine with systemd.
    pub fn new() -> Self {
        require_own_namespace();
        let set_up = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("root can make a mount namespace");
            propagate(MsFlags::MS_PRIVATE);
            // They show these sources, wherever they are.
            let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
            let hidden = OWN.iter().any(|path| sources.starts_with(path));
            let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let kept = hidden.then(|| open_tree(CWD, sources, clone).expect("a mount can be copied"));
            for path in OWN {
                mount_tmpfs(Path::new(path));
            }
            if let Some(kept) = kept {
                fs::create_dir_all(sources).expect("a directory can be made in a new filesystem");
                move_mount(kept, "", CWD, sources, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                    .expect("a mount can be moved");
            }
            let tunables = Path::new("/run/tunables");
            fs::create_dir(tunables).expect("a directory can be made in a new filesystem");
            for name in TUNABLES {
                let real = Path::new("/proc/sys").join(name);
                let Ok(value) = fs::read(&real) else { continue };
                let own = tunables.join(name.replace('/', "."));
                fs::write(&own, value).expect("a file can be written in a new filesystem");
                mount(Some(&own), &real, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a file can be bound");
            }
            propagate(MsFlags::MS_SHARED);
            File::open("/proc/thread-self/ns/mnt").expect("a thread has a mount namespace")
        };
        Self { namespace: on_a_thread(set_up) }
    }

    /// Does something on that machine: files, mounts, and the programs it starts are there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_FS).expect("a thread can have its own root directory");
            setns(&self.namespace, CloneFlags::CLONE_NEWNS).expect("root can enter a mount namespace");
            work()
        })
    }
}

/// On a thread of its own, for a namespace is a thread's.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

fn propagate(how: MsFlags) {
    mount(None::<&str>, "/", None::<&str>, how | MsFlags::MS_REC, None::<&str>).expect("propagation can be set");
}

fn mount_tmpfs(path: &Path) {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .unwrap_or_else(|error| panic!("cannot mount a tmpfs at {}: {error}", path.display()));
}

/// A daemon on a machine, which can be stopped and started again. It ends with this value.
pub struct Daemon {
    name: &'static str,
    arguments: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    /// One that runs as that command line; not yet started.
    pub fn new(name: &'static str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&text| text.to_owned()).collect();
        Self { name, arguments, child: Mutex::default() }
    }

    /// Its log on that machine.
    pub fn log(&self) -> String {
        format!("/var/log/{}.log", self.name)
    }

    /// Starts it; returns at once.
    pub fn start(&self, host: &Host) {
        let mut child = self.child();
        assert!(child.is_none(), "{} runs already", self.name);
        *child = Some(host.enter(|| {
            let log = File::options().create(true).append(true).open(self.log()).expect("a log can be written");
            let errors = log.try_clone().expect("a descriptor can be copied");
            let [program, arguments @ ..] = self.arguments.as_slice() else { panic!("no program") };
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors).current_dir("/");
            command.spawn().unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
        }));
    }

    /// Ends it in order, or by force when it takes too long.
    pub fn stop(&self) {
        self.end(Signal::SIGTERM);
    }

    /// Ends it with SIGKILL.
    pub fn kill(&self) {
        self.end(Signal::SIGKILL);
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = self.child().take() else { return };
        let pid = Pid::from_raw(child.id().try_into().expect("a process id is positive"));
        // One that has ended by itself is not yet collected, so the id is still its own.
        let _ = kill(pid, signal);
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.try_wait().expect("a child can be waited for").is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again if it has ended by itself, as an init system does.
    pub fn revive(&self, host: &Host) {
        let ended = |child: &mut Child| child.try_wait().expect("a child can be waited for").is_some();
        if self.child().take_if(ended).is_some() {
            self.start(host);
        }
    }

    /// Whether it was stopped, or never started.
    pub fn is_stopped(&self) -> bool {
        self.child().is_none()
    }

    /// Panics when it has ended.
    pub fn assert_running(&self) {
        let status = self.child().as_mut().and_then(|child| child.try_wait().expect("a child can be waited for"));
        assert!(status.is_none(), "{} has ended with {status:?}", self.name);
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
