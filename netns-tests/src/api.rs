//! A small HTTP/1.1 client for the API's socket, independent of the code under test.

use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The version that requests ask for.
const VERSION: &str = "v1.50";

/// One request; the answer's status and body (null when empty, a text when not JSON).
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value), String> {
    let mut stream = UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(|error| error.to_string())?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} /{VERSION}{path} HTTP/1.1\r\nHost: formic\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut answer = Vec::new();
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .and_then(|()| stream.read_to_end(&mut answer))
        .map_err(|error| format!("{method} {path}: {error}"))?;
    parse(&answer).ok_or_else(|| format!("{method} {path}: not HTTP: {}", String::from_utf8_lossy(&answer)))
}

fn parse(answer: &[u8]) -> Option<(u16, Value)> {
    let split = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..split]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let raw = &answer[split + 4..];
    let body = if chunked { unchunk(raw)? } else { raw.to_vec() };
    let text = String::from_utf8_lossy(&body).into_owned();
    let value = match text.trim() {
        "" => Value::Null,
        json => serde_json::from_str(json).unwrap_or(Value::String(text.clone())),
    };
    Some((status, value))
}

fn unchunk(mut raw: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = raw.windows(2).position(|window| window == b"\r\n")?;
        let len = usize::from_str_radix(std::str::from_utf8(&raw[..end]).ok()?.trim(), 16).ok()?;
        if len == 0 {
            return Some(body);
        }
        body.extend_from_slice(raw.get(end + 2..end + 2 + len)?);
        raw = raw.get(end + 2 + len + 2..)?;
    }
}
