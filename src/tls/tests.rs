//! Frames over broken streams; identities on disk.

use super::*;
use crate::wire::control::MAX_FRAME_BYTES;
use crate::wire::frame::{self, FrameError};
use smol::io::AsyncWriteExt as _;
use std::time::Duration;

const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(20);

#[test]
fn frames_arrive_in_pieces_and_across_a_dropped_read() {
    smol::block_on(async {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let (here, mut there) = (smol::Async::new(here).unwrap(), smol::Async::new(there).unwrap());
        let mut reader = FrameReader::new(here, MAX_FRAME_BYTES);
        let value = "x".repeat(200_000);
        let frame = frame::encode(&value).unwrap().to_vec();
        for piece in [&frame[..2], &frame[2..9]] {
            there.write_all(piece).await.unwrap();
            assert!(matches!(reader.read::<String>(SOON).await, Err(StreamError::Timeout)));
        }
        let rest = frame[9..].to_vec();
        let writing = smol::spawn(async move {
            there.write_all(&rest).await.unwrap();
            there.write_all(&frame::encode(&7u8).unwrap()).await.unwrap();
            there.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
            there
        });
        assert!(reader.read::<String>(LATE).await.unwrap() == value);
        assert_eq!(reader.read::<u8>(LATE).await.unwrap(), 7);
        drop(writing.await);
        let cut = reader.read::<u8>(LATE).await;
        assert!(matches!(&cut, Err(StreamError::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof));
    });
}

#[test]
fn bounds_hold_before_memory_is_taken() {
    smol::block_on(async {
        let mut reader = FrameReader::new(smol::io::Cursor::new(vec![0, 0, 1, 0, 0]), 255);
        let refused = reader.read::<u8>(LATE).await;
        assert!(matches!(refused, Err(StreamError::Frame(FrameError::TooLong(256)))));
        let mut reader = FrameReader::new(smol::io::Cursor::new(vec![0xff; 4]), MAX_FRAME_BYTES);
        assert!(matches!(reader.read::<u8>(LATE).await, Err(StreamError::Frame(FrameError::TooLong(_)))));
        let mut reader = FrameReader::new(smol::io::Cursor::new(Vec::new()), 255);
        assert!(matches!(reader.read::<u8>(LATE).await, Err(StreamError::Closed)));
        let mut reader = FrameReader::new(smol::io::Cursor::new(vec![0; 4]), 255);
        assert!(matches!(reader.read::<()>(LATE).await, Ok(())), "an empty frame is a frame");
    });
}

#[test]
fn a_damaged_identity_says_what_to_do() {
    let path = std::env::temp_dir().join(format!("formic-identity-{}", std::process::id()));
    for content in [b"".as_slice(), b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&path, content).unwrap();
        let text = Identity::load(&path, None).err().unwrap().to_string();
        assert!(text.contains("is not a node identity") && !text.contains('\n'), "{text}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Identity::load(&path, None), Err(IdentityError::File { .. })));
    assert!(Peer::of(b"garbage").is_err());
}
