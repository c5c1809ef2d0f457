//! The handlers over the real replicated state, without a daemon.

mod debug;
mod docker_client;
mod fuzz_tests;
mod hostile;
mod networks;
mod pure;
mod services;
mod streams;
mod swarm;

use super::fake::Fake;
use super::request::Request;
use super::{Context, exec, respond, route};
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use hyper::{Method, Uri};
use serde_json::Value;
use std::sync::Arc;

/// A router over a fake daemon.
struct Api {
    fake: Fake,
    context: Arc<Context>,
    runtime: smol::channel::Receiver<super::Job>,
}

impl Api {
    fn over(fake: Fake) -> Api {
        let (jobs, runtime) = smol::channel::bounded(64);
        let context = Arc::new(Context { backend: Box::new(fake.clone()), execs: exec::Registry::default(), jobs });
        Api { fake, context, runtime }
    }

    fn manager() -> Api {
        Api::over(Fake::manager())
    }

    /// One request: status and JSON.
    fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        self.call_raw(method, path, body)
    }

    fn call_raw(&self, method: &str, path: &str, body: Bytes) -> (u16, Value) {
        self.call_as(None, method, path, body)
    }

    /// A request of a user.
    fn call_as(&self, user: Option<u32>, method: &str, path: &str, body: Bytes) -> (u16, Value) {
        let (Ok(method), Ok(uri)) = (method.parse::<Method>(), path.parse::<Uri>()) else { return (400, Value::Null) };
        let response = smol::block_on(async {
            let mut request = Request::new(method, &uri, body)?;
            request.user = user;
            route(&self.context, &request, None).await
        });
        let response = response.unwrap_or_else(|error| respond::error(&error));
        let status = response.status().as_u16();
        let body = smol::block_on(response.into_body().collect()).unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, &Value::Null);
        assert_eq!(status, 200, "GET {path}: {value}");
        value
    }

    /// A request that must be refused: the text.
    #[track_caller]
    fn refused(&self, method: &str, path: &str, body: &Value, expected: u16) -> String {
        self.refused_as(None, method, path, body, expected)
    }

    /// A request of a user that must be refused: the text.
    #[track_caller]
    fn refused_as(&self, user: Option<u32>, method: &str, path: &str, body: &Value, expected: u16) -> String {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let (status, value) = self.call_as(user, method, path, body);
        assert_eq!(status, expected, "{method} {path}: {value}");
        let message = value["message"].as_str().unwrap_or_else(|| panic!("no message: {value}"));
        assert_eq!(message.lines().count(), 1, "{message}");
        message.to_owned()
    }

    #[track_caller]
    fn create_network(&self, name: &str) -> String {
        let body = serde_json::json!({"Name": name, "Driver": "overlay", "Options": {"encrypted": ""}});
        let (status, value) = self.call("POST", "/v1.50/networks/create", &body);
        assert_eq!(status, 201, "{value}");
        value["Id"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn create_service(&self, name: &str, network: &str, replicas: u64) -> String {
        let body = serde_json::json!({
            "Name": name,
            "TaskTemplate": {"ContainerSpec": {"Image": "host"}, "Networks": [{"Target": network}]},
            "Mode": {"Replicated": {"Replicas": replicas}},
        });
        let (status, value) = self.call("POST", "/v1.50/services/create", &body);
        assert_eq!(status, 201, "{value}");
        value["ID"].as_str().unwrap().to_owned()
    }
}
