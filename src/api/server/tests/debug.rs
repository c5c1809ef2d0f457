//! Keys for root, and for nobody else.

use super::super::fake::{ESP_KEYS, Fake};
use super::Api;
use crate::api::client::{Client, ClientError};
use serde_json::json;

const PATH: &str = "/v1.50/formic/debug/esp-keys";

#[test]
fn whom_the_kernel_does_not_call_root_sees_no_keys() {
    let api = Api::manager();
    api.create_network("net");
    let wanted = json!({"network": "net", "expose_keys": true});
    for user in [None, Some(1000), Some(u32::MAX)] {
        let text = api.refused_as(user, "POST", PATH, &wanted, 403);
        assert_eq!(text, "keys are shown to root only");
    }
}

#[test]
fn root_has_to_mean_it() {
    let api = Api::manager();
    api.create_network("net");
    for (wanted, expected) in [
        (json!({"network": "net"}), "does not say that keys are to be exposed"),
        (json!({"network": "net", "expose_keys": false}), "does not say that keys are to be exposed"),
        (json!({"network": "net", "expose_keys": true}), "connection that is upgraded only"),
        (json!({"network": "net", "expose_keys": "true"}), "malformed"),
        (json!({"network": "net", "expose_keys": true, "all": 1}), "unsupported field all"),
    ] {
        let text = api.refused_as(Some(0), "POST", PATH, &wanted, 400);
        assert!(text.contains(expected), "{text}");
    }
    api.refused_as(Some(0), "GET", PATH, &json!(null), 501);
}

/// Over the socket, by whoever runs this.
#[test]
fn the_kernel_says_who_asks() {
    let api = Api::manager();
    api.create_network("net");
    let served = api.fake.serve("esp-keys");
    let client = Client::new(served.socket());
    let answer = smol::block_on(client.esp_keys("net"));
    if nix::unistd::geteuid().is_root() {
        assert_eq!(&*answer.unwrap(), format!("{ESP_KEYS}\n").as_bytes());
        let unknown = smol::block_on(client.esp_keys("other"));
        assert!(matches!(unknown, Err(ClientError::Refused { status: 404, .. })));
    } else {
        assert!(matches!(answer, Err(ClientError::Refused { status: 403, .. })));
    }
    drop(served);
    assert!(matches!(smol::block_on(client.esp_keys("net")), Err(ClientError::Unreachable { .. })));
}

#[test]
fn a_worker_finds_the_networks_that_it_has_heard_of() {
    let served = Fake::worker(&["net"]).serve("esp-keys-worker");
    let answer = smol::block_on(Client::new(served.socket()).esp_keys("net"));
    assert_eq!(answer.is_ok(), nix::unistd::geteuid().is_root());
}
