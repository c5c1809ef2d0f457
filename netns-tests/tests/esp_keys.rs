//! `formic debug esp-keys`: who is shown keys, and that tshark decrypts every packet of a network with them.

use netns_tests::process::{self, Finished};
use netns_tests::swarm::FAST;
use netns_tests::traffic::{IperfServer, in_network_of};
use netns_tests::{Capture, Swarm, Task};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tools::esp_peer::from_hex;

/// Seen inside tasks, and in what tshark decrypts.
const MARKER: &str = "FORMIC-MARKER";

/// Somebody who is not root.
const NOBODY: &str = "65534";

fn esp_keys(swarm: &Swarm, index: usize, words: &[&str]) -> Finished {
    swarm.host(index).formic(&[&["debug", "esp-keys"], words].concat())
}

fn traffic(tasks: &[Task]) {
    let [from, to] = tasks else { panic!("two tasks") };
    let mut ping = in_network_of(from, "ping");
    let pattern: String = MARKER.bytes().map(|octet| format!("{octet:02x}")).collect();
    ping.args(["-n", "-q", "-c", "20", "-i", "0.02", "-p", &pattern, &to.address().to_string()]);
    process::run(ping).ok();
    let _server = IperfServer::start(to);
    let mut client = in_network_of(from, "iperf3");
    client.args(["--client", &to.address().to_string(), "--bytes", "200K"]);
    process::run(client).ok();
}

/// A packet of ESP as tshark shows it.
struct Shown {
    spi: u32,
    /// The next header, if it is one that tshark looks into.
    next_header: Option<u8>,
    /// Octets that it does not look into; of packets without a key, none.
    data: Vec<u8>,
}

impl Shown {
    /// An inner packet, or a control message with its padding and next header 59.
    fn is_decrypted(&self) -> bool {
        self.next_header == Some(4) || matches!(self.data[..], [0..=4, .., 59])
    }
}

fn decrypt(swarm: &Swarm, capture: &Path, table: &str) -> Vec<Shown> {
    let mut tshark = swarm.net.outside("tshark");
    tshark.env("HOME", swarm.net.directory()).args(["-r", &capture.to_string_lossy()]);
    tshark.args(["-o", "esp.enable_encryption_decode:TRUE"]);
    for row in table.lines() {
        tshark.args(["-o", &format!("uat:esp_sa:{row}")]);
    }
    tshark.args(["-Y", "esp", "-T", "fields", "-e", "esp.spi", "-e", "esp.protocol", "-e", "data.data"]);
    let printed = process::run(tshark).ok();
    let hex = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16);
    let packets = printed.lines().map(|line| {
        let mut fields = line.split('\t');
        let mut field = || fields.next().unwrap_or_default();
        Shown {
            spi: hex(field()).expect("an SPI"),
            next_header: hex(field()).ok().and_then(|octet| u8::try_from(octet).ok()),
            data: from_hex(field()).expect("octets"),
        }
    });
    packets.collect()
}

#[test]
fn tshark_decrypts_every_packet_of_the_network_whose_keys_are_shown_and_no_other() {
    // Without trains of datagrams, which a recording on a virtual wire shows as one.
    let swarm = Swarm::start_with(2, FAST, &["--allow-key-export", "--disable-offload", "udp-gso"]);
    for network in ["shown", "hidden"] {
        swarm.create_network(network, &["--opt", "encrypted"]);
    }
    let shown = swarm.create_service("a", &["shown"], 2);
    let hidden = swarm.create_service("b", &["hidden"], 2);
    for tasks in [&shown, &hidden] {
        swarm.wait_all_ping(tasks, 2);
    }
    let capture = Capture::underlay(&swarm.net, "keys");
    traffic(&shown);
    traffic(&hidden);
    let capture = capture.stop();
    // Either end knows the keys of both directions.
    let path = swarm.net.directory().join("esp_sa");
    let file = path.to_string_lossy().into_owned();
    esp_keys(&swarm, 1, &["--expose-keys", "--output", &file, "shown"]).ok();
    let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let table = std::fs::read_to_string(&path).expect("read the table");
    assert_eq!(sorted(&table), sorted(&esp_keys(&swarm, 0, &["--expose-keys", "shown"]).ok()));
    esp_keys(&swarm, 1, &["--expose-keys", "--output", &file, "shown"]).refused("File exists");

    let spis: Vec<u32> = table.lines().map(spi_of).collect();
    let packets = decrypt(&swarm, &capture, &table);
    let (of_shown, others): (Vec<&Shown>, Vec<&Shown>) = packets.iter().partition(|packet| spis.contains(&packet.spi));
    println!("{} packets of the network shown, {} of the other", of_shown.len(), others.len());
    assert!(of_shown.len() > 45 && others.len() > 45, "too little was captured");
    let opaque = of_shown.iter().filter(|packet| !packet.is_decrypted()).count();
    assert_eq!(opaque, 0, "packets that were not decrypted");
    assert!(
        others.iter().all(|packet| packet.next_header.is_none() && packet.data.is_empty()),
        "the other network too"
    );
    let marker = MARKER.as_bytes();
    let marked = of_shown.iter().filter(|packet| packet.data.windows(marker.len()).any(|octets| octets == marker));
    assert_eq!(marked.count(), 40, "echo requests and answers with the marker");
    assert_keys_are_in_no_log(&swarm, &table);
}

fn spi_of(row: &str) -> u32 {
    let spi = row.split('"').find_map(|cell| cell.strip_prefix("0x")).expect("an SPI");
    u32::from_str_radix(spi, 16).expect("an SPI")
}

fn sorted(table: &str) -> Vec<&str> {
    let mut rows: Vec<&str> = table.trim_end().lines().collect();
    rows.sort_unstable();
    rows
}

/// That keys were shown is in the log; no key is.
fn assert_keys_are_in_no_log(swarm: &Swarm, table: &str) {
    for host in &swarm.net.hosts {
        let log = host.log();
        assert!(log.contains("the keys of a network's ESP are shown to root"), "{log}");
        for key in table.lines().filter_map(|row| row.rsplit("0x").next()?.split('"').next()) {
            assert!(key.len() == 72 && !log.contains(&key[..16]), "a key is in the log");
        }
    }
}

#[test]
fn keys_are_refused_unless_the_daemon_root_and_the_flag_agree() {
    let swarm = Swarm::start(2);
    swarm.create_network("secret", &["--opt", "encrypted"]);
    swarm.create_network("plain", &[]);
    let tasks = swarm.create_service("web", &["secret", "plain"], 2);
    swarm.wait_all_ping(&tasks, 2);
    esp_keys(&swarm, 0, &["secret"]).refused("--expose-keys");
    let file = swarm.net.directory().join("keys");
    let output = ["--expose-keys", "--output", &file.to_string_lossy(), "secret"].map(str::to_owned);
    esp_keys(&swarm, 0, &output.each_ref().map(String::as_str)).refused("--allow-key-export");
    assert!(!file.exists(), "an empty file was left");
    assert!(!swarm.host(0).log().contains("are shown to root"));

    swarm.host(1).stop_daemon();
    swarm.host(1).start_daemon(&["--allow-key-export"]);
    let tasks = swarm.wait_tasks("web", 2);
    swarm.wait_all_ping(&tasks, 2);
    assert!(swarm.host(1).log().contains("--allow-key-export: root of this host"));
    esp_keys(&swarm, 1, &["--expose-keys", "plain"]).refused("not encrypted");
    esp_keys(&swarm, 1, &["--expose-keys", "nothing"]).refused("not found");
    // A user who may use the socket for all else.
    let socket = swarm.host(1).socket();
    for path in socket.ancestors().skip(1).take(2) {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("open the directory");
    }
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).expect("open the socket");
    let as_nobody = |words: &[&str]| {
        let mut command = swarm.host(1).command("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(netns_tests::formic()).args(words);
        process::run(command)
    };
    as_nobody(&["status"]).ok();
    as_nobody(&["debug", "esp-keys", "--expose-keys", "secret"]).refused("keys are shown to root only");
    esp_keys(&swarm, 1, &["--expose-keys", "secret"]).ok();
}
