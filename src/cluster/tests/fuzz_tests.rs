//! What the managers' store holds: the state, entries of the log, the vote. What is read can be written and reads the same;
//! an entry that is read is applied or refused.

use super::{Swarm, add_node};
use crate::cluster::{Entry, State};
use crate::fuzz::Outcome;
use crate::raft::{Body, HardState, Membership, Payload};
use crate::types::Role;
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// The first octet chooses the kind of record.
fn run(bytes: &[u8]) -> Outcome {
    let (kind, rest) = bytes.split_first().map_or((0, bytes), |(kind, rest)| (kind % 5, rest));
    let read = match kind {
        0 => State::from_bytes(rest)
            .map(|state| {
                let written = state.to_bytes().unwrap();
                assert!(*State::from_bytes(&written).unwrap().to_bytes().unwrap() == *written);
            })
            .is_ok(),
        1 => reads::<(u64, Body)>(rest),
        2 => reads::<HardState>(rest),
        3 => reads::<Membership>(rest),
        _ => return entry(rest),
    };
    format!("{kind}, read: {read}")
}

fn reads<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    let Ok(value) = postcard::from_bytes::<T>(bytes) else { return false };
    let written = postcard::to_stdvec(&value).unwrap();
    let again: T = postcard::from_bytes(&written).unwrap();
    assert_eq!(postcard::to_stdvec(&again).unwrap(), written);
    true
}

fn entry(bytes: &[u8]) -> Outcome {
    let Ok(entry) = postcard::from_bytes::<Entry>(bytes) else { return "no entry".to_owned() };
    let mut state = Swarm::new().state;
    let before = state.index;
    let (result, _) = state.apply(&entry);
    assert_eq!(state.index, before + 1);
    let written = state.to_bytes().unwrap();
    assert!(*State::from_bytes(&written).unwrap().to_bytes().unwrap() == *written, "the state can be stored");
    // What is wrong, without the values.
    let words = |text: String| {
        text.split(' ')
            .filter(|word| word.bytes().all(|octet| octet.is_ascii_lowercase()))
            .take(4)
            .collect::<Vec<_>>()
            .join(" ")
    };
    format!(
        "{:?}: {}",
        std::mem::discriminant(&entry.command),
        result.err().map_or_else(|| "applied".to_owned(), |refusal| words(refusal.to_string()))
    )
}

fn seeds() -> Vec<Vec<u8>> {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(add_node(9, Role::Manager));
    let state = swarm.state.to_bytes().unwrap();
    let mut seeds = vec![[&[0], &state[..]].concat(), vec![2, 5, 0], vec![3, 0, 0, 0, 0]];
    for entry in &swarm.log {
        let body = Body::Command(Payload::new(Zeroizing::new(entry.clone())));
        seeds.push([&[1], &postcard::to_stdvec(&(7u64, body)).unwrap()[..]].concat());
        seeds.push([&[4], &entry[..]].concat());
    }
    seeds
}

crate::fuzz::target!("store", run, seeds);
