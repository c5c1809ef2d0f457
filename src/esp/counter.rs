//! The sequence number of a sending SA, which is also its nonce: it only goes up, and has one owner.

/// Packets on one SA after which an early rotation is asked for.
pub const SOFT_LIMIT_PACKETS: u64 = 1 << 36;
/// Packets that one SA ever sends: at 1500 octets they are 2^47 AES blocks, which keeps the advantage of whoever tells
/// AES-GCM from random below 2^-34.
pub const HARD_LIMIT_PACKETS: u64 = 1 << 40;

/// Hands out 1, 2, 3, ... once each. No Clone, no reset, no serialisation: a copy would repeat a nonce.
pub struct PacketCounter {
    used: u64,
    /// How many there are.
    limit: u64,
}

/// What a [`PacketCounter`] says to the next packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum CounterAnswer {
    /// The packet's number.
    Fine(u64),
    /// The packet's number; it is the one that reaches [`SOFT_LIMIT_PACKETS`]. Said once.
    SoftLimit(u64),
    /// All were given out, [`HARD_LIMIT_PACKETS`] of an SA of Formic's: no number, ever again.
    Exhausted,
}

impl PacketCounter {
    pub(super) fn new() -> PacketCounter {
        PacketCounter::after(0, HARD_LIMIT_PACKETS)
    }

    /// A counter that has already given out `used` numbers of `limit`: for keys that came from elsewhere, and tests.
    pub(super) fn after(used: u64, limit: u64) -> PacketCounter {
        PacketCounter { used, limit }
    }

    /// Takes the next number. It counts as used, whatever becomes of the packet.
    pub(super) fn draw(&mut self) -> CounterAnswer {
        if self.used >= self.limit {
            return CounterAnswer::Exhausted;
        }
        self.used += 1;
        if self.used == SOFT_LIMIT_PACKETS {
            CounterAnswer::SoftLimit(self.used)
        } else {
            CounterAnswer::Fine(self.used)
        }
    }

    /// How many numbers were given out; also the last one.
    pub fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests;
