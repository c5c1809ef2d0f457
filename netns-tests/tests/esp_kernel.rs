//! The ESP of the Linux kernel (XFRM) against Formic's, with the same fixed keys: each transform, length of key and kind
//! of sequence number, IPv4 and IPv6 inside, both ways.
//!
//! ```text
//!   esp1 10.99.1.1, fd99:1::1            10.99.1.2, fd99:1::2
//!   peer --- 127.0.0.1 --- Relay 10.77.0.254:4501 === 10.77.0.1:4500 XFRM in the guest
//! ```
//! Everything but the guest is in the test's own network namespace. The relay can hold a datagram, damage and repeat it.

use formic::esp::{EspDrop, Numbering};
use formic::types::Transform;
use netns_tests::guest::GUEST;
use netns_tests::topology::OUTSIDER;
use netns_tests::wait::so;
use netns_tests::{Capture, Guest, Topology, process, wait_until};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tools::esp_peer::{Direction, Handle, Peer, Report, Settings};

/// What a state that a packet brings about may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Echo requests each way in each case: the kernel's and Formic's numbers pass 2^32 where they begin at [`NEAR_WRAP`].
const PINGS: &str = "12";

/// Extended numbers begin here.
const NEAR_WRAP: u64 = 0xffff_fff8;

/// One pair of SAs.
struct Case {
    number: u8,
    transform: Transform,
    key_len: usize,
    numbering: Numbering,
}

impl Case {
    fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        for transform in [Transform::Gcm, Transform::Gmac] {
            for key_len in [16, 32] {
                for numbering in [Numbering::Short, Numbering::Extended] {
                    let number = cases.len() as u8 + 1;
                    cases.push(Case { number, transform, key_len, numbering });
                }
            }
        }
        cases
    }

    fn name(&self) -> String {
        format!("{:?} {} {:?}", self.transform, self.key_len * 8, self.numbering)
    }

    fn port(&self) -> u16 {
        4500 + u16::from(self.number)
    }

    /// The inner addresses of one end: 1 is Formic's, 2 the kernel's.
    fn inner(&self, end: u8) -> [IpAddr; 2] {
        [
            Ipv4Addr::new(10, 99, self.number, end).into(),
            Ipv6Addr::new(0xfd99, self.number.into(), 0, 0, 0, 0, 0, end.into()).into(),
        ]
    }

    fn used(&self) -> u64 {
        if self.numbering == Numbering::Extended { NEAR_WRAP } else { 0 }
    }

    /// What Formic sends by (1), and the kernel (2).
    fn direction(&self, end: u8) -> Direction {
        let material = (0..self.key_len as u8 + 4).map(|octet| octet ^ (self.number << 4) ^ end).collect();
        Direction { spi: 0x1000 * u32::from(end) + u32::from(self.number), material, used: self.used() }
    }

    /// The guest's half, for its shell.
    fn guest_script(&self) -> String {
        let (number, port) = (self.number, self.port());
        let algorithm = if self.transform == Transform::Gcm { "rfc4106(gcm(aes))" } else { "rfc4543(gcm(aes))" };
        let mut script = String::new();
        for (end, src, dst, way, sport, dport) in
            [(1, OUTSIDER, GUEST, "seq", port, 4500), (2, GUEST, OUTSIDER, "oseq", 4500, port)]
        {
            let Direction { spi, material, used } = self.direction(end);
            let key: String = material.iter().map(|octet| format!("{octet:02x}")).collect();
            let extended = match self.numbering {
                Numbering::Extended => format!("flag esn replay-{way} {used} replay-{way}-hi 0"),
                Numbering::Short | Numbering::InIv => String::new(),
            };
            script += &format!(
                "ip xfrm state add src {src} dst {dst} proto esp spi {spi} reqid {number} mode tunnel replay-window 64 \
                 flag af-unspec {extended} aead '{algorithm}' 0x{key} 128 encap espinudp {sport} {dport} 0.0.0.0\n"
            );
        }
        for (ours, theirs) in self.inner(2).into_iter().zip(self.inner(1)) {
            let bits = if ours.is_ipv4() { 32 } else { 128 };
            script += &format!(
                "ip address add {ours}/{bits} dev lo\n\
                 ip route add {theirs}/{bits} dev eth0 src {ours}\n\
                 ip xfrm policy add src {ours} dst {theirs} dir out tmpl src {GUEST} dst {OUTSIDER} proto esp reqid {number} mode tunnel\n\
                 ip xfrm policy add src {theirs} dst {ours} dir in tmpl src {OUTSIDER} dst {GUEST} proto esp reqid {number} mode tunnel\n"
            );
        }
        script
    }
}

/// Stands between the two ends, so that what passes can be held, damaged and repeated.
struct Relay {
    to_guest: Arc<Way>,
    to_peer: Arc<Way>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// One direction through a relay.
struct Way {
    socket: UdpSocket,
    target: SocketAddr,
    held: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
}

impl Way {
    fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.target).expect("pass a datagram on");
    }

    /// The next datagram goes to the caller instead.
    fn hold_next(&self) -> mpsc::Receiver<Vec<u8>> {
        let (sender, receiver) = mpsc::channel();
        *self.held.lock().expect("no panic here") = Some(sender);
        receiver
    }

    fn pass(&self, datagram: &[u8]) {
        match self.held.lock().expect("no panic here").take() {
            Some(holder) => holder.send(datagram.to_vec()).expect("the holder waits"),
            None => self.send(datagram),
        }
    }
}

impl Relay {
    fn start(port: u16, peer: SocketAddr) -> (Relay, SocketAddr) {
        let bind = |address: IpAddr, port| {
            let socket = UdpSocket::bind((address, port)).expect("bind the relay");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
            socket
        };
        let (outside, inside) = (bind(OUTSIDER.into(), port), bind(Ipv4Addr::LOCALHOST.into(), 0));
        let inside_address = inside.local_addr().expect("an address");
        let way = |socket: &UdpSocket, target| {
            Arc::new(Way { socket: socket.try_clone().expect("share"), target, held: Mutex::default() })
        };
        let to_guest = way(&outside, SocketAddr::from((GUEST, 4500)));
        let to_peer = way(&inside, peer);
        let ended = Arc::new(AtomicBool::new(false));
        let threads = [(inside, to_guest.clone()), (outside, to_peer.clone())].map(|(from, way)| {
            let ended = ended.clone();
            std::thread::spawn(move || {
                let mut datagram = [0; 65_535];
                while !ended.load(Ordering::Relaxed) {
                    if let Ok(len) = from.recv(&mut datagram) {
                        way.pass(&datagram[..len]);
                    }
                }
            })
        });
        (Relay { to_guest, to_peer, ended, threads: threads.into() }, inside_address)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("the relay's thread"));
    }
}

/// Formic's end, on a thread of its own.
struct Near {
    relay: Relay,
    handle: Handle,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Near {
    fn start(case: &Case) -> Near {
        // Its port is known before the relay is, and the relay's before the peer is.
        let local = free_port();
        let (relay, peer) = Relay::start(case.port(), local);
        let settings = Settings {
            local,
            peer,
            device: format!("esp{}", case.number),
            transform: case.transform,
            numbering: case.numbering,
            outbound: case.direction(1),
            inbound: case.direction(2),
        };
        let peer = Peer::open(&settings).expect("open the peer");
        let device = &settings.device;
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "0").expect("IPv6 on the device");
        let [ipv4, ipv6] = case.inner(1);
        ip(&format!("link set {device} mtu 1400 up"));
        ip(&format!("address add {ipv4}/24 dev {device}"));
        ip(&format!("address add {ipv6}/64 dev {device} nodad"));
        let handle = peer.handle();
        Near { relay, handle, thread: Some(std::thread::spawn(move || peer.run())) }
    }

    fn report(&self) -> Report {
        self.handle.report()
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.handle.stop();
        let ended = self.thread.take().expect("a thread").join();
        assert!(ended.is_ok_and(|result| result.is_ok()) || std::thread::panicking(), "the peer failed");
    }
}

fn free_port() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    socket.local_addr().expect("an address")
}

fn ip(words: &str) {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    process::run(command).ok();
}

fn ping(to: IpAddr, count: &str) -> process::Finished {
    let mut command = Command::new("ping");
    command.args(["-n", "-q", "-c", count, "-i", "0.05", "-W", "30", &to.to_string()]);
    process::run(command)
}

/// What the kernel counted under these names.
fn kernel_drops(guest: &Guest, names: &[&str]) -> u64 {
    let text = guest.run("cat /proc/net/xfrm_stat\n");
    let of = |name: &str| {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
    };
    names.iter().map(|name| of(name).unwrap_or_else(|| panic!("{name} in {text}"))).sum()
}

/// Text that fills many packets, and says where it is wrong.
fn text() -> String {
    (0..30_000).map(|number| format!("{number}\n")).collect()
}

fn pings_both_ways(case: &Case, guest: &Guest) {
    for (near, far) in case.inner(1).into_iter().zip(case.inner(2)) {
        let finished = ping(far, PINGS);
        assert!(finished.stdout.contains(" 0% packet loss"), "{}: {}", case.name(), finished.describe());
        let back = guest.run(&format!("ping -c {PINGS} -i 0.05 -W 30 -q {near}\n"));
        assert!(back.contains(" 0% packet loss"), "{}: {back}", case.name());
    }
}

fn streams_both_ways(case: &Case, guest: &Guest) {
    let text = text();
    for (near, far) in case.inner(1).into_iter().zip(case.inner(2)) {
        // From Formic's end, and back by the guest's echo.
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(far, 7007), DEADLINE).expect("connect");
        stream.set_read_timeout(Some(DEADLINE)).expect("set a deadline");
        let mut writer = stream.try_clone().expect("share");
        let sent = text.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(sent.as_bytes()).expect("write");
            writer.shutdown(Shutdown::Write).expect("end");
        });
        let mut echoed = String::new();
        stream.read_to_string(&mut echoed).expect("read the echo");
        writing.join().expect("written");
        assert!(echoed == text, "{}: the echo is another text", case.name());

        // From the guest's end.
        let listener = TcpListener::bind((near, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let reading = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut received = String::new();
            stream.read_to_string(&mut received).expect("read");
            received
        });
        guest.run(&format!("seq 0 29999 | nc {near} {port}\n"));
        assert!(reading.join().expect("read") == text, "{}: the stream is another text", case.name());
    }
}

/// A datagram of Formic's with a damaged ICV is refused, uses up no number, and opens once when it is whole.
fn kernel_refuses(case: &Case, guest: &Guest, near: &Near) {
    const BAD_TAG: &[&str] = &["XfrmInStateProtoError"];
    const REPLAY: &[&str] = &["XfrmInStateSeqError"];
    let far = case.inner(2)[0];
    let held = near.relay.to_guest.hold_next();
    let pinging = std::thread::spawn(move || ping(far, "1"));
    let datagram = held.recv_timeout(DEADLINE).expect("an echo request");
    let (bad, replayed) = (kernel_drops(guest, BAD_TAG), kernel_drops(guest, REPLAY));
    near.relay.to_guest.send(&damaged(&datagram));
    wait_until("the kernel counts a bad tag", DEADLINE, || {
        let now = kernel_drops(guest, BAD_TAG);
        so(now == bad + 1, || format!("{bad} before, {now} now"))
    });
    near.relay.to_guest.send(&datagram);
    let finished = pinging.join().expect("a ping");
    assert!(finished.stdout.contains(" 0% packet loss"), "{}: {}", case.name(), finished.describe());
    near.relay.to_guest.send(&datagram);
    wait_until("the kernel counts a replay", DEADLINE, || {
        let now = kernel_drops(guest, REPLAY);
        so(now == replayed + 1, || format!("{replayed} before, {now} now"))
    });
}

/// The same with a datagram of the kernel's.
fn formic_refuses(case: &Case, guest: &Guest, near: &Near) {
    let to = case.inner(1)[0];
    let held = near.relay.to_peer.hold_next();
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| guest.run(&format!("ping -c 1 -W 30 -q {to}\n")));
        let datagram = held.recv_timeout(DEADLINE).expect("an echo request");
        let before = near.report();
        near.relay.to_peer.send(&damaged(&datagram));
        near.relay.to_peer.send(&[&[0; 4], &datagram[4..]].concat());
        near.relay.to_peer.send(&[&[9; 4], &datagram[4..]].concat());
        near.relay.to_peer.send(&datagram[..35]);
        near.relay.to_peer.send(&datagram);
        let finished = pinging.join().expect("a ping");
        assert!(finished.contains(" 0% packet loss"), "{}: {finished}", case.name());
        near.relay.to_peer.send(&datagram);
        let refused = [EspDrop::BadTag, EspDrop::SpiZero, EspDrop::UnknownSpi, EspDrop::TooShort, EspDrop::Replayed];
        wait_until("Formic's end counts each", DEADLINE, || {
            let now = near.report();
            let all = refused.iter().all(|reason| now.dropped(*reason) == before.dropped(*reason) + 1);
            so(all, || format!("{before:?} before, {now:?} now"))
        });
        assert!(near.report().received > before.received, "{}", case.name());
    });
}

fn damaged(datagram: &[u8]) -> Vec<u8> {
    let mut damaged = datagram.to_vec();
    *damaged.last_mut().expect("octets") ^= 1;
    damaged
}

/// tshark's decryption of all of a case's packets: it sees echo requests and answers of both versions in ESP. (It knows
/// no GMAC, and checks no tag: this is about framing, padding, IV and the order of the key.)
fn tshark_decrypts(net: &Topology, capture: Capture, case: &Case) {
    let path = capture.stop();
    let mut tshark = net.outside("tshark");
    tshark.env("HOME", net.directory()).args(["-r", &path.to_string_lossy()]);
    tshark.args(["-d", &format!("udp.port=={},udpencap", case.port()), "-o", "esp.enable_encryption_decode:TRUE"]);
    for end in [1, 2] {
        let Direction { spi, material, .. } = case.direction(end);
        let key: String = material.iter().map(|octet| format!("{octet:02x}")).collect();
        let row = format!(r#""IPv4","*","*","{spi:#010x}","AES-GCM with 16 octet ICV [RFC4106]","0x{key}","NULL","""#);
        tshark.args(["-o", &format!("uat:esp_sa:{row}")]);
    }
    tshark.args(["-Y", "esp", "-T", "fields", "-e", "frame.protocols"]);
    let protocols = process::run(tshark).ok();
    let lines: Vec<&str> = protocols.lines().collect();
    let inside = |suffix: &str| lines.iter().filter(|line| line.contains(suffix)).count();
    assert!(lines.len() >= 48, "{}: {} packets of ESP", case.name(), lines.len());
    assert_eq!(inside(":esp:ip:") + inside(":esp:ipv6:"), lines.len(), "{}: {protocols}", case.name());
    assert!(inside(":esp:ip:icmp") >= 24 && inside(":esp:ipv6:icmpv6") >= 24, "{}: {protocols}", case.name());
}

#[test]
fn the_kernel_and_formic_understand_each_other() {
    let net = Topology::new(0);
    let guest = Guest::boot(&net);
    guest.run("nc -ll -p 7007 -e /bin/cat >/dev/null 2>&1 &\n");
    let mut passed_wrap = 0;
    for case in &Case::all() {
        let printed = guest.run(&case.guest_script());
        assert!(printed.is_empty(), "{}: the guest refuses: {printed}", case.name());
        let near = Near::start(case);
        let decrypted = case.transform == Transform::Gcm;
        let capture = decrypted.then(|| Capture::underlay(&net, &format!("case-{}", case.number)));
        pings_both_ways(case, &guest);
        if let Some(capture) = capture {
            tshark_decrypts(&net, capture, case);
        }
        let wrapped = near.report().highest > u64::from(u32::MAX);
        assert_eq!(wrapped, case.numbering == Numbering::Extended, "{}", case.name());
        passed_wrap += u32::from(wrapped);
        streams_both_ways(case, &guest);
        kernel_refuses(case, &guest, &near);
        formic_refuses(case, &guest, &near);
        println!("{}: {:?}", case.name(), near.report());
    }
    assert_eq!(passed_wrap, 4);
}
