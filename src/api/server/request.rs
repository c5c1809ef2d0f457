//! A request, taken apart: version, path, query, JSON body. Everything in it is untrusted.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use super::allow::{self, Shape};
use super::error::ApiError;
use crate::api::types::{API_VERSION, ApiVersion, MIN_API_VERSION};
use hyper::{Method, Uri, body::Bytes};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One request, its body read.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// The parts of the path between slashes, without the version, percent-decoded.
    pub(super) path: Vec<String>,
    query: Vec<(String, String)>,
    body: Bytes,
    /// Who connected, as the kernel says; `None` when it does not.
    pub(super) user: Option<u32>,
}

impl Request {
    pub(super) fn new(method: Method, uri: &Uri, body: Bytes) -> Result<Request, ApiError> {
        let path = uri.path().trim_start_matches('/');
        let mut parts: Vec<String> = path.split('/').map(|part| decode(part, false)).collect::<Result<_, _>>()?;
        if let Some(version) = parts.first().and_then(|part| parse_version(part)) {
            check_version(version)?;
            parts.remove(0);
        }
        let query = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let query = query.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name, true)?, decode(value, true)?))
        });
        Ok(Request { method, path: parts, query: query.collect::<Result<_, ApiError>>()?, body, user: None })
    }

    /// The first value of a query parameter.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A boolean query parameter as Docker reads it.
    pub(super) fn flag(&self, name: &str) -> bool {
        let value = self.query(name).unwrap_or_default().trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// `version=N` of an update.
    pub(super) fn version(&self) -> Result<u64, ApiError> {
        let text = self.query("version").unwrap_or_default();
        text.parse().map_err(|_| ApiError::bad_request(format!("invalid object version '{text}': it must be a number")))
    }

    /// The body as JSON, nulls removed; an empty body is an empty object.
    pub(super) fn value(&self) -> Result<Value, ApiError> {
        if self.body.is_empty() {
            return Ok(Value::Object(serde_json::Map::new()));
        }
        let mut value: Value = serde_json::from_slice(&self.body)
            .map_err(|error| ApiError::bad_request(format!("the request is no valid JSON: {error}")))?;
        allow::strip_nulls(&mut value);
        Ok(value)
    }

    /// The body, checked against what is implemented.
    pub(super) fn json<T: DeserializeOwned>(&self, shape: &Shape) -> Result<T, ApiError> {
        let value = self.value()?;
        if !value.is_object() {
            return Err(ApiError::bad_request("the request must be a JSON object"));
        }
        allow::check(&value, shape).map_err(|unsupported| ApiError::bad_request(unsupported.to_string()))?;
        from_value(value)
    }
}

/// Reads a structure whose fields were checked before.
pub(super) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_json::from_value(value).map_err(|error| ApiError::bad_request(format!("the request is malformed: {error}")))
}

fn parse_version(part: &str) -> Option<ApiVersion> {
    let (major, minor) = part.strip_prefix('v')?.split_once('.')?;
    let digits = |text: &str| {
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
    };
    Some(ApiVersion { major: digits(major)?, minor: digits(minor)? })
}

fn check_version(version: ApiVersion) -> Result<(), ApiError> {
    if version < MIN_API_VERSION {
        let text = format!(
            "client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, please upgrade your client to a newer version"
        );
        return Err(ApiError::bad_request(text));
    }
    if version > API_VERSION {
        let text = format!("client version {version} is too new. Maximum supported API version is {API_VERSION}");
        return Err(ApiError::bad_request(text));
    }
    Ok(())
}

/// Undoes percent-encoding; in queries, `+` is a space.
fn decode(text: &str, plus_is_space: bool) -> Result<String, ApiError> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = (hex(bytes.next()), hex(bytes.next()));
                let (Some(high), Some(low)) = digits else { return Err(bad_escape()) };
                high << 4 | low
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).map_err(|_| bad_escape())
}

fn hex(digit: Option<u8>) -> Option<u8> {
    char::from(digit?).to_digit(16).map(|value| value as u8)
}

fn bad_escape() -> ApiError {
    ApiError::bad_request("the address of the request is not percent-encoded UTF-8")
}
