use super::*;
use proptest::prelude::*;

fn task() -> TaskId {
    TaskId::from_random([7; 17])
}

fn interface(name: &str, address: &str, mtu: u32) -> Interface {
    Interface { name: name.parse().unwrap(), address: address.parse().unwrap(), mtu }
}

fn network(interfaces: Vec<Interface>) -> Verb {
    Verb::CreateTaskNetwork { task: task(), interfaces, driver: TunDriver::Vnet, queues: Queues::ONE }
}

fn command(argv: &[&str]) -> CommandSpec {
    CommandSpec { argv: argv.iter().map(|text| (*text).to_owned()).collect(), ..CommandSpec::default() }
}

fn launch(command: CommandSpec, hostname: &str) -> Verb {
    let image = Image::from_normalised("my-image:latest").unwrap();
    Verb::StartTask(TaskLaunch { task: task(), image, command, hostname: hostname.to_owned() })
}

pub(super) fn verbs() -> Vec<Verb> {
    let mut with_env = command(&["sh", "-c", "true"]);
    with_env.env = Environment(vec!["A=b".to_owned()]);
    with_env.dir = "/tmp".to_owned();
    let interfaces = (0..16).map(|n| interface(&format!("eth{n}"), "10.0.0.2/24", 1400)).collect();
    let (driver, queues) = (TunDriver::Vnet, Queues::try_from(15).unwrap());
    vec![
        Verb::CreateTaskNetwork { task: task(), interfaces, driver, queues },
        network(vec![interface("eth0", "10.0.0.2/24", 1400), interface("eth12", "10.0.1.2/16", 65_535)]),
        launch(with_env, "web-1"),
        Verb::StopTask { task: task(), grace_ms: MAX_GRACE_MS },
        Verb::RemoveTask { task: task() },
        Verb::Exec { task: task(), command: command(&["ls"]) },
        Verb::Signal { target: SignalTarget::Exec(ExecId(3)), signal: 15 },
        Verb::ImportImage { name: "a".parse().unwrap(), source: "/srv/root".into() },
        Verb::ListImages,
        Verb::RemoveImage { name: "a:b".parse().unwrap() },
        namespace("10.0.0.2/24", 1400),
    ]
}

fn namespace(address: &str, mtu: u32) -> Verb {
    let (namespace, address) = ("blue".parse().unwrap(), address.parse().unwrap());
    Verb::AttachNamespace { namespace, address, mtu, driver: TunDriver::Vnet, queues: Queues::ONE }
}

fn decoded(verb: &Verb) -> Result<Verb, ErrorKind> {
    let (id, result) = decode_request(&encode_request(5, verb).unwrap());
    assert_eq!(id, 5);
    result.map_err(|error| error.kind)
}

#[test]
fn what_is_encoded_is_decoded() {
    for verb in verbs() {
        assert_eq!(decoded(&verb), Ok(verb));
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let mut nul = command(&["a\0b"]);
    nul.env = Environment::default();
    let mut relative = command(&["a"]);
    relative.dir = "tmp".to_owned();
    // 256 descriptors: more than the kernel puts into a message.
    let interfaces = (0..16).map(|n| interface(&format!("eth{n}"), "10.0.0.2/24", 1400)).collect();
    let (driver, queues) = (TunDriver::Vnet, Queues::try_from(16).unwrap());
    let many = (0..17).map(|n| interface(&format!("eth{n}"), "10.0.0.2/24", 1400)).collect();
    for bad in [
        network(vec![interface("eth0", "10.0.0.2/24", 575)]),
        network(vec![interface("eth0", "10.0.0.2/24", 65_536)]),
        network(vec![interface("eth0", "fd00::2/64", 1400)]),
        network(vec![interface("eth0", "127.0.0.1/8", 1400)]),
        network(vec![interface("eth0", "224.0.0.1/8", 1400)]),
        network(vec![interface("eth0", "10.0.0.2/24", 1400), interface("eth0", "10.0.1.2/24", 1400)]),
        network(many),
        namespace("10.0.0.2/0", 1400),
        namespace("10.0.0.2/7", 1400),
        namespace("10.0.0.2/31", 1400),
        Verb::CreateTaskNetwork { task: task(), interfaces, driver, queues },
        launch(command(&[]), ""),
        launch(command(&[""]), ""),
        launch(nul, ""),
        launch(relative, ""),
        launch(command(&["a"]), "two words"),
        launch(command(&["a"]), &"x".repeat(64)),
        launch(command(&vec!["a"; MAX_STRINGS + 1]), ""),
        Verb::StopTask { task: task(), grace_ms: MAX_GRACE_MS + 1 },
        Verb::Signal { target: SignalTarget::Task(task()), signal: 19 },
        Verb::Signal { target: SignalTarget::Task(task()), signal: 0 },
        Verb::ImportImage { name: "a".parse().unwrap(), source: "relative".into() },
        Verb::ImportImage { name: "a".parse().unwrap(), source: "/a\0b".into() },
    ] {
        assert_eq!(decoded(&bad), Err(ErrorKind::Invalid), "{bad:?}");
    }
}

#[test]
fn a_request_that_is_too_long_is_not_sent() {
    let long = launch(command(&["a", &"x".repeat(MAX_MESSAGE_BYTES)]), "");
    assert_eq!(encode_request(1, &long).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn names_cannot_leave_their_directory() {
    for bad in ["", ".", "..", ".hidden", "a/b", "/a", "a..b", "-a", "a b", "ä", "a\0", &"a".repeat(129)] {
        assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
    }
    for good in ["a", "my-image:latest", "A_1.2-3:4"] {
        assert!(good.parse::<ImageName>().is_ok(), "{good:?}");
    }
    for bad in ["", "eth", "eth01", "eth1000", "lo", "eth-1", "eth0/..", "xeth0"] {
        assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
    }
    for bad in ["", ".", "..", ".hidden", "a/b", "/a", "a b", "a\0", "a\n", &"a".repeat(64)] {
        assert!(bad.parse::<NamespaceName>().is_err(), "{bad:?}");
    }
    for good in ["a", "cni-1234", "blue_1.2:3"] {
        assert!(good.parse::<NamespaceName>().is_ok(), "{good:?}");
    }
    // The check is part of decoding: a forged encoding of a bad name is no name.
    let forged = postcard::to_stdvec("../../etc").unwrap();
    assert!(decode::<ImageName>(&forged).is_err());
    assert!(decode::<InterfaceName>(&forged).is_err());
    assert!(decode::<NamespaceName>(&forged).is_err());
}

#[test]
fn the_environment_is_not_printed() {
    let mut command = command(&["a"]);
    command.env = Environment(vec!["PASSWORD=hunter2".to_owned()]);
    assert!(!format!("{:?}", launch(command, "")).contains("hunter2"));
}

#[test]
fn short_and_long_requests_are_malformed() {
    assert_eq!(decode_request(&[]).0, 0);
    for length in 0..8 {
        assert_eq!(decode_request(&vec![1; length]).1.unwrap_err().kind, ErrorKind::Malformed);
    }
    for verb in verbs() {
        let bytes = encode_request(9, &verb).unwrap();
        for length in 8..bytes.len() {
            let (id, result) = decode_request(&bytes[..length]);
            assert!(id == 9 && result.is_err(), "{verb:?} cut to {length}");
        }
        let (_, result) = decode_request(&[&bytes[..], &[0]].concat());
        assert_eq!(result.unwrap_err().kind, ErrorKind::Malformed, "{verb:?} and one byte more");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Whatever the bytes, the decoder answers; and what it takes is within its ranges, so that it encodes again.
    #[test]
    fn mutated_requests_never_crash(
        which in 0..9_usize,
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<u16>()),
    ) {
        let mut bytes = encode_request(1, &verbs()[which]).unwrap();
        for (place, value) in changes {
            let length = bytes.len();
            bytes[usize::from(place) % length] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(usize::from(cut) % (bytes.len() + 1));
        }
        if let (id, Ok(verb)) = decode_request(&bytes) {
            prop_assert_eq!(decode_request(&encode_request(id, &verb).unwrap()), (id, Ok(verb)));
        }
    }

    #[test]
    fn random_messages_never_crash(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_request(&bytes);
        let _ = decode::<Message>(&bytes);
    }
}
