//! Waiting for file descriptors: epoll with the registration tied to the life of what is registered. One system call
//! for each look.
//!
//! All interest is edge-triggered: who is told that a source is readable reads until it would block.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// Events taken from the kernel in one look; more are told by the next.
const MAX_EVENTS: usize = 64;

/// The key of the wake-up descriptor.
const WAKE_KEY: u64 = u64::MAX;

/// One thread's poller.
pub struct PollSet {
    epoll: Arc<Epoll>,
    wake: Arc<EventFd>,
    events: [EpollEvent; MAX_EVENTS],
}

/// Wakes the thread that waits in a [`PollSet`].
#[derive(Clone)]
pub struct Waker(Arc<EventFd>);

/// A source of events, registered in a [`PollSet`] for as long as it lives.
pub struct Polled<S: AsFd + AsRawFd> {
    source: S,
    key: u64,
    epoll: Arc<Epoll>,
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
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE_KEY))?;
        Ok(PollSet { epoll: Arc::new(epoll), wake: Arc::new(wake), events: [EpollEvent::empty(); MAX_EVENTS] })
    }

    /// Wakes this poller from any thread.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake))
    }

    /// Tells with `key` when `source` becomes readable. `usize::MAX` is no key.
    pub fn register<S: AsFd + AsRawFd>(&self, source: S, key: usize) -> io::Result<Polled<S>> {
        self.add(source, key, READABLE)
    }

    /// Tells with `key` only that `source` is broken.
    pub fn hold<S: AsFd + AsRawFd>(&self, source: S, key: usize) -> io::Result<Polled<S>> {
        self.add(source, key, EpollFlags::EPOLLET)
    }

    fn add<S: AsFd + AsRawFd>(&self, source: S, key: usize, interest: EpollFlags) -> io::Result<Polled<S>> {
        let key = key as u64;
        if key == WAKE_KEY {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this key is taken"));
        }
        self.epoll.add(&source, EpollEvent::new(interest, key))?;
        Ok(Polled { source, key, epoll: Arc::clone(&self.epoll) })
    }

    /// Waits for events, a wake-up or the timeout (`None`: for ever; else in whole milliseconds, rounded up) and
    /// passes the events on.
    pub fn wait(&mut self, timeout: Option<Duration>, mut on_event: impl FnMut(Readiness)) -> io::Result<()> {
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            Some(timeout) => {
                let millis = timeout.as_nanos().div_ceil(1_000_000);
                EpollTimeout::try_from(millis.min(i32::MAX as u128) as i32).unwrap_or(EpollTimeout::ZERO)
            }
        };
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in self.events.iter().take(count) {
            if event.data() == WAKE_KEY {
                // Nothing to read is fine: somebody else's wake-up was taken with an earlier one.
                let _ = self.wake.read();
                continue;
            }
            let flags = event.events();
            let ended = flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLRDHUP);
            on_event(Readiness {
                key: event.data() as usize,
                readable: ended || flags.contains(EpollFlags::EPOLLIN),
                writable: flags.contains(EpollFlags::EPOLLOUT),
            });
        }
        Ok(())
    }
}

/// Interest in reading; errors are always told.
const READABLE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);

impl Waker {
    /// Makes the current or the next wait return.
    pub fn wake(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is full of wake-ups that were not seen yet.
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl<S: AsFd + AsRawFd> Polled<S> {
    /// Whether to be told also when the source becomes writable. What is the case already is told at once.
    pub fn watch_writable(&self, on: bool) -> io::Result<()> {
        let interest = if on { READABLE | EpollFlags::EPOLLOUT } else { READABLE };
        Ok(self.epoll.modify(&self.source, &mut EpollEvent::new(interest, self.key))?)
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
        let _ = self.epoll.delete(&self.source);
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
