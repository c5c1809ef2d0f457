//! strongSwan's ESP (charon with kernel-libipsec, in userspace as Formic's) against Formic's. charon knows no keys but its
//! own: two of them agree by IKE, one is killed, and Formic's end carries on in its place with the keys that the other
//! has logged.
//!
//! ```text
//!   host 0: charon 10.99.0.1 === 10.77.0.1:4500 --- 10.77.0.2:4500 === 10.99.0.2 host 1: charon, then Formic's end
//! ```

use formic::esp::Numbering;
use formic::types::Transform;
use netns_tests::host::enter_network_of;
use netns_tests::process::{self, Background};
use netns_tests::traffic::IperfServer;
use netns_tests::wait::so;
use netns_tests::{Host, Topology, wait_until};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tools::esp_peer::{Direction, Handle, Peer, Settings, from_hex};

/// What charon may take to start and to agree.
const DEADLINE: Duration = Duration::from_secs(30);

/// Above all that the killed charon has sent.
const SENT_BEFORE: u64 = 100_000;

const PLUGINS: &str = "random nonce aes sha1 sha2 hmac kdf gcm ctr openssl curve25519 kernel-libipsec kernel-netlink \
                       socket-default vici";

/// A charon on a host.
struct Charon<'a> {
    host: &'a Host,
    daemon: Background,
    directory: PathBuf,
}

impl<'a> Charon<'a> {
    fn start(net: &'a Topology, index: usize, proposal: &str) -> Charon<'a> {
        let (host, other) = (net.host(index), net.host(1 - index));
        let directory = net.directory().join(format!("charon-{index}"));
        std::fs::create_dir_all(&directory).expect("make a directory");
        let place = directory.display();
        // One key a line, or the rest of the line is its value.
        let settings = format!(
            "charon-systemd {{\n load = {PLUGINS}\n install_routes = yes\n plugins {{\n vici {{\n socket = unix://{place}/vici\n }}\n }}\n \
             filelog {{\n main {{\n path = {place}/log\n default = 1\n chd = 4\n flush_line = yes\n }}\n }}\n}}\n"
        );
        let connection = format!(
            "connections {{\n n {{\n version = 2\n local_addrs = {}\n remote_addrs = {}\n proposals = aes128-sha256-x25519\n \
             encap = yes\n dpd_delay = 0s\n rekey_time = 0\n local {{\n auth = psk\n id = host{index}\n }}\n \
             remote {{\n auth = psk\n id = host{}\n }}\n children {{\n n {{\n local_ts = {}/32\n remote_ts = {}/32\n \
             esp_proposals = {proposal}\n rekey_time = 0\n mode = tunnel\n }}\n }}\n }}\n}}\n\
             secrets {{\n ike-1 {{\n secret = \"for this test only\"\n }}\n}}\n",
            host.address(),
            other.address(),
            1 - index,
            inner(index),
            inner(1 - index),
        );
        std::fs::write(directory.join("strongswan.conf"), settings).expect("write the settings");
        std::fs::write(directory.join("swanctl.conf"), connection).expect("write the connection");
        host.run(&["ip", "address", "add", &format!("{}/32", inner(index)), "dev", "lo"]).ok();
        let mut command = host.command("charon-systemd");
        command.env("STRONGSWAN_CONF", directory.join("strongswan.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let charon = Charon { host, daemon: Background::start(command), directory };
        wait_until("charon answers", DEADLINE, || {
            let finished = charon.swanctl(&["--load-all", "--file", &charon.path("swanctl.conf")]);
            so(finished.code == 0, || finished.describe())
        });
        charon
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    fn swanctl(&self, words: &[&str]) -> process::Finished {
        let mut command = self.host.command("swanctl");
        command.env("STRONGSWAN_CONF", self.path("strongswan.conf"));
        command.args(words).args(["--uri", &format!("unix://{}", self.path("vici"))]);
        process::run(command)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

fn inner(index: usize) -> String {
    format!("10.99.0.{}", index + 1)
}

/// Keying material by side (`initiator`, `responder`) and SPIs by the address that they lead to, of charon's log.
#[derive(Default)]
struct Agreed {
    materials: BTreeMap<String, Vec<u8>>,
    spis: BTreeMap<String, u32>,
}

impl Agreed {
    fn read(log: &str) -> Agreed {
        let mut agreed = Agreed::default();
        // The side and length of the dump whose lines come now.
        let mut dump: Option<(String, usize)> = None;
        for line in log.lines() {
            let text = line.split_once("[CHD]").map_or("", |(_, text)| text).trim();
            if let Some((side, length)) = dump_head(text) {
                agreed.materials.insert(side.clone(), Vec::new());
                dump = Some((side, length));
            } else if let Some((side, length)) = &dump
                && let Some((_, octets)) = text.split_once(": ")
                && let Some(material) = agreed.materials.get_mut(side)
                && material.len() < *length
            {
                let wanted = (length - material.len()).min(16);
                let octets: String = octets.split(' ').take(wanted).collect();
                material.extend(from_hex(&octets).expect("a dump"));
            } else if let Some((spi, ways)) = text.strip_prefix("SPI 0x").and_then(|text| text.split_once(", src ")) {
                let to = ways.split_once(" dst ").expect("where it leads to").1;
                agreed.spis.insert(to.to_owned(), u32::from_str_radix(spi, 16).expect("an SPI"));
            }
        }
        agreed
    }
}

/// `encryption initiator key => 20 bytes @ 0x...`
fn dump_head(text: &str) -> Option<(String, usize)> {
    let (side, rest) = text.strip_prefix("encryption ")?.split_once(" key => ")?;
    Some((side.to_owned(), rest.split(' ').next()?.parse().ok()?))
}

/// Formic's end in the place of host 1's charon, on a thread in its network.
fn take_over(net: &Topology, agreed: &Agreed) -> Handle {
    let address = |index: usize| net.host(index).address().to_string();
    let material = |side: &str| agreed.materials.get(side).expect("keying material").clone();
    let spi = |index: usize| agreed.spis.get(&address(index)).copied().expect("an SPI");
    let settings = Settings {
        local: SocketAddr::from((net.host(1).address(), 4500)),
        peer: SocketAddr::from((net.host(0).address(), 4500)),
        device: "esp0".into(),
        transform: Transform::Gcm,
        numbering: Numbering::Short,
        outbound: Direction { spi: spi(0), material: material("responder"), used: SENT_BEFORE },
        inbound: Direction { spi: spi(1), material: material("initiator"), used: 0 },
    };
    let pid = net.host(1).pid();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        enter_network_of(pid);
        let peer = Peer::open(&settings).expect("open the peer");
        sender.send(peer.handle()).expect("the test waits");
        peer.run().expect("run the peer");
    });
    let handle = receiver.recv_timeout(DEADLINE).expect("the peer is open");
    net.host(1).run(&["ip", "link", "set", "esp0", "mtu", "1400", "up"]).ok();
    net.host(1).run(&["ip", "route", "add", &inner(0), "dev", "esp0", "src", &inner(1)]).ok();
    handle
}

fn ping(net: &Topology, from: usize, count: &str) {
    let words = ["ping", "-n", "-q", "-c", count, "-i", "0.02", "-W", "20", "-I", &inner(from), &inner(1 - from)];
    let finished = net.host(from).run(&words);
    assert!(finished.stdout.contains(" 0% packet loss"), "{}", finished.describe());
}

fn stream(net: &Topology, from: usize) {
    let _server = IperfServer::start_in(net.host(1 - from).pid());
    net.host(from).run(&["iperf3", "--client", &inner(1 - from), "--bind", &inner(from), "--bytes", "300K"]).ok();
}

fn carries_on(proposal: &str, material_len: usize) {
    let net = Topology::new(2);
    let near = Charon::start(&net, 0, proposal);
    let mut far = Charon::start(&net, 1, proposal);
    let initiated = near.swanctl(&["--initiate", "--child", "n", "--timeout", "20"]);
    assert!(initiated.code == 0, "{}\n{}", initiated.describe(), near.log());
    ping(&net, 0, "3");

    let agreed = Agreed::read(&near.log());
    let lengths: Vec<usize> = agreed.materials.values().map(Vec::len).collect();
    assert_eq!(lengths, [material_len; 2], "{}", near.log());
    // Killed, so that it says nothing to the other, which goes on as before.
    far.daemon.signal(nix::sys::signal::Signal::SIGKILL);
    far.daemon.end(DEADLINE);
    let handle = take_over(&net, &agreed);
    for from in [0, 1] {
        ping(&net, from, "20");
        stream(&net, from);
    }
    let report = handle.report();
    println!("{proposal}: {report:?}");
    assert!(report.sent > 200 && report.received > 200 && report.highest > 200, "{report:?}");
    let drops: Vec<_> = report.drops.keys().filter(|reason| **reason != formic::esp::EspDrop::SpiZero).collect();
    assert!(drops.is_empty(), "only IKE may be refused: {report:?}");
    handle.stop();
}

#[test]
fn formic_carries_on_for_strongswan_with_aes_128() {
    carries_on("aes128gcm16", 20);
}

#[test]
fn formic_carries_on_for_strongswan_with_aes_256() {
    carries_on("aes256gcm16", 36);
}
