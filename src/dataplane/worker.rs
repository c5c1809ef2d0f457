//! One worker thread: turns of taking in commands, receiving, transmitting, and waiting only when there is nothing
//! left to do.

use super::delivery::Arrivals;
use super::events::EventQueue;
use super::offloads::Offload;
use super::outbound::Outbox;
use super::socket::{MAX_SOCKETS, WorkerSocket};
use super::tables::{Abilities, Tables};
use super::{DataCommand, DataEvent, DataplaneConfig, Stats};
use crate::esp::{SaDatabase, WorkerShare};
use crate::overlay::{DropReason, LocalIndex};
use crate::sys::clock::Clock;
use crate::sys::poll::{PollSet, Readiness};
use crate::sys::udp;
use smol::channel::{Receiver, Sender, TryRecvError};
use socket2::Socket;
use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// Batches of commands taken in one turn, so that traffic goes on while tables are filled.
const MESSAGES_PER_TURN: usize = 16;

/// Turns between two looks at the poller while there is work: each look costs five system calls, and a device that
/// becomes ready meanwhile waits for at most this many batches each way.
const TURNS_PER_POLL: u32 = 4;

/// The poller's key of the first device; the others follow by their numbers. Sockets have theirs before it.
const FIRST_DEVICE_KEY: usize = MAX_SOCKETS;

/// What the control plane sends to a worker.
pub(super) enum Message {
    /// To be applied as one: what of it concerns the worker.
    Commands(Arc<[DataCommand]>),
    /// Answered with a snapshot.
    Stats(Sender<Stats>),
}

/// See the [module](self).
pub(super) struct Worker {
    poll: PollSet,
    clock: Clock,
    inbox: Receiver<Message>,
    /// At least one; it sends from the last.
    pub(super) sockets: Vec<WorkerSocket>,
    pub(super) arrivals: Arrivals,
    pub(super) tables: Tables,
    pub(super) outbox: Outbox,
    /// Devices that may have packets, each once.
    pub(super) ready: VecDeque<LocalIndex>,
    turns_since_poll: u32,
}

/// Ends the process when a worker panics: what it left half done must neither send nor receive.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a data plane worker panicked: the daemon aborts");
            std::process::abort();
        }
    }
}

impl Worker {
    pub(super) fn new(
        share: WorkerShare,
        poll: PollSet,
        sockets: Vec<Socket>,
        (config, abilities): (DataplaneConfig, Abilities),
        inbox: Receiver<Message>,
        events: Sender<DataEvent>,
    ) -> io::Result<Worker> {
        let sockets = sockets.into_iter().take(MAX_SOCKETS).enumerate();
        let sockets =
            sockets.map(|(key, socket)| WorkerSocket::register(socket, &poll, key)).collect::<io::Result<_>>()?;
        let sas = SaDatabase::with_library(config.boot, share, abilities.cipher.library);
        let mut worker = Worker {
            poll,
            clock: config.clock,
            inbox,
            sockets,
            arrivals: Arrivals::new(),
            tables: Tables::new(sas, EventQueue::new(events), abilities),
            outbox: Outbox::new(false),
            ready: VecDeque::new(),
            turns_since_poll: 0,
        };
        worker.use_trains()?;
        Ok(worker)
    }

    /// Runs until it is stopped or cannot go on.
    pub(super) fn run(mut self) {
        let _abort = AbortOnPanic;
        if let Err(error) = self.run_turns() {
            tracing::error!(%error, "a data plane worker has ended");
            self.tables.events.push(DataEvent::WorkerFailed { error: error.to_string() });
        }
    }

    fn run_turns(&mut self) -> io::Result<()> {
        loop {
            self.tables.now = self.clock.now();
            if self.take_messages()?.is_break() {
                // What was sealed before the stop.
                return self.flush();
            }
            self.receive()?;
            self.transmit()?;
            self.flush()?;
            self.tables.events.retry();
            self.wait()?;
        }
    }

    fn take_messages(&mut self) -> io::Result<ControlFlow<()>> {
        for _ in 0..MESSAGES_PER_TURN {
            match self.inbox.try_recv() {
                Ok(Message::Commands(commands)) => {
                    if self.apply_all(&commands)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                // Whoever asked may have gone.
                Ok(Message::Stats(reply)) => drop(reply.try_send(self.stats())),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Closed) => return Ok(ControlFlow::Break(())),
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn apply_all(&mut self, commands: &[DataCommand]) -> io::Result<ControlFlow<()>> {
        let share = self.tables.sas.share();
        for command in commands.iter().filter(|command| command.concerns(share)) {
            match command {
                DataCommand::Stop => return Ok(ControlFlow::Break(())),
                DataCommand::SendControl { outbound, message } => self.send_control(outbound, *message)?,
                other => {
                    let of_offloads = matches!(other, DataCommand::SetOffloads(_));
                    self.tables.apply(other, &self.poll, FIRST_DEVICE_KEY);
                    if of_offloads {
                        self.use_trains()?;
                    }
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Trains each way, as far as they may be used.
    fn use_trains(&mut self) -> io::Result<()> {
        let usable = self.tables.usable_offloads();
        self.outbox.batch.set_trains(usable.has(Offload::UdpGso));
        let receiving = usable.has(Offload::UdpGro);
        // Kernels without UDP_GRO need not be told not to use it.
        self.sockets.iter().try_for_each(|WorkerSocket { socket, .. }| {
            let done = udp::set_receive_trains(socket.as_fd(), receiving);
            done.or_else(|error| if receiving { Err(error) } else { Ok(()) })
        })
    }

    fn stats(&self) -> Stats {
        let mut stats = self.tables.stats();
        let sending = self.outbox.batch.counters();
        (stats.calls.sends, stats.calls.refused_trains) = (sending.calls, sending.refused_trains);
        // A kernel that does not tell is no reason to show nothing.
        for WorkerSocket { socket, .. } in &self.sockets {
            let by_kernel = udp::kernel_drops(socket.as_fd()).unwrap_or(0);
            stats.drops.count_many(DropReason::ReceiveQueueFull, by_kernel.into());
        }
        stats
    }

    /// Waits for something to do; looks only now and then while there is.
    fn wait(&mut self) -> io::Result<()> {
        let busy = self.has_work();
        self.turns_since_poll += 1;
        if busy && self.turns_since_poll < TURNS_PER_POLL {
            return Ok(());
        }
        self.turns_since_poll = 0;
        let timeout = if busy { Some(Duration::ZERO) } else { self.tables.events.retry_after() };
        let Worker { poll, tables, ready, sockets, outbox, .. } = self;
        let mut writable = false;
        tables.calls.polls += 1;
        poll.wait(timeout, |Readiness { key, readable, writable: room }| {
            if let Some(device) = key.checked_sub(FIRST_DEVICE_KEY) {
                if let Some(endpoint) = tables.endpoints.get_mut(device)
                    && !std::mem::replace(&mut endpoint.queued, true)
                {
                    ready.push_back(LocalIndex(device as u32));
                }
            } else if let Some(socket) = sockets.get_mut(key) {
                socket.readable |= readable;
                writable |= room;
            }
        })?;
        if writable && outbox.batch.is_blocked() {
            outbox.batch.unblock();
            if let Some(WorkerSocket { socket, .. }) = sockets.last() {
                socket.watch_writable(false)?;
            }
        }
        Ok(())
    }

    fn has_work(&self) -> bool {
        let can_transmit = !self.ready.is_empty() && !self.outbox.batch.is_blocked();
        self.sockets.iter().any(|socket| socket.readable) || can_transmit || !self.inbox.is_empty()
    }
}
