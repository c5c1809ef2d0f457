//! Pings and streams between tasks. They run in a task's network namespace but in the test's hands, so that they can be
//! stopped and counted.

use crate::host::enter_network_of;
use crate::process::{self, Background, tied};
use crate::swarm::{SETTLE, Task};
use crate::wait::{so, wait_until};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Answers that a ping has to get after it was decided to stop it: then what came before is answered or lost.
const LAST_ANSWERS: u64 = 20;

/// A command in the task's network namespace.
pub fn in_network_of(task: &Task, program: &str) -> Command {
    in_network_of_pid(task.pid, program)
}

/// A command in the network namespace of a process.
pub fn in_network_of_pid(pid: u32, program: &str) -> Command {
    let mut command = tied("nsenter");
    command.args(["--target", &pid.to_string(), "--net", "--", program]);
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
    answered: Arc<Mutex<BTreeSet<u64>>>,
    reader: JoinHandle<()>,
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
        let stdout = ping.child().stdout.take().expect("piped");
        let answered = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = answered.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                noted.lock().expect("no panic here").extend(answered_sequence(&line));
            }
        });
        Flow { ping, answered, reader, name: format!("{} -> {}", from.address(), to.address()) }
    }

    /// Stops it once it has been seen to go on: how many requests up to the last answered one, and how many of them were
    /// lost. What was on its way at the end counts as neither.
    #[track_caller]
    pub fn stop(mut self) -> (u64, u64) {
        let last = |flow: &Flow| flow.answered.lock().expect("no panic here").last().copied().unwrap_or(0);
        let before = last(&self);
        wait_until(&format!("{}: answers at the end", self.name), SETTLE, || {
            let now = last(&self);
            so(now >= before + LAST_ANSWERS, || format!("the last to request {now}"))
        });
        self.ping.signal(Signal::SIGINT);
        self.ping.end(Duration::from_secs(10));
        self.reader.join().expect("the reader of ping");
        let answered = self.answered.lock().expect("no panic here");
        let last = answered.last().copied().unwrap_or(0);
        (last, last - answered.len() as u64)
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
        IperfServer::start_in(task.pid)
    }

    /// Starts it in the network namespace of a process.
    pub fn start_in(pid: u32) -> IperfServer {
        let mut command = in_network_of_pid(pid, "iperf3");
        command.args(["--server", "--forceflush"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = Background::start(command);
        let mut stdout = BufReader::new(server.child().stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("Server listening") {
            line.clear();
            let read = stdout.read_line(&mut line).unwrap_or(0);
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

/// Octets of one record of a [`Trickle`]: more than one packet.
const RECORD_BYTES: usize = 4096;
/// Between two of its records.
const RECORD_EVERY: Duration = Duration::from_millis(10);
/// Records that it carries at least: one that is ended at once shows nothing.
const FEWEST_RECORDS: usize = 20;
/// Without a record for so long the connection counts as dead.
const RECORD_DEADLINE: Duration = Duration::from_secs(30);

/// A TCP connection between two tasks that carries a record every 10 ms, and notes how late they come.
pub struct Trickle {
    over: Arc<AtomicBool>,
    sender: JoinHandle<std::io::Result<()>>,
    receiver: JoinHandle<std::io::Result<Duration>>,
    name: String,
}

impl Trickle {
    /// Connects.
    pub fn start(from: &Task, to: &Task) -> Trickle {
        let (from_pid, to_pid, address) = (from.pid, to.pid, to.address());
        let over = Arc::new(AtomicBool::new(false));
        let epoch = Instant::now();
        let (port_is, port) = std::sync::mpsc::channel();
        let receiver = std::thread::spawn(move || {
            enter_network_of(to_pid);
            let listener = TcpListener::bind((address, 0))?;
            let _ = port_is.send(listener.local_addr()?.port());
            receive_records(listener.accept()?.0, epoch)
        });
        let port = port.recv_timeout(SETTLE).expect("a port in the task");
        let told = over.clone();
        let sender = std::thread::spawn(move || {
            enter_network_of(from_pid);
            send_records(TcpStream::connect((address, port))?, epoch, &told)
        });
        Trickle { over, sender, receiver, name: format!("{} -> {address}", from.address()) }
    }

    /// Ends it; by how much the latest record was late. Panics when the connection broke.
    #[track_caller]
    pub fn stop(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        // A sender that could not connect leaves the receiver waiting.
        let sent = self.sender.join().expect("the sender");
        let latest = sent.and_then(|()| self.receiver.join().expect("the receiver"));
        latest.unwrap_or_else(|error| panic!("the stream {} broke: {error}", self.name))
    }
}

/// Each begins with the time at which it was sent.
fn send_records(mut stream: TcpStream, epoch: Instant, over: &AtomicBool) -> std::io::Result<()> {
    stream.set_write_timeout(Some(RECORD_DEADLINE))?;
    let (mut record, mut sent) = ([0; RECORD_BYTES], 0);
    while sent < FEWEST_RECORDS || !over.load(Ordering::Relaxed) {
        sent += 1;
        record[..16].copy_from_slice(&epoch.elapsed().as_micros().to_be_bytes());
        stream.write_all(&record)?;
        std::thread::sleep(RECORD_EVERY);
    }
    Ok(())
}

fn receive_records(mut stream: TcpStream, epoch: Instant) -> std::io::Result<Duration> {
    stream.set_read_timeout(Some(RECORD_DEADLINE))?;
    let (mut record, mut latest) = ([0; RECORD_BYTES], Duration::ZERO);
    loop {
        match stream.read_exact(&mut record) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(latest),
            Err(error) => return Err(error),
        }
        let micros = record[..16].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        latest = latest.max(epoch.elapsed().saturating_sub(Duration::from_micros(micros)));
    }
}

/// How late a record of a stream may be. The aim is 1 s; two busy cores may be slower. A lost packet shows as a lost ping.
const STALL: Duration = Duration::from_secs(5);

/// Traffic that nothing may disturb: a ping every 10 ms from each task to the next one, the last to the first, and a
/// stream from the first to the last.
pub struct Traffic {
    flows: Vec<Flow>,
    stream: Trickle,
}

impl Traffic {
    /// Starts it between tasks of different hosts, once they reach each other.
    #[track_caller]
    pub fn start(tasks: &[Task]) -> Traffic {
        let pairs = || tasks.iter().zip(tasks.iter().cycle().skip(1));
        for (from, to) in pairs() {
            wait_until("an answer", SETTLE, || pings(from, to.address(), 1));
        }
        let flows = pairs().map(|(from, to)| Flow::start(from, to)).collect();
        let (first, last) = (tasks.first().expect("tasks"), tasks.last().expect("tasks"));
        Traffic { flows, stream: Trickle::start(first, last) }
    }

    /// Ends it. Panics when a ping was lost or the stream stood still.
    #[track_caller]
    pub fn stop_undisturbed(self, during: &str) {
        let late = self.stream.stop();
        let (mut sent, mut lost) = (0, Vec::new());
        for flow in self.flows {
            let name = flow.name.clone();
            let (of_flow, missing) = flow.stop();
            sent += of_flow;
            lost.extend((missing > 0).then(|| format!("{name}: {missing} of {of_flow}")));
        }
        println!("{during}: {sent} pings, {} flows with losses, the stream at most {late:.1?} late", lost.len());
        assert!(lost.is_empty(), "{during}: pings are lost: {lost:?}");
        assert!(late < STALL, "{during}: the stream stood still for {late:?}");
    }
}
