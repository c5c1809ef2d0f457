//! Two nodes in one process: data planes on loopback addresses, and containers whose devices are one end of a
//! SOCK_SEQPACKET pair, which like a TUN device takes and gives one packet at a time.

use crate::dataplane::{Clock, DataCommand, DataEvent, Dataplane, DataplaneConfig, Offloads, Stats};
use crate::esp::{Direction, SaIdentity, SaKeys};
use crate::offload::testing::normalised;
use crate::offload::{Split, VnetHeader};
use crate::overlay::DropReason;
use crate::types::{
    BootId, ClusterId, EndpointKey, Epoch, Fork, Generation, Key32, NetworkId, NodeId, PublicKey, Queues, TaskId,
    Transform,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use smol::channel::Receiver;
use smol::future::FutureExt as _;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Nothing on loopback takes this long; a test that waits longer fails.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) const NETWORK: u8 = 40;

pub(super) fn network(number: u8) -> NetworkId {
    NetworkId::from_random([number; 17])
}

pub(super) fn generation(index: u64) -> Generation {
    Generation { fork: Fork(1), index }
}

pub(super) struct Node {
    pub(super) data: Dataplane,
    pub(super) id: NodeId,
    pub(super) workers: Queues,
    boot: BootId,
    events: Receiver<DataEvent>,
}

impl Node {
    pub(super) fn start(number: u8) -> Node {
        Node::start_with(number, Offloads::ALL)
    }

    pub(super) fn start_with(number: u8, offloads: Offloads) -> Node {
        Node::with_workers(number, 1, offloads)
    }

    pub(super) fn with_workers(number: u8, workers: u8, offloads: Offloads) -> Node {
        let workers = Queues::try_from(workers).unwrap();
        let boot = BootId([number; 8]);
        let bind = SocketAddr::from(([127, 0, 0, number], 0));
        let config = DataplaneConfig { bind, boot, clock: Clock::start(), workers, offloads };
        let data = Dataplane::start(config).unwrap();
        let events = data.events();
        Node { data, id: NodeId::from_random([number; 17]), workers, boot, events }
    }

    pub(super) fn apply(&self, commands: Vec<DataCommand>) {
        self.data.send_blocking(commands).unwrap();
    }

    pub(super) fn stats(&self) -> Stats {
        smol::block_on(self.data.stats()).unwrap()
    }

    pub(super) fn drops(&self, reason: DropReason) -> u64 {
        self.stats().drops.packets(reason)
    }

    /// The next event, which must come in time.
    pub(super) fn event(&self) -> DataEvent {
        let late = async {
            smol::Timer::after(DEADLINE).await;
            panic!("no event in time");
        };
        smol::block_on(async { self.events.recv().await.unwrap() }.or(late))
    }

    /// An event that came already.
    pub(super) fn pending_event(&self) -> Option<DataEvent> {
        self.events.try_recv().ok()
    }

    /// Waits until the counters are as wanted.
    pub(super) fn wait_for(&self, what: &str, wanted: impl Fn(&Stats) -> bool) {
        let start = Instant::now();
        loop {
            let stats = self.stats();
            if wanted(&stats) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{what}: {stats:?}");
            std::thread::yield_now();
        }
    }

    pub(super) fn add_container(&self, network_number: u8, address: &str, vnet: bool) -> Container {
        let (tun, socket) = seqpacket_pair();
        let (mut queues, more): (Vec<OwnedFd>, _) = (1..self.workers.count()).map(|_| seqpacket_pair()).unzip();
        queues.insert(0, tun);
        let address: IpAddr = address.parse().unwrap();
        let endpoint = endpoint_key(network_number, address);
        self.apply(vec![DataCommand::AddEndpoint { endpoint, address, queues, vnet }]);
        Container { socket, more, address, endpoint, vnet, cut: Mutex::default() }
    }

    pub(super) fn set_network(&self, number: u8, transform: Transform) {
        let subnet = "10.0.0.0/24".parse().ok();
        self.apply(vec![DataCommand::SetNetwork { network: network(number), transform, subnet }]);
    }

    pub(super) fn set_remote(&self, address: &str, owner: &Node, index: u64) {
        self.apply(vec![DataCommand::SetRemote {
            network: network(NETWORK),
            address: address.parse().unwrap(),
            peer: owner.id,
            generation: generation(index),
            alive: true,
        }]);
    }

    pub(super) fn set_peer_address(&self, peer: &Node, address: SocketAddr) {
        self.apply(vec![DataCommand::SetPeerAddress { peer: peer.id, address }]);
    }

    pub(super) fn install(&self, identity: SaIdentity, direction: Direction) {
        self.apply(vec![DataCommand::InstallSa { identity, keys: keys(&identity), direction }]);
    }
}

pub(super) fn endpoint_key(network_number: u8, address: IpAddr) -> EndpointKey {
    let hash = crate::crypto::sha256(&[address.to_string().as_bytes()]);
    let task = TaskId::from_random(*hash.first_chunk().unwrap());
    EndpointKey { network: network(network_number), task }
}

pub(super) fn seqpacket_pair() -> (OwnedFd, UnixDatagram) {
    let (tun, socket) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let socket = UnixDatagram::from(socket);
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_write_timeout(Some(DEADLINE)).unwrap();
    (tun, socket)
}

/// The keys that the key schedule would give both ends.
pub(super) fn keys(identity: &SaIdentity) -> SaKeys {
    let key = crate::crypto::sha256(&[format!("{identity:?}").as_bytes()]);
    SaKeys::external(identity, Key32::new(key), [1, 2, 3, 4])
}

pub(super) fn identity(from: &Node, to: &Node, epoch: u32, transform: Transform) -> SaIdentity {
    SaIdentity {
        transform,
        cluster: ClusterId::from_random([1; 17]),
        fork: Fork(1),
        network: network(NETWORK),
        src: from.id,
        dst: to.id,
        src_boot: from.boot,
        dst_boot: to.boot,
        src_public: PublicKey([1; 32]),
        dst_public: PublicKey([2; 32]),
        epoch: Epoch(epoch),
        queue: 0,
    }
}

/// The SAs like this one of all queues of the node that sends with them.
pub(super) fn of_queues(identity: SaIdentity, sender: &Node) -> impl Iterator<Item = SaIdentity> + use<> {
    sender.workers.numbers().map(move |queue| SaIdentity { queue, ..identity })
}

/// Two nodes that share a network.
pub(super) struct Pair {
    pub(super) a: Node,
    pub(super) b: Node,
    pub(super) transform: Transform,
}

impl Pair {
    /// Both know each other and send with epoch 1.
    pub(super) fn start(transform: Transform) -> Pair {
        Pair::start_with(transform, Offloads::ALL)
    }

    pub(super) fn start_with(transform: Transform, offloads: Offloads) -> Pair {
        Pair::of(Node::start_with(2, offloads), Node::start_with(3, offloads), transform)
    }

    pub(super) fn with_workers(transform: Transform, at_a: u8, at_b: u8) -> Pair {
        let node = |number, workers| Node::with_workers(number, workers, Offloads::ALL);
        Pair::of(node(2, at_a), node(3, at_b), transform)
    }

    fn of(a: Node, b: Node, transform: Transform) -> Pair {
        let pair = Pair { a, b, transform };
        for (node, peer) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
            node.set_network(NETWORK, transform);
            node.set_peer_address(peer, peer.data.address());
        }
        pair.install(1);
        pair.send_with(1);
        pair
    }

    pub(super) fn a_to_b(&self, epoch: u32) -> SaIdentity {
        identity(&self.a, &self.b, epoch, self.transform)
    }

    pub(super) fn b_to_a(&self, epoch: u32) -> SaIdentity {
        identity(&self.b, &self.a, epoch, self.transform)
    }

    /// The SAs of an epoch and all queues, the receiving sides first.
    pub(super) fn install(&self, epoch: u32) {
        let (to_b, to_a) = (self.a_to_b(epoch), self.b_to_a(epoch));
        of_queues(to_b, &self.a).for_each(|sa| self.b.install(sa, Direction::Inbound));
        of_queues(to_a, &self.b).for_each(|sa| self.a.install(sa, Direction::Inbound));
        // Their answers say that they have come so far.
        self.a.stats();
        self.b.stats();
        of_queues(to_b, &self.a).for_each(|sa| self.a.install(sa, Direction::Outbound));
        of_queues(to_a, &self.b).for_each(|sa| self.b.install(sa, Direction::Outbound));
    }

    pub(super) fn send_with(&self, epoch: u32) {
        let network = network(NETWORK);
        let switch = |sa: SaIdentity, from: &Node, peer: NodeId| {
            let all = of_queues(sa, from);
            from.apply(all.map(|outbound| DataCommand::SetSending { network, peer, outbound }).collect());
        };
        switch(self.a_to_b(epoch), &self.a, self.b.id);
        switch(self.b_to_a(epoch), &self.b, self.a.id);
    }

    /// One container on each node, known to both.
    pub(super) fn containers(&self, on_a: &str, on_b: &str, vnet: bool) -> (Container, Container) {
        self.b.set_remote(on_a, &self.a, 1);
        self.a.set_remote(on_b, &self.b, 1);
        (self.a.add_container(NETWORK, on_a, vnet), self.b.add_container(NETWORK, on_b, vnet))
    }
}

pub(super) struct Container {
    /// The first queue of its device.
    pub(super) socket: UnixDatagram,
    /// The others.
    more: Vec<UnixDatagram>,
    pub(super) address: IpAddr,
    pub(super) endpoint: EndpointKey,
    vnet: bool,
    /// What a super-packet was cut into.
    cut: Mutex<BTreeMap<u8, VecDeque<Vec<u8>>>>,
}

impl Container {
    /// Sends a packet as the container's kernel would.
    pub(super) fn send(&self, packet: &[u8]) {
        self.send_on(0, packet);
    }

    /// The kernel chooses this queue.
    pub(super) fn send_on(&self, queue: u8, packet: &[u8]) {
        let header: &[u8] = if self.vnet { &[0; 10] } else { &[] };
        self.queue(queue).send(&[header, packet].concat()).unwrap();
    }

    fn queue(&self, queue: u8) -> &UnixDatagram {
        [&self.socket].into_iter().chain(&self.more).nth(queue.into()).expect("a queue of the device")
    }

    pub(super) fn send_to(&self, destination: &Container, payload: &[u8]) {
        self.send(&packet(self.address, destination.address, payload));
    }

    /// The next packet that was delivered, which must come in time; of a super-packet the next of those that the
    /// container's kernel would cut it into.
    pub(super) fn receive(&self) -> Vec<u8> {
        self.receive_on(0)
    }

    /// The same of what is written to a queue.
    pub(super) fn receive_on(&self, queue: u8) -> Vec<u8> {
        loop {
            if let Some(packet) = self.cut.lock().unwrap().entry(queue).or_default().pop_front() {
                return packet;
            }
            let frame = self.receive_frame_on(queue);
            let packets = if self.vnet { cut(&frame) } else { vec![frame] };
            self.cut.lock().unwrap().entry(queue).or_default().extend(packets);
        }
    }

    /// What is written to the device next, as it is.
    pub(super) fn receive_frame(&self) -> Vec<u8> {
        self.receive_frame_on(0)
    }

    fn receive_frame_on(&self, queue: u8) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let length = self.queue(queue).recv(&mut buffer).expect("a packet in time");
        buffer.truncate(length);
        buffer
    }

    /// The next packet must be this one.
    pub(super) fn expect(&self, source: &Container, payload: &[u8]) {
        assert_eq!(self.receive(), packet(source.address, self.address, payload));
    }

    pub(super) fn expect_nothing(&self) {
        assert!(self.cut.lock().unwrap().values().all(|packets| packets.is_empty()));
        for socket in [&self.socket].into_iter().chain(&self.more) {
            socket.set_nonblocking(true).unwrap();
            let error = socket.recv(&mut [0; 10]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            socket.set_nonblocking(false).unwrap();
        }
    }
}

/// The packets that a frame with a virtio header stands for.
pub(super) fn cut(frame: &[u8]) -> Vec<Vec<u8>> {
    let (header, packet) = frame.split_first_chunk().expect("a header");
    let header = VnetHeader::parse(header).expect("a header that can be read");
    if header.gso.is_none() {
        let mut packet = packet.to_vec();
        crate::offload::finish(&header, &mut packet).expect("a packet that can be finished");
        return vec![packet];
    }
    let split = Split::plan(&header, packet).expect("a super-packet that can be cut");
    let write = |index| {
        let mut out = vec![0; split.len(index)];
        split.write(index, packet, &mut out).expect("a packet");
        normalised(out)
    };
    (0..split.count()).map(write).collect()
}

/// A UDP packet of the overlay.
pub(super) fn packet(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    use etherparse::PacketBuilder;
    let builder = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => panic!("addresses of two families"),
    };
    let mut bytes = Vec::new();
    builder.udp(7000, 7001).write(&mut bytes, payload).unwrap();
    bytes
}
