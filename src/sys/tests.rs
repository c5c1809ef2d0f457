use super::seqpacket::SeqPacket;
use super::{interface, mount, process};
use std::io::Read;
use std::os::fd::AsFd;

#[test]
fn routes_are_compared_exactly() {
    let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
        eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
        br0\t0000000A\tgarbage\n";
    let find = |subnet: &str| interface::find_route(table, subnet.parse().unwrap());
    assert_eq!(find("192.168.2.0/24"), Some("eth0".to_owned()));
    assert_eq!(find("192.168.2.0/25"), None);
    assert_eq!(find("192.168.0.0/16"), None);
    assert_eq!(find("10.0.0.0/8"), None);
}

#[test]
fn mount_points_are_unescaped() {
    let table = b"22 1 0:20 / / rw - ext4 /dev/vda rw\n\
        30 22 0:21 / /with\\040space\\134 rw shared:1 - tmpfs tmpfs rw\nshort line\n";
    let points = mount::mount_points(table);
    assert_eq!(points.iter().map(|p| p.to_str().unwrap()).collect::<Vec<_>>(), ["/", "/with space\\"]);
}

#[test]
fn interface_names_are_checked() {
    for bad in ["", "sixteen-letters!", "a/b", "nul\0"] {
        assert!(interface::request(bad).is_err(), "{bad:?}");
    }
    assert!(interface::request("eth0").is_ok());
}

#[test]
fn loopback_has_an_mtu_and_a_foreign_address_none() {
    assert!(interface::mtu_of_address("127.0.0.1".parse().unwrap()).unwrap().is_some_and(|mtu| mtu >= 1280));
    assert_eq!(interface::mtu_of_address("192.0.2.77".parse().unwrap()).unwrap(), None);
}

#[test]
fn messages_carry_descriptors_and_keep_their_bounds() {
    let (a, b) = SeqPacket::pair().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    a.send(b"hello", &[writer.as_fd()]).unwrap();
    drop(writer);
    let mut buffer = [0; 16];
    let received = b.receive(&mut buffer).unwrap().unwrap();
    assert_eq!((received.length, received.fds.len()), (5, 1));
    nix::unistd::write(&received.fds[0], b"x").unwrap();
    drop(received);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x", "the received descriptor was the last writer, and was closed");

    a.send(&[0; 17], &[]).unwrap();
    assert_eq!(b.receive(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    let most = vec![reader.as_fd(); super::seqpacket::MAX_FDS];
    a.send(b"x", &most).unwrap();
    assert_eq!(b.receive(&mut buffer).unwrap().unwrap().fds.len(), most.len());
    let more = vec![reader.as_fd(); super::seqpacket::MAX_FDS + 1];
    assert_eq!(a.send(b"x", &more).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    drop(a);
    assert!(b.receive(&mut buffer).unwrap().is_none());
    assert_eq!(b.send(b"x", &[]).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_sealed_copy_cannot_be_written() {
    let copy = super::memfd::sealed_self().unwrap();
    let error = nix::unistd::write(&copy, b"x").unwrap_err();
    assert_eq!(error, nix::errno::Errno::EPERM);
}

#[test]
fn texts_with_nul_are_refused() {
    assert!(process::c_strings(["fine", "not\0fine"]).is_err());
}
