//! Frames of the control protocol: a big-endian u32 length, then one postcard value. Bytes <-> values only; the
//! streams that carry them are in `tls`.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use super::control::MAX_FRAME_BYTES;
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// Octets of a frame's header.
pub const HEADER_LEN: usize = 4;

/// Why a frame was not made or not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Its content is longer than [`MAX_FRAME_BYTES`].
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// Its content is not exactly one value of the expected type.
    #[error("malformed frame")]
    Malformed,
}

/// Header and content of a frame. Frames may carry keys: the buffer is wiped when dropped.
pub fn encode<T: Serialize>(value: &T) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    let content = postcard::experimental::serialized_size(value).map_err(|_| FrameError::Malformed)?;
    if content > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(content));
    }
    let mut frame = Zeroizing::new(vec![0; HEADER_LEN + content]);
    let (header, body) = frame.split_at_mut(HEADER_LEN);
    header.copy_from_slice(&(content as u32).to_be_bytes());
    postcard::to_slice(value, body).map_err(|_| FrameError::Malformed)?;
    Ok(frame)
}

/// The content's length as the header tells it.
pub fn content_len(header: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    let len = u32::from_be_bytes(header) as usize;
    if len > MAX_FRAME_BYTES { Err(FrameError::TooLong(len)) } else { Ok(len) }
}

/// Reads a frame's content: one value and nothing after it.
pub fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(content) {
        Ok((value, [])) => Ok(value),
        _ => Err(FrameError::Malformed),
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
