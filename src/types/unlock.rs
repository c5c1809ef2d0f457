//! The unlock key: `SWMKEY-1-` and 32 octets in base64 without padding, as Docker's.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// What every unlock key begins with; the number is the version of the format.
const PREFIX: &str = "SWMKEY-1-";
/// Base64 digits of 32 octets.
const DIGITS: usize = 43;
/// What the library asks room for: it counts whole groups of three octets.
const DECODED_BYTES: usize = 33;

/// The text is no unlock key. Its words are Docker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid key string")]
pub struct NotAnUnlockKey;

/// Opens the files of a locked manager. No Debug; its Display is the whole key, for the one who asked for it.
#[derive(PartialEq, Eq)]
pub struct UnlockKey(pub Zeroizing<[u8; 32]>);

impl fmt::Display for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = Zeroizing::new([0; DIGITS]);
        STANDARD_NO_PAD.encode_slice(self.0.as_slice(), digits.as_mut_slice()).map_err(|_| fmt::Error)?;
        f.write_str(PREFIX)?;
        digits.iter().try_for_each(|&digit| fmt::Write::write_char(f, char::from(digit)))
    }
}

impl FromStr for UnlockKey {
    type Err = NotAnUnlockKey;

    fn from_str(text: &str) -> Result<UnlockKey, NotAnUnlockKey> {
        let digits = text.strip_prefix(PREFIX).filter(|digits| digits.len() == DIGITS).ok_or(NotAnUnlockKey)?;
        let mut octets = Zeroizing::new([0; DECODED_BYTES]);
        let length = STANDARD_NO_PAD.decode_slice(digits, octets.as_mut_slice()).map_err(|_| NotAnUnlockKey)?;
        let key = octets[..length].try_into().map_err(|_| NotAnUnlockKey)?;
        Ok(UnlockKey(Zeroizing::new(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_and_read() {
        let key = UnlockKey(Zeroizing::new(std::array::from_fn(|at| 255 - at as u8)));
        let text = key.to_string();
        assert_eq!(text, "SWMKEY-1-//79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA");
        assert!(text.parse::<UnlockKey>() == Ok(key));
    }

    #[test]
    fn anything_else_is_refused() {
        let good = "SWMKEY-1-//79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA";
        let wrong_bits = format!("{}B", &good[..good.len() - 1]);
        let bad = ["", "SWMKEY-1-", &good[..good.len() - 1], &format!("{good}A"), &wrong_bits, &good[9..]];
        for text in bad.into_iter().chain([&*good.replace("-1-", "-2-"), &*good.replace('+', "-"), &format!("{good}=")])
        {
            assert!(text.parse::<UnlockKey>().err() == Some(NotAnUnlockKey), "{text}");
        }
    }
}
