//! Capabilities and what else a process may do: check them, drop them, and the set that containers keep.
//!
//! Capabilities belong to threads: everything here is called while the process has one thread, and
//! [`become_network_process`] refuses to go on when there are more.

use super::process::require_single_thread;
use super::{check, explain};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use std::io;

/// What the helper needs, with the reason that the error gives.
const NEEDED: [(Capability, &str); 8] = [
    (Capability::CAP_SYS_ADMIN, "makes namespaces and mounts"),
    (Capability::CAP_NET_ADMIN, "makes TUN devices"),
    (Capability::CAP_SYS_CHROOT, "enters the namespaces of tasks"),
    (Capability::CAP_SETPCAP, "drops the capabilities of tasks"),
    (Capability::CAP_KILL, "stops tasks"),
    (Capability::CAP_CHOWN, "keeps the owners of imported files"),
    (Capability::CAP_DAC_OVERRIDE, "reads imported files"),
    (Capability::CAP_FOWNER, "keeps the modes of imported files"),
];

/// The capabilities of a container by Docker's default: `00000000a80425fb` in `/proc/self/status`.
const CONTAINER: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

// `linux/securebits.h`: each bit is followed by the one that locks it.
const SECBIT_NOROOT: libc::c_ulong = 0b11;
const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 0b11 << 2;
const SECBIT_KEEP_CAPS_LOCKED: libc::c_ulong = 1 << 5;
const SECBIT_NO_CAP_AMBIENT_RAISE: libc::c_ulong = 0b11 << 6;

/// The highest capability number that the kernel's interface can hold.
const LAST_CAPABILITY: libc::c_ulong = 63;

/// Errors with the name of the first capability that the helper needs and this process lacks.
pub fn check_needed() -> io::Result<()> {
    let have = caps::read(None, CapSet::Effective).map_err(caps_error)?;
    match NEEDED.iter().find(|(capability, _)| !have.contains(capability)) {
        None => Ok(()),
        Some((capability, reason)) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("the capability {capability} is missing (it {reason}): run as root, or give it to the container"),
        )),
    }
}

/// Keeps the memory of this process, also what it will use later, out of swap space. To be called while still
/// privileged. Errors when the limit of locked memory cannot be raised: in a container without CAP_SYS_RESOURCE.
pub fn lock_memory() -> io::Result<()> {
    let locked = || -> io::Result<()> {
        // Without the capability, which goes, the limit counts: one that is reached would fail an allocation.
        setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY)?;
        // SAFETY: takes flags only. Pages are locked when they are first used, not when they are mapped.
        check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) }).map(drop)
    };
    locked().map_err(|error| explain("cannot lock memory", error))
}

/// Turns this process into the one that reads the network: no capability and no way to gain one, no core dump,
/// not traceable. Errors leave the process unfit to go on.
pub fn become_network_process() -> io::Result<()> {
    require_single_thread()?;
    prctl::set_no_new_privs()?;
    lock_securebits()?;
    clear_ambient();
    drop_bounding(|_| false)?;
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(caps_error)?;
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    let left = caps::read(None, CapSet::Permitted).map_err(caps_error)?;
    if left.is_empty() { Ok(()) } else { Err(io::Error::other("capabilities are left after dropping all")) }
}

/// Reduces this process to what containers may do. Their setuid programs go on working: no_new_privs stays off.
pub fn become_container() -> io::Result<()> {
    let keep: CapsHashSet = CONTAINER.into_iter().collect();
    clear_ambient();
    drop_bounding(|number| keep.iter().any(|capability| u64::from(capability.index()) == number))?;
    let permitted = caps::read(None, CapSet::Permitted).map_err(caps_error)?;
    let rest: CapsHashSet = keep.intersection(&permitted).copied().collect();
    caps::clear(None, CapSet::Inheritable).map_err(caps_error)?;
    caps::set(None, CapSet::Effective, &rest).map_err(caps_error)?;
    caps::set(None, CapSet::Permitted, &rest).map_err(caps_error)
}

/// An exec as uid 0 must not give capabilities back. Without CAP_SETPCAP the bits cannot be set; then an empty
/// permitted set and no_new_privs have to be enough.
fn lock_securebits() -> io::Result<()> {
    let bits = SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE;
    match prctl_call(libc::PR_SET_SECUREBITS, bits, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => other.map(drop).map_err(|error| explain("set the securebits", error)),
    }
}

fn clear_ambient() {
    // A kernel without ambient capabilities has nothing to clear.
    let _ = prctl_call(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0);
}

fn drop_bounding(keep: impl Fn(u64) -> bool) -> io::Result<()> {
    for number in 0..=LAST_CAPABILITY {
        match prctl_call(libc::PR_CAPBSET_READ, number, 0) {
            Ok(1) if !keep(number) => match prctl_call(libc::PR_CAPBSET_DROP, number, 0) {
                Err(error) if error.raw_os_error() != Some(libc::EPERM) => return Err(error),
                Err(_) if has_permitted()? => return Err(io::Error::other("CAP_SETPCAP is missing")),
                _ => {}
            },
            // EINVAL: beyond the kernel's last capability.
            _ => {}
        }
    }
    Ok(())
}

fn has_permitted() -> io::Result<bool> {
    Ok(!caps::read(None, CapSet::Permitted).map_err(caps_error)?.is_empty())
}

fn prctl_call(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<libc::c_int> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used here take integers only.
    check(unsafe { libc::prctl(option, first, second, zero, zero) })
}

fn caps_error(error: caps::errors::CapsError) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, error.to_string())
}
