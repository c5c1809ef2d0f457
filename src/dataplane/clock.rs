//! The one clock of a daemon, made at its start and copied to whoever hands `now` to a pure machine.

use crate::types::Time;
use std::time::{Duration, Instant};

/// Monotonic time since an origin.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose origin is this moment. All parts of a daemon share one.
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// Now.
    pub fn now(&self) -> Time {
        Time::default() + self.origin.elapsed()
    }

    /// The moment as the standard library sees it, for timers.
    pub fn instant(&self, time: Time) -> Option<Instant> {
        self.origin.checked_add(Duration::from_micros(time.0))
    }
}
