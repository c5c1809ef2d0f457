//! Token buckets of the control port.

use std::time::{Duration, Instant};

/// What a bucket allows.
pub(super) struct Allowance {
    /// At once.
    pub(super) burst: f64,
    /// Time until one more is allowed.
    pub(super) refill: Duration,
}

/// What is left of an allowance.
pub(super) struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(allowance: &Allowance, now: Instant) -> Bucket {
        Bucket { left: allowance.burst, at: now }
    }

    /// What is left now.
    pub(super) fn refill(&mut self, allowance: &Allowance, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64() / allowance.refill.as_secs_f64();
        self.left = (self.left + passed).min(allowance.burst);
        self.at = now;
        self.left
    }

    /// Takes one, whether it is there or not.
    pub(super) fn spend(&mut self) {
        self.left -= 1.0;
    }

    /// Takes one if it is there.
    pub(super) fn take(&mut self, allowance: &Allowance, now: Instant) -> bool {
        let allowed = self.refill(allowance, now) >= 1.0;
        if allowed {
            self.spend();
        }
        allowed
    }
}
