//! What one container may take before the next has its turn.

use super::harness::{NETWORK, endpoint_key, network, packet, seqpacket_pair};
use crate::dataplane::tables::Abilities;
use crate::dataplane::worker::Worker;
use crate::dataplane::{Clock, DataCommand, DataplaneConfig, Offloads};
use crate::esp::{CipherLibrary, CipherReport, WorkerShare};
use crate::overlay::LocalIndex;
use crate::sys::poll::PollSet;
use crate::types::{BootId, Queues, Transform};
use socket2::{Domain, SockAddr, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;

fn worker() -> Worker {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    let bind = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&SockAddr::from(bind)).unwrap();
    let offloads = Offloads::NONE;
    let config = DataplaneConfig { bind, boot: BootId([1; 8]), clock: Clock::start(), workers: Queues::ONE, offloads };
    let cipher = CipherReport { library: CipherLibrary::AwsLc, bytes_per_sec: 0.0, fell_back: false };
    let abilities = Abilities { wanted: offloads, failures: Vec::new(), cipher };
    let ((_, inbox), (events, _)) = (smol::channel::bounded(1), smol::channel::bounded(1));
    Worker::new(WorkerShare::WHOLE, PollSet::new().unwrap(), vec![socket], (config, abilities), inbox, events).unwrap()
}

/// Packets of `octets` that pass before the one packet of a container whose neighbour floods.
fn packets_before_mine(octets: usize) -> usize {
    let mut worker = worker();
    let poll = PollSet::new().unwrap();
    let network = network(NETWORK);
    worker.tables.apply(&DataCommand::SetNetwork { network, transform: Transform::Gcm, subnet: None }, &poll, 0);
    let addresses: [IpAddr; 3] = ["10.0.0.2", "10.0.0.3", "10.0.0.4"].map(|address| address.parse().unwrap());
    let [flooding, mine, target]: [UnixDatagram; 3] = addresses.map(|address| {
        let (tun, socket) = seqpacket_pair();
        socket.set_nonblocking(true).unwrap();
        let endpoint = endpoint_key(NETWORK, address);
        let add = DataCommand::AddEndpoint { endpoint, address, queues: vec![tun], vnet: false };
        worker.tables.apply(&add, &poll, 0);
        socket
    });
    let flood = packet(addresses[0], addresses[2], &vec![0; octets - 28]);
    let sent = (0..100).take_while(|_| flooding.send(&flood).is_ok()).count();
    assert!(sent > 16 || octets > 1000 && sent > 9, "{sent} packets of {octets} octets fit");
    mine.send(&packet(addresses[1], addresses[2], b"mine")).unwrap();
    for index in [0, 1] {
        worker.tables.endpoints[index].queued = true;
        worker.ready.push_back(LocalIndex(index as u32));
    }
    worker.transmit().unwrap();
    let mut buffer = [0; 10_000];
    std::iter::from_fn(|| target.recv(&mut buffer).ok()).position(|length| length < octets).expect("mine")
}

#[test]
fn a_container_that_floods_is_read_no_further_than_its_share() {
    assert_eq!(packets_before_mine(100), 16, "small packets");
    assert_eq!(packets_before_mine(8000), 9, "64 KiB");
}
