//! What the data path's functions cost, each alone, in nanoseconds for a packet: one thread, buffers that stay in the
//! cache, no system call between.

use super::stats::median;
use anyhow::{Context, Error, Result, anyhow, ensure};
use formic::esp::{EspDrop, HEADROOM, OutboundIndex, SaDatabase, SaIdentity, SaKeys, TAILROOM, WorkerShare};
use formic::offload::{Candidate, Gso, GsoKind, OpenChecksum, Run, Split, VnetHeader};
use formic::types::{BootId, ClusterId, Epoch, Fork, Key32, NetworkId, NodeId, PublicKey, Time, Transform};
use formic::wire::esp::{NextHeader, datagram_len};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

/// Packets between two looks at the clock; as many as one batch of the data path has, and small enough for the cache.
const BATCH: usize = 64;

/// Octets of the inner packets: an acknowledgement, one in the middle, the longest over an underlay of 1500.
const SIZES: [usize; 3] = [52, 512, 1438];

/// What one function costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Which function.
    pub function: &'static str,
    /// How it protects the packet, or what the packet is.
    pub transform: &'static str,
    /// Octets of the inner packet.
    pub inner_len: usize,
    /// Nanoseconds a packet: the median of all batches.
    pub nanos: f64,
}

/// Measures all, each for `length`.
pub fn run(length: Duration) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for (transform, name) in [(Transform::Gcm, "AES-256-GCM"), (Transform::Gmac, "AES-256-GMAC")] {
        for inner_len in SIZES {
            let [seal, open] = Pair::new(transform)?.measure(inner_len, length)?;
            let cost = |function, nanos| Cost { function, transform: name, inner_len, nanos };
            costs.extend([cost("seal", seal), cost("open", open)]);
        }
    }
    costs.extend(super_packets(length)?);
    Ok(costs)
}

/// Nanoseconds of cutting one packet out of a super-packet of TCP, and of looking at one and joining it to a run.
fn super_packets(length: Duration) -> Result<[Cost; 2]> {
    let (header, packet) = super_packet();
    let mut packets = vec![vec![0; TCP_HEADERS.len() + SEGMENT]; SEGMENTS];
    let mut run = Run::empty();
    let (mut splits, mut joins) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < length || splits.is_empty() {
        splits.push(each(&mut packets, |all| split(&header, &packet, all))?);
        joins.push(each(&mut packets, |all| join(&mut run, all))?);
    }
    let (_, joined) = run.header().context("nothing was joined")?;
    ensure!(joined.as_slice() == &packet[..TCP_HEADERS.len()], "what was cut and joined is something else");
    let cost = |function, nanos| Cost { function, transform: "TCP", inner_len: TCP_HEADERS.len() + SEGMENT, nanos };
    Ok([cost("split", median(&splits).context("no batch")?), cost("coalesce", median(&joins).context("no batch")?)])
}

fn split(header: &VnetHeader, packet: &[u8], out: &mut [Vec<u8>]) -> Result<()> {
    let split = Split::plan(header, packet).map_err(|_| anyhow!("it cannot be split"))?;
    ensure!(split.count() == out.len(), "{} packets", split.count());
    let mut parts = out.iter_mut().enumerate();
    parts.try_for_each(|(index, out)| split.write(index, packet, out).context("a packet cannot be written"))
}

fn join(run: &mut Run<usize>, packets: &mut [Vec<u8>]) -> Result<()> {
    run.clear();
    for (index, packet) in packets.iter().enumerate() {
        let shape = Candidate::parse(packet).context("no packet to join")?;
        let joined =
            if index == 0 { run.begin(packet, shape, index).is_some() } else { run.join(packet, shape, index) };
        ensure!(joined, "packet {index} does not join");
    }
    Ok(())
}

/// Packets of the super-packet, and octets of payload in each: as long as the longest of [`SIZES`] with the headers.
const SEGMENTS: usize = 45;
const SEGMENT: usize = 1438 - TCP_HEADERS.len();

/// IPv4 (lengths and checksum 0) and TCP with ACK and the time stamp option, as most packets have.
const TCP_HEADERS: [u8; 52] = [
    0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 3, // IPv4
    0x30, 0x39, 0x14, 0x51, 0, 0, 1, 0, 0, 0, 2, 0, 0x80, 0x10, 1, 0, 0, 0, 0, 0, // TCP
    1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, // time stamp
];

/// A super-packet as the kernel gives it: the transport checksum is the sum of the pseudo-header.
fn super_packet() -> (VnetHeader, Vec<u8>) {
    let mut packet = TCP_HEADERS.to_vec();
    packet.resize(TCP_HEADERS.len() + SEGMENTS * SEGMENT, 0x5a);
    let total_len = packet.len() as u16;
    packet[2..4].copy_from_slice(&total_len.to_be_bytes());
    let header_checksum = !sum(&packet[..20]);
    packet[10..12].copy_from_slice(&header_checksum.to_be_bytes());
    let pseudo = sum(&[&packet[12..20], &[0, 6], &(total_len - 20).to_be_bytes()].concat());
    packet[36..38].copy_from_slice(&pseudo.to_be_bytes());
    let gso = Gso { kind: GsoKind::TcpV4, size: NonZeroU16::MIN.saturating_add(SEGMENT as u16 - 1), ecn: false };
    let checksum = OpenChecksum { start: 20, offset: 16 };
    (VnetHeader { checksum: Some(checksum), gso: Some(gso), header_len: TCP_HEADERS.len() as u16 }, packet)
}

/// The one's complement sum of 16-bit words (RFC 1071).
fn sum(octets: &[u8]) -> u16 {
    let words = octets.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum >> 16) + (sum & 0xffff);
    (folded + (folded >> 16)) as u16
}

/// The two ends of one SA.
struct Pair {
    sender: SaDatabase,
    outbound: OutboundIndex,
    receiver: SaDatabase,
}

impl Pair {
    fn new(transform: Transform) -> Result<Pair> {
        let identity = identity(transform);
        let keys = || SaKeys::external(&identity, Key32::new([0x42; 32]), [1, 2, 3, 4]);
        let mut sender = SaDatabase::new(identity.src_boot, WorkerShare::WHOLE);
        let mut receiver = SaDatabase::new(identity.dst_boot, WorkerShare::WHOLE);
        let outbound = sender.install_outbound(&identity, &keys())?;
        receiver.install_inbound(&identity, &keys())?;
        Ok(Pair { sender, outbound, receiver })
    }

    /// Nanoseconds of sealing and of opening one packet.
    fn measure(&mut self, inner_len: usize, length: Duration) -> Result<[f64; 2]> {
        let mut buffers: Vec<Vec<u8>> = (0..BATCH).map(|_| vec![0x5a; HEADROOM + inner_len + TAILROOM]).collect();
        let (mut seals, mut opens) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while start.elapsed() < length || seals.is_empty() {
            seals.push(each(&mut buffers, |all| all.iter_mut().try_for_each(|buffer| self.seal(buffer, inner_len)))?);
            opens.push(each(&mut buffers, |all| all.iter_mut().try_for_each(|buffer| self.open(buffer, inner_len)))?);
        }
        Ok([median(&seals).context("no batch")?, median(&opens).context("no batch")?])
    }

    fn seal(&mut self, buffer: &mut [u8], inner_len: usize) -> Result<()> {
        let sealed = self.sender.seal(self.outbound, buffer, inner_len, NextHeader::Ipv4).map_err(dropped)?;
        ensure!(sealed.datagram_len == datagram_len(inner_len), "a datagram of {} octets", sealed.datagram_len);
        Ok(())
    }

    fn open(&mut self, buffer: &mut [u8], inner_len: usize) -> Result<()> {
        let datagram = buffer.get_mut(..datagram_len(inner_len)).context("a short buffer")?;
        let received = self.receiver.open(datagram, Time::default()).map_err(dropped)?.context("a keep-alive")?;
        ensure!(received.opened.payload.len() == inner_len, "{} octets inside", received.opened.payload.len());
        Ok(())
    }
}

/// Does something with all buffers; nanoseconds for one.
fn each(buffers: &mut [Vec<u8>], work: impl FnOnce(&mut [Vec<u8>]) -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work(buffers)?;
    Ok(start.elapsed().as_nanos() as f64 / buffers.len() as f64)
}

fn dropped(reason: EspDrop) -> Error {
    anyhow!("dropped: {}", reason.name())
}

fn identity(transform: Transform) -> SaIdentity {
    SaIdentity {
        transform,
        cluster: ClusterId::from_random([1; 17]),
        fork: Fork(1),
        network: NetworkId::from_random([2; 17]),
        src: NodeId::from_random([3; 17]),
        dst: NodeId::from_random([4; 17]),
        src_boot: BootId([5; 8]),
        dst_boot: BootId([6; 8]),
        src_public: PublicKey([7; 32]),
        dst_public: PublicKey([8; 32]),
        epoch: Epoch(1),
        queue: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_function_and_size_is_measured() {
        let costs = run(Duration::ZERO).unwrap();
        assert_eq!(costs.len(), 2 * 2 * SIZES.len() + 2);
        assert!(costs.iter().all(|cost| cost.nanos > 0.0), "{costs:?}");
    }

    #[test]
    fn what_was_not_sealed_does_not_open() {
        let mut pair = Pair::new(Transform::Gcm).unwrap();
        let mut buffer = vec![0; HEADROOM + 100 + TAILROOM];
        assert!(pair.open(&mut buffer, 100).is_err());
        pair.seal(&mut buffer, 100).unwrap();
        pair.open(&mut buffer, 100).unwrap();
        assert!(pair.open(&mut buffer, 100).is_err(), "opened twice");
    }
}
