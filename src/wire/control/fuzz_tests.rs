//! Control messages of nodes and managers: what is read can be written, and reads the same.

use super::*;
use crate::fuzz::Outcome;
use crate::raft;
use crate::wire::frame::{self, HEADER_LEN};
use serde::de::DeserializeOwned;

/// The first octet chooses the kind of message.
fn run(bytes: &[u8]) -> Outcome {
    let (kind, rest) = bytes.split_first().map_or((0, bytes), |(kind, rest)| (kind % 5, rest));
    let read = match kind {
        0 => reads::<Opening>(rest),
        1 => reads::<Answer>(rest),
        2 => reads::<FromAgent>(rest),
        3 => reads::<ToAgent>(rest),
        _ => reads::<raft::Message>(rest),
    };
    // The first octet of an enumeration tells its variant.
    format!("{kind}, {:?}: {read}", read.then(|| rest.first().copied()))
}

fn reads<T: Serialize + DeserializeOwned>(content: &[u8]) -> bool {
    let Ok(value) = frame::decode::<T>(content) else { return false };
    let written = frame::encode(&value).unwrap();
    let again = frame::decode::<T>(&written[HEADER_LEN..]).unwrap_or_else(|_| panic!("what was written is not read"));
    assert_eq!(*frame::encode(&again).unwrap(), *written);
    true
}

/// The golden frames of all kinds: each is tried as each.
fn seeds() -> Vec<Vec<u8>> {
    let octet = |line: &str, at: usize| u8::from_str_radix(line.get(at..at + 2)?, 16).ok();
    let frames = include_str!("golden.txt").lines().filter_map(|line| {
        let hex = line.rsplit(' ').next()?;
        (0..hex.len()).step_by(2).map(|at| octet(hex, at)).collect::<Option<Vec<u8>>>()
    });
    let contents: Vec<Vec<u8>> = frames.filter_map(|frame| frame.get(HEADER_LEN..).map(<[u8]>::to_vec)).collect();
    (0..5).flat_map(|kind| contents.iter().map(move |content| [&[kind], &content[..]].concat())).collect()
}

crate::fuzz::target!("control", run, seeds);
