//! What a network process that was taken over might try; part of the helper's tests, here for its `unsafe`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Its name, the system call at which the process ends, and how to make it.
pub(super) type Attempt = (&'static str, libc::c_long, fn());

/// asm-generic/fcntl.h.
const F_SETSIG: libc::c_int = 10;

/// All of them.
pub(super) const FORBIDDEN: &[Attempt] = &[
    ("execute", libc::SYS_execve, || {
        let _ = Command::new("/bin/true").exec();
    }),
    ("fork", libc::SYS_clone, || {
        // SAFETY: a child would only end.
        let _ = unsafe { nix::unistd::fork() };
    }),
    ("trace", libc::SYS_ptrace, || {
        // SAFETY: takes integers.
        unsafe { libc::ptrace(libc::PTRACE_SEIZE, 1, 0, 0) };
    }),
    ("namespace", libc::SYS_unshare, || {
        let _ = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
    }),
    ("mount", libc::SYS_mount, || {
        let none = None::<&str>;
        let _ = nix::mount::mount(none, "/mnt", Some("tmpfs"), nix::mount::MsFlags::empty(), none);
    }),
    ("signal", libc::SYS_kill, || {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), None);
    }),
    ("owner of a descriptor", libc::SYS_fcntl, || {
        // SAFETY: takes integers.
        unsafe { libc::fcntl(0, libc::F_SETOWN, 1) };
    }),
    ("signal of a descriptor", libc::SYS_fcntl, || {
        // SAFETY: takes integers.
        unsafe { libc::fcntl(0, F_SETSIG, libc::SIGKILL) };
    }),
    ("signals at events", libc::SYS_fcntl, || {
        // SAFETY: takes integers.
        unsafe { libc::fcntl(0, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) };
    }),
    ("packet socket", libc::SYS_socket, || {
        // SAFETY: takes integers.
        unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    }),
    ("raw socket", libc::SYS_socket, || {
        // SAFETY: takes integers.
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) };
    }),
    ("executable memory", libc::SYS_mmap, || {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: a new mapping wherever the kernel likes.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    }),
    ("ring", libc::SYS_io_uring_setup, || {
        // SAFETY: the kernel refuses a null pointer.
        unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<libc::c_void>()) };
    }),
    ("device", libc::SYS_ioctl, || {
        // SAFETY: the kernel refuses a null pointer.
        unsafe { libc::ioctl(0, libc::TUNSETIFF as _, std::ptr::null_mut::<libc::c_void>()) };
    }),
    ("limit", libc::SYS_prlimit64, || {
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 1, 1);
    }),
];
