//! Processes: fork, exec of an open file, pidfds, descriptors and signals across them.

use super::{check, explain};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::Pid;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Descriptors from here on hold sources while they are moved to their places below.
const SCRATCH_FD: RawFd = 64;

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The old process; the child has this id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Errors unless the calling thread is the only one of its process. Needs `/proc`.
pub fn require_single_thread() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|error| explain("/proc/self/task", error))?.count();
    if threads == 1 {
        Ok(())
    } else {
        Err(io::Error::other(format!("{threads} threads run where one is allowed: fork first, start threads later")))
    }
}

/// Forks. The helper and the task launchers, who call it, have one thread ([`require_single_thread`] at their
/// start); in a process with more, the child may only do what is safe in a signal handler.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: callers have one thread, so no lock can be held by a thread that the child lacks.
    match unsafe { nix::unistd::fork() }.map_err(|error| explain("fork", error))? {
        nix::unistd::ForkResult::Parent { child } => Ok(Fork::Parent(child)),
        nix::unistd::ForkResult::Child => Ok(Fork::Child),
    }
}

/// Ends the process at once: no destructors, no buffers flushed twice after a fork.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Ends this process with SIGKILL when the thread that forked it ends. The caller checks afterwards that its
/// parent still lives.
pub fn die_with_parent() -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| explain("PR_SET_PDEATHSIG", error))
}

/// All signals at their default and none blocked: what a program expects from whoever executes it. Rust's
/// runtime ignores SIGPIPE, the helper blocks most.
pub fn reset_signals() -> io::Result<()> {
    // A `struct sigaction` of zeros is SIG_DFL; it has at most 32 bytes. The call is made directly, since libc keeps
    // two signals to itself that someone may have ignored for us.
    let default = [0u64; 8];
    let old = std::ptr::null_mut::<u64>();
    for number in 1..=64 {
        // SAFETY: the structure outlives the call, and SIG_DFL installs no handler. SIGKILL and SIGSTOP answer
        // an error, which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), old, size_of::<u64>()) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) -> io::Result<()> {
    close_between(first, RawFd::MAX)
}

fn close_between(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: closing descriptors that this process owns is what the caller asks for, before it goes on with
    // the few below `first` only.
    check(unsafe { libc::close_range(first as libc::c_uint, last as libc::c_uint, 0) })
        .map(drop)
        .map_err(|error| explain("close_range (Linux 5.9 or newer is needed)", error))
}

/// Closes what the process inherited above standard error, except `keep`.
pub fn close_inherited(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        close_between(first, fd - 1)?;
        first = fd + 1;
    }
    close_from(first)
}

/// Takes ownership of a descriptor that this process was executed with. Each number only once.
pub(crate) fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no argument; a closed number answers EBADF.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: it is open, and by the launch protocol nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Marks a descriptor to be closed at exec.
pub fn set_close_on_exec(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes an integer.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Makes reads and writes answer `WouldBlock` instead of waiting.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: F_GETFL takes no argument, F_SETFL an integer.
    let flags = check(unsafe { libc::fcntl(raw, libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(raw, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Whether the other end of a pipe or socket is closed. Does not wait.
pub fn is_hung_up(fd: impl AsFd) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one `pollfd` that outlives the call.
    check(unsafe { libc::poll(&mut entry, 1, 0) })?;
    Ok(entry.revents & (libc::POLLHUP | libc::POLLERR) != 0)
}

/// Replaces 0, 1 and 2 (and further numbers) of this process by the given descriptors, in order, not closed at
/// exec. For a child between fork and exec.
pub(crate) fn place_fds(fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut moved = Vec::with_capacity(fds.len());
    for fd in fds {
        // SAFETY: F_DUPFD_CLOEXEC takes an integer.
        let copy = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, SCRATCH_FD) })?;
        // SAFETY: fcntl has just opened it.
        moved.push(unsafe { OwnedFd::from_raw_fd(copy) });
    }
    for (place, fd) in moved.iter().enumerate() {
        // SAFETY: both are numbers of descriptors; what was at the place is meant to be replaced.
        check(unsafe { libc::dup2(fd.as_raw_fd(), place as RawFd) })?;
    }
    Ok(())
}

/// Starts the program behind `program` with `fds` as its descriptors 0, 1, 2, ... and nothing else, in a
/// child that dies with this thread. Its environment is empty and its signals are at their defaults.
pub(crate) fn spawn_program(program: &OwnedFd, name: &CStr, fds: &[BorrowedFd<'_>]) -> io::Result<Pid> {
    match fork()? {
        Fork::Parent(child) => Ok(child),
        Fork::Child => {
            let error = execute_program(program, name, fds);
            eprintln!("formic: start {}: {error}", name.to_string_lossy());
            exit_now(127)
        }
    }
}

fn execute_program(program: &OwnedFd, name: &CStr, fds: &[BorrowedFd<'_>]) -> io::Error {
    let prepare = || -> io::Result<OwnedFd> {
        die_with_parent()?;
        reset_signals()?;
        // SAFETY: F_DUPFD_CLOEXEC takes an integer.
        let copy = check(unsafe { libc::fcntl(program.as_raw_fd(), libc::F_DUPFD_CLOEXEC, SCRATCH_FD) })?;
        // SAFETY: fcntl has just opened it.
        let copy = unsafe { OwnedFd::from_raw_fd(copy) };
        place_fds(fds)?;
        close_between(fds.len() as RawFd, copy.as_raw_fd() - 1)?;
        close_from(copy.as_raw_fd() + 1)?;
        Ok(copy)
    };
    match prepare() {
        Err(error) => error,
        Ok(program) => {
            let arguments = [name.as_ptr(), std::ptr::null()];
            let environment = [std::ptr::null::<libc::c_char>()];
            // SAFETY: both arrays end with a null pointer and outlive the call; the path is empty as
            // AT_EMPTY_PATH asks.
            unsafe {
                libc::execveat(
                    program.as_raw_fd(),
                    c"".as_ptr(),
                    arguments.as_ptr().cast(),
                    environment.as_ptr().cast(),
                    libc::AT_EMPTY_PATH,
                )
            };
            io::Error::last_os_error()
        }
    }
}

/// A handle of a process that never means another one, even after the id is reused.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens a child that has not been waited for.
    pub fn of_child(child: Pid) -> io::Result<PidFd> {
        // SAFETY: pidfd_open takes integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
        let fd = check(fd as libc::c_int).map_err(|error| explain("pidfd_open", error))?;
        // SAFETY: the call has just opened it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes a pidfd that was received.
    pub fn from_fd(fd: OwnedFd) -> PidFd {
        PidFd(fd)
    }

    /// Sends a signal. A process that is gone is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null `siginfo` asks the kernel to fill it; the rest are integers.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as libc::c_int, info, 0) };
        match check(result as libc::c_int) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.map(drop),
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Leaves the session keyring of whoever started us: its keys are not the container's.
pub fn new_session_keyring() {
    let name = std::ptr::null::<libc::c_char>();
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING with a null name makes an anonymous keyring. A kernel without
    // keyrings has nothing to leave.
    unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name) };
}

/// Makes the terminal on descriptor 0 the controlling one of this (new) session.
pub fn take_terminal() -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(0, libc::TIOCSCTTY as _, 0) }).map(drop)
}

/// The texts as C strings. Errors on an inner NUL.
pub fn c_strings<'a>(texts: impl IntoIterator<Item = &'a str>) -> io::Result<Vec<CString>> {
    texts.into_iter().map(|text| CString::new(text).map_err(io::Error::from)).collect()
}
