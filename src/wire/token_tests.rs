//! Golden vector, refusals, round trips.

use super::*;
use proptest::prelude::*;

/// Digits computed independently (`int.from_bytes(...)` to base 36).
const GOLDEN: &str = "SWMTKN-1-0004kt6yh5gguqfu8e93hara9xtyf5l309wcar43f213wip34v-f5lxx1zz5pnorynqglhzmsp33";

fn golden() -> JoinToken {
    JoinToken { root_digest: std::array::from_fn(|i| i as u8), secret: Zeroizing::new([0xff; 16]) }
}

fn refused(text: &str) -> TokenError {
    match text.parse::<JoinToken>() {
        Ok(_) => panic!("accepted {text}"),
        Err(error) => error,
    }
}

#[test]
fn golden_vector() {
    assert_eq!(golden().to_string(), GOLDEN);
    assert!(GOLDEN.parse::<JoinToken>().ok() == Some(golden()));
}

#[test]
fn every_truncation_is_called_truncated() {
    for end in 1..GOLDEN.len() {
        assert_eq!(refused(&GOLDEN[..end]), TokenError::Truncated, "{end}");
    }
}

#[test]
fn wrong_tokens_are_told_apart() {
    assert_eq!(refused(""), TokenError::Prefix);
    assert_eq!(refused("SWMTKN-2-abc"), TokenError::Prefix);
    assert_eq!(refused(&format!("{GOLDEN}0")), TokenError::TooLong);
    assert_eq!(refused(&GOLDEN.replace('f', "F")), TokenError::Characters);
    assert_eq!(refused(&format!("{GOLDEN}\n")), TokenError::Characters);
    let overflow = format!("{PREFIX}{}-{}", "z".repeat(DIGEST_DIGITS), "z".repeat(SECRET_DIGITS));
    assert_eq!(refused(&overflow), TokenError::Characters);
}

proptest! {
    #[test]
    fn round_trip(root_digest: [u8; 32], secret: [u8; 16]) {
        let token = JoinToken { root_digest, secret: Zeroizing::new(secret) };
        let text = token.to_string();
        prop_assert_eq!(text.len(), PREFIX.len() + DIGEST_DIGITS + 1 + SECRET_DIGITS);
        prop_assert!(text.parse::<JoinToken>().ok() == Some(token));
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC{0,100}", tail in "[0-9a-z-]{0,90}") {
        let _ = text.parse::<JoinToken>();
        if let Ok(token) = format!("{PREFIX}{tail}").parse::<JoinToken>() {
            prop_assert_eq!(token.to_string(), format!("{PREFIX}{tail}"));
        }
    }
}
