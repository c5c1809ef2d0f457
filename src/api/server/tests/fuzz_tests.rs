//! Requests to the API: method, path and body, each on a line of its own. Each is answered, and a refusal says why.

use super::Api;
use super::hostile::REQUESTS;
use crate::fuzz::Outcome;
use hyper::body::Bytes;

fn run(bytes: &[u8]) -> Outcome {
    let mut parts = bytes.splitn(3, |octet| *octet == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (method, path, body) = (part(), part(), part());
    let (method, path) = (String::from_utf8_lossy(method), String::from_utf8_lossy(path));
    let api = Api::manager();
    api.create_network("net");
    let (status, value) = api.call_raw(&method, &path, Bytes::copy_from_slice(body));
    assert!((200..600).contains(&status) && status != 500, "{status} {value}");
    assert!(status < 400 || value.is_null() || value["message"].is_string(), "{value}");
    // The words without what they quote.
    let message = value["message"].as_str().unwrap_or_default();
    let words = message.split(' ').filter(|word| word.bytes().all(|octet| octet.is_ascii_lowercase())).take(5);
    format!("{status} {}", words.collect::<Vec<_>>().join(" "))
}

fn seeds() -> Vec<Vec<u8>> {
    REQUESTS.iter().map(|(method, path, body)| format!("{method}\n{path}\n{body}").into_bytes()).collect()
}

crate::fuzz::target!("http", run, seeds);
