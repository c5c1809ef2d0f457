//! Bounds, round trips, and ten thousand broken frames.

use super::*;
use crate::wire::control::{Answer, FromAgent, Opening, ToAgent};
use proptest::prelude::*;

#[test]
fn golden_vector() {
    let frame = encode(&Answer::Refused { reason: "no".to_owned() }).unwrap();
    assert_eq!(frame.as_slice(), [0, 0, 0, 4, 0, 2, b'n', b'o']);
}

#[test]
fn the_limit_is_exact() {
    assert_eq!(content_len((MAX_FRAME_BYTES as u32).to_be_bytes()), Ok(MAX_FRAME_BYTES));
    assert_eq!(content_len((MAX_FRAME_BYTES as u32 + 1).to_be_bytes()), Err(FrameError::TooLong(MAX_FRAME_BYTES + 1)));
    let fits = vec![7u8; MAX_FRAME_BYTES - 3];
    assert_eq!(encode(&fits).unwrap().len(), HEADER_LEN + MAX_FRAME_BYTES);
    assert_eq!(encode(&vec![7u8; MAX_FRAME_BYTES - 2]).err(), Some(FrameError::TooLong(MAX_FRAME_BYTES + 1)));
}

#[test]
fn nothing_may_follow_the_value() {
    let frame = encode(&FromAgent::Heartbeat).unwrap();
    assert!(decode::<FromAgent>(&frame[HEADER_LEN..]).is_ok());
    let longer = [&frame[HEADER_LEN..], &[0]].concat();
    assert_eq!(decode::<FromAgent>(&longer).err(), Some(FrameError::Malformed));
    assert_eq!(decode::<FromAgent>(&[]).err(), Some(FrameError::Malformed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn broken_frames_are_refused_not_fatal(content in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode::<Opening>(&content);
        let _ = decode::<FromAgent>(&content);
        let _ = decode::<ToAgent>(&content);
        let _ = decode::<Answer>(&content);
    }
}
