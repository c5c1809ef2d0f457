//! What must never repeat or be spent too fast: a key's counter, a receiver's window, a budget.

use crate::types::Time;

/// Datagrams under one key at most; far more than an epoch can send.
const COUNTER_LIMIT: u64 = 1 << 40;
/// Datagrams that may arrive late by at most so many newer ones.
const WINDOW_BITS: u64 = 1024;
const WINDOW_WORDS: usize = (WINDOW_BITS / 64) as usize;

/// The one source of nonces of one key. It has no clone, reset or serialisation.
pub(super) struct SendCounter(u64);

impl SendCounter {
    pub(super) fn new() -> SendCounter {
        SendCounter(0)
    }

    /// A number that this counter never gave before; `None` when all are used.
    pub(super) fn next(&mut self) -> Option<u64> {
        if self.0 >= COUNTER_LIMIT {
            return None;
        }
        self.0 += 1;
        Some(self.0)
    }
}

/// Which of the newest 1024 counters were seen. Check before opening a datagram, mark after.
pub(super) struct ReplayWindow {
    highest: u64,
    seen: [u64; WINDOW_WORDS],
}

impl ReplayWindow {
    pub(super) fn new() -> ReplayWindow {
        ReplayWindow { highest: 0, seen: [0; WINDOW_WORDS] }
    }

    /// Whether the counter is new.
    pub(super) fn is_new(&self, counter: u64) -> bool {
        if counter > self.highest {
            return true;
        }
        self.highest - counter < WINDOW_BITS && self.word(counter) & bit(counter) == 0 && counter > 0
    }

    /// Notes an authenticated counter for which [`ReplayWindow::is_new`] holds.
    pub(super) fn mark(&mut self, counter: u64) {
        if counter > self.highest {
            let cleared = (counter - self.highest).min(WINDOW_BITS);
            for offset in 1..=cleared {
                // The last `cleared` counters up to the new highest take the place of those that leave the window.
                let entering = counter - (cleared - offset);
                if let Some(word) = self.seen.get_mut(index(entering)) {
                    *word &= !bit(entering);
                }
            }
            self.highest = counter;
        }
        if let Some(word) = self.seen.get_mut(index(counter)) {
            *word |= bit(counter);
        }
    }

    fn word(&self, counter: u64) -> u64 {
        self.seen.get(index(counter)).copied().unwrap_or(u64::MAX)
    }
}

fn index(counter: u64) -> usize {
    ((counter % WINDOW_BITS) / 64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

/// A budget that refills with time.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenBucket {
    per_sec: u64,
    burst: u64,
    /// In millionths of a token.
    level: u64,
    at: Time,
}

impl TokenBucket {
    pub(super) fn new(per_sec: u32, burst: u32, now: Time) -> TokenBucket {
        let (per_sec, burst) = (u64::from(per_sec), u64::from(burst));
        TokenBucket { per_sec, burst, level: burst * 1_000_000, at: now }
    }

    /// Spends one token, if there is one.
    pub(super) fn take(&mut self, now: Time) -> bool {
        let passed_us = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        self.level = self.level.saturating_add(passed_us.saturating_mul(self.per_sec)).min(self.burst * 1_000_000);
        self.at = self.at.max(now);
        let enough = self.level >= 1_000_000;
        if enough {
            self.level -= 1_000_000;
        }
        enough
    }
}
