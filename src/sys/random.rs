//! The operating system's randomness: drawn by the shells only, handed to the pure machines as values.

use crate::types::Key32;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};

/// Random octets.
///
/// # Panics
/// When the operating system gives none: nothing that needs a key may go on then.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    assert!(SystemRandom::new().fill(&mut out).is_ok(), "the operating system gives no random octets");
    out
}

/// A random key.
pub fn key32() -> Key32 {
    Key32::new(bytes())
}
