//! The data plane: worker threads that carry packets between TUN devices and UDP sockets, around the pure cores
//! `esp`, `overlay` and `offload`.
//!
//! ```text
//! out   TUN read (up to 64 KiB) -> overlay.classify -+-> local:  TUN write, as it is
//!                                                    +-> remote: cut -> seal in place -> trains -> sendmmsg
//! in    recvmmsg (trains) -> SA by SPI, replay check, open in place -> overlay.accept -> join -> TUN writev
//! ```
//!
//! The control plane talks to it in [`DataCommand`]s and hears [`DataEvent`]s. It decides nothing by itself: which
//! SAs exist, which one sends, who owns an address are commands. It has no plaintext path: what no SA seals or opens
//! is dropped and counted.
//!
//! Invariants
//! - A worker never waits for anything but its poller, allocates nothing, takes no lock and writes no log for a packet.
//! - A batch of commands is applied in order and as one: no packet sees half of it.
//! - A datagram that must be sent again is sent as sealed. An error of one packet ends nothing but that packet.
//! - Packets of one endpoint to one peer leave in the order in which they were read.
//! - A panic of a worker aborts the process.
//!
//! A packet that is longer than the way to its peer carries ([`crate::path`] finds out) is dropped before it is sealed, and
//! its container is told by ICMP, as a router would.
//!
//! # Many packets as one
//!
//! | where | what | without it |
//! |---|---|---|
//! | TUN read (TSO, USO) | a super-packet of the container's kernel, cut here (`offload::Split`); its size is bounded by the helper so that it makes one train | packets one by one, finished by the kernel |
//! | UDP send (UDP_SEGMENT) | equally long datagrams for one peer leave as one train, also those of small packets; several trains in one sendmmsg | one message for each |
//! | UDP receive (UDP_GRO) | trains as they were sent, in several buffers of one recvmmsg | one message for each |
//! | TUN write | packets of one flow are joined across the whole batch (`offload::Run`) and written from where they were opened | one write for each |
//!
//! Each can be switched off ([`Offloads`]); trains are tested by an encrypted echo at the start, and what a kernel
//! refuses at run time is done without, for that peer or device, and said (`formic status`). An inner checksum is
//! verified before a packet is joined: the super-packet has none, and a wrong one must stay wrong.
//!
//! Bounds: a device gives at most 64 KiB or 16 packets before the next has its turn, a turn reads at most 256 KiB, and
//! at most 160 KiB wait for the socket; while it is full no device is read, and the containers' own queues fill.
//!
//! Where the time goes: one TCP flow between two daemons over a veth, encrypted, MTU 1500, both daemons, both programs
//! and the kernel on two cores (`perf record` on both workers; 1.0 s of processor time for a gigabyte, 1390 ns for a
//! packet of 1438 octets, both ends together):
//!
//! | ns a packet | share | what |
//! |---|---|---|
//! | 370 | 27 % | AES-256-GCM, seal and open |
//! | 65 | 5 % | inner checksums: computed once, verified once |
//! | 140 | 10 % | cutting, joining, tables, the one copy in user space |
//! | 275 | 20 % | writev to devices, half of it the container's TCP that runs inside of it |
//! | 220 | 16 % | sendmmsg, with the copy and the way to the other end's socket |
//! | 130 | 9 % | reading devices and receiving, with their copies |
//! | 190 | 13 % | waking, switching, waiting |
//!
//! The floor with this cipher library and this kernel interface is the first line and four copies in the kernel.
//!
//! What did not pay: yielding and looking again up to 3 or 20 times before sleeping (9.8 and 9.2 Gbit/s instead of
//! 10.2; 4.6 instead of 4.9 where every datagram is a packet of its own); 8 or 16 receive buffers instead of 64 (9.6
//! and 10.0; 3.9 with 8 where datagrams come one by one); SCHED_BATCH for the workers (9.5 and 9.3 instead of 9.6 and
//! 9.7); a higher priority (nice -10, SCHED_FIFO: smaller super-packets, no clear gain, measured beside other load);
//! receive packet steering on the devices, so that the container's TCP runs on another core than the worker that writes
//! to it (`rps_cpus` of all cores: 10.4 Gbit/s instead of 11.4, and 7.9 instead of 8.1 beside other load: what was idle
//! goes into the steering).
//! Not tried: reading a device straight into the places of the segments; the copies that it saves are 0.3 % of the samples.
//!
//! Half of what the cipher costs does not depend on a packet's length: sealing 52 octets takes 97 ns, 1438 take 178
//! (`scripts/bench --micro`). The library copies its context for each, and does the additional data, the first block and
//! the tag one after the other.
//!
//! A single flow leaves a fifth of two cores idle (`/proc/stat`), and its TCP is not what holds it up (`ss -ti`: limited by
//! its send buffer for a tenth of the time, by the window never): the scheduler wakes the receiving program on the core
//! of the worker that has written to it, where one waits for the other; pinned to two cores by hand they do a tenth more.
//!
//! # Workers
//!
//! Each worker is a thread with its own poller, tables, SAs and sockets, and carries a packet from its read to its
//! send; there is no queue between them and nothing that they share. Its number is the *queue* in the SPIs of the SAs it
//! sends with (RFC 9611), and it receives by the SAs of every queue that is its number modulo the workers: the kernel
//! steers datagrams by it ([`crate::sys::steer`]). What comes to another worker is dropped
//! ([`crate::overlay::DropReason::WrongWorker`]) and never judged by a second window. A batch of commands goes to all
//! workers that it concerns, and each applies its part as one.
//!
//! A device has a queue for each worker (IFF_MULTI_QUEUE). The kernel hands a flow's packets to the queue on which the
//! flow's packets were last written, else it chooses by the flow's hash; so both ways of a flow go through one worker
//! here, and its packets keep their order. Between nodes with different numbers of workers a flow settles on a queue that
//! both have when it is first answered, and all use the workers that the smaller one has; where answers are further apart
//! than the three seconds for which the kernel remembers a flow, it changes its queue at each, and a packet may overtake
//! another then. So give all nodes the same number.

mod command;
mod delivery;
mod events;
mod inbound;
mod offloads;
mod outbound;
mod probe;
mod sending;
pub(crate) mod simulated;
mod socket;
mod stats;
mod tables;
#[cfg(test)]
mod tests;
mod worker;

pub use command::{DataCommand, DataEvent, SaRefusal};
pub use offloads::{Offload, OffloadStatus, Offloads, UnknownOffload};
pub use socket::DataSockets;
pub use stats::{CallStats, EndpointStats, LinkStats, SaStats, Stats, Traffic};

use crate::esp::{CipherBroken, CipherReport, WorkerShare};
use crate::sys::clock::Clock;
use crate::sys::poll::{PollSet, Waker};
use crate::types::{BootId, Queues, Time};
use smol::channel::{Receiver, Sender};
use socket2::Socket;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use tables::Abilities;
use worker::{Message, Worker};

/// The longest inner packet that is carried, in octets; no TUN device may have a larger MTU. It fits a jumbo frame
/// of 9000 octets and leaves the buffers small enough for the cache.
pub const MAX_INNER_BYTES: usize = 9000;

/// Batches of commands that may wait for the worker. A sender waits for room; the worker empties the queue in each
/// turn, which takes milliseconds under load.
const COMMAND_QUEUE_BATCHES: usize = 256;

/// Events that may wait for the control plane in the channel; more are kept by the worker.
const EVENT_QUEUE_EVENTS: usize = 1024;

/// How to start the data plane.
#[derive(Debug, Clone, Copy)]
pub struct DataplaneConfig {
    /// The data-path address and port (4500 by default). Port 0 takes any.
    pub bind: SocketAddr,
    /// This boot of the node: the near end of every SA.
    pub boot: BootId,
    /// Where `now` comes from.
    pub clock: Clock,
    /// Worker threads, each with a queue of its own.
    pub workers: Queues,
    /// What may be used of what kernel and devices can do.
    pub offloads: Offloads,
}

/// Why the data plane did not start. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// Somebody else has the port.
    #[error(
        "UDP {0} (ESP data path) is in use, perhaps by another formic daemon or by an IKE daemon: stop it, or choose \
         another port with --data-path-port"
    )]
    AddressInUse(SocketAddr),
    /// The address is not this host's.
    #[error("this host has no address {}: give one of its own with --data-path-addr", .0.ip())]
    AddressNotAvailable(SocketAddr),
    /// Any other failure to open the socket.
    #[error("cannot open UDP {address} (ESP data path): {source}")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No library protects packets as it should.
    #[error(transparent)]
    Cipher(#[from] CipherBroken),
    /// The system refused a poller or a thread.
    #[error("cannot start a data plane worker: {0}")]
    Worker(#[from] io::Error),
}

/// A worker has ended; the reason came as [`DataEvent::WorkerFailed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data plane has stopped")]
pub struct WorkerGone;

/// The running data plane. It stops, and its sockets and devices are closed, when this is dropped.
pub struct Dataplane {
    workers: Vec<WorkerHandle>,
    events: Receiver<DataEvent>,
    address: SocketAddr,
}

/// The control plane's end of one worker.
struct WorkerHandle {
    share: WorkerShare,
    messages: Sender<Message>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Dataplane {
    /// Binds the data-path address and starts the workers.
    ///
    /// One boot must have one data plane at most: its tables are what keeps a nonce from being used twice.
    pub fn start(config: DataplaneConfig) -> Result<Dataplane, DataplaneError> {
        let abilities = Abilities::find_out(&config)?;
        let sockets = DataSockets::bind(config.bind, config.workers)?;
        let address = sockets.address();
        let (event_sender, events) = smol::channel::bounded(EVENT_QUEUE_EVENTS);
        let workers = config.workers.numbers().zip(sockets.into_workers());
        let workers = workers.map(|(worker, sockets)| {
            let share = WorkerShare { worker, workers: config.workers.count() };
            WorkerHandle::start(share, sockets, (config, abilities.clone()), event_sender.clone())
        });
        Ok(Dataplane { workers: workers.collect::<io::Result<_>>()?, events, address })
    }

    /// The address in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes on a batch of commands: each worker applies its part in order, with no packet in between. Waits while a
    /// worker has too many batches before it. Not to be dropped half-way: the workers would know different things.
    pub async fn send(&self, commands: Vec<DataCommand>) -> Result<(), WorkerGone> {
        let batch: Arc<[DataCommand]> = commands.into();
        // The first one sends the control messages, and is told last: a peer that hears one may send by every queue.
        for worker in self.concerned(&batch).rev() {
            worker.messages.send(Message::Commands(batch.clone())).await.map_err(|_| WorkerGone)?;
        }
        self.concerned(&batch).try_for_each(WorkerHandle::wake)
    }

    /// [`Dataplane::send`] for callers outside of the executor.
    pub fn send_blocking(&self, commands: Vec<DataCommand>) -> Result<(), WorkerGone> {
        // Nothing but a channel is waited for: the reactor and its thread are not needed.
        smol::future::block_on(self.send(commands))
    }

    fn concerned<'a>(&'a self, batch: &'a [DataCommand]) -> impl DoubleEndedIterator<Item = &'a WorkerHandle> {
        self.workers.iter().filter(|worker| batch.iter().any(|command| command.concerns(worker.share)))
    }

    /// Where events come out. Every receiver takes events away from the others: keep one.
    pub fn events(&self) -> Receiver<DataEvent> {
        self.events.clone()
    }

    /// The counters and tables as they are now. Everything sent before has been applied.
    pub async fn stats(&self) -> Result<Stats, WorkerGone> {
        let (reply, answers) = smol::channel::bounded(self.workers.len().max(1));
        for worker in &self.workers {
            worker.messages.send(Message::Stats(reply.clone())).await.map_err(|_| WorkerGone)?;
            worker.wake()?;
        }
        drop(reply);
        let mut stats = answers.recv().await.map_err(|_| WorkerGone)?;
        for _ in 1..self.workers.len() {
            stats.add(answers.recv().await.map_err(|_| WorkerGone)?);
        }
        Ok(stats)
    }
}

/// What this machine is good for, without a data plane: the cipher, and those offloads that can be tested. Takes some
/// milliseconds.
pub fn self_test(clock: Clock) -> Result<(CipherReport, Vec<OffloadStatus>), CipherBroken> {
    let cipher = CipherReport::select(|| clock.now().since(Time::default()))?;
    let failures = probe::failures(Offloads::ALL);
    let status = |offload| {
        let failure = failures.iter().find(|(failed, _)| *failed == offload).map(|(_, why)| why.clone());
        OffloadStatus { offload, wanted: true, failure, refused: 0 }
    };
    Ok((cipher, probe::TESTED.map(status).into()))
}

impl Abilities {
    /// Tests what the machine can do before anything depends on it.
    fn find_out(config: &DataplaneConfig) -> Result<Abilities, DataplaneError> {
        let cipher = CipherReport::select(|| config.clock.now().since(Time::default()))?;
        let failures = probe::failures(config.offloads);
        for (offload, error) in &failures {
            tracing::info!(offload = offload.name(), %error, "an offload does not work here and is not used");
        }
        Ok(Abilities { wanted: config.offloads, failures, cipher })
    }
}

impl WorkerHandle {
    fn start(
        share: WorkerShare,
        sockets: Vec<Socket>,
        setup: (DataplaneConfig, Abilities),
        events: Sender<DataEvent>,
    ) -> io::Result<WorkerHandle> {
        let poll = PollSet::new()?;
        let waker = poll.waker();
        let (messages, inbox) = smol::channel::bounded(COMMAND_QUEUE_BATCHES);
        let worker = Worker::new(share, poll, sockets, setup, inbox, events)?;
        let name = format!("formic-data-{}", share.worker);
        let thread = std::thread::Builder::new().name(name).spawn(move || worker.run())?;
        Ok(WorkerHandle { share, messages, waker, thread: Some(thread) })
    }

    fn wake(&self) -> Result<(), WorkerGone> {
        self.waker.wake().map_err(|_| WorkerGone)
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.messages.close();
        // A worker that cannot be woken would never be joined.
        if self.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A worker does not end by panic: that aborts the process.
            let _ = thread.join();
        }
    }
}
