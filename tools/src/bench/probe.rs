//! Datagrams of our own between two network namespaces: small echoes that are timed, and floods that are counted. Plain
//! blocking calls, one for each datagram: no segmentation offload of the sender hides what a packet costs.

use super::lanes::Lane;
use anyhow::{Context, Result, anyhow};
use formic::sys::udp;
use netns_tests::host::enter_network_of;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Where echoes and floods go.
const PORT: u16 = 5999;

/// Octets of a datagram of a flood.
pub const FLOOD_LEN: usize = 1400;

/// What may wait for the receiving end, so that a burst is not lost to it: the lane is measured, not this program.
const RECEIVER_BYTES: i32 = 7 << 20;

/// Between two echoes.
const INTERVAL: Duration = Duration::from_millis(1);

/// After that an echo is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// How soon the receiving end sees that it is over, and what is still on its way after a flood.
const SETTLE: Duration = Duration::from_millis(50);

/// What came of the echoes.
#[derive(Debug, Default)]
pub struct Echoes {
    /// Round trips, in microseconds.
    pub micros: Vec<f64>,
    /// How many were not answered in time.
    pub lost: u64,
}

/// What came of a flood.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// Datagrams that were sent in a second.
    pub sent_per_sec: f64,
    /// Datagrams that arrived in a second.
    pub received_per_sec: f64,
}

/// A small datagram to the lane's other end and back, each millisecond, as long as `go_on` says so.
pub fn echoes(lane: &Lane, go_on: impl Fn() -> bool + Sync) -> Result<Echoes> {
    between(lane, answer, |socket| {
        let mut found = Echoes::default();
        let mut next = Instant::now();
        for number in 0u64.. {
            if !go_on() {
                break;
            }
            match echo(&socket, number)? {
                Some(time) => found.micros.push(time.as_secs_f64() * 1e6),
                None => found.lost += 1,
            }
            next = (next + INTERVAL).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(found)
    })
    .map(|(found, _)| found)
}

fn echo(socket: &UdpSocket, number: u64) -> io::Result<Option<Duration>> {
    let sent = Instant::now();
    tolerate(socket.send(&number.to_be_bytes()))?;
    while sent.elapsed() < PATIENCE {
        let mut buffer = [0; 16];
        let received = tolerate(socket.recv(&mut buffer))?;
        // An answer that comes late belongs to an echo that counts as lost.
        if received == Some(8) && buffer[..8] == number.to_be_bytes() {
            return Ok(Some(sent.elapsed()));
        }
    }
    Ok(None)
}

fn answer(socket: &UdpSocket, over: &AtomicBool) -> io::Result<u64> {
    let mut buffer = [0; 2048];
    let mut answered = 0;
    while !over.load(Ordering::Relaxed) {
        if let Some((len, from)) = tolerate(socket.recv_from(&mut buffer))? {
            tolerate(socket.send_to(&buffer[..len], from))?;
            answered += 1;
        }
    }
    Ok(answered)
}

/// Datagrams of [`FLOOD_LEN`] octets, one a call, as fast as the sender can.
pub fn flood(lane: &Lane, length: Duration) -> Result<Flood> {
    let sent = AtomicU64::new(0);
    let (elapsed, received) = between(lane, count, |socket| {
        let datagram = [0x5a; FLOOD_LEN];
        let start = Instant::now();
        while start.elapsed() < length {
            if tolerate(socket.send(&datagram))?.is_some() {
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
        let elapsed = start.elapsed();
        std::thread::sleep(SETTLE);
        Ok(elapsed)
    })?;
    let sent = sent.into_inner();
    anyhow::ensure!(received <= sent, "{received} datagrams arrived of {sent}");
    let per_sec = |count: u64| count as f64 / elapsed.as_secs_f64();
    Ok(Flood { sent_per_sec: per_sec(sent), received_per_sec: per_sec(received) })
}

fn count(socket: &UdpSocket, over: &AtomicBool) -> io::Result<u64> {
    let mut buffer = [0; 2048];
    let mut received = 0;
    while !over.load(Ordering::Relaxed) {
        if tolerate(socket.recv(&mut buffer))? == Some(FLOOD_LEN) {
            received += 1;
        }
    }
    Ok(received)
}

/// `None` for what may happen to a datagram: a time-out, a full queue, a port that nobody listens on yet.
fn tolerate<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted | ErrorKind::ConnectionRefused => {
                Ok(None)
            }
            _ if error.raw_os_error() == Some(ENOBUFS) => Ok(None),
            _ => Err(error),
        },
    }
}

/// No room in a queue of the kernel (Linux, all machines that Formic is built for).
const ENOBUFS: i32 = 105;

/// Runs the receiving end in the namespace of the lane's receiver, and the sending end in that of its sender.
fn between<T: Send>(
    lane: &Lane,
    receive: impl Fn(&UdpSocket, &AtomicBool) -> io::Result<u64> + Send,
    send: impl FnOnce(UdpSocket) -> io::Result<T> + Send,
) -> Result<(T, u64)> {
    let over = AtomicBool::new(false);
    let (ready, bound) = sync_channel(1);
    let over = &over;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || receiver(lane.to, ready, over, receive));
        let sender = scope.spawn(move || {
            let result = bound.recv().map_err(|_| anyhow!("nobody receives")).and_then(|()| sender(lane, send));
            over.store(true, Ordering::Relaxed);
            result
        });
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"))?.context("receive datagrams")?;
        Ok((sent.context("send datagrams")?, received))
    })
}

fn sender<T>(lane: &Lane, send: impl FnOnce(UdpSocket) -> io::Result<T>) -> Result<T> {
    enter_network_of(lane.from);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddr::new(lane.address, PORT))?;
    socket.set_read_timeout(Some(SETTLE))?;
    Ok(send(socket)?)
}

fn receiver(
    pid: u32,
    ready: SyncSender<()>,
    over: &AtomicBool,
    receive: impl Fn(&UdpSocket, &AtomicBool) -> io::Result<u64>,
) -> Result<u64> {
    enter_network_of(pid);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    udp::set_buffers(socket.as_fd(), RECEIVER_BYTES)?;
    socket.set_read_timeout(Some(SETTLE))?;
    let _ = ready.send(());
    Ok(receive(&socket, over)?)
}
