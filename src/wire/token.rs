//! The join token: `SWMTKN-1-<SHA-256 of the root certificate>-<secret>`, both in base36 as Docker's, 50 and 25
//! digits. The digest pins the managers' root certificate, the secret admits its holder.
//!
//! Not here: the comparison of secrets (in constant time, by the managers) and the limit of attempts.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// What every token begins with; the number is the version of the format.
const PREFIX: &str = "SWMTKN-1-";
/// Base36 digits of the digest: 36^50 > 2^256.
const DIGEST_DIGITS: usize = 50;
/// Base36 digits of the secret: 36^25 > 2^128.
const SECRET_DIGITS: usize = 25;

/// Why a text is not a join token. The texts say what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin with `SWMTKN-1-`.
    #[error("invalid join token: it must begin with SWMTKN-1- (copy it from `swarm join-token worker`)")]
    Prefix,
    /// It ends too early.
    #[error("invalid join token: it is truncated (copy all of it from `swarm join-token worker`)")]
    Truncated,
    /// It has too much in it.
    #[error("invalid join token: it is too long (copy it from `swarm join-token worker`)")]
    TooLong,
    /// It has characters other than 0-9 and a-z, or a number too large for its digits.
    #[error("invalid join token: it contains wrong characters (copy it from `swarm join-token worker`)")]
    Characters,
}

/// A join token. It holds a secret: no Debug; its Display is the whole token, for the one who asked for it.
#[derive(PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root certificate's DER.
    pub root_digest: [u8; 32],
    /// Proves that its holder may join.
    pub secret: Zeroizing<[u8; 16]>,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = to_base36::<32, DIGEST_DIGITS>(self.root_digest);
        let secret = to_base36::<16, SECRET_DIGITS>(*self.secret);
        f.write_str(PREFIX)?;
        digest.iter().try_for_each(|&c| fmt::Write::write_char(f, char::from(c)))?;
        f.write_str("-")?;
        secret.iter().try_for_each(|&c| fmt::Write::write_char(f, char::from(c)))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<JoinToken, TokenError> {
        let rest = match text.strip_prefix(PREFIX) {
            Some(rest) => rest,
            None if PREFIX.starts_with(text) && !text.is_empty() => return Err(TokenError::Truncated),
            None => return Err(TokenError::Prefix),
        };
        let (digest, secret) = match rest.split_once('-') {
            Some((digest, secret)) => (digest, secret),
            None if rest.len() <= DIGEST_DIGITS => return Err(characters(rest).err().unwrap_or(TokenError::Truncated)),
            None => return Err(TokenError::Characters),
        };
        let root_digest = from_base36::<32, DIGEST_DIGITS>(digest)?;
        let secret = Zeroizing::new(from_base36::<16, SECRET_DIGITS>(secret)?);
        Ok(JoinToken { root_digest, secret })
    }
}

fn digit(character: u8) -> Result<u8, TokenError> {
    match character {
        b'0'..=b'9' => Ok(character - b'0'),
        b'a'..=b'z' => Ok(character - b'a' + 10),
        _ => Err(TokenError::Characters),
    }
}

fn characters(text: &str) -> Result<(), TokenError> {
    text.bytes().try_for_each(|character| digit(character).map(|_| ()))
}

/// `N` bytes, big-endian, as `D` digits.
fn to_base36<const N: usize, const D: usize>(bytes: [u8; N]) -> Zeroizing<[u8; D]> {
    let mut value = Zeroizing::new(bytes);
    let mut text = Zeroizing::new([b'0'; D]);
    for character in text.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in value.iter_mut() {
            let part = (remainder << 8) | u32::from(*byte);
            *byte = (part / 36) as u8;
            remainder = part % 36;
        }
        *character = if remainder < 10 { b'0' + remainder as u8 } else { b'a' + remainder as u8 - 10 };
    }
    text
}

fn from_base36<const N: usize, const D: usize>(text: &str) -> Result<[u8; N], TokenError> {
    characters(text)?;
    if text.len() != D {
        return Err(if text.len() < D { TokenError::Truncated } else { TokenError::TooLong });
    }
    let mut value = [0u8; N];
    for character in text.bytes() {
        let mut carry = u32::from(digit(character)?);
        for byte in value.iter_mut().rev() {
            let sum = u32::from(*byte) * 36 + carry;
            *byte = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
        if carry != 0 {
            return Err(TokenError::Characters);
        }
    }
    Ok(value)
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
