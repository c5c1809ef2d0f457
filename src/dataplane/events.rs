//! Events on their way to the control plane. The worker never waits for it: what the channel does not take is kept
//! and offered again.

use super::DataEvent;
use smol::channel::{Sender, TrySendError};
use std::collections::VecDeque;
use std::time::Duration;

/// Control messages are dropped while this many events are waiting. Other events are kept: there is at most one for
/// each command, SA and endpoint.
const MAX_WAITING_FOR_CONTROL: usize = 1024;

/// How soon a full channel is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// The worker's end of the event channel.
pub(super) struct EventQueue {
    sender: Sender<DataEvent>,
    waiting: VecDeque<DataEvent>,
}

impl EventQueue {
    pub(super) fn new(sender: Sender<DataEvent>) -> EventQueue {
        EventQueue { sender, waiting: VecDeque::new() }
    }

    /// Tells or keeps an event.
    pub(super) fn push(&mut self, event: DataEvent) {
        self.waiting.push_back(event);
        self.retry();
    }

    /// Tells or keeps an event that a peer can cause at will; `false` when it was dropped.
    pub(super) fn push_from_peer(&mut self, event: DataEvent) -> bool {
        let room = self.waiting.len() < MAX_WAITING_FOR_CONTROL;
        if room {
            self.push(event);
        }
        room
    }

    /// Offers what is waiting, in order.
    pub(super) fn retry(&mut self) {
        while let Some(event) = self.waiting.pop_front() {
            match self.sender.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => return self.waiting.push_front(event),
                // Nobody listens any more.
                Err(TrySendError::Closed(_)) => return self.waiting.clear(),
            }
        }
    }

    /// When to retry; `None` when nothing is waiting.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(RETRY_AFTER)
    }
}
