//! What passes on a wire: tcpdump writes it, a parser of a few lines reads it.

use crate::process::{Background, tied};
use crate::topology::{BRIDGE, Topology};
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Kernel buffer of tcpdump in KiB: holds some seconds of a stream while it writes.
const BUFFER_KIB: &str = "65536";

/// A running capture.
pub struct Capture {
    tcpdump: Background,
    path: PathBuf,
}

impl Capture {
    /// Everything that passes the bridge.
    pub fn underlay(topology: &Topology, name: &str) -> Capture {
        Capture::start(tied("tcpdump"), BRIDGE, topology.directory().join(name))
    }

    /// Everything that passes a device where `tcpdump` runs.
    pub fn start(mut tcpdump: Command, device: &str, path: PathBuf) -> Capture {
        tcpdump
            .args(["-i", device, "-n", "-s", "0", "-U", "--immediate-mode", "-B", BUFFER_KIB, "-Z", "root", "-w"])
            .arg(&path);
        tcpdump.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tcpdump = Background::start(tcpdump);
        let stderr = tcpdump.child().stderr.take().expect("piped");
        let mut lines = BufReader::new(stderr).lines();
        let listening = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        assert!(listening, "tcpdump does not capture on {device}");
        // Keeps reading, so that tcpdump's last words do not meet a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Capture { tcpdump, path }
    }

    /// Ends it; the file.
    pub fn stop(mut self) -> PathBuf {
        self.tcpdump.signal(Signal::SIGINT);
        self.tcpdump.end(Duration::from_secs(10));
        self.path.clone()
    }
}

/// One captured IPv4 packet, or something else (`protocol` 0).
#[derive(Debug, Clone)]
pub struct Packet {
    /// IP protocol number; 0 when it is no IPv4.
    pub protocol: u8,
    /// EtherType; 0x0800 on devices without a link layer.
    pub ether_type: u16,
    /// Sender.
    pub source: (Ipv4Addr, u16),
    /// Receiver.
    pub destination: (Ipv4Addr, u16),
    /// Fragment offset or more-fragments flag is set.
    pub fragment: bool,
    /// What follows the UDP or TCP header's first 8 bytes (UDP: the datagram's payload).
    pub payload: Vec<u8>,
}

impl Packet {
    /// Whether it is UDP from or to a port.
    pub fn is_udp(&self, port: u16) -> bool {
        self.protocol == 17 && (self.source.1 == port || self.destination.1 == port)
    }

    /// Whether it is TCP from or to a port.
    pub fn is_tcp(&self, port: u16) -> bool {
        self.protocol == 6 && (self.source.1 == port || self.destination.1 == port)
    }

    /// The SPI and sequence number of an ESP-in-UDP datagram.
    pub fn esp(&self) -> Option<(u32, u32)> {
        let word = |at: usize| Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?));
        let (spi, sequence) = (word(0)?, word(4)?);
        (self.is_udp(4500) && spi != 0 && self.payload.len() >= 36).then_some((spi, sequence))
    }
}

/// Reads a capture file (classic pcap, Ethernet or raw IP).
pub fn read(path: &Path) -> Vec<Packet> {
    let bytes = std::fs::read(path).expect("read the capture");
    let word = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    assert_eq!(word(0), Some(0xa1b2_c3d4), "a little-endian pcap");
    let link = word(20).expect("a link type");
    let mut packets = Vec::new();
    let mut at = 24;
    while let Some(len) = word(at + 8).map(|len| len as usize) {
        let Some(frame) = bytes.get(at + 16..at + 16 + len) else { break };
        packets.push(frame_packet(link, frame));
        at += 16 + len;
    }
    packets
}

fn frame_packet(link: u32, frame: &[u8]) -> Packet {
    const ETHERNET: u32 = 1;
    let (ether_type, ip) = match (link, frame) {
        (ETHERNET, [_, _, _, _, _, _, _, _, _, _, _, _, high, low, ip @ ..]) => (u16::from_be_bytes([*high, *low]), ip),
        (ETHERNET, _) => (0, frame),
        _ => (0x0800, frame),
    };
    ip_packet(ether_type, ip).unwrap_or(Packet {
        protocol: 0,
        ether_type,
        source: (Ipv4Addr::UNSPECIFIED, 0),
        destination: (Ipv4Addr::UNSPECIFIED, 0),
        fragment: false,
        payload: frame.to_vec(),
    })
}

fn ip_packet(ether_type: u16, ip: &[u8]) -> Option<Packet> {
    if ether_type != 0x0800 || ip.first()? >> 4 != 4 {
        return None;
    }
    let header = usize::from(ip.first()? & 15) * 4;
    let half = |bytes: &[u8], at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    let total = usize::from(half(ip, 2)?);
    let inner = ip.get(header..total.min(ip.len()))?;
    Some(Packet {
        protocol: *ip.get(9)?,
        ether_type,
        source: (address(12)?, half(inner, 0).unwrap_or(0)),
        destination: (address(16)?, half(inner, 2).unwrap_or(0)),
        fragment: half(ip, 6)? & 0x3fff != 0,
        payload: inner.get(8..).unwrap_or(&[]).to_vec(),
    })
}

/// Whether the bytes occur anywhere in the file.
pub fn contains(path: &Path, needle: &[u8]) -> bool {
    let bytes = std::fs::read(path).expect("read the capture");
    bytes.windows(needle.len()).any(|window| window == needle)
}
