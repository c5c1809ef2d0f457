//! How many queues a node sends with.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The number of a node's sending queues, 1..=16: one for each of its data plane's workers, each with SAs of its own
/// (RFC 9611). It is fixed for a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Queues(u8);

/// Not a number of queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a number between 1 and 16 is wanted, not {0}")]
pub struct QueuesError(pub u8);

impl Queues {
    /// One queue: number 0.
    pub const ONE: Queues = Queues(1);
    /// The most queues: as many as four bits of an SPI can tell apart.
    pub const MAX: u8 = 16;

    /// How many.
    pub fn count(self) -> u8 {
        self.0
    }

    /// Their numbers.
    pub fn numbers(self) -> std::ops::Range<u8> {
        0..self.0
    }
}

impl TryFrom<u8> for Queues {
    type Error = QueuesError;

    fn try_from(count: u8) -> Result<Queues, QueuesError> {
        if (1..=Queues::MAX).contains(&count) { Ok(Queues(count)) } else { Err(QueuesError(count)) }
    }
}

impl FromStr for Queues {
    type Err = String;

    fn from_str(text: &str) -> Result<Queues, String> {
        let count = text.parse::<u8>().map_err(|_| format!("{text:?} is no number between 1 and {}", Queues::MAX))?;
        Queues::try_from(count).map_err(|error| error.to_string())
    }
}

impl From<Queues> for u8 {
    fn from(queues: Queues) -> u8 {
        queues.0
    }
}

impl fmt::Display for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
