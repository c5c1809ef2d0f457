//! Namespaces that somebody else made: which are entered, and what is put there.

use super::*;

/// `/run` of this case only, with a namespace made by `ip netns`.
fn make_named(script: &str) {
    let script = format!("mount -t tmpfs run /run && ip netns add blue && {script}");
    let status = Command::new("sh").args(["-ec", &script]).status().unwrap();
    assert!(status.success(), "{script}");
}

fn attach(fixture: &Fixture, name: &str) -> Result<Vec<TunDevice>, helper::verbs::VerbError> {
    let (name, address) = (name.parse().unwrap(), "10.9.0.2/24".parse().unwrap());
    within("attach", fixture.client.attach_namespace(name, (address, 1300), TunDriver::Vnet, Queues::ONE))
}

fn attach_at(fixture: &Fixture, address: &str) -> Result<Vec<TunDevice>, helper::verbs::VerbError> {
    let (name, address) = ("blue".parse().unwrap(), address.parse().unwrap());
    within("attach", fixture.client.attach_namespace(name, (address, 1300), TunDriver::Vnet, Queues::ONE))
}

fn in_blue(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(["-n", "blue"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn named_namespace() {
    make_named("ip -n blue link add eth0 type veth peer name other");
    let scratch = Scratch::new();
    let handle = helper::start(&options(scratch.state())).unwrap();
    let (client, events) = handle.connect().unwrap();
    let fixture = Fixture { client, events, helper: 0, scratch };
    let devices = attach(&fixture, "blue").unwrap();
    let shown = in_blue(&["-o", "address", "show"]);
    assert!(shown.contains("eth1    inet 10.9.0.2/24"), "{shown}");
    let links = in_blue(&["-o", "link", "show"]);
    assert!(links.contains("eth1: <POINTOPOINT") && links.contains("mtu 1300"), "{links}");
    assert!(links.contains("lo: <LOOPBACK> "), "what was there stays as it was: {links}");
    let second = attach(&fixture, "blue").unwrap();
    assert!(in_blue(&["-o", "link", "show"]).contains("eth2:"));
    drop((devices, second));
    wait_until("the devices are gone", || !in_blue(&["-o", "link", "show"]).contains("POINTOPOINT"));
}

pub(super) fn overlapping_namespaces() {
    make_named(
        "ip -n blue link add eth0 type veth peer name other && ip -n blue address add 10.1.2.3/24 dev eth0 && \
         ip -n blue link set eth0 up && ip -n blue link set other up && ip -n blue route add 10.64.0.0/12 dev eth0 && \
         ip -n blue route add default via 10.1.2.1",
    );
    let scratch = Scratch::new();
    let handle = helper::start(&options(scratch.state())).unwrap();
    let (client, events) = handle.connect().unwrap();
    let fixture = Fixture { client, events, helper: 0, scratch };
    for (address, what) in [
        ("10.1.2.9/30", "the address 10.1.2.3/24 on eth0, which overlaps the subnet 10.1.2.8/30"),
        ("10.1.9.9/16", "the address 10.1.2.3/24 on eth0, which overlaps the subnet 10.1.0.0/16"),
        ("10.65.0.2/24", "a route to 10.64.0.0/12 by eth0, which overlaps the subnet 10.65.0.0/24"),
    ] {
        let error = attach_at(&fixture, address).unwrap_err();
        let text = format!("the namespace blue has {what}");
        assert_eq!((error.kind, error.text), (ErrorKind::Invalid, text));
    }
    assert!(!in_blue(&["-o", "link", "show"]).contains("POINTOPOINT"), "nothing is left of them");
    let mut devices: Vec<_> = (0..16).map(|n| attach_at(&fixture, &format!("10.2.{n}.2/24")).unwrap()).collect();
    let error = attach_at(&fixture, "10.3.0.2/24").unwrap_err();
    assert_eq!(error.text, "the namespace blue has 16 devices of networks already");
    devices.pop();
    wait_until("a device is gone", || !in_blue(&["-o", "address", "show"]).contains("10.2.15.2"));
    let error = attach_at(&fixture, "10.2.0.2/16").unwrap_err();
    assert!(error.text.contains("has the address 10.2."), "{error}");
    drop((attach_at(&fixture, "10.3.0.2/24").unwrap(), devices));
}

pub(super) fn wrong_namespaces() {
    make_named(
        "ip netns attach own $$; mkfifo /run/netns/pipe; touch /run/netns/file; ln -s blue /run/netns/link; \
         touch /run/netns/pids; mount --bind /proc/self/ns/pid /run/netns/pids; mkdir /run/netns/directory",
    );
    let scratch = Scratch::new();
    let handle = helper::start(&options(scratch.state())).unwrap();
    let (client, events) = handle.connect().unwrap();
    let fixture = Fixture { client, events, helper: 0, scratch };
    for (name, text) in [
        ("absent", "no such network namespace: absent"),
        ("own", "/run/netns/own: it is the host's own network"),
        ("pipe", "/run/netns/pipe: it is no network namespace"),
        ("file", "/run/netns/file: it is no network namespace"),
        ("directory", "/run/netns/directory: it is no network namespace"),
        ("pids", "/run/netns/pids: it is no network namespace"),
        ("link", "/run/netns/link: it is a link"),
    ] {
        let error = attach(&fixture, name).unwrap_err();
        assert_eq!((error.kind, error.text.as_str()), (ErrorKind::Invalid, text));
    }
    fs::set_permissions("/run/netns", fs::Permissions::from_mode(0o777)).unwrap();
    let error = attach(&fixture, "blue").unwrap_err();
    assert!(error.text.contains("others can put files in that directory"), "{error}");
}
