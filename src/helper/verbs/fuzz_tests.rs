//! Requests to the helper: what is taken as a verb is within all bounds, can be written, and reads the same.

use super::tests::verbs;
use super::*;
use crate::fuzz::Outcome;

fn run(bytes: &[u8]) -> Outcome {
    let (id, verb) = decode_request(bytes);
    match verb {
        Ok(verb) => {
            let written = encode_request(id, &verb).unwrap();
            assert_eq!(decode_request(&written), (id, Ok(verb.clone())));
            format!("{:?}", std::mem::discriminant(&verb))
        }
        // What is wrong, without the value.
        Err(error) => format!("{:?}: {}", error.kind, error.text.chars().take(24).collect::<String>()),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    verbs().iter().map(|verb| encode_request(5, verb).unwrap()).collect()
}

crate::fuzz::target!("verbs", run, seeds);
