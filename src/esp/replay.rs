//! Anti-replay (RFC 4303, section 3.4.3) with the block bitmap of RFC 6479: moving the window clears whole words.

use super::EspDrop;

/// How far behind the highest sequence number a packet may be, in packets: two 64-segment trains of every one of 64
/// queues of a network card may overtake each other.
pub const REPLAY_WINDOW_PACKETS: u64 = 8192;

const BITS: u64 = u64::BITS as u64;
/// One word more than the window, so that a word is only reused when all of it has left the window.
const WORDS: usize = (REPLAY_WINDOW_PACKETS / BITS) as usize + 1;

/// Which sequence numbers of one SA were received. Number 0 is never sent, so never fresh.
pub struct ReplayWindow {
    highest: u64,
    seen: [u64; WORDS],
}

/// Proof that a number was fresh when it was checked: only such a one can be marked.
#[must_use]
pub struct Fresh(u64);

impl Fresh {
    /// The sequence number.
    pub fn sequence(&self) -> u64 {
        self.0
    }
}

impl Default for ReplayWindow {
    fn default() -> ReplayWindow {
        ReplayWindow { highest: 0, seen: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// A window in which all through `highest` was received.
    pub(super) fn after(highest: u64) -> ReplayWindow {
        let mut window = ReplayWindow { highest, ..ReplayWindow::default() };
        window.close_past();
        window
    }

    /// The sequence number whose low half a packet shows (RFC 4303, appendix A2.2): the only one that is not older than
    /// the window and less than 2^32 above its lower end. A wrong guess fails the verification.
    pub(super) fn extend(&self, low: u32) -> Result<u64, EspDrop> {
        let bottom = i128::from(self.highest) - i128::from(REPLAY_WINDOW_PACKETS) + 1;
        let above = low.wrapping_sub(bottom as u32);
        u64::try_from(bottom + i128::from(above)).map_err(|_| EspDrop::TooOld)
    }

    /// Whether a packet with this number may still be accepted. Changes nothing: the packet is not verified yet.
    pub fn check(&self, sequence: u64) -> Result<Fresh, EspDrop> {
        if sequence == 0 {
            return Err(EspDrop::Replayed);
        }
        if sequence > self.highest {
            return Ok(Fresh(sequence));
        }
        if self.highest - sequence >= REPLAY_WINDOW_PACKETS {
            return Err(EspDrop::TooOld);
        }
        let seen = self.seen.get(word(sequence)).is_none_or(|bits| bits & bit(sequence) != 0);
        if seen { Err(EspDrop::Replayed) } else { Ok(Fresh(sequence)) }
    }

    /// Notes that an authentic packet had this number. Returns whether it is the highest so far.
    pub fn mark(&mut self, fresh: Fresh) -> bool {
        let Fresh(sequence) = fresh;
        let newest = sequence > self.highest;
        if newest {
            self.advance(sequence);
        }
        if let Some(bits) = self.seen.get_mut(word(sequence)) {
            *bits |= bit(sequence);
        }
        newest
    }

    /// From now on every number up to the highest counts as received.
    pub fn close_past(&mut self) {
        let current = word(self.highest);
        for (index, bits) in self.seen.iter_mut().enumerate() {
            *bits = if index == current { u64::MAX >> (BITS - 1 - self.highest % BITS) } else { u64::MAX };
        }
    }

    /// The highest number received; 0 when there was none.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    fn advance(&mut self, sequence: u64) {
        let steps = (sequence / BITS - self.highest / BITS).min(WORDS as u64);
        let first = self.highest / BITS + 1;
        for step in 0..steps {
            if let Some(bits) = self.seen.get_mut(((first + step) % WORDS as u64) as usize) {
                *bits = 0;
            }
        }
        self.highest = sequence;
    }
}

fn word(sequence: u64) -> usize {
    (sequence / BITS % WORDS as u64) as usize
}

fn bit(sequence: u64) -> u64 {
    1 << (sequence % BITS)
}

#[cfg(test)]
mod tests;
