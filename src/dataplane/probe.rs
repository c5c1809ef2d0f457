//! The test of trains at the start: sealed datagrams through UDP_SEGMENT and UDP_GRO over loopback must come back as
//! they were. A kernel that refuses them, or damages them, is found before a container depends on it. What cannot be
//! told here (no loopback interface) is left to the fall-backs at run time.

use super::offloads::{Offload, Offloads};
use crate::esp::{HEADROOM, SaDatabase, SaIdentity, SaKeys, TAILROOM, WorkerShare};
use crate::sys::udp::{self, BATCH_DATAGRAMS, Message, ReceivedDatagram};
use crate::types::{BootId, ClusterId, Epoch, Fork, Key32, NetworkId, NodeId, PublicKey, Time, Transform};
use crate::wire::esp::NextHeader;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

/// Octets of a packet of the probe, and of the last one.
const PACKET_BYTES: usize = 1000;
const LAST_BYTES: usize = 300;
/// Packets in the probe's train.
const PACKETS: usize = 8;

/// The offloads that are tested here.
pub(super) const TESTED: [Offload; 2] = [Offload::UdpGso, Offload::UdpGro];

/// Why an offload is not used although it is wanted.
pub(super) type Failures = Vec<(Offload, String)>;

/// What of `wanted` does not work on this machine.
pub(super) fn failures(wanted: Offloads) -> Failures {
    let failed = TESTED.into_iter().filter(|offload| wanted.has(*offload)).filter_map(|offload| {
        let together = offload == Offload::UdpGro;
        // All equal, and with a shorter one at the end: kernels were wrong about either.
        let reason = [PACKET_BYTES, LAST_BYTES].into_iter().find_map(|last| echo(last, together).err()?)?;
        Some((offload, reason))
    });
    failed.collect()
}

/// Sends one train and compares what arrives. `Err(None)` when nothing can be told.
fn echo(last: usize, together: bool) -> Result<(), Option<String>> {
    let unknown = |_: io::Error| None;
    let sender = loopback_socket().map_err(unknown)?;
    let receiver = loopback_socket().map_err(unknown)?;
    if let Err(error) = udp::set_receive_trains(receiver.as_fd(), together) {
        return Err(Some(format!("the kernel refuses it: {error}")));
    }
    let to = receiver.local_addr().map_err(unknown)?;
    let (mut sas, identity) = throwaway_sa().ok_or(None)?;
    let plain: Vec<Vec<u8>> =
        (0..PACKETS).map(|n| vec![n as u8 + 1; if n + 1 == PACKETS { last } else { PACKET_BYTES }]).collect();
    let train = seal(&mut sas, &identity, &plain).ok_or(None)?;
    let segment = crate::wire::esp::datagram_len(PACKET_BYTES);
    let message = Message { octets: &train, segment, to: &to };
    match udp::send_batch(sender.as_fd(), std::iter::once(message)) {
        Ok(_) => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {
            return Err(Some(format!("the kernel refuses it: {error}")));
        }
        Err(_) => return Err(None),
    }
    let arrived = receive(&receiver, &mut sas).map_err(unknown)?;
    if arrived == plain { Ok(()) } else { Err(Some("the kernel damages datagrams".into())) }
}

fn loopback_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
    Ok(socket)
}

/// Both directions of an SA that nobody else has.
fn throwaway_sa() -> Option<(SaDatabase, SaIdentity)> {
    let boot = BootId(crate::sys::random::bytes());
    let node = NodeId::from_random(crate::sys::random::bytes());
    let identity = SaIdentity {
        transform: Transform::Gcm,
        cluster: ClusterId::from_random(crate::sys::random::bytes()),
        fork: Fork(0),
        network: NetworkId::from_random(crate::sys::random::bytes()),
        src: node,
        dst: node,
        src_boot: boot,
        dst_boot: boot,
        src_public: PublicKey([0; 32]),
        dst_public: PublicKey([0; 32]),
        epoch: Epoch(0),
        queue: 0,
    };
    let keys = SaKeys::external(&identity, Key32::new(crate::sys::random::bytes()), crate::sys::random::bytes());
    let mut sas = SaDatabase::new(boot, WorkerShare::WHOLE);
    sas.install_outbound(&identity, &keys).ok()?;
    sas.install_inbound(&identity, &keys).ok()?;
    Some((sas, identity))
}

fn seal(sas: &mut SaDatabase, identity: &SaIdentity, plain: &[Vec<u8>]) -> Option<Vec<u8>> {
    let sa = sas.find_outbound(identity)?;
    let mut train = Vec::new();
    for packet in plain {
        let mut slot = vec![0; HEADROOM + packet.len() + TAILROOM];
        slot.get_mut(HEADROOM..HEADROOM + packet.len())?.copy_from_slice(packet);
        let sealed = sas.seal(sa, &mut slot, packet.len(), NextHeader::Ipv4).ok()?;
        train.extend(slot.get(..sealed.datagram_len)?);
    }
    Some(train)
}

/// What came, opened; loopback delivers before the sender's call returns. What does not open is no packet.
fn receive(socket: &Socket, sas: &mut SaDatabase) -> io::Result<Vec<Vec<u8>>> {
    let mut buffers = vec![vec![0; 1 << 16]; PACKETS];
    let mut received = [ReceivedDatagram::default(); BATCH_DATAGRAMS];
    let slices = buffers.iter_mut().map(Vec::as_mut_slice);
    let count = udp::receive_batch(socket.as_fd(), slices, &mut received)?;
    let mut packets = Vec::new();
    for (buffer, message) in buffers.iter_mut().zip(&received).take(count) {
        let segment = if message.segment == 0 { message.length } else { message.segment };
        let octets = buffer.get_mut(..message.length).unwrap_or_default();
        for datagram in octets.chunks_mut(segment.max(1)) {
            if let Ok(Some(opened)) = sas.open(datagram, Time::default()) {
                packets.push(datagram.get(opened.opened.payload).unwrap_or_default().to_vec());
            }
        }
    }
    Ok(packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_passes() {
        assert_eq!(failures(Offloads::ALL), []);
        assert_eq!(failures(Offloads::NONE), []);
    }

    #[test]
    fn a_damaged_or_cut_train_is_noticed() {
        let (mut sas, identity) = throwaway_sa().unwrap();
        let plain = vec![vec![1; 100], vec![2; 100]];
        let train = seal(&mut sas, &identity, &plain).unwrap();
        for damage in 0..train.len() {
            let receiver = loopback_socket().unwrap();
            let mut octets = train.clone();
            octets[damage] ^= 1;
            let sender = loopback_socket().unwrap();
            sender.send_to(&octets, &receiver.local_addr().unwrap()).unwrap();
            // Sent whole, not as a train: it is one datagram, and none of the two.
            assert_ne!(receive(&receiver, &mut sas).unwrap(), plain);
        }
    }
}
