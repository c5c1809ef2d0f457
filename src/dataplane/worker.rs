//! One worker thread: turns of taking in commands, receiving, transmitting, and waiting only when there is nothing
//! left to do.

use super::events::EventQueue;
use super::sending::{SendBatch, Slot, slots};
use super::tables::Tables;
use super::{DataCommand, DataEvent, DataSocket, DataplaneConfig, Stats};
use crate::esp::{SaDatabase, WorkerShare};
use crate::overlay::{DropReason, LocalIndex};
use crate::sys::clock::Clock;
use crate::sys::poll::{PollSet, Polled, Readiness};
use crate::sys::udp::{self, BATCH_DATAGRAMS, ReceivedDatagram};
use smol::channel::{Receiver, Sender, TryRecvError};
use socket2::Socket;
use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::Duration;

/// Batches of commands taken in one turn, so that traffic goes on while tables are filled.
const MESSAGES_PER_TURN: usize = 16;

/// Turns between two looks at the poller while there is work: each look costs five system calls, and a device that
/// becomes ready meanwhile waits for at most this many batches each way.
const TURNS_PER_POLL: u32 = 4;

/// The poller's key of the socket; devices have their number plus [`FIRST_DEVICE_KEY`].
const SOCKET_KEY: usize = 0;
const FIRST_DEVICE_KEY: usize = 1;

/// What the control plane sends to a worker.
pub(super) enum Message {
    /// To be applied as one.
    Commands(Vec<DataCommand>),
    /// Answered with a snapshot.
    Stats(Sender<Stats>),
}

/// See the [module](self).
pub(super) struct Worker {
    poll: PollSet,
    clock: Clock,
    inbox: Receiver<Message>,
    pub(super) socket: Polled<Socket>,
    /// The socket may have datagrams.
    pub(super) socket_readable: bool,
    pub(super) socket_errors: u32,
    pub(super) receive_slots: Box<[Slot]>,
    pub(super) received: [ReceivedDatagram; BATCH_DATAGRAMS],
    pub(super) tables: Tables,
    pub(super) batch: SendBatch,
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
        socket: DataSocket,
        config: DataplaneConfig,
        inbox: Receiver<Message>,
        events: Sender<DataEvent>,
    ) -> io::Result<Worker> {
        let socket = poll.register(socket.into_socket(), SOCKET_KEY)?;
        Ok(Worker {
            poll,
            clock: config.clock,
            inbox,
            socket,
            socket_readable: true,
            socket_errors: 0,
            receive_slots: slots(),
            received: [ReceivedDatagram::default(); BATCH_DATAGRAMS],
            tables: Tables::new(SaDatabase::new(config.boot, share), EventQueue::new(events)),
            batch: SendBatch::new(),
            ready: VecDeque::new(),
            turns_since_poll: 0,
        })
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
                    if self.apply_all(commands)?.is_break() {
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

    fn apply_all(&mut self, commands: Vec<DataCommand>) -> io::Result<ControlFlow<()>> {
        for command in commands {
            match command {
                DataCommand::Stop => return Ok(ControlFlow::Break(())),
                DataCommand::SendControl { outbound, message } => self.send_control(&outbound, message)?,
                other => self.tables.apply(other, &self.poll, FIRST_DEVICE_KEY),
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn stats(&self) -> Stats {
        let mut stats = self.tables.stats();
        // A kernel that does not tell is no reason to show nothing.
        let by_kernel = udp::kernel_drops(self.socket.as_fd()).unwrap_or(0);
        stats.drops.count_many(DropReason::ReceiveQueueFull, by_kernel.into());
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
        let Worker { poll, tables, ready, socket_readable, batch, .. } = self;
        let mut writable = false;
        poll.wait(timeout, |Readiness { key, readable, writable: room }| {
            if key == SOCKET_KEY {
                *socket_readable |= readable;
                writable |= room;
            } else if let Some(endpoint) = tables.endpoints.get_mut(key - FIRST_DEVICE_KEY)
                && !std::mem::replace(&mut endpoint.queued, true)
            {
                ready.push_back(LocalIndex((key - FIRST_DEVICE_KEY) as u32));
            }
        })?;
        if writable && batch.is_blocked() {
            batch.unblock();
            self.socket.watch_writable(false)?;
        }
        Ok(())
    }

    fn has_work(&self) -> bool {
        let can_transmit = !self.ready.is_empty() && !self.batch.is_blocked();
        self.socket_readable || can_transmit || !self.inbox.is_empty()
    }
}
