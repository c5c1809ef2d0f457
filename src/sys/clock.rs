//! The clocks of the daemon: read by the shells only, handed to the pure machines as values.

use crate::types::{Time, UnixTime};
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant, SystemTime};

/// A monotonic clock with its origin. Cheap to copy; all copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose origin is now.
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// Monotonic time since the origin.
    pub fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// The moment as the standard library sees it, for timers.
    pub fn instant(&self, time: Time) -> Option<Instant> {
        self.origin.checked_add(Duration::from_micros(time.0))
    }

    /// Wall-clock time less the time since the host's boot (suspension included), in milliseconds. It changes only
    /// when somebody sets the clock, or when this host was restored from a snapshot.
    pub fn wall_offset_ms(&self) -> i64 {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        let milliseconds = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        milliseconds(wall) - milliseconds(since_boot)
    }

    /// Wall-clock time, for people and certificates.
    pub fn unix(&self) -> UnixTime {
        let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        UnixTime(elapsed.as_secs())
    }
}
