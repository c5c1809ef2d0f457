//! The helper for real: processes, namespaces, mounts, TUN devices. Each case runs in fresh namespaces, as root
//! and as the root of a user namespace, whatever this machine allows; when it allows neither, that is a failure.
//!
//! A program without libtest, since the helper must be forked while there is one thread. It speaks enough of
//! libtest's command line for `cargo test` and `cargo nextest`.

mod confinement;
mod named;
mod support;

use formic::helper;
use formic::helper::verbs::{Environment, ErrorKind, Event, Image, ImageName, SignalTarget, TaskLaunch};
use formic::sys::privileges;
use formic::sys::tun::{TunDevice, TunDriver};
use formic::types::Queues;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio as ProcessStdio};
use std::time::{Duration, Instant};
use support::{
    DEADLINE, Fixture, Scratch, captured, command, interface, options, shell, start, start_in, task_id, wait_until,
    within,
};

type Case = fn();
const CASES: &[(&str, Case)] = &[
    ("a_task_network_has_its_devices", network),
    ("a_flow_stays_on_the_queue_it_was_answered_on", several_queues),
    ("the_plain_driver_frames_nothing", plain_network),
    ("a_named_namespace_gets_a_device_and_keeps_its_own", named::named_namespace),
    ("only_named_namespaces_are_entered", named::wrong_namespaces),
    ("a_namespace_that_uses_the_subnet_is_refused", named::overlapping_namespaces),
    ("the_host_image_is_read_only_and_private", host_image),
    ("an_imported_image_is_copy_on_write", named_image),
    ("containers_have_dockers_capabilities", capabilities),
    ("devices_made_in_a_container_do_not_open", device_nodes),
    ("exec_answers_exit_codes", exec_codes),
    ("exec_takes_a_terminal", terminal),
    ("hostile_requests_are_answered_with_errors", hostile_requests),
    ("a_command_that_is_not_there_exits_127", command_not_found),
    ("stop_is_kind_then_firm", stop),
    ("orphans_are_reaped_and_end_with_the_task", orphans),
    ("a_task_runs_from_a_sealed_copy", sealed_copy),
    ("images_are_known_or_refused", image_errors),
    ("an_image_can_be_replaced_while_used", replaced_image),
    ("imports_keep_what_they_can", import_details),
    ("the_network_process_has_no_capability", network_process),
    ("the_network_process_makes_no_other_system_call", confinement::system_calls),
    ("a_state_directory_has_one_helper", second_helper),
    ("leftovers_are_removed", leftovers),
    ("a_killed_daemon_takes_all_along", killed_daemon),
    ("a_killed_helper_takes_all_along", killed_helper),
    ("removing_is_complete", removal),
];

fn main() -> ExitCode {
    helper::shim::run_if_shim();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--inside") => inside(arguments.get(1).map_or("", String::as_str)),
        Some("--confined") => confinement::confined(arguments.get(1).map_or("", String::as_str)),
        Some("--daemon") => daemon(Path::new(arguments.get(1).map_or("", String::as_str))),
        _ => drive(&arguments),
    }
}

// ---- the driver

/// The ways to get namespaces: a name, and the flags of `unshare`.
const WAYS: [(&str, &[&str]); 2] = [("root", &[]), ("userns", &["-U", "-r"])];

fn unshare(flags: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(flags).args(["-m", "-n", "-p", "-f", "--mount-proc", "--kill-child"]);
    command
}

fn works(flags: &[&str]) -> bool {
    let status = unshare(flags).arg("true").stderr(ProcessStdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn drive(arguments: &[String]) -> ExitCode {
    let ways: Vec<_> = WAYS.iter().filter(|(_, flags)| works(flags)).collect();
    let mut names: Vec<String> =
        ways.iter().flat_map(|(way, _)| CASES.iter().map(move |(name, _)| format!("{way}::{name}"))).collect();
    if names.is_empty() {
        names.push("namespaces_can_be_made".to_owned());
    }
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        if !has("--ignored") {
            names.iter().for_each(|name| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &String| {
        filters.is_empty()
            || filters
                .iter()
                .any(|filter| if has("--exact") { name == *filter } else { name.contains(filter.as_str()) })
    };
    let failed: Vec<&String> = names.iter().filter(|name| wanted(name)).filter(|name| !run_outside(name)).collect();
    println!("helper: {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_outside(name: &str) -> bool {
    let Some((way, case)) = name.split_once("::") else {
        eprintln!("this machine allows neither root nor user namespaces: run as root, or allow `unshare -Ur`");
        return false;
    };
    let flags = WAYS.iter().find(|(known, _)| *known == way).map_or(&[][..], |(_, flags)| flags);
    let started = Instant::now();
    let program = std::env::current_exe().unwrap();
    let output = unshare(flags).arg(program).args(["--inside", case]).output().unwrap();
    let verdict = if output.status.success() { "ok" } else { "FAILED" };
    println!("test {name} ... {verdict} ({} ms)", started.elapsed().as_millis());
    if !output.status.success() {
        println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

fn inside(case: &str) -> ExitCode {
    let known = CASES.iter().find(|(name, _)| *name == case);
    let (_, run) = known.unwrap_or_else(|| panic!("no case {case}"));
    run();
    ExitCode::SUCCESS
}

// ---- the cases

fn network() {
    let fixture = start();
    let task = task_id(1);
    let interfaces = vec![interface("eth0", "10.9.0.2/24"), interface("eth1", "10.10.0.2/16")];
    let make = fixture.client.create_task_network(task, interfaces.clone(), TunDriver::Vnet, Queues::ONE);
    let devices: Vec<TunDevice> = within("network", make).unwrap().into_iter().flatten().collect();
    assert_eq!(devices.iter().map(TunDevice::header_len).collect::<Vec<_>>(), [10, 10]);
    let again = within("network", fixture.client.create_task_network(task, interfaces, TunDriver::Vnet, Queues::ONE));
    assert_eq!(again.unwrap_err().kind, ErrorKind::Exists);
    let launch = TaskLaunch { task, image: Image::Host, command: shell("sleep 1000"), hostname: "web".to_owned() };
    within("start", fixture.client.start_task(launch.clone(), None)).unwrap();
    let twice = within("start", fixture.client.start_task(launch, None));
    assert_eq!(twice.unwrap_err().kind, ErrorKind::Exists);

    let interfaces = fixture.succeed(task, "cat /proc/net/dev | grep -c : ; cat /sys/class/net/eth0/mtu");
    assert_eq!(interfaces, "3\n1400\n", "lo, eth0, eth1 and nothing of the host");
    fixture.succeed(task, "ping -c 1 -W 2 10.9.0.2");
    fixture.succeed(task, "ping -c 1 -W 2 10.10.0.2");
    fixture.succeed(task, "ping -c 1 -W 2 127.0.0.1");
    let routes = fixture.succeed(task, "cat /proc/net/route");
    assert_eq!(routes.lines().count(), 3, "a header and two connected routes: {routes}");
    let ours = fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!ours.contains("eth0"), "nothing in the daemon's namespace: {ours}");

    let [first, second] = &devices[..] else { panic!("two devices") };
    let (code, _) = fixture.exec(task, command(&["ping", "-c", "1", "-W", "1", "10.10.3.4"]));
    assert_eq!(code, 1, "nobody answers");
    expect_packet(second, 10, [10, 10, 3, 4]);
    let quiet = first.read(&mut [0; 2048]).unwrap_err();
    assert_eq!(quiet.kind(), std::io::ErrorKind::WouldBlock, "no IPv6 noise either");
    assert!(fixture.succeed(task, "cat /etc/hosts").contains("10.9.0.2\tweb\n10.10.0.2\tweb\n"));
    assert_eq!(fixture.succeed(task, "hostname; cat /etc/hostname"), "web\nweb\n");
}

fn expect_packet(device: &TunDevice, header_len: usize, destination: [u8; 4]) {
    let mut buffer = [0; 2048];
    let length = device.read(&mut buffer).unwrap();
    let packet = &buffer[header_len..length];
    assert_eq!((packet[0], &packet[16..20]), (0x45, &destination[..]));
}

/// The data plane relies on it: both ways of a flow go through one worker.
fn several_queues() {
    let fixture = start();
    let (task, four) = (task_id(1), Queues::try_from(4).unwrap());
    let interfaces = vec![interface("eth0", "10.9.0.2/24"), interface("eth1", "10.10.0.2/16")];
    let make = fixture.client.create_task_network(task, interfaces, TunDriver::Vnet, four);
    let devices = within("network", make).unwrap();
    assert_eq!(devices.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
    let launch = TaskLaunch { task, image: Image::Host, command: shell("sleep 1000"), hostname: String::new() };
    within("start", fixture.client.start_task(launch, None)).unwrap();
    let [_, queues] = &devices[..] else { panic!("two devices") };
    std::thread::scope(|scope| {
        let ping = command(&["ping", "-c", "6", "-i", "0.2", "-W", "5", "10.10.0.9"]);
        let pinging = scope.spawn(|| fixture.exec(task, ping));
        let mut answered_on = None;
        for _ in 0..6 {
            let (queue, mut request) = next_packet(queues);
            assert!(answered_on.is_none_or(|expected| expected == queue), "not where it was answered");
            answer_ping(&mut request);
            let other = (queue + 1) % queues.len();
            queues[other].write(&request).unwrap();
            answered_on = Some(other);
        }
        assert_eq!(pinging.join().unwrap().0, 0, "every ping is answered");
    });
}

/// The next packet of any queue, and which.
fn next_packet(queues: &[TunDevice]) -> (usize, Vec<u8>) {
    let mut buffer = [0; 2048];
    let mut found = None;
    wait_until("a packet", || {
        let read = queues.iter().enumerate().find_map(|(queue, it)| Some((queue, it.read(&mut buffer).ok()?)));
        found = read.map(|(queue, length)| (queue, buffer[..length].to_vec()));
        found.is_some()
    });
    found.unwrap()
}

/// Turns an echo request behind a vnet header into its answer. Swapped addresses change no checksum; the type does.
fn answer_ping(framed: &mut [u8]) {
    let packet = &mut framed[10..];
    let (source, destination): ([u8; 4], [u8; 4]) =
        (packet[12..16].try_into().unwrap(), packet[16..20].try_into().unwrap());
    packet[12..16].copy_from_slice(&destination);
    packet[16..20].copy_from_slice(&source);
    packet[20] = 0;
    let sum = u32::from(u16::from_be_bytes([packet[22], packet[23]])) + 0x0800;
    packet[22..24].copy_from_slice(&((sum & 0xffff) + (sum >> 16)).to_be_bytes()[2..]);
}

fn plain_network() {
    let fixture = start();
    let (task, four) = (task_id(1), Queues::try_from(4).unwrap());
    let make = fixture.client.create_task_network(task, vec![interface("eth0", "10.9.0.2/24")], TunDriver::Plain, four);
    let devices = within("network", make).unwrap();
    let launch = TaskLaunch { task, image: Image::Host, command: shell("sleep 1000"), hostname: String::new() };
    within("start", fixture.client.start_task(launch, None)).unwrap();
    fixture.exec(task, command(&["ping", "-c", "1", "-W", "1", "10.9.0.77"]));
    let [[device]] = &devices.iter().map(Vec::as_slice).collect::<Vec<_>>()[..] else { panic!("one queue") };
    assert_eq!(device.header_len(), 0);
    expect_packet(device, 0, [10, 9, 0, 77]);
}

fn host_image() {
    let scratch = Scratch::new();
    let socket = scratch.0.join("formic.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::write(scratch.0.join("visible"), "yes").unwrap();
    let mut options = options(scratch.state());
    options.hidden.push(socket.clone());
    let fixture = start_in(scratch, &options);
    fs::write(fixture.scratch.state().join("secret"), "key").unwrap();
    let task = fixture.launch_host(1, command(&["sleep", "1000"]));
    let outside = fixture.scratch.0.display();
    assert_eq!(fixture.succeed(task, &format!("cat '{outside}/visible'")), "yes");
    assert_eq!(fixture.succeed(task, &format!("ls -A '{outside}/state, with: odd name'")), "", "state is hidden");
    let kind = fixture.succeed(task, &format!("test -S '{outside}/formic.sock' && echo socket || echo hidden"));
    assert_eq!(kind, "hidden\n", "the daemon's socket is hidden");
    for place in ["/usr", "/etc", "/", &outside.to_string()] {
        let (code, text) = fixture.exec(task, shell(&format!("touch '{place}/formic-was-here'")));
        assert!(code != 0 && text.contains("Read-only"), "{place}: {code} {text}");
    }
    for null in ["/dev/null".to_owned(), format!("{outside}/formic.sock")] {
        let (code, text) = fixture.exec(task, shell(&format!("chmod 666 '{null}'")));
        assert!(code != 0 && text.contains("Read-only"), "{text}");
    }
    fixture.succeed(task, "touch /tmp/a /run/b /dev/shm/c && echo x > /dev/null && test -c /dev/pts/ptmx");
    assert!(!Path::new("/tmp/a").exists() && !Path::new("/run/b").exists());
    fixture.succeed(task, "test \"$(head -c 4 /dev/urandom | wc -c)\" = 4");
    assert_eq!(fixture.succeed(task, "cat /proc/1/comm"), "formic-task\n");
    assert_eq!(fixture.succeed(task, "ls -d /proc/[0-9]* | wc -l").trim(), "5", "init, sleep, sh, ls, wc");
    assert_eq!(fixture.succeed(task, "hostname").trim().len(), 12);
    assert_eq!(fixture.succeed(task, "cat /proc/kcore /proc/keys 2>/dev/null | wc -c").trim(), "0");
    let (code, _) = fixture.exec(task, shell("echo 1 > /proc/sys/net/ipv4/ip_forward"));
    assert_ne!(code, 0);
    let mut with_env = shell("echo $SECRET:$HOME:$PATH; pwd");
    with_env.env = Environment(vec!["SECRET=s3cret".to_owned()]);
    with_env.dir = "/usr".to_owned();
    let (code, text) = fixture.exec(task, with_env);
    assert_eq!(code, 0);
    assert!(text.starts_with("s3cret:/root:/usr/local/sbin:") && text.ends_with("\n/usr\n"), "{text}");
    drop(listener);
}

fn named_image() {
    let fixture = start();
    let (image, source) = fixture.busybox("busy:latest");
    for number in [1, 2] {
        fixture.launch(number, Image::Named(image.clone()), command(&["sleep", "1000"]), None).unwrap();
    }
    let (first, second) = (task_id(1), task_id(2));
    fixture.succeed(first, "echo changed > /data/file; rm /bin/ps; mkdir /new; echo x > /new/y");
    assert_eq!(fixture.succeed(first, "cat /data/file; ls /new"), "changed\ny\n");
    assert_eq!(fixture.succeed(second, "cat /data/file; ls /"), { "originalbin\ndata\ndev\netc\nproc\nsys\ntmp\n" });
    assert_eq!(fs::read_to_string(source.join("data/file")).unwrap(), "original");
    let stored = fixture.scratch.state().join("images/busy:latest");
    assert_eq!(fs::read_to_string(stored.join("data/file")).unwrap(), "original");
    assert!(!stored.join("proc").exists() && !stored.join("etc/hosts").exists());
    let hostname = fixture.succeed(first, "hostname");
    assert_eq!(fixture.succeed(first, "cat /etc/hostname"), hostname);
    assert!(fixture.succeed(first, "cat /etc/resolv.conf").starts_with('#'));
    let mounts = fixture.succeed(first, "cat /proc/mounts");
    assert!(!mounts.contains("/state"), "nothing of the host is mounted: {mounts}");
    fixture.succeed(first, "ping -c 1 127.0.0.1 && id");
}

fn status_line(text: &str, key: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key} in {text}"));
    line.rsplit(char::is_whitespace).next().unwrap().to_owned()
}

/// What `CapEff` should be: Docker's, as far as this machine's root has them.
fn docker_capabilities() -> String {
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = u64::from_str_radix(&status_line(&own, "CapBnd"), 16).unwrap();
    format!("{:016x}", own & 0xa804_25fb)
}

fn capabilities() {
    let expected = docker_capabilities();
    assert_eq!(expected, "00000000a80425fb", "this machine's root lacks some of Docker's capabilities");
    let fixture = start();
    let (mut reader, stdio) = captured();
    fixture.launch(1, Image::Host, shell("cat /proc/self/status; cat /proc/1/status"), Some(stdio)).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(fixture.expect_exit(task_id(1)).0, 0);
    let task = fixture.launch_host(2, shell("sleep 1000"));
    let executed = fixture.succeed(task, "cat /proc/self/status");
    for text in [&text[..], &executed] {
        assert_eq!(status_line(text, "CapEff"), expected);
        assert_eq!(status_line(text, "CapPrm"), expected);
        assert_eq!(status_line(text, "CapBnd"), expected);
        assert_eq!(status_line(text, "CapInh"), "0000000000000000");
        assert_eq!(status_line(text, "CapAmb"), "0000000000000000");
        assert_eq!(status_line(text, "NoNewPrivs"), "0", "setuid programs work");
        assert_eq!(status_line(text, "SigBlk"), "0000000000000000");
        assert_eq!(status_line(text, "SigIgn"), "0000000000000000");
    }
    let init = text.split("Name:").nth(2).unwrap();
    assert_eq!(status_line(init, "CapPrm"), expected, "the init has no more");
}

fn device_nodes() {
    let fixture = start();
    let (image, _) = fixture.busybox("busy");
    fixture.launch(1, Image::Named(image), command(&["sleep", "1000"]), None).unwrap();
    for place in ["/data", "/tmp", "/dev", "/dev/shm"] {
        let (code, text) = fixture.exec(task_id(1), shell(&format!("mknod {place}/n c 1 3 && cat {place}/n")));
        assert_ne!(code, 0, "{place}: {text}");
        assert!(text.contains("denied") || text.contains("not permitted"), "{place}: {text}");
    }
}

fn exec_codes() {
    let fixture = start();
    let task = fixture.launch_host(1, shell("sleep 1000"));
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        assert_eq!(fixture.exec(task, shell(script)).0, expected, "{script}");
    }
    let (code, text) = fixture.exec(task, command(&["/etc/passwd"]));
    assert_eq!(code, 126, "{text}");
    let (id, pid) = within("exec", fixture.client.exec(task, shell("exec sleep 1000"), None)).unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    within("signal", fixture.client.signal(SignalTarget::Exec(id), 9)).unwrap();
    assert_eq!(fixture.expect_exec_exit(id).0, 137);
    let gone = within("signal", fixture.client.signal(SignalTarget::Exec(id), 9));
    assert_eq!(gone.unwrap_err().kind, ErrorKind::UnknownTask);
    let unknown = within("exec", fixture.client.exec(task_id(9), shell("true"), None));
    assert_eq!(unknown.unwrap_err().kind, ErrorKind::UnknownTask);
    let mut long = shell("true");
    long.env.0.push(format!("A={}", "x".repeat(200_000)));
    let long = within("exec", fixture.client.exec(task, long, None));
    assert_eq!(long.unwrap_err().kind, ErrorKind::Invalid);
    let mut input = shell("cat");
    input.tty = false;
    let (mut reader, mut stdio) = captured();
    let (stdin, mut writer) = std::io::pipe().unwrap();
    stdio[0] = stdin.into();
    let (id, _) = within("exec", fixture.client.exec(task, input, Some(stdio))).unwrap();
    writer.write_all(b"through").unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), fixture.expect_exec_exit(id).0), ("through", 0));
}

fn terminal() {
    let fixture = start();
    let task = fixture.launch_host(1, command(&["sleep", "1000"]));
    let pty = nix::pty::openpty(None, None).unwrap();
    let [input, output] = [0, 1].map(|_| pty.slave.try_clone().unwrap());
    let mut script = shell("test -t 0 && read answer < /dev/tty && echo \"$TERM heard $answer\"");
    script.tty = true;
    let (id, _) = within("exec", fixture.client.exec(task, script.clone(), Some([input, output, pty.slave]))).unwrap();
    let mut master = File::from(pty.master);
    master.write_all(b"yes\n").unwrap();
    assert_eq!(fixture.expect_exec_exit(id), (0, String::new()));
    let mut buffer = [0; 256];
    let length = master.read(&mut buffer).unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer[..length]), "yes\r\nxterm heard yes\r\n");
    let (id, _) = within("exec", fixture.client.exec(task, script, None)).unwrap();
    assert_eq!(fixture.expect_exec_exit(id).0, 126, "/dev/null is no terminal");
}

/// Bytes that no client sends, descriptors where none belong, and a helper that goes on.
fn hostile_requests() {
    const ROUNDS: u64 = 3000;
    let scratch = Scratch::new();
    let handle = helper::start(&options(scratch.state())).unwrap();
    privileges::become_network_process().unwrap();
    let null = File::open("/dev/null").unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut answer = vec![0; 1 << 17];
    for round in 0..ROUNDS {
        // Eight bytes of id, then a verb's number and noise; sometimes shorter than the id, or longer than allowed.
        let length = if round % 500 == 7 { (1 << 17) + 1 } else { 1 + (next() % 64) as usize };
        let mut message: Vec<u8> = (0..length).map(|_| next() as u8).collect();
        if let Some(verb) = message.get_mut(8) {
            *verb %= 11;
        }
        let fds = vec![std::os::fd::AsFd::as_fd(&null); (next() % 20) as usize];
        handle.socket().send(&message, &fds).unwrap();
        assert!(handle.socket().wait_readable(Some(DEADLINE)).unwrap(), "no answer to {message:?}");
        let received = handle.socket().receive(&mut answer).unwrap().expect("the helper lives");
        assert!(received.fds.is_empty());
    }
    let open = fs::read_dir(format!("/proc/{}/fd", handle.pid())).unwrap().count();
    assert!(open < 16, "the helper keeps no descriptor: {open}");
    let (client, events) = handle.connect().unwrap();
    let fixture = Fixture { client, events, helper: 0, scratch };
    let task = fixture.launch_host(1, command(&["sleep", "1000"]));
    fixture.succeed(task, "true");
}

fn command_not_found() {
    let fixture = start();
    let task = fixture.launch_host(1, command(&["no-such-program"]));
    let (code, error) = fixture.expect_exit(task);
    assert_eq!(code, 127);
    assert!(error.contains("\"no-such-program\": not found"), "{error}");
    let mut wrong_dir = shell("true");
    wrong_dir.dir = "/no/such/dir".to_owned();
    let task = fixture.launch_host(2, wrong_dir);
    let (code, error) = fixture.expect_exit(task);
    assert!(code == 126 && error.contains("/no/such/dir"), "{code} {error}");
}

fn stop() {
    let fixture = start();
    let task = fixture.launch_host(1, command(&["sleep", "1000"]));
    within("stop", fixture.client.stop_task(task, DEADLINE)).unwrap();
    assert_eq!(fixture.expect_exit(task).0, 143);
    within("stop", fixture.client.stop_task(task, DEADLINE)).unwrap();

    let (mut reader, stdio) = captured();
    let stubborn = shell("trap '' TERM; echo ready; while :; do sleep 1; done");
    fixture.launch(2, Image::Host, stubborn, Some(stdio)).unwrap();
    reader.read_exact(&mut [0; 6]).unwrap();
    let asked = Instant::now();
    within("stop", fixture.client.stop_task(task_id(2), Duration::from_millis(300))).unwrap();
    assert_eq!(fixture.expect_exit(task_id(2)).0, 137);
    assert!(asked.elapsed() >= Duration::from_millis(300), "not before the grace");

    let (mut reader, stdio) = captured();
    let handler = shell("trap 'exit 42' USR1; echo ready; while :; do sleep 0.05; done");
    fixture.launch(3, Image::Host, handler, Some(stdio)).unwrap();
    reader.read_exact(&mut [0; 6]).unwrap();
    within("signal", fixture.client.signal(SignalTarget::Task(task_id(3)), 10)).unwrap();
    assert_eq!(fixture.expect_exit(task_id(3)).0, 42);
    let unknown = within("stop", fixture.client.stop_task(task_id(9), DEADLINE));
    assert_eq!(unknown.unwrap_err().kind, ErrorKind::UnknownTask);
}

fn orphans() {
    let fixture = start();
    let task = fixture.launch_host(1, shell("(sleep 0.01 &) ; (sleep 1234 &) ; exec sleep 1000"));
    wait_until("orphans reaped", || {
        let states = fixture.succeed(task, "cat /proc/[0-9]*/stat 2>/dev/null; true");
        states.contains("(sleep)") && states.matches("(sleep)").count() == 2 && !states.contains(") Z ")
    });
    let (id, _) = within("exec", fixture.client.exec(task, shell("exec sleep 1000"), None)).unwrap();
    within("stop", fixture.client.stop_task(task, DEADLINE)).unwrap();
    let mut events = [fixture.next_event(), fixture.next_event()];
    events.sort_by_key(|event| matches!(event, Event::TaskExited { .. }));
    assert!(matches!(events[0], Event::ExecExited { id: ended, code: 137, .. } if ended == id), "{events:?}");
    assert!(matches!(events[1], Event::TaskExited { code: 143, .. }), "{events:?}");
    assert_eq!(tasks_running(), Vec::<String>::new());
}

/// The command lines of this pid namespace's processes that sleep for a task.
fn tasks_running() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.starts_with("sleep\0") || line.starts_with("formic-task")).collect()
}

fn sealed_copy() {
    let own = fs::metadata("/proc/self/exe").unwrap();
    let (own, content) = ((own.dev(), own.ino()), fs::read("/proc/self/exe").unwrap().len());
    // Looked at from outside with all capabilities: this case does not give them up.
    let scratch = Scratch::new();
    let handle = helper::start(&options(scratch.state())).unwrap();
    let helper = handle.pid();
    let (client, events) = handle.connect().unwrap();
    let fixture = Fixture { client, events, helper, scratch };
    let pid = fixture.launch(1, Image::Host, shell("sleep 1000"), None).unwrap();
    let exe = fs::metadata(format!("/proc/{pid}/exe")).unwrap();
    assert_ne!((exe.dev(), exe.ino()), own, "the init runs from a copy");
    assert_eq!(exe.len() as usize, content);
    let (code, text) = fixture.exec(task_id(1), shell("echo overwritten >> /proc/1/exe"));
    assert_ne!(code, 0, "{text}");
    assert_eq!(fs::read("/proc/self/exe").unwrap().len(), content);
    let fds = fixture.succeed(task_id(1), "ls /proc/1/fd");
    assert_eq!(fds, "0\n1\n2\n", "the init holds nothing");
    let names = fs::read_dir(format!("/proc/{pid}/root/proc/1/fd")).unwrap().count();
    assert_eq!(names, 3);
}

fn image_errors() {
    let scratch = Scratch::new();
    let mut options = options(scratch.state());
    options.host_image = false;
    let fixture = start_in(scratch, &options);
    let forbidden = fixture.launch(1, Image::Host, shell("true"), None).unwrap_err();
    assert_eq!((forbidden.kind, forbidden.is_rejection()), (ErrorKind::ForbiddenImage, true));
    let unknown = fixture.launch(2, Image::from_normalised("nope:latest").unwrap(), shell("true"), None).unwrap_err();
    assert_eq!((unknown.kind, unknown.is_rejection()), (ErrorKind::UnknownImage, true));
    assert!(unknown.text.contains("no such image on this node: nope:latest"), "{unknown}");
    assert_eq!(Image::from_normalised("../../etc").unwrap_err().kind, ErrorKind::UnknownImage);
    let import = |path: &Path| within("import", fixture.client.import_image("a".parse().unwrap(), path));
    let contains = import(&fixture.scratch.0).unwrap_err();
    assert!(contains.kind == ErrorKind::Invalid && contains.text.contains("contains"), "{contains}");
    assert_eq!(import(Path::new("/no/such/dir")).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(import(Path::new("/etc/passwd")).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(import(Path::new("relative")).unwrap_err().kind, ErrorKind::Invalid);
    let remove = within("remove", fixture.client.remove_image("nope".parse().unwrap()));
    assert_eq!(remove.unwrap_err().kind, ErrorKind::UnknownImage);
    assert!(within("list", fixture.client.list_images()).unwrap().is_empty());
    let (image, _) = fixture.busybox("busy");
    let link = fixture.scratch.0.join("bad");
    fs::create_dir(&link).unwrap();
    symlink("/etc", link.join("dev")).unwrap();
    let bad = fixture.import("bad", &link);
    let refused = fixture.launch(3, Image::Named(bad), shell("true"), None).unwrap_err();
    assert!(refused.text.contains("/dev of the image is not a directory"), "{refused}");
    let launch = TaskLaunch {
        task: task_id(3),
        image: Image::Named(image.clone()),
        command: command(&["sleep", "1000"]),
        hostname: String::new(),
    };
    within("start", fixture.client.start_task(launch, None)).expect("a failed start can be tried again");
    let used = within("remove", fixture.client.remove_image(image.clone()));
    assert_eq!(used.unwrap_err().kind, ErrorKind::InUse);
    within("remove", fixture.client.remove_task(task_id(3))).unwrap();
    within("remove", fixture.client.remove_image(image)).unwrap();
    assert_eq!(within("list", fixture.client.list_images()).unwrap().len(), 1);
}

fn replaced_image() {
    let fixture = start();
    let (image, source) = fixture.busybox("busy");
    fixture.launch(1, Image::Named(image.clone()), command(&["sleep", "1000"]), None).unwrap();
    fs::write(source.join("data/file"), "second").unwrap();
    fs::remove_file(source.join("bin/ping")).unwrap();
    fixture.import("busy", &source);
    fixture.launch(2, Image::Named(image), command(&["sleep", "1000"]), None).unwrap();
    assert_eq!(fixture.succeed(task_id(1), "cat /data/file; ls /bin/ping"), "original/bin/ping\n");
    assert_eq!(fixture.succeed(task_id(2), "cat /data/file; test ! -e /bin/ping"), "second");
    let images = fixture.scratch.state().join("images");
    assert_eq!(fs::read_dir(&images).unwrap().count(), 2, "the old one is kept for its task");
    within("remove", fixture.client.remove_task(task_id(1))).unwrap();
    wait_until("the old image is removed", || fs::read_dir(&images).unwrap().count() == 1);
}

fn import_details() {
    let fixture = start();
    let dir = fixture.scratch.0.join("source");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("program"), "#!/bin/sh").unwrap();
    fs::set_permissions(dir.join("program"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(dir.join("program"), dir.join("sub/same")).unwrap();
    symlink("/etc/shadow", dir.join("link")).unwrap();
    symlink("..", dir.join("sub/loop")).unwrap();
    fs::set_permissions(dir.join("sub"), fs::Permissions::from_mode(0o1770)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    let name: ImageName = "details".parse().unwrap();
    let summary = within("import", fixture.client.import_image(name, &dir)).unwrap();
    assert_eq!((summary.entries, summary.bytes, summary.skipped), (5, 9, 1));
    let image = fixture.scratch.state().join("images/details");
    let program = fs::metadata(image.join("program")).unwrap();
    assert_eq!((program.mode() & 0o7777, program.nlink()), (0o4755, 2));
    assert_eq!(program.mtime(), fs::metadata(dir.join("program")).unwrap().mtime());
    assert_eq!(fs::metadata(image.join("sub")).unwrap().mode() & 0o7777, 0o1770);
    assert_eq!(fs::read_link(image.join("link")).unwrap(), Path::new("/etc/shadow"));
    assert_eq!(fs::read_link(image.join("sub/loop")).unwrap(), Path::new(".."));
    assert!(!image.join("socket").exists());
}

fn network_process() {
    let fixture = start();
    let task = fixture.launch_host(1, shell("sleep 1000"));
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_line(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(status_line(&status, "NoNewPrivs"), "1");
    assert!(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err(), "no namespaces");
    assert!(TunDevice::open_vnet("tun7").is_err(), "no devices");
    for file in ["fd/0", "exe", "root"] {
        let link = fs::read_link(format!("/proc/{}/{file}", fixture.helper));
        assert!(link.is_err(), "the helper cannot be looked into: {file}");
    }
    assert!(File::open(format!("/proc/{}/mem", fixture.helper)).is_err(), "nor read");
    // An exec as uid 0 gives nothing back.
    let output = Command::new("cat").arg("/proc/self/status").output().unwrap();
    let status = String::from_utf8(output.stdout).unwrap();
    assert_eq!(status_line(&status, "CapEff"), "0000000000000000");
    fixture.succeed(task, "true");
}

fn second_helper() {
    let scratch = Scratch::new();
    let options = options(scratch.state());
    let first = helper::start(&options).unwrap();
    let error = helper::start(&options).unwrap_err();
    assert!(error.to_string().contains("another formic daemon uses the state directory"), "{error}");
    drop(first);
    helper::start(&options).expect("the first one's end frees the directory");
}

fn leftovers() {
    let scratch = Scratch::new();
    let state = scratch.state();
    let mounted = state.join("tasks/old/root");
    fs::create_dir_all(&mounted).unwrap();
    fs::create_dir_all(state.join("images/.7/half")).unwrap();
    fs::create_dir_all(state.join("images/kept")).unwrap();
    let treasure = scratch.0.join("treasure");
    fs::create_dir(&treasure).unwrap();
    fs::write(treasure.join("file"), "precious").unwrap();
    nix::mount::mount(Some(&treasure), &mounted, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
    symlink(&treasure, state.join("tasks/link")).unwrap();
    let fixture = start_in(scratch, &options(state.clone()));
    assert_eq!(fs::read_dir(state.join("tasks")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(treasure.join("file")).unwrap(), "precious");
    let images = within("list", fixture.client.list_images()).unwrap();
    assert_eq!(images.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["kept"]);
    assert!(!state.join("images/.7").exists());
}

/// A daemon for [`killed_daemon`]: starts two tasks, says so, waits to be killed.
fn daemon(state: &Path) -> ExitCode {
    let handle = helper::start(&options(state.to_owned())).unwrap();
    privileges::become_network_process().unwrap();
    let helper = handle.pid();
    let (client, events) = handle.connect().unwrap();
    let fixture = Fixture { client, events, helper, scratch: Scratch(state.to_owned()) };
    let task = fixture.launch_host(1, shell("(sleep 1234 &); trap '' TERM HUP INT; while :; do sleep 77; done"));
    fixture.launch_host(2, command(&["sleep", "1000"]));
    let (_, _) = within("exec", fixture.client.exec(task, shell("exec sleep 1000"), None)).unwrap();
    println!("{}", fixture.helper);
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}

fn killed_daemon() {
    let scratch = Scratch::new();
    let mut daemon = Command::new(std::env::current_exe().unwrap());
    daemon.arg("--daemon").arg(scratch.state()).stdout(ProcessStdio::piped()).process_group(0);
    let mut daemon = daemon.spawn().unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(daemon.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let helper = PathBuf::from("/proc").join(line.trim());
    assert!(helper.exists() && tasks_running().len() >= 6, "{:?}", tasks_running());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    wait_until("tasks end", || tasks_running().is_empty());
    // The helper's parent is gone: it is this namespace's pid 1, who is us or `unshare`.
    wait_until("the helper ends", || {
        while let Ok(status) = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
            if status == nix::sys::wait::WaitStatus::StillAlive {
                break;
            }
        }
        !helper.exists()
    });
    assert!(!scratch.state().join("tasks").exists(), "and it cleaned up");
    drop(helper::start(&options(scratch.state())).expect("a new daemon can start"));
}

fn killed_helper() {
    let fixture = start();
    let pid = fixture.launch(1, Image::Host, shell("sleep 1234 & exec sleep 1000"), None).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(fixture.helper.cast_signed()), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    assert_eq!(fixture.next_event(), Event::Gone);
    let gone = within("list", fixture.client.list_images());
    assert_eq!(gone.unwrap_err().kind, ErrorKind::Gone);
    wait_until("tasks end", || {
        let alive = fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        !alive && tasks_running().is_empty()
    });
}

fn removal() {
    let fixture = start();
    let (image, _) = fixture.busybox("busy");
    let task = task_id(1);
    let make =
        fixture.client.create_task_network(task, vec![interface("eth0", "10.9.0.2/24")], TunDriver::Vnet, Queues::ONE);
    let devices = within("network", make).unwrap();
    let launch =
        TaskLaunch { task, image: Image::Named(image), command: command(&["sleep", "1000"]), hostname: String::new() };
    within("start", fixture.client.start_task(launch, None)).unwrap();
    within("remove", fixture.client.remove_task(task)).unwrap();
    assert_eq!(fixture.expect_exit(task).0, 137);
    drop(devices);
    assert_eq!(tasks_running(), Vec::<String>::new());
    assert_eq!(fs::read_dir(fixture.scratch.state().join("tasks")).unwrap().count(), 0);
    within("remove", fixture.client.remove_task(task)).expect("an unknown task is gone");
    let never_started = task_id(2);
    let make = fixture.client.create_task_network(never_started, Vec::new(), TunDriver::Vnet, Queues::ONE);
    within("network", make).unwrap();
    within("remove", fixture.client.remove_task(never_started)).unwrap();
    fixture.client.shut_down().unwrap();
    assert_eq!(fixture.next_event(), Event::Gone);
    assert!(!Path::new(&format!("/proc/{}", fixture.helper)).exists(), "reaped");
}
