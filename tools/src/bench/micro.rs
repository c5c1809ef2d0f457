//! What the data path's functions cost, each alone, in nanoseconds for a packet: one thread, buffers that stay in the
//! cache, no system call between.

use super::stats::median;
use anyhow::{Context, Error, Result, anyhow, ensure};
use formic::esp::{EspDrop, HEADROOM, OutboundIndex, SaDatabase, SaIdentity, SaKeys, TAILROOM, WorkerShare};
use formic::types::{BootId, ClusterId, Epoch, Fork, Key32, NetworkId, NodeId, PublicKey, Time, Transform};
use formic::wire::esp::{NextHeader, datagram_len};
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
    /// How it protects the packet.
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
    Ok(costs)
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
            seals.push(each(&mut buffers, |buffer| self.seal(buffer, inner_len))?);
            opens.push(each(&mut buffers, |buffer| self.open(buffer, inner_len))?);
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

/// Does something with each buffer; nanoseconds for one.
fn each(buffers: &mut [Vec<u8>], mut work: impl FnMut(&mut [u8]) -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    buffers.iter_mut().try_for_each(|buffer| work(buffer))?;
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
        assert_eq!(costs.len(), 2 * 2 * SIZES.len());
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
