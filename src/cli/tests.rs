//! The command line: golden help, golden sessions against a served fake daemon, the normaliser, exit codes.

mod wrong_uses;

use super::argv::{self, Normal};
use super::session::Session;
use super::{Formic, Stop, execute, image, parse, service, status, swarm};
use crate::api::client::Client;
use crate::api::server::fake::Fake;
use crate::api::types::{KeyEpoch, KeyRing, LateNode, PeerStatus, Status as DaemonStatus, Task, TaskStatus};
use argh::{ArgsInfo as _, CommandInfoWithArgs};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn normal(line: &str) -> Result<String, String> {
    match argv::normalise(&Formic::get_args_info(), &words(line)) {
        Ok(Normal::Command(found)) => Ok(found.arguments.join(" ")),
        Ok(Normal::Version) => Ok("VERSION".into()),
        Err(error) => Err(error.text),
    }
}

#[test]
fn arguments_are_brought_into_the_parsers_shape() {
    for (line, expected) in [
        ("network create --opt=encrypted -doverlay net", "network create --opt encrypted --driver overlay net"),
        ("network create -d=overlay -o a=b net", "network create --driver overlay --opt a=b net"),
        ("network create --label=a=b=c net", "network create --label a=b=c net"),
        ("service create --name=web host ls -l --all", "service create --name web host -- ls -l --all"),
        ("service create --detach=true -q=x host", "service create --detach --quiet"),
        ("service create --detach=false host", "service create host --"),
        ("service create host -- --x", "service create host -- --x"),
        ("service create host -h", "service create host -- -h"),
        ("service create -h", "service create --help"),
        ("run --rm -it --network net nginx -d", "run --rm --interactive --tty --network net nginx -- -d"),
        ("exec -i web.1 sh -c exit", "exec --interactive web.1 -- sh -c exit"),
        ("exec web.1 -- ls -l", "exec web.1 -- ls -l"),
        ("exec -e A=-1 web.1 env", "exec --env A=-1 web.1 -- env"),
        ("--socket /x node ls -q", "--socket /x node ls --quiet"),
        ("node ls --socket=/x -q", "--socket /x node ls --quiet"),
        ("node --socket /x ls", "--socket /x node ls"),
        ("daemon --socket /x", "daemon --socket /x"),
        ("swarm join --token - 10.0.0.1", "swarm join --token - 10.0.0.1"),
        ("node rm -- -x", "node rm -- -x"),
        ("swarm update --autolock", "swarm update --autolock true"),
        ("swarm update --autolock=false", "swarm update --autolock false"),
        ("swarm update --autolock --cert-expiry 2h", "swarm update --autolock true --cert-expiry 2h"),
        ("--version", "VERSION"),
        ("-v", "VERSION"),
        ("node ls --help", "node ls --help"),
        ("node -h", "node --help"),
        ("fly away", "fly away"),
    ] {
        match normal(line) {
            Ok(found) => assert_eq!(found, expected, "{line}"),
            // `-q=x` is a switch with a value: told below.
            Err(error) => assert!(line.contains("-q=x"), "{line}: {error}"),
        }
    }
}

#[test]
fn arguments_that_make_no_sense_are_told() {
    for (line, expected) in [
        ("node ls --fly", "unrecognized option --fly"),
        ("node ls -x", "unrecognized option -x"),
        ("network create --opt", "option --opt needs a value"),
        ("network create -o", "option -o needs a value"),
        ("node ls --quiet=maybe", "switch --quiet is either there or not: \"maybe\" makes no sense"),
        ("node ls --socket", "option --socket needs a value"),
        ("service create -q=x host", "unrecognized option -="),
        ("network", "a command is missing: one of create, ls, inspect, rm"),
    ] {
        assert_eq!(normal(line), Err(expected.into()), "{line}");
    }
    assert!(normal("").unwrap_err().starts_with("a command is missing: one of daemon, swarm"));
}

fn usage_of(line: &str) -> (String, u8) {
    match parse(words(line).into_iter().map(OsString::from)) {
        Err(Stop::Usage { text, code }) => (text, code),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn usage_errors_are_one_line_with_the_verbs_help_and_an_exit_code() {
    for (line, expected, code) in [
        ("fly", "formic: Unrecognized argument: fly (see 'formic --help')", 1),
        ("network fly", "formic: Unrecognized argument: fly (see 'formic network --help')", 1),
        (
            "network create",
            "formic: Required positional arguments not provided: name (see 'formic network create --help')",
            1,
        ),
        ("daemon --fly", "formic: unrecognized option --fly (see 'formic daemon --help')", 1),
        ("run --publish 80", "formic: unrecognized option --publish (see 'formic run --help')", 125),
        ("run", "formic: Required positional arguments not provided: image (see 'formic run --help')", 125),
    ] {
        assert_eq!(usage_of(line), (expected.to_owned(), code));
    }
    let (text, code) = usage_of("service create --replicas many host");
    assert!(text.contains("'--replicas' with value 'many'") && text.lines().count() == 1 && code == 1, "{text}");
    let (text, _) = usage_of("swarm init --key-rotation-interval soon");
    assert!(text.contains("invalid duration \"soon\"") && text.lines().count() == 1, "{text}");
    use std::os::unix::ffi::OsStringExt as _;
    let foreign = parse([OsString::from_vec(vec![0xff])].into_iter());
    assert!(matches!(foreign, Err(Stop::Usage { text, code: 1 }) if text.contains("UTF-8")));
}

/// Compares with a golden file; `FORMIC_BLESS=1` writes it anew.
#[track_caller]
fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/testdata").join(name);
    if std::env::var_os("FORMIC_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(found == expected, "{name} differs ({differing:?}); if it is right, run the test with FORMIC_BLESS=1");
}

fn help_of(verbs: &[&str]) -> String {
    let line = [verbs, &["--help"]].concat().into_iter().map(OsString::from);
    match parse(line) {
        Err(Stop::Show(text)) => text,
        other => panic!("{verbs:?}: {other:?}"),
    }
}

fn collect_help(info: &CommandInfoWithArgs, verbs: &mut Vec<&'static str>, text: &mut String) {
    text.push_str(&format!("$ formic {}\n{}\n", [&verbs[..], &["--help"]].concat().join(" "), help_of(verbs)));
    for command in &info.commands {
        verbs.push(command.name);
        collect_help(&command.command, verbs, text);
        verbs.pop();
    }
}

#[test]
fn the_help_of_every_verb() {
    let mut text = String::new();
    collect_help(&Formic::get_args_info(), &mut Vec::new(), &mut text);
    assert!(text.matches("Usage: formic").count() > 25);
    golden("help.txt", &text);
}

/// A stream that both a session and a test hold.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Runs a command line: what it prints on both streams and its exit code.
fn run(socket: &Path, arguments: &[&str]) -> (String, String, u8) {
    let (out, err) = (Shared::default(), Shared::default());
    let mut session = Session { client: Client::new(socket), out: Box::new(out.clone()), err: Box::new(err.clone()) };
    let global = ["--socket", socket.to_str().unwrap()];
    let code = execute(global.iter().chain(arguments).map(OsString::from), &mut session);
    (out.text(), err.text(), code)
}

/// A transcript of commands; ids that are drawn are replaced by ID, ages by AGO.
fn transcript(socket: &Path, lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let (out, err, code) = run(socket, &arguments);
        text.push_str(&format!("$ formic {line}\n{out}"));
        text.extend(err.lines().map(|line| format!("! {line}\n")));
        if code != 0 {
            text.push_str(&format!("= {code}\n"));
        }
        text.push('\n');
    }
    stabilise(&text)
}

fn stabilise(text: &str) -> String {
    let lower = |word: &str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let mut stable = String::new();
    for line in text.split_inclusive('\n') {
        let begun = ["Running ", "Shutdown ", "Started:\t", "Completed:\t"].iter().find_map(|word| {
            let to = line.find(" ago")?;
            let from = line[..to].rfind(word)? + word.len();
            Some(format!("{}AGO{}", &line[..from], &line[to + 4..]))
        });
        let line = begun.unwrap_or_else(|| line.to_owned());
        for (index, word) in line.split_inclusive(|c: char| !c.is_ascii_alphanumeric()).enumerate() {
            let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            // Short ids stand at the start of a row.
            let is_id = lower(bare) && (bare.len() == 25 || bare.len() == 12 && index == 0);
            stable.push_str(&if is_id { word.replace(bare, "ID") } else { word.to_owned() });
        }
    }
    stable
}

#[test]
fn a_session_on_a_manager() {
    let served = Fake::new().serve("cli-manager");
    let text = transcript(
        served.socket(),
        &[
            "node ls",
            "swarm init --advertise-addr 10.77.0.1 --dispatcher-heartbeat 1s --key-rotation-interval 90s",
            "swarm init",
            "node ls",
            "swarm join-token -q worker",
            "swarm join-token captain",
            "swarm update --dispatcher-heartbeat 2s",
            "swarm update",
            "network create --opt encrypted --driver overlay net",
            "network create --subnet 10.9.0.0/24 --gateway 10.9.0.9 --opt encrypted=false clear",
            "network create --subnet 192.168.77.0/24 host-net",
            "network create --opt encrypted=maybe x",
            "network ls",
            "network rm nowhere clear host-net",
            "run --network net nginx",
            "run nginx",
            "image import my-image /no/such/directory",
            "image import my-image /tmp",
            "service create --name web --network net --replicas 2 my-image sleep --forever",
            "service create --name hopeless --network net --replicas 3 broken",
            "service rm hopeless",
            "service create --name web host",
            "service create --network nowhere host",
            "service ls",
            "service ps web",
            "network rm net",
            "exec web.1 sh -c exit",
            "exec nowhere true",
            "node update --availability drain --label-add zone=a ant-2",
            "node update --label-rm colour ant-2",
            "node ls",
            "node rm ant-2",
            "node rm --force ant-2",
            "service rm web",
            "service ls",
            "image rm my-image",
            "image rm my-image",
            "status",
            "swarm rotate-keys --force",
            "swarm leave",
            "swarm leave --force",
        ],
    );
    golden("manager.txt", &text);
}

/// What was to show it the first time may have ended before.
#[test]
fn the_unlock_key_is_shown_whenever_autolock_is_asked_for() {
    let served = Fake::manager_of_two().serve("cli-autolock");
    let key = || {
        let (out, err, code) = run(served.socket(), &["swarm", "update", "--autolock"]);
        assert_eq!((err.as_str(), code), ("", 0));
        let key = out.lines().map(str::trim).find(|line| line.starts_with("SWMKEY-1-"));
        key.unwrap_or_else(|| panic!("no key in {out}")).to_owned()
    };
    assert_eq!(key(), key());
}

#[test]
fn a_session_about_placement() {
    let served = Fake::manager_of_two().serve("cli-placement");
    let text = transcript(
        served.socket(),
        &[
            "node update --label-add zone=a --label-add ssd ant-2",
            "node update --role captain ant-2",
            "node update --role manager ant-2",
            "node update --availability away ant-2",
            "node inspect --pretty ant-2",
            "service create --name everywhere --mode global host",
            "service create --mode global --replicas 2 host",
            "service create --mode global --replicas-max-per-node 2 host",
            "service create --mode local host",
            "service create --name one --constraint node.labels.zone==a --reserve-cpu 1.5 --reserve-memory 1g host",
            "service create --name big -d --reserve-memory 100g host",
            "service create --constraint node.colour==red host",
            "service create --placement-pref spread=colour host",
            "service create --placement-pref node.labels.zone host",
            "service create --reserve-cpu half host",
            "service create --reserve-memory 1k host",
            "service ls",
            "service ps everywhere one big",
            "node update --availability drain ant-2",
            "service ls",
            "swarm update --cert-expiry 48h --task-history-limit 2",
            "swarm update --task-history-limit 101",
            "swarm update --cert-expiry 1s",
            "swarm ca -d",
            "swarm ca --rotate --detach",
            "swarm ca --rotate",
        ],
    );
    golden("placement.txt", &text);
}

#[test]
fn a_session_about_changes() {
    let served = Fake::manager_of_two().serve("cli-changes");
    let text = transcript(
        served.socket(),
        &[
            "network create net",
            "network create other",
            "service create --name web --replicas 2 --network net --update-delay 1s --restart-max-attempts 3 host sleep 9",
            "service scale web=3",
            "service scale web=3 nowhere=1 web",
            "service scale",
            "service update --image my-image --env-add A=b --label-add tier=front --network-add other --network-rm net web",
            "service ps web",
            "service update --network-add other web",
            "service update -d --constraint-add node.role==worker --replicas 2 --reserve-memory 64m web",
            "service inspect --pretty web",
            "service rollback -q web",
            "service update --image broken web",
            "service update --image broken --update-failure-action rollback web",
            "service update --rollback web",
            "service update --env-rm A --label-rm tier --args sleep web -d",
            "service update --update-failure-action jump web",
            "service update --rollback-failure-action rollback web",
            "service update --update-max-failure-ratio 2 web",
            "service update --restart-condition sometimes web",
            "service update nowhere",
            "service create --name all --mode global host",
            "service scale all=2",
            "service update --replicas 2 all",
            "service update --force all",
            "service rm web all",
        ],
    );
    golden("changes.txt", &text);
}

#[test]
fn a_session_on_a_worker() {
    let served = Fake::worker(&["net"]).serve("cli-worker");
    let lines = [
        "network ls",
        "service create host",
        "run --network net nginx",
        "swarm keys",
        "swarm join --token x 10.77.0.1",
    ];
    golden("worker.txt", &transcript(served.socket(), &lines));
}

#[test]
fn inspections_are_json() {
    let served = Fake::manager().serve("cli-json");
    let socket = served.socket();
    run(socket, &["network", "create", "net"]);
    run(socket, &["service", "create", "-d", "--name", "web", "--network", "net", "host"]);
    for arguments in
        [&["node", "inspect", "self", "ant-2"][..], &["network", "inspect", "net"], &["service", "inspect", "web"]]
    {
        let (out, _, code) = run(socket, arguments);
        let list: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
        assert_eq!((list.len(), code), (arguments.len() - 2, 0), "{arguments:?}");
    }
    let (out, err, code) = run(socket, &["network", "inspect", "net", "nowhere"]);
    let list: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    assert_eq!((list.len(), code), (1, 1));
    assert_eq!(err, "formic: Error response from daemon: network nowhere not found\n");
    for arguments in [["status", "--json"], ["info", "--json"]] {
        serde_json::from_str::<serde_json::Value>(&run(socket, &arguments).0).unwrap();
    }
    serde_json::from_str::<KeyRing>(&run(socket, &["swarm", "keys", "--json"]).0).unwrap();
}

#[test]
fn exec_ends_with_the_commands_exit_code_and_keeps_its_streams_apart() {
    let served = Fake::manager().serve("cli-exec");
    let socket = served.socket();
    run(socket, &["network", "create", "net"]);
    run(socket, &["service", "create", "-d", "--name", "web", "--network", "net", "host"]);
    let found = run(socket, &["exec", "-e", "A=b", "web.1", "sh", "-c", "echo $A; echo no >&2; exit 42"]);
    assert_eq!(found, ("b\n".into(), "no\n".into(), 42));
    let (out, err, code) = run(socket, &["ps", "-q"]);
    assert_eq!((out.trim().len(), &*err, code), (25, "", 0));
    assert!(run(socket, &["version"]).0.contains("minimum version 1.40"));
    assert!(run(socket, &["info"]).0.contains("Is Manager: true"));
}

#[test]
fn without_a_daemon_the_socket_is_named() {
    let (out, err, code) = run(Path::new("/nonexistent/formic.sock"), &["node", "ls"]);
    assert_eq!((&*out, code, err.lines().count()), ("", 1, 1));
    assert!(err.contains("/nonexistent/formic.sock") && err.contains("formic daemon"), "{err}");
    assert_eq!(run(Path::new("/nonexistent/formic.sock"), &["run", "--network", "net", "nginx"]).2, 125);
}

#[test]
fn tokens_come_from_files_too() {
    let served = Fake::new().serve("cli-join");
    let file = std::env::temp_dir().join(format!("formic-token-{}", std::process::id()));
    std::fs::write(&file, "SWMTKN-1-worker\n").unwrap();
    let file_name = file.to_str().unwrap();
    let both = run(served.socket(), &["swarm", "join", "--token", "x", "--token-file", file_name, "10.77.0.1"]);
    assert_eq!(both.1, "formic: give --token or --token-file, not both\n");
    let none = run(served.socket(), &["swarm", "join", "10.77.0.1"]);
    assert!(none.1.contains("--token-file FILE"), "{}", none.1);
    let nowhere = run(served.socket(), &["swarm", "join", "--token", "x"]);
    assert!(nowhere.1.contains("address of a manager") && nowhere.2 == 1, "{}", nowhere.1);
    let missing = run(served.socket(), &["swarm", "join", "--token-file", "/nonexistent", "10.77.0.1"]);
    assert!(missing.1.contains("/nonexistent"), "{}", missing.1);
    let joined = run(served.socket(), &["swarm", "join", "--token-file", file_name, "10.77.0.1"]);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(joined, ("This node joined a swarm as a worker.\n".into(), String::new(), 0));
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let run = |arguments: &[&str]| run(Path::new("/nonexistent/formic.sock"), arguments);
    let (_, err, code) = run(&["daemon", "--config", "/nowhere.toml"]);
    assert!(err.contains("/nowhere.toml") && err.lines().count() == 1 && code == 1, "{err}");
    let (_, err, code) = run(&["daemon", "--gossip-port", "4500", "--data-path-port", "4500"]);
    assert!(err.contains("4500") && err.lines().count() == 1 && code == 1, "{err}");
    let (_, err, code) = run(&["daemon", "--log-level", "loud"]);
    assert!(err.contains("loud") && err.lines().count() == 1 && code == 1, "{err}");
}

fn task(slot: u64, version: u64, desired: &str, state: &str, err: &str) -> Task {
    let mut task = Task {
        id: format!("{version}aaaaaaaaaaaaaaaaaaaaaaaa"),
        service_id: "s".into(),
        node_id: "n".into(),
        slot,
        desired_state: desired.into(),
        status: TaskStatus {
            state: state.into(),
            err: err.into(),
            timestamp: "2023-11-14T22:13:20Z".into(),
            ..TaskStatus::default()
        },
        ..Task::default()
    };
    task.version.index = version;
    task.spec.container_spec.image = "host:latest".into();
    task
}

#[test]
fn older_tasks_are_under_the_one_that_is_to_run() {
    let tasks = vec![
        task(2, 5, "running", "pending", "no address is free"),
        task(1, 9, "shutdown", "failed", "exit code 1"),
        task(1, 7, "running", "running", ""),
    ];
    let names = |id: &str, name: &str| [(id.to_owned(), name.to_owned())].into();
    let table = service::task_table(tasks, &names("s", "web"), &names("n", "ant-1"), 1_700_000_005, false);
    golden("tasks.txt", &format!("{table}\n"));
}

#[test]
fn late_nodes_are_named() {
    let epoch = |epoch, phase: &str, sending, activated| KeyEpoch {
        epoch,
        phase: phase.into(),
        handed_out_secs_ago: 90_000,
        activated_secs_ago: activated,
        participants: 3,
        ready: 3,
        sending,
    };
    let late = LateNode { node: "n".into(), hostname: "ant-2".into(), reason: "does not send with epoch 8 yet".into() };
    let ring = KeyRing {
        rotation_secs: 43_200,
        requested_secs_ago: None,
        epochs: vec![
            epoch(7, "previous", 3, Some(43_300)),
            epoch(8, "current", 2, Some(100)),
            epoch(9, "next", 0, None),
        ],
        late: vec![late],
    };
    golden("keys.txt", &format!("{}\n", swarm::describe(&ring)));
}

#[test]
fn the_doctor_examines_with_and_without_a_daemon() {
    let served = Fake::manager().serve("cli-doctor");
    let (out, err, code) = run(served.socket(), &["doctor"]);
    // What it says of this machine depends on the machine, and so does the code.
    assert!(out.contains("ok     daemon       formic 0.1.0 answers on ant-1\n") && err.is_empty(), "{out}{err}");
    assert!(out.contains("note   peers        there is no other node to ask\n"), "{out}");
    assert_eq!(code == 0, out.ends_with("Nothing is wrong.\n"), "{code}: {out}");
    let (out, err, _) = run(Path::new("/no/such/socket"), &["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let last = report["findings"].as_array().unwrap().last().unwrap();
    assert_eq!((last["part"].as_str(), last["verdict"].as_str(), err.as_str()), (Some("daemon"), Some("note"), ""));
}

#[test]
fn a_one_way_peer_shows_in_the_status() {
    let served = Fake::manager().serve("cli-status");
    let (out, _, _) = run(served.socket(), &["status", "--json"]);
    let mut status: DaemonStatus = serde_json::from_str(&out).unwrap();
    status.peers = vec![PeerStatus {
        node: "dt0zvqn0saezzinc8a5g4worx".parse().unwrap(),
        address: "10.0.0.2:4500".parse().unwrap(),
        gossip_address: "10.0.0.2:7946".parse().unwrap(),
        gossip: "alive".into(),
        gossip_heard_ms_ago: Some(250),
        gossip_answered_ms_ago: Some(250),
        esp: true,
        esp_answered_ms_ago: None,
        esp_heard_ms_ago: None,
        esp_sent_ms_ago: Some(61_000),
        carries_bytes: Some(1438),
        verdict: "one way: we send, nothing comes back".into(),
    }];
    let text = status::describe(&status);
    let line = text.lines().find(|line| line.starts_with("dt0zvqn0saez")).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(
        words(line).join(" "),
        "dt0zvqn0saez 10.0.0.2:4500 alive 250 ms never 61.0 s one way: we send, nothing comes back"
    );
}

#[test]
fn sizes_have_three_digits() {
    for (bytes, text) in [
        (0, "0B"),
        (999, "999B"),
        (1000, "1.00kB"),
        (12_345, "12.3kB"),
        (1_234_567, "1.23MB"),
        (999_999, "1.00MB"),
        (u64::MAX, "18.4EB"),
    ] {
        assert_eq!(image::human_size(bytes), text);
    }
}
