//! Responses: bodies and the headers that Docker's clients look at.

use super::error::ApiError;
use crate::agent::{SwarmInfo, SwarmState};
use crate::api::types::{API_VERSION, ErrorMessage};
use crate::types::Role;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SERVER, UPGRADE};
use hyper::{HeaderMap, StatusCode};
use serde::Serialize;

pub(super) type Response = hyper::Response<Full<Bytes>>;

/// 200 with JSON.
pub(super) fn json(value: &impl Serialize) -> Response {
    json_with(StatusCode::OK, value)
}

/// JSON with another status.
pub(super) fn json_with(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => with_body(status, "application/json", Bytes::from(text)),
        Err(failure) => error(&ApiError::internal(format!("cannot write the answer: {failure}"))),
    }
}

/// A status without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// Plain text.
pub(super) fn text(text: &'static str) -> Response {
    with_body(StatusCode::OK, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

/// `{"message": ...}`.
pub(super) fn error(error: &ApiError) -> Response {
    let message = ErrorMessage { message: error.message.clone() };
    let text = serde_json::to_vec(&message).unwrap_or_default();
    with_body(error.status, "application/json", Bytes::from(text))
}

/// 101: the connection carries a raw stream from here on.
pub(super) fn upgraded() -> Response {
    let mut response =
        with_body(StatusCode::SWITCHING_PROTOCOLS, "application/vnd.docker.multiplexed-stream", Bytes::new());
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("tcp"));
    response
}

fn with_body(status: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Adds what every answer carries.
pub(super) fn add_headers(headers: &mut HeaderMap, swarm: &SwarmInfo) {
    let mut insert = |name: &'static str, value: String| {
        // The values are built from words and numbers here: they are always valid.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    insert("api-version", API_VERSION.to_string());
    insert("ostype", "linux".into());
    insert("docker-experimental", "false".into());
    insert("swarm", swarm_header(swarm));
    headers.insert(SERVER, HeaderValue::from_static(concat!("Formic/", env!("CARGO_PKG_VERSION"), " (linux)")));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
}

/// `inactive`, `pending`, `locked`, `error`, `active/worker`, `active/manager`.
pub(super) fn swarm_header(swarm: &SwarmInfo) -> String {
    let role = match (swarm.state, swarm.role) {
        (SwarmState::Active, Some(Role::Manager)) => "/manager",
        (SwarmState::Active, Some(Role::Worker)) => "/worker",
        _ => "",
    };
    format!("{}{role}", state_word(swarm.state))
}

/// Docker's word for a node's part in a swarm.
pub(super) fn state_word(state: SwarmState) -> &'static str {
    match state {
        SwarmState::Inactive => "inactive",
        SwarmState::Pending => "pending",
        SwarmState::Active => "active",
        SwarmState::Locked => "locked",
        SwarmState::Error => "error",
    }
}
