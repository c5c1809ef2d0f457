//! Pings and streams between tasks. They run in a task's network namespace but in the test's hands, so that they can be
//! stopped and counted.

use crate::process::{self, Background, tied};
use crate::swarm::Task;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::io::Read;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// Echo requests that may be unanswered when a ping is stopped: 300 ms of them, for a machine that is loaded.
const IN_FLIGHT: u64 = 30;

/// A command in the task's network namespace.
pub fn in_network_of(task: &Task, program: &str) -> Command {
    let mut command = tied("nsenter");
    command.args(["--target", &task.pid.to_string(), "--net", "--", program]);
    command
}

/// Whether `count` echo requests were all answered.
pub fn pings(from: &Task, to: IpAddr, count: u32) -> Result<(), String> {
    let mut command = in_network_of(from, "ping");
    command.args(["-n", "-q", "-c", &count.to_string(), "-i", "0.05", "-W", "2", &to.to_string()]);
    let finished = process::run(command);
    if finished.code == 0 && count_lost(&finished.stdout) == Some((u64::from(count), 0)) {
        return Ok(());
    }
    Err(finished.describe())
}

/// A ping that goes on until it is told to stop.
pub struct Flow {
    ping: Background,
    output: JoinHandle<String>,
    name: String,
}

impl Flow {
    /// Starts it: one echo request every 10 ms.
    pub fn start(from: &Task, to: &Task) -> Flow {
        let mut command = in_network_of(from, "ping");
        command.args(["-n", "-i", "0.01", &to.address().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut ping = Background::start(command);
        // Read all the time: a ping that waits for its reader measures nothing.
        let mut stdout = ping.child().stdout.take().expect("piped");
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_to_string(&mut text);
            text
        });
        Flow { ping, output, name: format!("{} -> {}", from.address(), to.address()) }
    }

    /// Stops it: how many were sent and how many of them lost. What was on its way at the end counts as neither, unless
    /// it is more than `IN_FLIGHT`.
    pub fn stop(mut self) -> (u64, u64) {
        self.ping.signal(Signal::SIGINT);
        self.ping.end(Duration::from_secs(10));
        let text = self.output.join().unwrap_or_default();
        let (sent, _) = count_lost(&text).unwrap_or_else(|| panic!("{}: no summary of ping: {text}", self.name));
        let answered: BTreeSet<u64> = text.lines().filter_map(answered_sequence).collect();
        let last = answered.last().copied().unwrap_or(0);
        let gaps = last - answered.len() as u64;
        let tail = sent.saturating_sub(last);
        (last, if tail > IN_FLIGHT { gaps + tail } else { gaps })
    }
}

/// The sequence number of an answer (`64 bytes from 10.0.1.3: icmp_seq=7 ttl=64 time=0.2 ms`); they count from 1.
fn answered_sequence(line: &str) -> Option<u64> {
    let after = line.split_once("bytes from")?.1.split_once("icmp_seq=")?.1;
    after.split(' ').next()?.parse().ok()
}

/// Sent and lost, from ping's summary.
fn count_lost(summary: &str) -> Option<(u64, u64)> {
    let line = summary.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split(", ").filter_map(|part| part.split(' ').next()?.parse::<u64>().ok());
    let (sent, received) = (numbers.next()?, numbers.next()?);
    Some((sent, sent.saturating_sub(received)))
}

/// An `iperf3` server in a task, ready for connections.
pub struct IperfServer {
    _server: Background,
}

impl IperfServer {
    /// Starts it.
    pub fn start(task: &Task) -> IperfServer {
        let mut command = in_network_of(task, "iperf3");
        command.args(["--server", "--forceflush"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = Background::start(command);
        let mut stdout = std::io::BufReader::new(server.child().stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("Server listening") {
            line.clear();
            let read = std::io::BufRead::read_line(&mut stdout, &mut line).unwrap_or(0);
            assert!(read > 0, "iperf3 --server ended");
        }
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        IperfServer { _server: server }
    }
}

/// An `iperf3` client that is still sending.
pub struct Stream {
    client: Background,
}

impl Stream {
    /// Starts a TCP stream of at most `seconds`.
    pub fn start(from: &Task, to: &Task, seconds: u32) -> Stream {
        let mut command = in_network_of(from, "iperf3");
        command.args(["--client", &to.address().to_string(), "--time", &seconds.to_string(), "--json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Stream { client: Background::start(command) }
    }

    /// Ends it early; how many bytes it sent.
    pub fn stop(self) -> u64 {
        self.client.signal(Signal::SIGINT);
        self.finish(Duration::from_secs(15))
    }

    /// Waits for its end; how many bytes it sent.
    pub fn finish(mut self, deadline: Duration) -> u64 {
        let mut text = String::new();
        let mut stdout = self.client.child().stdout.take().expect("piped");
        let _ = stdout.read_to_string(&mut text);
        self.client.end(deadline);
        let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        report["end"]["sum_sent"]["bytes"].as_u64().unwrap_or_else(|| panic!("no report of iperf3: {text}"))
    }
}
