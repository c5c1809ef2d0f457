//! Child processes: run to the end with a deadline, or kept in the background and ended with the test.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a command may take at most unless said otherwise; ten times what the slowest takes on two busy cores.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command as typed.
    pub command: String,
    /// Its exit code; 128 + signal when it was killed.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
}

impl Finished {
    /// Panics unless the exit code is 0. Returns standard output without the white space at its end.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert!(self.code == 0, "{}", self.describe());
        self.stdout.trim_end().to_owned()
    }

    /// Panics unless it failed with a one-line error that contains `text`; returns that error.
    #[track_caller]
    pub fn refused(&self, text: &str) -> String {
        assert!(self.code != 0, "should have failed: {}", self.describe());
        let error = self.stderr.trim_end();
        assert!(error.contains(text), "no {text:?} in it: {}", self.describe());
        assert!(error.lines().count() == 1, "not one line: {}", self.describe());
        error.to_owned()
    }

    /// Everything, for messages.
    pub fn describe(&self) -> String {
        format!("`{}` exit code {}\nstdout: {}\nstderr: {}", self.command, self.code, self.stdout, self.stderr)
    }
}

/// Runs to the end. Panics when it does not end in time.
#[track_caller]
pub fn run(command: Command) -> Finished {
    run_with(command, b"", COMMAND_DEADLINE)
}

/// Runs to the end with something on standard input. Panics when it does not end in time.
#[track_caller]
pub fn run_with(mut command: Command, stdin: &[u8], deadline: Duration) -> Finished {
    let typed = typed(&command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run `{typed}`: {error}"));
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    if let Some(mut pipe) = child.stdin.take() {
        // A command that does not read its input has closed it: no fault of the test.
        let _ = pipe.write_all(stdin);
    }
    let code = wait_for(&mut child, deadline);
    if code.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = |reader: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned();
    let finished = Finished { command: typed, code: code.unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) };
    assert!(code.is_some(), "did not end within {deadline:?}: {}", finished.describe());
    finished
}

fn read_all(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait_for(child: &mut Child, deadline: Duration) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    let start = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if start.elapsed() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The command line without what only brings it to its place.
fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// A process in the background, killed with the value, and also when the test is killed.
pub struct Background {
    child: Child,
    typed: String,
}

impl Background {
    /// Starts it; its output goes where the command says.
    #[track_caller]
    pub fn start(mut command: Command) -> Background {
        let typed = typed(&command);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run `{typed}`: {error}"));
        Background { child, typed }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Its exit code if it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        wait_for(&mut self.child, Duration::ZERO)
    }

    /// Waits for its end. Panics when the deadline passes.
    #[track_caller]
    pub fn end(&mut self, deadline: Duration) -> i32 {
        wait_for(&mut self.child, deadline).unwrap_or_else(|| panic!("`{}` did not end in {deadline:?}", self.typed))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that dies with the thread that starts it, so that a killed test leaves nothing.
pub fn tied(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|child| status_of(*child, "PPid") == pid.to_string())
        .collect()
}

/// A field of `/proc/PID/status`; empty when there is none.
pub fn status_of(pid: u32, field: &str) -> String {
    status_in(&format!("/proc/{pid}/status"), field)
}

/// The same of one thread.
pub fn status_of_thread(pid: u32, thread: &str, field: &str) -> String {
    status_in(&format!("/proc/{pid}/task/{thread}/status"), field)
}

fn status_in(path: &str, field: &str) -> String {
    let status = std::fs::read_to_string(path).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}
