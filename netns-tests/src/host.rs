//! One host: a process that holds its namespaces, and the daemon in them.

use crate::api;
use crate::binary::formic;
use crate::process::{self, Background, Finished, tied};
use crate::wait::wait_until;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a daemon may take to answer on its socket, and to stop. The measured start is in the `binary` suite.
const DAEMON_DEADLINE: Duration = Duration::from_secs(20);

/// Environment variable with the daemons' log level, for the search of a fault.
const LOG_VARIABLE: &str = "FORMIC_TEST_LOG";

/// Lines of a log that a failed test shows.
const LOG_TAIL_LINES: usize = 200;

/// One host.
pub struct Host {
    index: u8,
    directory: PathBuf,
    holder: Background,
    binary: RefCell<Option<PathBuf>>,
    daemon: RefCell<Option<Background>>,
    starts: Cell<u32>,
    expected_errors: RefCell<Vec<String>>,
}

impl Host {
    /// Makes the namespaces.
    pub(crate) fn new(index: u8, directory: &Path) -> Host {
        let directory = directory.join(name(index));
        std::fs::create_dir_all(&directory).expect("make the host's directory");
        let script =
            format!("hostname {} && mount -t tmpfs run /run && echo ready && exec sleep infinity", name(index));
        let mut command = tied("unshare");
        command.args(["--net", "--uts", "--mount", "--propagation", "private", "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = Background::start(command);
        let mut line = String::new();
        let stdout = holder.child().stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("read from the host's holder");
        assert_eq!(line, "ready\n", "the host's namespaces could not be made");
        Host {
            index,
            directory,
            holder,
            binary: RefCell::new(None),
            daemon: RefCell::new(None),
            starts: Cell::new(0),
            expected_errors: RefCell::new(Vec::new()),
        }
    }

    /// Its number, from 0.
    pub fn index(&self) -> usize {
        usize::from(self.index)
    }

    /// Its host name: `ant-1` and on.
    pub fn name(&self) -> String {
        name(self.index)
    }

    /// Its address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.index + 1)
    }

    /// The bridge's end of its cable.
    pub fn wire(&self) -> String {
        format!("wire{}", self.index)
    }

    /// Gives its end of the cable, `eth0`, the host's address.
    pub(crate) fn connect_eth0(&self) {
        let address = format!("{}/24", self.address());
        self.run(&["ip", "address", "add", &address, "dev", "eth0"]).ok();
        self.run(&["ip", "link", "set", "eth0", "up"]).ok();
        self.run(&["ip", "link", "set", "lo", "up"]).ok();
    }

    /// Another `formic` than the one under test, from now on.
    pub fn use_binary(&self, path: &Path) {
        *self.binary.borrow_mut() = Some(path.to_owned());
    }

    fn binary(&self) -> PathBuf {
        self.binary.borrow().clone().unwrap_or_else(|| formic().to_owned())
    }

    /// The process that holds its namespaces.
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("formic.sock")
    }

    /// The daemon's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// A command on this host, not started yet.
    pub fn command(&self, program: &str) -> Command {
        let mut command = tied("nsenter");
        let target = self.holder.pid().to_string();
        command.args(["--target", &target, "--net", "--uts", "--mount", "--", program]);
        command.env("FORMIC_SOCKET", self.socket());
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        // Its own configuration, so that no context or credential of the machine's user counts.
        command.env("DOCKER_CONFIG", self.directory.join("docker"));
        command.env("HOME", &self.directory).env_remove("DOCKER_CONTEXT");
        command
    }

    /// Runs a command on this host to its end.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Finished {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        process::run(command)
    }

    /// Drops what comes in and fits, in nft's words, until [`Host::hear_again`].
    pub fn drop_input(&self, fits: &str) {
        let chain = "add table ip wall; add chain ip wall in { type filter hook input priority 0; }";
        self.run(&["nft", &format!("{chain}; add rule ip wall in {fits} drop")]).ok();
    }

    /// Takes in everything again.
    pub fn hear_again(&self) {
        self.run(&["nft", "delete table ip wall"]).ok();
    }

    /// Does something on a thread that is in this host's network namespace: what it binds stays there.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let pid = self.pid();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                enter_network_of(pid);
                work()
            });
            inside.join().expect("work in the host's network")
        })
    }

    /// `formic ...`
    #[track_caller]
    pub fn formic(&self, arguments: &[&str]) -> Finished {
        self.formic_with(arguments, b"")
    }

    /// `formic ...` with something on standard input.
    #[track_caller]
    pub fn formic_with(&self, arguments: &[&str], stdin: &[u8]) -> Finished {
        let mut command = self.command(&self.binary().to_string_lossy());
        command.args(arguments);
        process::run_with(command, stdin, process::COMMAND_DEADLINE)
    }

    /// `docker ...` by the real client.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> Finished {
        let mut command = self.command("docker");
        command.args(arguments);
        process::run(command)
    }

    /// `docker ...` with something on standard input.
    #[track_caller]
    pub fn docker_with(&self, arguments: &[&str], stdin: &[u8]) -> Finished {
        let mut command = self.command("docker");
        command.args(arguments);
        process::run_with(command, stdin, process::COMMAND_DEADLINE)
    }

    /// A request to the API; status and body. Panics when nobody answers.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        api::request(&self.socket(), method, path, body).unwrap_or_else(|error| panic!("{}: {error}", self.name()))
    }

    /// `GET`; the body, or why there is none.
    pub fn try_get(&self, path: &str) -> Result<Value, String> {
        match api::request(&self.socket(), "GET", path, None)? {
            (200, body) => Ok(body),
            (status, body) => Err(format!("{path}: {status} {body}")),
        }
    }

    /// `GET`; panics unless the answer is 200.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.try_get(path).unwrap_or_else(|error| panic!("{}: {error}", self.name()))
    }

    /// What `formic status` shows, as JSON.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.get(STATUS_PATH)
    }

    /// Sum of the drops whose reason fits.
    #[track_caller]
    pub fn drops(&self, fits: impl Fn(&str) -> bool) -> u64 {
        let status = self.status();
        let drops = status["drops"].as_object().expect("status has drops");
        drops.iter().filter(|(reason, _)| fits(reason)).filter_map(|(_, count)| count.as_u64()).sum()
    }

    /// Starts the daemon and waits until it answers; returns how long that took.
    #[track_caller]
    pub fn start_daemon(&self, options: &[&str]) -> Duration {
        let start = Instant::now();
        self.spawn_daemon(options);
        self.wait_ready();
        start.elapsed()
    }

    /// Starts the daemon and does not wait.
    pub fn spawn_daemon(&self, options: &[&str]) {
        assert!(self.daemon.borrow().is_none(), "{} has a daemon", self.name());
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open the log");
        let mut command = self.command(&self.binary().to_string_lossy());
        command.arg("daemon").arg("--state-dir").arg(self.state_dir()).arg("--socket").arg(self.socket()).args(options);
        if let Ok(level) = std::env::var(LOG_VARIABLE) {
            command.args(["--log-level", &level]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
        self.starts.set(self.starts.get() + 1);
        *self.daemon.borrow_mut() = Some(Background::start(command));
    }

    /// Waits until the daemon answers.
    #[track_caller]
    pub fn wait_ready(&self) {
        wait_until(&format!("daemon on {}", self.name()), DAEMON_DEADLINE, || {
            if let Some(code) = self.daemon.borrow_mut().as_mut().and_then(Background::ended) {
                panic!("daemon on {} ended with {code}:\n{}", self.name(), self.log_tail());
            }
            self.try_get("/version").map(drop)
        });
    }

    /// The daemon's (network process's) process id.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.borrow().as_ref().expect("a daemon").pid()
    }

    /// Stops the daemon by SIGTERM; it must end by itself with exit code 0.
    #[track_caller]
    pub fn stop_daemon(&self) {
        let mut daemon = self.daemon.borrow_mut().take().expect("a daemon");
        daemon.signal(Signal::SIGTERM);
        let code = daemon.end(DAEMON_DEADLINE);
        assert_eq!(code, 0, "exit code of the daemon on {}:\n{}", self.name(), self.log_tail());
    }

    /// Kills the daemon's network process as a crash would.
    pub fn kill_daemon(&self) {
        let mut daemon = self.daemon.borrow_mut().take().expect("a daemon");
        daemon.signal(Signal::SIGKILL);
        daemon.end(DAEMON_DEADLINE);
    }

    /// Waits for a daemon that ends by itself; its exit code.
    #[track_caller]
    pub fn daemon_end(&self) -> i32 {
        self.daemon.borrow_mut().take().expect("a daemon").end(DAEMON_DEADLINE)
    }

    /// Everything that its daemons logged.
    pub fn log(&self) -> String {
        std::fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Errors that contain this text are part of the test.
    pub fn expect_error(&self, text: &str) {
        self.expected_errors.borrow_mut().push(text.to_owned());
    }

    pub(crate) fn unexpected_errors(&self) -> Vec<String> {
        let expected = self.expected_errors.borrow();
        let log = self.log();
        let errors = log.lines().filter(|line| line.contains("ERROR") || line.contains("panicked at"));
        errors
            .filter(|line| !expected.iter().any(|text| line.contains(text.as_str())))
            .map(|line| format!("{}: {line}", self.name()))
            .collect()
    }

    pub(crate) fn print_log(&self) {
        // Who asked for another level wants to read all of it.
        let text = if std::env::var_os(LOG_VARIABLE).is_some() { self.log() } else { self.log_tail() };
        println!("---- log of {}\n{text}", self.name());
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("daemon.log")
    }

    /// Lines of the host's mount table.
    pub fn mounts(&self) -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/mounts", self.pid())).expect("read the mount table");
        text.lines().map(str::to_owned).collect()
    }

    /// Names of the network devices in the host's own namespace.
    pub fn devices(&self) -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/net/dev", self.pid())).expect("read the devices");
        let mut names: Vec<String> =
            text.lines().skip(2).filter_map(|line| Some(line.split(':').next()?.trim().to_owned())).collect();
        names.sort();
        names
    }
}

/// Moves this thread into the network namespace of a process, for good: only for threads made for it.
pub fn enter_network_of(pid: u32) {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("open the namespace");
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
}

/// Where the API shows the daemon's status.
const STATUS_PATH: &str = "/formic/status";

fn name(index: u8) -> String {
    format!("ant-{}", index + 1)
}
