//! Requests that no client sends: none ends the daemon, each is answered or its connection closed.

use super::super::fake::Fake;
use super::{super::fake::Served, Api};
use hyper::body::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const SEED: u64 = 0x0f07_31c0;

/// Mutated requests to the router.
const ROUTED: usize = 10_000;

/// Mutated byte streams to the socket.
const RAW: usize = 500;

pub(super) const REQUESTS: [(&str, &str, &str); 14] = [
    (
        "POST",
        "/v1.50/networks/create",
        r#"{"Name":"n","Driver":"overlay","IPAM":{"Driver":"default","Config":[{"Subnet":"10.9.0.0/24","Gateway":"10.9.0.1"}]},"Options":{"encrypted":""},"Labels":{"a":"b"}}"#,
    ),
    (
        "POST",
        "/v1.50/services/create",
        r#"{"Name":"w","TaskTemplate":{"ContainerSpec":{"Image":"host:latest","Args":["a"],"Env":["A=b"],"Dir":"/x"},"Networks":[{"Target":"net"}]},"Mode":{"Replicated":{"Replicas":2}},"EndpointSpec":{"Mode":"vip"}}"#,
    ),
    (
        "POST",
        "/v1.50/swarm/update?version=1&rotateWorkerToken=false",
        r#"{"Dispatcher":{"HeartbeatPeriod":5000000000}}"#,
    ),
    ("POST", "/v1.50/swarm/init", r#"{"ListenAddr":"0.0.0.0:2377","DefaultAddrPool":["10.0.0.0/8"],"SubnetSize":24}"#),
    ("POST", "/v1.50/nodes/ant-2/update?version=3", r#"{"Role":"worker","Availability":"drain","Labels":{"a":"b"}}"#),
    ("POST", "/v1.50/containers/create?name=x", r#"{"Image":"nginx","HostConfig":{"NetworkMode":"net"}}"#),
    ("POST", "/v1.50/containers/web.1/exec", r#"{"Cmd":["true"],"Env":["A=b"]}"#),
    ("POST", "/v1.50/networks/net/connect", r#"{"Container":"x"}"#),
    ("POST", "/v1.50/formic/images/import", r#"{"name":"a","directory":"/b"}"#),
    ("GET", "/v1.50/tasks?filters=%7B%22service%22%3A%7B%22web%22%3Atrue%7D%7D", ""),
    ("GET", "/v1.50/networks/net?scope=swarm", ""),
    ("GET", "/v1.50/services?status=true&filters=%7B%22name%22%3A%5B%22w%22%5D%7D", ""),
    ("DELETE", "/v1.50/services/w", ""),
    ("DELETE", "/v1.50/networks/n", ""),
];

fn mutate(random: &mut StdRng, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.insert(at, *b"{}[]\",:0%/".get(random.random_range(0..10)).unwrap_or(&b'0')),
            3 => bytes.truncate(at),
            _ => {
                let copy = bytes.get(at..).map(<[u8]>::to_vec).unwrap_or_default();
                bytes.extend(copy);
            }
        }
    }
    bytes
}

#[test]
fn mutated_requests_are_answered() {
    let mut random = StdRng::seed_from_u64(SEED);
    let fresh = || {
        let api = Api::manager();
        api.create_network("net");
        api.create_service("web", "net", 1);
        api
    };
    let mut api = fresh();
    let mut codes = std::collections::BTreeMap::new();
    for round in 0..ROUTED {
        if round % 200 == 0 {
            // What got through changes the state; a small one keeps the test quick.
            api = fresh();
        }
        let (method, path, body) = REQUESTS[random.random_range(0..REQUESTS.len())];
        let path = String::from_utf8_lossy(&mutate(&mut random, path)).into_owned();
        let (status, value) = api.call_raw(method, &path, Bytes::from(mutate(&mut random, body)));
        assert!((200..600).contains(&status), "{status}");
        assert!(status < 400 || value.is_null() || value["message"].is_string(), "{method} {path}: {value}");
        assert!(status != 500, "{method} {path} {body}: {value}");
        *codes.entry(status).or_insert(0) += 1;
    }
    // Some go through, some are refused: the mutations are neither harmless nor all fatal (seed SEED).
    assert!(codes.get(&201).is_some_and(|count| *count > 100), "{codes:?}");
    assert!(codes.get(&400).is_some_and(|count| *count > 1000), "{codes:?}");
}

/// Waits until a ping is answered: what was sent before may still hold all connections.
fn wait_answers(served: &Served) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match ping(served) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200 OK") => {
                assert!(answer.ends_with("OK") && answer.contains("api-version: 1.50"), "{answer}");
                return;
            }
            other => assert!(Instant::now() < deadline, "no answer: {other:?}"),
        }
        std::thread::yield_now();
    }
}

fn ping(served: &Served) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(served.socket())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map(|_| answer)
}

#[test]
fn garbage_on_the_socket_harms_nobody() {
    let served = Fake::manager().serve("garbage");
    let mut random = StdRng::seed_from_u64(SEED + 1);
    for _ in 0..RAW {
        let (method, path, body) = REQUESTS[random.random_range(0..REQUESTS.len())];
        let text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        // A server that has already answered and closed is fine too.
        let _ = stream.write_all(&mutate(&mut random, &text));
        drop(stream);
    }
    wait_answers(&served);
}

#[test]
fn a_body_beyond_the_limit_is_refused() {
    let served = Fake::manager().serve("large");
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = super::super::MAX_BODY_BYTES + 1;
    write!(stream, "POST /networks/create HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(&vec![b' '; length]);
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    wait_answers(&served);
}

#[test]
fn connections_beyond_the_limit_are_closed_and_room_comes_back() {
    let served = Fake::manager().serve("many");
    let held: Vec<UnixStream> = (0..super::super::MAX_CONNECTIONS)
        .map(|_| {
            let mut stream = UnixStream::connect(served.socket()).unwrap();
            // An answered request: the connection is counted.
            stream.write_all(b"HEAD /_ping HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            assert_ne!(stream.read(&mut [0; 1024]).unwrap(), 0);
            stream
        })
        .collect();
    let mut beyond = UnixStream::connect(served.socket()).unwrap();
    beyond.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(beyond.read(&mut [0; 16]).unwrap(), 0, "closed at once");
    drop(held);
    wait_answers(&served);
}
