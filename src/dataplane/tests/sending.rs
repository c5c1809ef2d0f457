//! The batch of datagrams and the queue of events when the other side has no room. A UNIX datagram socket stands in
//! for the underlay: unlike UDP over loopback, it can be full.

use crate::dataplane::DataEvent;
use crate::dataplane::events::EventQueue;
use crate::dataplane::sending::SendBatch;
use crate::dataplane::tables::Peer;
use crate::overlay::{DropCounters, DropReason, PeerIndex};
use crate::sys::udp::BATCH_DATAGRAMS;
use socket2::SockAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

/// A socket under a name of its own that no file has.
fn full_sized_receiver() -> (UnixDatagram, SockAddr) {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None).unwrap();
    // An empty name lets the kernel choose one.
    let unnamed = SockAddr::unix("").unwrap();
    socket.bind(&unnamed).unwrap();
    let address = socket.local_addr().unwrap();
    socket.set_nonblocking(true).unwrap();
    (UnixDatagram::from(std::os::fd::OwnedFd::from(socket)), address)
}

fn fill(batch: &mut SendBatch, peers: impl Iterator<Item = u32>) {
    for (number, peer) in (0u8..).zip(peers) {
        batch.space(1).unwrap()[0] = number;
        batch.push(PeerIndex(peer), 1);
    }
}

#[test]
fn a_full_socket_blocks_the_batch_and_loses_nothing() {
    let (receiver, address) = full_sized_receiver();
    let (sender, mut peers) = (UnixDatagram::unbound().unwrap(), [Peer::at(address)]);
    let (mut batch, mut drops) = (SendBatch::new(false), DropCounters::default());
    fill(&mut batch, std::iter::repeat_n(0, BATCH_DATAGRAMS));
    assert!(batch.space(1).is_none());
    let mut arrived = Vec::new();
    let mut blocks = 0;
    batch.flush(sender.as_fd(), &mut peers, &mut drops);
    while batch.is_blocked() {
        blocks += 1;
        assert!(batch.space(1).is_none(), "what waits keeps its buffer");
        let mut byte = [0];
        while receiver.recv(&mut byte).is_ok() {
            arrived.extend(byte);
        }
        batch.unblock();
        batch.flush(sender.as_fd(), &mut peers, &mut drops);
    }
    let mut byte = [0];
    while receiver.recv(&mut byte).is_ok() {
        arrived.extend(byte);
    }
    assert!(blocks > 0, "the socket was never full");
    assert_eq!(arrived, (0..BATCH_DATAGRAMS as u8).collect::<Vec<u8>>());
    assert_eq!(drops.total(), 0);
    assert!(batch.space(1).is_some());
}

#[test]
fn each_refusal_costs_one_datagram() {
    let (receiver, address) = full_sized_receiver();
    let nowhere = SockAddr::from("[::1]:9".parse::<std::net::SocketAddr>().unwrap());
    let mut peers = [Peer::at(address), Peer::at(nowhere)];
    let sender = UnixDatagram::unbound().unwrap();
    let (mut batch, mut drops) = (SendBatch::new(false), DropCounters::default());
    fill(&mut batch, [1, 0, 1, 1, 2, 0, 2].into_iter());
    batch.flush(sender.as_fd(), &mut peers, &mut drops);
    let mut byte = [0];
    for number in [1, 5] {
        assert_eq!((receiver.recv(&mut byte).unwrap(), byte), (1, [number]));
    }
    assert!(receiver.recv(&mut byte).is_err());
    assert_eq!(drops.packets(DropReason::SendFailed), 3);
    assert_eq!(drops.packets(DropReason::NoPeerAddress), 2);
}

#[test]
fn events_wait_in_order_for_a_slow_listener() {
    let (sender, receiver) = smol::channel::bounded(2);
    let mut queue = EventQueue::new(sender);
    let numbered = |n: usize| DataEvent::WorkerFailed { error: n.to_string() };
    (0..10).for_each(|n| queue.push(numbered(n)));
    let mut heard = Vec::new();
    while queue.retry_after().is_some() {
        heard.extend(std::iter::from_fn(|| receiver.try_recv().ok()));
        queue.retry();
    }
    heard.extend(std::iter::from_fn(|| receiver.try_recv().ok()));
    let expected: Vec<String> = (0..10).map(|n| format!("{:?}", numbered(n))).collect();
    assert_eq!(heard.iter().map(|event| format!("{event:?}")).collect::<Vec<_>>(), expected);
    drop(receiver);
    queue.push(numbered(0));
    assert!(queue.retry_after().is_none(), "nothing is kept for nobody");
}
