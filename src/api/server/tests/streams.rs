//! `exec` over a real socket.

use super::super::fake::Fake;
use super::Api;
use crate::api::client::{Client, ClientError};
use crate::api::types::ExecCreate;
use serde_json::{Value, json};
use std::io::Write as _;
use std::net::Shutdown;

fn shell(script: &str) -> ExecCreate {
    ExecCreate {
        attach_stdin: false,
        attach_stdout: true,
        attach_stderr: true,
        env: vec!["COLOUR=blue".into()],
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
    }
}

fn with_task() -> Fake {
    let api = Api::manager();
    api.create_network("net");
    api.create_service("web", "net", 1);
    api.fake
}

/// Runs a command in web.1: its output, its errors, its exit code.
fn run(client: &Client, command: &ExecCreate, input: Option<&[u8]>) -> (String, String, i32) {
    let mut stream = smol::block_on(client.exec("web.1", command)).unwrap();
    if let Some(input) = input {
        let mut socket = stream.input().unwrap();
        socket.write_all(input).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
    }
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    stream.copy_output(&mut stdout, &mut stderr).unwrap();
    let code = smol::block_on(client.exec_result(&stream.id)).unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), code)
}

#[test]
fn both_outputs_and_the_exit_code_arrive() {
    let served = with_task().serve("exec");
    let client = Client::new(served.socket());
    let (stdout, stderr, code) = run(&client, &shell("echo out; echo $COLOUR >&2; exit 7"), None);
    assert_eq!((&*stdout, &*stderr, code), ("out\n", "blue\n", 7));
    let (stdout, _, code) = run(&client, &shell("head -c 3000000 /dev/zero | tr '\\0' x"), None);
    assert_eq!((stdout.len(), code), (3_000_000, 0));
}

#[test]
fn input_reaches_the_command_and_its_end_too() {
    let served = with_task().serve("stdin");
    let client = Client::new(served.socket());
    let attached = |script: &str| ExecCreate { attach_stdin: true, ..shell(script) };
    let long = "line\n".repeat(100_000);
    assert_eq!(run(&client, &attached("wc -c"), Some(long.as_bytes())).0.trim(), "500000");
    // A command that does not read its input, and one that is given none.
    assert_eq!(run(&client, &attached("echo done"), Some(&[b'x'; 100_000])).0, "done\n");
    assert_eq!(run(&client, &shell("cat; echo end"), None).0, "end\n");
}

#[test]
fn what_a_command_leaves_behind_does_not_hold_the_stream() {
    let served = with_task().serve("orphan");
    let client = Client::new(served.socket());
    let (stdout, _, code) = run(&client, &shell("sleep 30 & echo started"), None);
    assert_eq!((&*stdout, code), ("started\n", 0));
}

#[test]
fn a_command_that_cannot_run_says_why() {
    let served = with_task().serve("missing");
    let client = Client::new(served.socket());
    let missing = ExecCreate { cmd: vec!["/no/such/program".into()], ..shell("") };
    let (_, stderr, code) = run(&client, &missing, None);
    assert!(stderr.contains("/no/such/program"), "{stderr}");
    assert_eq!(code, 126);
    let refused = smol::block_on(client.exec("nowhere.1", &shell("true"))).err().unwrap();
    assert!(
        matches!(refused, ClientError::Refused { status: 404, ref message } if message == "No such container: nowhere.1"),
        "{refused}"
    );
}

#[test]
fn execs_are_checked_before_they_run() {
    let api = Api::over(with_task());
    let path = "/containers/web.1/exec";
    for (request, expected) in [
        (json!({"Cmd": []}), "no exec command"),
        (json!({"Cmd": ["a"], "Tty": true}), "Tty (--tty)"),
        (json!({"Cmd": ["a"], "User": "root"}), "User"),
        (json!({"Cmd": ["a"], "WorkingDir": "/"}), "WorkingDir"),
        (json!({"Cmd": ["a"], "Privileged": true}), "Privileged"),
        (json!({"Cmd": ["a"], "Env": ["x"]}), "NAME=value"),
        (json!({"Cmd": ["a\u{0}"]}), "NUL"),
        (json!({"Cmd": ["a".repeat(100_000)]}), "bytes"),
    ] {
        let text = api.refused("POST", path, &request, 400);
        assert!(text.contains(expected), "no {expected:?} in {text:?}");
    }
    let (status, created) = api.call("POST", path, &json!({"Cmd": ["true"]}));
    assert_eq!(status, 201);
    let id = created["Id"].as_str().unwrap();
    assert_eq!(api.get(&format!("/exec/{id}/json"))["Running"], false);
    assert!(api.refused("POST", &format!("/exec/{id}/start"), &json!({}), 400).contains("Upgrade"));
    assert_eq!(api.call("POST", &format!("/exec/{id}/start"), &json!({"Detach": true})).0, 200);
    assert!(
        api.refused("POST", &format!("/exec/{id}/start"), &json!({"Detach": true}), 409).contains("started already")
    );
    smol::block_on(api.runtime.try_recv().unwrap());
    let result = api.get(&format!("/exec/{id}/json"));
    assert_eq!((&result["Running"], &result["ExitCode"]), (&json!(false), &json!(0)));
    assert_eq!(api.refused("GET", "/exec/nowhere/json", &Value::Null, 404), "No such exec instance: nowhere");
}

#[test]
fn the_table_of_execs_is_bounded() {
    let api = Api::over(with_task());
    let create = || api.call("POST", "/containers/web.1/exec", &json!({"Cmd": ["true"]}));
    let first = create().1["Id"].as_str().unwrap().to_owned();
    for _ in 0..super::super::exec::MAX_EXECS {
        assert_eq!(create().0, 201);
    }
    assert_eq!(api.call("GET", &format!("/exec/{first}/json"), &Value::Null).0, 404, "the oldest idle one made room");
}
