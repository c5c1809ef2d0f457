//! Devices that refuse super-packets: their packets are delivered one by one, in order, and it is remembered.

use crate::dataplane::delivery::{Arrivals, Place};
use crate::dataplane::events::EventQueue;
use crate::dataplane::outbound::{Outbox, Transmit};
use crate::dataplane::tables::{Abilities, DeviceWrite, Tables};
use crate::dataplane::tests::harness::{cut, endpoint_key, network, packet, seqpacket_pair};
use crate::dataplane::{DataCommand, Offload, Offloads};
use crate::esp::{CipherLibrary, CipherReport, SaDatabase, WorkerShare};
use crate::offload::testing::{Sent, Traffic, normalised};
use crate::offload::{GsoKind, VnetHeader};
use crate::overlay::{DropReason, LocalIndex};
use crate::sys::poll::PollSet;
use crate::types::{BootId, Transform};
use crate::wire::ip::IpView;
use nix::errno::Errno;
use nix::sys::uio::writev;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::cell::Cell;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;

const NETWORK: u8 = 40;

/// The tables of a worker with two devices, and the containers' ends of these.
struct Bench {
    tables: Tables,
    arrivals: Arrivals,
    outbox: Outbox,
    _poll: PollSet,
    containers: [UnixDatagram; 2],
}

const ADDRESSES: [&str; 2] = ["10.0.0.2", "10.0.0.3"];

fn address(index: usize) -> IpAddr {
    ADDRESSES[index].parse().unwrap()
}

impl Bench {
    fn new(write: DeviceWrite) -> Bench {
        let (events, _) = smol::channel::bounded(16);
        let sas = SaDatabase::new(BootId([1; 8]), WorkerShare::WHOLE);
        let cipher = CipherReport { library: CipherLibrary::AwsLc, bytes_per_sec: 0.0, fell_back: false };
        let abilities = Abilities { wanted: Offloads::ALL, failures: Vec::new(), cipher };
        let mut tables = Tables::new(sas, EventQueue::new(events), abilities);
        let poll = PollSet::new().unwrap();
        let network = network(NETWORK);
        tables.apply(&DataCommand::SetNetwork { network, transform: Transform::Gcm, subnet: None }, &poll, 1);
        let containers = [0, 1].map(|index| {
            let (tun, socket) = seqpacket_pair();
            let (address, endpoint) = (address(index), endpoint_key(NETWORK, address(index)));
            let add = DataCommand::AddEndpoint { endpoint, address, queues: vec![tun], vnet: true };
            tables.apply(&add, &poll, 1);
            socket
        });
        tables.endpoints.iter_mut().for_each(|(_, endpoint)| endpoint.write = write);
        Bench { tables, arrivals: Arrivals::new(), outbox: Outbox::new(false), _poll: poll, containers }
    }

    /// Packets that came from another host for the second container.
    fn arrive(&mut self, packets: &[Vec<u8>]) {
        for (buffer, packet) in packets.iter().enumerate() {
            self.arrivals.buffers[buffer][..packet.len()].copy_from_slice(packet);
            let place = Place { buffer, start: 0, end: packet.len() };
            let view = IpView::parse(packet).unwrap();
            self.tables.arrive(&mut self.arrivals, LocalIndex(1), &view, place).unwrap();
        }
        self.tables.deliver_joined(&mut self.arrivals);
    }

    /// The frames that the second container was given.
    fn frames(&self) -> Vec<Vec<u8>> {
        let socket = &self.containers[1];
        socket.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 70_000];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())).collect()
    }

    fn takes(&self, offload: Offload) -> bool {
        self.tables.endpoints[1].takes(offload)
    }
}

thread_local! {
    /// Super-packets that were refused.
    static REFUSED: Cell<u32> = const { Cell::new(0) };
}

/// A kernel that takes no TCP super-packets.
const NO_TCP: DeviceWrite = |device, pieces| {
    let header = VnetHeader::parse(pieces[0].first_chunk().unwrap()).unwrap();
    if header.gso.is_some_and(|gso| gso.kind != GsoKind::Udp) {
        REFUSED.set(REFUSED.get() + 1);
        return Err(Errno::EINVAL);
    }
    writev(device, pieces)
};

/// A super-packet of a container, and the packets that it stands for.
fn sent(udp: bool, random: &mut StdRng) -> Sent {
    loop {
        let mut traffic = Traffic::new(address(0), address(1), random);
        let sent = (0..20).map(|_| traffic.next(random)).find(|sent| (4..40).contains(&sent.packets.len()));
        match sent {
            Some(sent) if (sent.packets[0][9] == 17) == udp => return sent,
            _ => {}
        }
    }
}

fn without_headers(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    frames.iter().flat_map(|frame| cut(frame)).collect()
}

#[test]
fn a_refused_run_is_delivered_packet_by_packet_and_remembered() {
    let mut random = StdRng::seed_from_u64(1);
    let mut bench = Bench::new(NO_TCP);
    REFUSED.set(0);
    for _ in 0..3 {
        let packets = sent(false, &mut random).packets;
        bench.arrive(&packets);
        let frames = bench.frames();
        assert!(packets.iter().map(|packet| [&VnetHeader::FINISHED.emit(), &packet[..]].concat()).eq(frames));
        assert_eq!((REFUSED.get(), bench.takes(Offload::JoinTcp)), (1, false), "asked once");
    }
    let packets = sent(true, &mut random).packets;
    bench.arrive(&packets);
    let frames = bench.frames();
    assert!(frames.len() < packets.len() && bench.takes(Offload::JoinUdp), "UDP is joined as before");
    assert_eq!(without_headers(frames), packets.into_iter().map(normalised).collect::<Vec<_>>());
    let shown = bench.tables.stats().offloads.into_iter().find(|it| it.offload == Offload::JoinTcp).unwrap();
    assert_eq!((shown.describe().as_str(), bench.tables.drops.total()), ("on, refused by the kernel for 1 devices", 0));
}

#[test]
fn a_refused_super_packet_of_a_neighbour_is_cut() {
    let mut random = StdRng::seed_from_u64(2);
    let mut bench = Bench::new(NO_TCP);
    REFUSED.set(0);
    for _ in 0..3 {
        let Sent { frame, packets } = sent(false, &mut random);
        bench.containers[0].send(&frame).unwrap();
        assert!(matches!(bench.tables.transmit_one(LocalIndex(0), &mut bench.outbox), Transmit::Done(_)));
        let frames = bench.frames();
        assert!(packets.iter().map(|packet| [&VnetHeader::FINISHED.emit(), &packet[..]].concat()).eq(frames));
        assert_eq!((REFUSED.get(), bench.takes(Offload::JoinTcp)), (1, false), "asked once");
    }
    assert_eq!(bench.tables.drops.total(), 0);
}

#[test]
fn a_device_that_refuses_everything_loses_its_packets_and_says_nothing_about_offloads() {
    for errno in [Errno::EINVAL, Errno::EIO] {
        let write: DeviceWrite = if errno == Errno::EIO { |_, _| Err(Errno::EIO) } else { |_, _| Err(Errno::EINVAL) };
        let mut bench = Bench::new(write);
        let packets = sent(false, &mut StdRng::seed_from_u64(3)).packets;
        bench.arrive(&packets);
        assert_eq!(bench.tables.drops.packets(DropReason::DeviceWriteFailed), packets.len() as u64, "{errno}");
        assert!(bench.takes(Offload::JoinTcp), "{errno}");
        bench.arrive(&[packet(address(0), address(1), b"alone"); 1]);
        assert_eq!(bench.tables.drops.total(), packets.len() as u64 + 1);
    }
}
