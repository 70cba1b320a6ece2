//! Runs a program as a container without privileges would be run: with few capabilities and
//! no way to more, a read-only root, an empty `/dev`, and without the system calls that
//! container runtimes' default profiles keep from it.

use std::collections::BTreeMap;
use std::path::Path;

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::thread::CapabilitySet;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Those of the profile `filesystem`, as `docs/rights.md` explains them.
pub const FILESYSTEM: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::SETFCAP);

/// What the default profiles of container runtimes refuse to whoever has none of
/// `CAP_SYS_ADMIN`, `CAP_DAC_READ_SEARCH`, `CAP_SYS_PTRACE` and the like.
const REFUSED: [i64; 51] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
];
/// Refused as if the kernel had none: its flags can't be looked at.
const UNKNOWN: [i64; 3] = [libc::SYS_clone3, STATMOUNT, LISTMOUNT];
/// Younger than the profiles of most runtimes; the same on every architecture.
const STATMOUNT: i64 = 457;
const LISTMOUNT: i64 = 458;

/// Confines the calling thread for good, and what it starts; `writable` are what it may write to.
pub fn confine(capabilities: CapabilitySet, writable: &[&Path]) {
    unshare(CloneFlags::CLONE_NEWNS).expect("root may make a namespace");
    let change = |path: &Path, flags| mount(None::<&str>, path, None::<&str>, flags, None::<&str>);
    change(Path::new("/"), MsFlags::MS_SLAVE | MsFlags::MS_REC).expect("mounts can be made to follow others");
    for path in writable {
        std::fs::create_dir_all(path).expect("a directory can be made");
        mount(Some(*path), *path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .expect("a directory can be bound");
    }
    let dev = Path::new("/dev");
    mount(Some("tmpfs"), dev, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).expect("a tmpfs can be mounted");
    for (name, minor) in [("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)] {
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&dev.join(name), SFlag::S_IFCHR, mode, makedev(1, minor)).expect("root may make devices");
    }
    for path in ["/", "/dev", "/sys"].map(Path::new) {
        change(path, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY)
            .expect("a mount can be made read-only");
    }
    for capability in CapabilitySet::all().difference(capabilities).iter() {
        // One that this kernel does not know is none.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    rustix::thread::set_no_new_privs(true).expect("privileges can be given up");
    let filter = |calls: &[i64], errno: i32| {
        let calls: BTreeMap<i64, Vec<_>> = calls.iter().map(|call| (*call, Vec::new())).collect();
        let arch = std::env::consts::ARCH.try_into().expect("an architecture that filters know");
        let action = SeccompAction::Errno(errno.unsigned_abs());
        let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, arch).expect("it is a filter");
        let program: BpfProgram = filter.try_into().expect("it can be compiled");
        seccompiler::apply_filter(&program).expect("a filter can be set");
    };
    filter(&UNKNOWN, libc::ENOSYS);
    filter(&REFUSED, libc::EPERM);
}
