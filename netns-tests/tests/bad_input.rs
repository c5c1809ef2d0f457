//! What users get wrong: each a one-line error that says what to do, an exit code that is not 0, and nothing changed.

use netns_tests::process::{self, Background, Finished};
use netns_tests::swarm::{IDLE, SETTLE, list, text};
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, Topology, wait_until};
use serde_json::json;
use std::net::{TcpListener, UdpSocket};
use std::process::Stdio;

fn swarm_state(host: &Host) -> String {
    text(&host.get("/info")["Swarm"]["LocalNodeState"])
}

/// A started daemon that must end by itself with one line that says why.
fn daemon_refuses(host: &Host, options: &[&str], texts: &[&str]) {
    let before = host.log().len();
    host.spawn_daemon(options);
    let code = host.daemon_end();
    let log = host.log()[before..].to_owned();
    assert_ne!(code, 0, "{log}");
    let last = log.lines().last().unwrap_or_default();
    for text in texts {
        assert!(last.contains(text), "no {text:?} in the last line of:\n{log}");
    }
}

#[test]
fn join_tokens_that_are_wrong() {
    let net = Topology::with_daemons(2, &[]);
    let (manager, other) = (net.host(0), net.host(1));
    manager.formic(&["swarm", "init", "--advertise-addr", "10.77.0.1"]).ok();
    let token = text(&manager.get("/swarm")["JoinTokens"]["Worker"]);
    let (head, secret) = token.rsplit_once('-').expect("a secret");
    let digest = head.rsplit_once('-').expect("a digest").1;
    let flip = |text: &str| text.replacen(&text[..1], if text.starts_with('0') { "1" } else { "0" }, 1);
    let cases = [
        ("wrong secret", format!("{head}-{}", flip(secret)), "token"),
        ("wrong digest", format!("SWMTKN-1-{}-{secret}", flip(digest)), "token"),
        ("truncated", token[..token.len() - 1].to_owned(), "token"),
        ("no token", "hello".to_owned(), "token"),
        ("empty", String::new(), "token"),
    ];
    for (what, token, expected) in &cases {
        let refused = other.formic(&["swarm", "join", "--token", token, "10.77.0.1:2377"]);
        let error = refused.refused("");
        assert!(error.to_lowercase().contains(expected), "{what}: {error}");
        assert!(secret.len() < 10 || !error.contains(secret), "{what}: the error shows the secret: {error}");
        assert_eq!(swarm_state(other), "inactive", "{what}");
    }
    other.formic(&["swarm", "join", "--token", &token, "10.77.0.1:9"]).refused("10.77.0.1:9");
    other.formic(&["swarm", "join", "--token", &token]).refused("");
    assert_eq!(swarm_state(other), "inactive");
    assert_eq!(list(manager.get("/nodes")).len(), 1, "no node was admitted");
    other.formic(&["swarm", "join", "--token", &token, "10.77.0.1:2377"]).ok();
    other.formic(&["swarm", "join", "--token", &token, "10.77.0.1:2377"]).refused("already part of a swarm");
}

#[test]
fn a_rotated_join_token_is_expired() {
    let net = Topology::with_daemons(2, &[]);
    let (manager, other) = (net.host(0), net.host(1));
    manager.formic(&["swarm", "init", "--advertise-addr", "10.77.0.1"]).ok();
    let old = text(&manager.get("/swarm")["JoinTokens"]["Worker"]);
    manager.docker(&["swarm", "join-token", "--rotate", "worker"]).ok();
    let new = text(&manager.get("/swarm")["JoinTokens"]["Worker"]);
    assert_ne!(old, new);
    let error = other.formic(&["swarm", "join", "--token", &old, "10.77.0.1:2377"]).refused("");
    assert!(error.contains("token"), "{error}");
    other.formic(&["swarm", "join", "--token", &new, "10.77.0.1:2377"]).ok();
}

#[test]
fn ports_and_addresses_in_use() {
    let net = Topology::new(1);
    let host = net.host(0);
    host.start_daemon(&[]);
    for (protocol, port) in [("tcp", 2377), ("udp", 7946), ("udp", 4500)] {
        let (_tcp, _udp) = host.in_network(|| match protocol {
            "tcp" => (TcpListener::bind(("0.0.0.0", port)).ok(), None),
            _ => (None, UdpSocket::bind(("0.0.0.0", port)).ok()),
        });
        let error = host.formic(&["swarm", "init", "--advertise-addr", "10.77.0.1"]).refused("in use");
        assert!(error.contains(&port.to_string()), "names the port: {error}");
        assert_eq!(swarm_state(host), "inactive");
    }
    let error = host.formic(&["swarm", "init", "--advertise-addr", "10.77.0.77"]).refused("10.77.0.77");
    assert_eq!(swarm_state(host), "inactive", "{error}");
    host.formic(&["swarm", "init", "--advertise-addr", "nowhere0"]).refused("nowhere0");
    host.formic(&["swarm", "init", "--advertise-addr", "10.77.0.1"]).ok();
    host.formic(&["swarm", "init"]).refused("already part of a swarm");
}

#[test]
fn a_second_daemon() {
    let net = Topology::new(1);
    let host = net.host(0);
    host.start_daemon(&[]);
    host.formic(&["swarm", "init", "--advertise-addr", "10.77.0.1"]).ok();
    let state = host.state_dir().to_string_lossy().into_owned();
    let socket = host.socket().to_string_lossy().into_owned();
    let other = |name: &str| net.directory().join(name).to_string_lossy().into_owned();
    let (other_socket, other_state) = (other("other.sock"), other("other-state"));
    host.formic(&["daemon", "--state-dir", &state, "--socket", &other_socket]).refused(&state);
    host.formic(&["daemon", "--state-dir", &other_state, "--socket", &socket]).refused(&socket);
    assert_eq!(swarm_state(host), "active", "the first is unharmed");

    // Beside the first with everything its own it may run, but not be a node on the same ports.
    let mut command = host.command(&netns_tests::formic().to_string_lossy());
    command.args(["daemon", "--state-dir", &other_state, "--socket", &other_socket]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _second = Background::start(command);
    let error = wait_until("the second daemon", SETTLE, || {
        let finished = host.run(&[
            "env",
            &format!("FORMIC_SOCKET={other_socket}"),
            &netns_tests::formic().to_string_lossy(),
            "swarm",
            "init",
        ]);
        so(finished.stderr.contains("in use"), || finished.describe()).map(|()| finished.refused("in use"))
    });
    assert!(error.contains("2377") || error.contains("7946"), "{error}");
    assert_eq!(swarm_state(host), "active");
}

#[test]
fn no_tun_device_and_no_capability() {
    let net = Topology::new(1);
    let host = net.host(0);
    let mut command = host.command("setpriv");
    command.args(["--bounding-set", "-net_admin", &netns_tests::formic().to_string_lossy(), "daemon", "--state-dir"]);
    command.arg(host.state_dir()).arg("--socket").arg(host.socket());
    let error = process::run(command).refused("CAP_NET_ADMIN");
    assert!(error.contains("root") || error.contains("capabilit"), "says what to do: {error}");
    host.run(&["mount", "-t", "tmpfs", "none", "/dev/net"]).ok();
    host.expect_error("/dev/net/tun");
    daemon_refuses(host, &[], &["/dev/net/tun"]);
    host.run(&["umount", "/dev/net"]).ok();
    host.start_daemon(&[]);
}

#[test]
fn networks_that_cannot_be() {
    let swarm = Swarm::start(1);
    let host = swarm.manager();
    let create = |arguments: &[&str]| -> Finished {
        host.formic(&[&["network", "create", "--driver", "overlay"], arguments].concat())
    };
    create(&["--subnet", "10.5.0.0/24", "first"]).ok();
    let count = || list(host.get("/networks")).len();
    let before = count();
    for (arguments, expected) in [
        (&["--subnet", "10.5.0.0/16", "wide"][..], "first"),
        (&["--subnet", "10.5.0.128/25", "narrow"], "first"),
        (&["--subnet", "10.6.0.0/33", "n"], "10.6.0.0/33"),
        (&["--subnet", "hello", "n"], "hello"),
        (&["--subnet", "10.6.0.0/31", "n"], "10.6.0.0/31"),
        (&["--subnet", "fd00::/64", "n"], "IPv6"),
        (&["--opt", "encrypted=maybe", "n"], "encrypted"),
        (&["--opt", "colour=blue", "n"], "colour"),
        (&["first"], "network with name first already exists"),
        (&["--gateway", "10.9.9.9", "--subnet", "10.6.0.0/24", "n"], "10.9.9.9"),
        (&["bad name!"], "name"),
        (&[""], "name"),
    ] {
        create(arguments).refused(expected);
        assert_eq!(count(), before, "{arguments:?} left something");
    }
    host.formic(&["network", "create", "--driver", "bridge", "n"]).refused("overlay");
    host.formic(&["network", "rm", "nowhere"]).refused("network nowhere not found");
    let warned = create(&["--subnet", "10.77.0.0/24", "as-the-host"]);
    warned.ok();
    assert!(warned.stderr.contains("10.77.0.0/24"), "a warning: {}", warned.describe());
    create(&["--opt", "encrypted=false", "clear"]).ok();
}

#[test]
fn services_that_cannot_be() {
    let swarm = Swarm::start(1);
    let host = swarm.manager();
    swarm.create_network("net", &["--subnet", "10.9.8.0/29"]);
    swarm.create_service("web", &["net"], 1);
    let services = || list(host.get("/services")).len();
    let before = services();
    for (arguments, expected) in [
        (&["--name", "web", "host", "true"][..], "service web already exists"),
        (&["--network", "nowhere", "host", "true"], "network nowhere not found"),
        (&["--replicas", "many", "host", "true"], "many"),
        (&["--publish", "80:80", "host", "true"], "publish"),
        (&[], "image"),
    ] {
        let refused = host.formic(&[&["service", "create", "--detach"], arguments].concat());
        assert!(refused.code != 0 && refused.stderr.contains(expected), "{}", refused.describe());
        assert_eq!(services(), before, "{arguments:?} left something");
    }
    let template = |container: serde_json::Value| json!({"Name": "x", "TaskTemplate": {"ContainerSpec": container}});
    for (body, field) in [
        (template(json!({"Image": "host", "Mounts": [{"Type": "tmpfs", "Target": "/x"}]})), "Mounts"),
        (template(json!({"Image": "host", "Secrets": [{"SecretName": "x"}]})), "Secrets"),
        (template(json!({"Image": "host", "SomethingNew": true})), "SomethingNew"),
        (
            json!({"Name": "x", "TaskTemplate": {"ContainerSpec": {"Image": "host"}, "Resources": {"Limits": {"MemoryBytes": 1}}}}),
            "MemoryBytes",
        ),
    ] {
        let (status, answer) = host.api("POST", "/services/create", Some(&body));
        assert_eq!(status, 400, "{field}: {answer}");
        assert!(text(&answer["message"]).contains(field), "{field}: {answer}");
    }
    assert_eq!(services(), before);
    full_subnet(&swarm);
    unknown_image(&swarm);
}

/// Five addresses, one taken.
fn full_subnet(swarm: &Swarm) {
    swarm.create_service_of("many", &["net"], 5, "host", IDLE);
    let waiting = wait_until("four run, one waits", SETTLE, || {
        let tasks = swarm.tasks("many");
        let running = tasks.iter().filter(|task| task.is_running()).count();
        let waiting = tasks.iter().find(|task| !task.is_running());
        so(running == 4, || format!("{tasks:?}"))?;
        waiting.filter(|task| !task.error.is_empty()).cloned().ok_or_else(|| format!("{tasks:?}"))
    });
    assert!(waiting.state == "pending" && waiting.error.contains("address"), "{waiting:?}");
    assert!(swarm.manager().formic(&["service", "ps", "many"]).ok().contains(&waiting.error), "the reason is shown");
    swarm.manager().formic(&["service", "rm", "web"]).ok();
    swarm.wait_tasks("many", 5);
    swarm.manager().formic(&["service", "rm", "many"]).ok();
    swarm.wait_removed("many");
}

fn unknown_image(swarm: &Swarm) {
    swarm.create_service_of("ghost", &["net"], 1, "no-such-image", &[]);
    let task = wait_until("rejected", SETTLE, || {
        let tasks = swarm.tasks("ghost");
        tasks.iter().find(|task| task.state == "rejected").cloned().ok_or_else(|| format!("{tasks:?}"))
    });
    assert!(task.error.contains("no-such-image"), "{task:?}");
    let shown = swarm.manager().formic(&["service", "ps", "ghost"]).ok();
    assert!(shown.contains("ejected") && shown.contains("no-such-image"), "{shown}");
    swarm.manager().formic(&["service", "rm", "ghost"]).ok();
    swarm.wait_removed("ghost");
}

#[test]
fn state_that_cannot_be_read() {
    let net = Topology::new(1);
    let host = net.host(0);
    host.start_daemon(&[]);
    host.formic(&["swarm", "init", "--advertise-addr", "10.77.0.1"]).ok();
    host.stop_daemon();
    let files: Vec<_> =
        walk(&host.state_dir()).into_iter().filter(|path| path.metadata().is_ok_and(|m| m.len() > 64)).collect();
    assert!(!files.is_empty(), "a swarm leaves no state?");
    host.expect_error("");
    for file in files {
        let good = std::fs::read(&file).expect("read state");
        let bad: Vec<u8> = good.iter().map(|byte| byte ^ 0x55).collect();
        std::fs::write(&file, &bad).expect("write state");
        daemon_refuses(host, &[], &[&file.to_string_lossy()]);
        assert_eq!(std::fs::read(&file).expect("read state"), bad, "{} was touched", file.display());
        std::fs::write(&file, &good).expect("write state");
    }
    host.start_daemon(&[]);
    wait_until("the swarm again", SETTLE, || so(swarm_state(host) == "active", || swarm_state(host)));
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn the_command_line() {
    let net = Topology::new(1);
    let host = net.host(0);
    let error = host.formic(&["node", "ls"]).refused("");
    assert!(
        error.contains(&host.socket().to_string_lossy().into_owned()) && error.contains("formic daemon"),
        "{error}"
    );
    for arguments in
        [&["fly"][..], &["network", "fly"], &["network", "create"], &["daemon", "--fly"], &["service", "rm"]]
    {
        let refused = host.formic(arguments);
        assert!(refused.code != 0 && !refused.stderr.is_empty(), "{}", refused.describe());
    }
    host.formic(&["daemon", "--state-dir", "/proc/nowhere", "--socket", "/tmp/x.sock"]).refused("/proc/nowhere");
    host.formic(&["daemon", "--config", "/nowhere.toml"]).refused("/nowhere.toml");
    for verb in [
        "",
        "daemon",
        "swarm",
        "swarm init",
        "swarm join",
        "network",
        "network create",
        "service create",
        "exec",
        "status",
    ] {
        let arguments: Vec<&str> = verb.split_whitespace().chain(["--help"]).collect();
        assert!(host.formic(&arguments).ok().contains("Usage"), "{verb} --help");
    }
}
