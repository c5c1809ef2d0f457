//! Waiting for file descriptors: `polling` with the registration tied to the life of what is registered, so that
//! no caller can break its rule that a source is taken out before it is closed.
//!
//! All interest is edge-triggered: who is told that a source is readable reads until it would block.

use polling::{Event, Events, PollMode, Poller};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// One thread's poller.
pub struct PollSet {
    poller: Arc<Poller>,
    events: Events,
}

/// Wakes the thread that waits in a [`PollSet`].
#[derive(Clone)]
pub struct Waker(Arc<Poller>);

/// A source of events, registered in a [`PollSet`] for as long as it lives.
pub struct Polled<S: AsFd + AsRawFd> {
    source: S,
    key: usize,
    poller: Arc<Poller>,
}

/// What happened to the source that was registered with `key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// The key.
    pub key: usize,
    /// Reading would not block, or would tell an error.
    pub readable: bool,
    /// Writing would not block.
    pub writable: bool,
}

impl PollSet {
    /// A poller without sources.
    pub fn new() -> io::Result<PollSet> {
        Ok(PollSet { poller: Arc::new(Poller::new()?), events: Events::new() })
    }

    /// Wakes this poller from any thread.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.poller))
    }

    /// Tells with `key` when `source` becomes readable. `usize::MAX` is no key.
    pub fn register<S: AsFd + AsRawFd>(&self, source: S, key: usize) -> io::Result<Polled<S>> {
        // SAFETY: `Polled` owns the source and takes it out of the poller before it drops it.
        unsafe { self.poller.add_with_mode(&source, Event::readable(key), PollMode::Edge)? };
        Ok(Polled { source, key, poller: Arc::clone(&self.poller) })
    }

    /// Waits for events, a wake-up or the timeout (`None`: for ever) and passes the events on.
    pub fn wait(&mut self, timeout: Option<Duration>, mut on_event: impl FnMut(Readiness)) -> io::Result<()> {
        self.events.clear();
        self.poller.wait(&mut self.events, timeout)?;
        for event in self.events.iter() {
            on_event(Readiness { key: event.key, readable: event.readable, writable: event.writable });
        }
        Ok(())
    }
}

impl Waker {
    /// Makes the current or the next wait return.
    pub fn wake(&self) -> io::Result<()> {
        self.0.notify()
    }
}

impl<S: AsFd + AsRawFd> Polled<S> {
    /// Whether to be told also when the source becomes writable. What is the case already is told at once.
    pub fn watch_writable(&self, on: bool) -> io::Result<()> {
        let interest = if on { Event::all(self.key) } else { Event::readable(self.key) };
        self.poller.modify_with_mode(&self.source, interest, PollMode::Edge)
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }
}

impl<S: AsFd + AsRawFd> AsFd for Polled<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl<S: AsFd + AsRawFd> Drop for Polled<S> {
    fn drop(&mut self) {
        // It fails only for a source that is not registered, and then there is nothing to take out.
        let _ = self.poller.delete(&self.source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    /// More than any of these tests waits for.
    const DEADLINE: Option<Duration> = Some(Duration::from_secs(20));

    fn next(poll: &mut PollSet) -> Option<Readiness> {
        let mut seen = None;
        poll.wait(DEADLINE, |readiness| seen = Some(readiness)).unwrap();
        seen
    }

    #[test]
    fn a_source_is_told_of_when_it_becomes_ready() {
        let (one, two) = UnixDatagram::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        two.set_nonblocking(true).unwrap();
        let mut poll = PollSet::new().unwrap();
        let polled = poll.register(one, 5).unwrap();
        two.send(b"x").unwrap();
        assert_eq!(next(&mut poll), Some(Readiness { key: 5, readable: true, writable: false }));

        while polled.source().send(b"fill").is_ok() {}
        polled.watch_writable(true).unwrap();
        // Readable still; not writable before the other side has read.
        assert!(next(&mut poll).is_some_and(|readiness| !readiness.writable));
        while two.recv(&mut [0; 4]).is_ok() {}
        assert!(next(&mut poll).is_some_and(|readiness| readiness.writable));
        polled.watch_writable(false).unwrap();
        assert!(next(&mut poll).is_some_and(|readiness| readiness.readable && !readiness.writable));
    }

    #[test]
    fn a_wake_up_is_not_lost_and_a_dropped_source_is_silent() {
        let (one, two) = UnixDatagram::pair().unwrap();
        let kept_open = one.try_clone().unwrap();
        let mut poll = PollSet::new().unwrap();
        let polled = poll.register(one, 5).unwrap();
        two.send(b"x").unwrap();
        drop(polled);
        poll.waker().wake().unwrap();
        assert_eq!(next(&mut poll), None, "the registration does not outlive its owner");
        drop(kept_open);
    }
}
