//! Which manager a node asks for its session, and how long it waits before the next attempt (pure).
#![deny(clippy::disallowed_methods)]

use std::time::Duration;

/// Pause after a session that was open; doubles with each failed attempt up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between attempts: a returned manager is found within it.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Heartbeats without any word of the manager after which the session counts as broken: within them the node is at
/// another manager, before the managers count it as silent.
const MISSED_HEARTBEATS: u32 = 2;
/// The same at least: with short heartbeats a busy host is no broken session.
const MIN_SILENCE: Duration = Duration::from_secs(3);

/// How long a manager may be silent.
pub(crate) fn silence(heartbeat: Duration) -> Duration {
    (heartbeat * MISSED_HEARTBEATS).max(MIN_SILENCE)
}

/// Goes round the managers.
#[derive(Default)]
pub(crate) struct Seek {
    attempts: usize,
    failures: u32,
}

impl Seek {
    /// Whom to ask now; `None` when no manager is known.
    pub(crate) fn next<T: Copy>(&mut self, managers: &[T]) -> Option<T> {
        let manager = managers.get(self.attempts % managers.len().max(1)).copied();
        self.attempts = self.attempts.wrapping_add(usize::from(manager.is_some()));
        manager
    }

    /// How long to wait after an attempt, or after the session that it had `opened`.
    pub(crate) fn pause(&mut self, opened: bool) -> Duration {
        self.failures = if opened { 0 } else { (self.failures + 1).min(16) };
        FIRST_PAUSE.saturating_mul(1 << self.failures).min(MAX_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_manager_is_asked_in_turn_and_pauses_grow_to_their_limit() {
        let mut seek = Seek::default();
        assert_eq!(seek.next::<u8>(&[]), None);
        let asked: Vec<u8> = (0..4).filter_map(|_| seek.next(&[1, 2, 3])).collect();
        assert_eq!(asked, [1, 2, 3, 1]);
        let pauses: Vec<Duration> = (0..40).map(|_| seek.pause(false)).collect();
        assert_eq!(pauses[..5], [200, 400, 800, 1600, 2000].map(Duration::from_millis));
        assert!(pauses[5..].iter().all(|pause| *pause == MAX_PAUSE));
        assert_eq!(seek.pause(true), FIRST_PAUSE);
    }
}
