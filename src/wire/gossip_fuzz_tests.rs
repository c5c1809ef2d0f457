//! Gossip datagrams, what is inside them, and the records that they carry: what is read has one encoding.

use super::tests::{hello_header, messages, pair, payload};
use super::*;
use crate::fuzz::Outcome;
use crate::wire::record::SignedRecord;

/// The first octet chooses: a datagram, the plaintext of a pair datagram, that of a hello, a record.
fn run(bytes: &[u8]) -> Outcome {
    let (kind, rest) = bytes.split_first().map_or((0, bytes), |(kind, rest)| (kind % 4, rest));
    match kind {
        0 => match Header::parse(rest) {
            Ok((header, sealed)) => {
                assert_eq!([&header.emit()[..], sealed].concat(), rest);
                let opened = open_pair(&pair().key, &header, pair().to, sealed);
                format!("a header, opened: {}", opened.is_ok())
            }
            Err(error) => error.to_string(),
        },
        1 => match Payload::parse(rest) {
            Ok(payload) => {
                assert_eq!(payload.emit(), rest);
                format!("{:?}", std::mem::discriminant(&payload.message))
            }
            Err(error) => format!("payload: {error}"),
        },
        2 => match Hello::parse(rest) {
            Ok(hello) => format!("hello: {}, {}", record(hello.ring), record(hello.node)),
            Err(error) => format!("hello: {error}"),
        },
        _ => record(rest),
    }
}

fn record(bytes: &[u8]) -> Outcome {
    match SignedRecord::parse(bytes) {
        Ok(record) => {
            assert_eq!(record.encoded(), bytes);
            format!("record: {:?}", std::mem::discriminant(record.body()))
        }
        Err(error) => format!("record: {error}"),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let mut seeds = vec![
        with(0, &seal_pair(&pair().key, &pair().header, pair().to, b"payload")),
        with(0, &seal_hello(&hello_key(&Key32::new([8; 32])), &hello_header(), b"hello")),
        with(2, &Hello { ring: b"ring", node: b"node" }.emit()),
    ];
    seeds.extend(messages().into_iter().map(|message| with(1, &payload(message).emit())));
    let records = include_str!("testdata/records.hex").lines();
    let records = records.filter_map(|line| {
        (0..line.len() / 2)
            .map(|at| u8::from_str_radix(line.get(2 * at..2 * at + 2)?, 16).ok())
            .collect::<Option<Vec<u8>>>()
    });
    seeds.extend(records.map(|record| with(3, &record)));
    seeds
}

crate::fuzz::target!("gossip", run, seeds);
