//! The system calls that the network process may make: a seccomp filter that lets through what it needs and nothing
//! else.
//!
//! An allow-list, since a list of dangerous calls is out of date with the next kernel. What is on it is what the static
//! binary can call at all (its `syscall` instructions can be counted), without what only the helper does. Beyond the
//! calls themselves:
//!
//! | call | only |
//! |---|---|
//! | `socket` | Unix; datagrams and streams of IPv4 and IPv6; routes and device events of netlink. No raw or packet socket |
//! | `clone` | threads. `clone3`, whose arguments a filter cannot see, answers ENOSYS, and the C library takes `clone` |
//! | `mmap`, `mprotect` | memory that is not executable: a static program never needs more |
//! | `fcntl` | copies, flags, modes and locks of descriptors. No owner who gets signals, nobody to be signalled |
//! | `ioctl` | the requests that ask about interfaces, set a TUN queue's offloads, or wait for nothing |
//! | `prctl` | names of threads and of memory |
//! | `prlimit64` | reading |
//!
//! So there is no `execve`, no `ptrace`, no other process' memory, no mount, no namespace, no BPF, no module, no
//! `io_uring`, no signal to another process, not by way of a descriptor's owner either. A call that is not on the list is
//! not made: the kernel sends SIGSYS instead, the handler writes the number of the call to standard error, and the process
//! aborts, and with it the helper and all tasks. It stays closed, and says so.
//!
//! Calls that are allowed whatever their arguments are not run through the filter, since the kernel keeps them in a bitmap
//! (Linux 5.11); these are all that carry packets. With the filter and the erasing allocator ([`super::erase`]) one TCP flow
//! reached 0.99 of what it did without them, at 1.02 times the processor time (0.99 and 0.99 where every datagram is a packet
//! of its own; medians of five rounds of `scripts/bench --formic OLD --formic NEW --only formic --only tcp`).
//!
//! What this does not do: the process is still user 0, and files are opened, renamed and made by name. `crate::threat_model`
//! says what that is good for in wrong hands.

use super::process::require_single_thread;
use super::{check, explain};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use std::collections::BTreeMap;
use std::io;

/// Allowed whatever their arguments.
const FREE: &[c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    // Sockets; what kind is asked of `socket`.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    // Files: those that root's user may touch without a capability.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    // Memory; what may be mapped is asked of `mmap` and `mprotect`.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_get_priority_max,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals within the process, and the end of the helper.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // The executor asks whether it is there.
    libc::SYS_pidfd_open,
    // Time, and what the machine and the process are.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getcpu,
];

/// Commands of `fcntl`; F_SETFL is asked about apart. The locks are the store's library's.
const FCNTLS: &[libc::c_int] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
];

/// Requests of `ioctl`.
const IOCTLS: &[u64] = &[
    libc::FIONBIO,
    libc::FIONREAD,
    libc::TCGETS,
    libc::TIOCGWINSZ,
    libc::TUNSETOFFLOAD,
    libc::SIOCGIFMTU,
    libc::SIOCGIFFLAGS,
    libc::SIOCGIFADDR,
    libc::SIOCGIFNETMASK,
    libc::SIOCGIFINDEX,
    libc::SIOCGIFNAME,
];

/// The bits of a socket's type that are not flags (`SOCK_CLOEXEC`, `SOCK_NONBLOCK`).
const SOCKET_TYPE_MASK: u64 = 0xf;

/// From here on this process makes no other system call than those listed here, and threads that it starts neither.
/// Refused when there are threads already. Errors leave the process unfit to go on.
pub fn confine() -> io::Result<()> {
    require_single_thread()?;
    install_handler()?;
    let failed = |error: seccompiler::Error| explain("install the seccomp filter", io::Error::other(error));
    // Of several filters the strictest answer counts: the first one adds ENOSYS to what the second one allows.
    for program in [unseen(), allowed()] {
        apply_filter(&program.map_err(|error| failed(error.into()))?).map_err(failed)?;
    }
    Ok(())
}

type Built<T> = Result<T, seccompiler::BackendError>;

/// The allow-list.
fn allowed() -> Built<BpfProgram> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = FREE.iter().map(|&call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, sockets()?);
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![rule([(0, Is::MaskedEq(thread), thread)])?]);
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule([(2, Is::MaskedEq(executable), 0)])?]);
    }
    rules.insert(libc::SYS_fcntl, descriptors()?);
    let requests = IOCTLS.iter().map(|&request| rule([(1, Is::Eq, request)]));
    rules.insert(libc::SYS_ioctl, requests.collect::<Built<_>>()?);
    let options = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA].map(|option| option as u64);
    let options = options.into_iter().map(|option| rule([(0, Is::Eq, option)]));
    rules.insert(libc::SYS_prctl, options.collect::<Built<_>>()?);
    let new_limit = SeccompCondition::new(2, Width::Qword, Is::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![new_limit])?]);
    // Only to itself: what `abort` does.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![rule([(0, Is::Eq, own)])?]);
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, target())?.try_into()
}

fn descriptors() -> Built<Vec<SeccompRule>> {
    let mut rules = FCNTLS.iter().map(|&command| rule([(1, Is::Eq, command as u64)])).collect::<Built<Vec<_>>>()?;
    // A signal at every event, to whoever is the owner.
    let signals = (2, Is::MaskedEq(libc::O_ASYNC as u64), 0);
    rules.push(rule([(1, Is::Eq, libc::F_SETFL as u64), signals])?);
    Ok(rules)
}

fn sockets() -> Built<Vec<SeccompRule>> {
    let mut rules = vec![rule([(0, Is::Eq, libc::AF_UNIX as u64)])?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let kind = (1, Is::MaskedEq(SOCKET_TYPE_MASK), kind as u64);
            rules.push(rule([(0, Is::Eq, family as u64), kind])?);
        }
    }
    for protocol in [libc::NETLINK_ROUTE, libc::NETLINK_KOBJECT_UEVENT] {
        rules.push(rule([(0, Is::Eq, libc::AF_NETLINK as u64), (2, Is::Eq, protocol as u64)])?);
    }
    Ok(rules)
}

/// What answers as if the kernel did not know it.
fn unseen() -> Built<BpfProgram> {
    let rules = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), target())?.try_into()
}

/// A rule that asks of some arguments (their low 32 bits, which is what the kernel looks at of these).
fn rule<const N: usize>(conditions: [(u8, Is, u64); N]) -> Built<SeccompRule> {
    let conditions = conditions.map(|(argument, is, value)| {
        let value = u64::from(value as u32);
        SeccompCondition::new(argument, Width::Dword, is, value)
    });
    SeccompRule::new(conditions.into_iter().collect::<Built<_>>()?)
}

const fn target() -> TargetArch {
    TargetArch::x86_64
}

/// SIGSYS says which call it was and ends the process.
fn install_handler() -> io::Result<()> {
    // SAFETY: zeros are a valid `sigaction`: no flags, nothing blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = refused as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the structure outlives the call; the handler has the signature that SA_SIGINFO asks for and does only
    // what is safe in one.
    check(unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) }).map(drop)
}

/// Octets before the number of the system call in a `siginfo_t` of SIGSYS: three integers, padding, an address.
const CALL_OFFSET: usize = 24;

extern "C" fn refused(_: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel hands over a `siginfo_t`, which is longer than that and aligned for an integer there.
    let call = unsafe { info.cast::<u8>().add(CALL_OFFSET).cast::<libc::c_int>().read() };
    let mut line = *b"ERROR formic: stopping: the network process may not make system call 00000\n";
    let digits = line.iter_mut().rev().skip(1).take(5);
    let mut rest = call.unsigned_abs();
    for digit in digits {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // SAFETY: the buffer lives here; a failed write changes nothing about what follows.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    std::process::abort();
}
