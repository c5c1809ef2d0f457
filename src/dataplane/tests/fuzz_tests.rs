//! Whatever arrives on the data path's socket, and whatever a peer seals.
//!
//! The first octet chooses: bytes of an outsider; a plaintext (with its trailer) that the peer seals; a packet of the peer
//! of which octets are changed on the way. What a stranger sends is never delivered; what the peer sends is delivered as it
//! was, and only from its own address to the container's.

use super::forgery::{Attack, Victim, address, inner, with_trailer};
use crate::fuzz::Outcome;

fn run(bytes: &[u8]) -> Outcome {
    let mut victim = Victim::new();
    let mut attack = Attack::new(1);
    let (kind, rest) = bytes.split_first().map_or((0, bytes), |(kind, rest)| (kind % 3, rest));
    let datagram = match kind {
        0 => rest.to_vec(),
        1 => attack.peer.seal(rest),
        _ => {
            let mut datagram = attack.peer.packet(&inner(address(1, 2), address(1, 1), b"honest"));
            let mut changes = rest.chunks_exact(2).take(8);
            changes.by_ref().for_each(|change| {
                let at = usize::from(change[0]) % datagram.len();
                datagram[at] ^= change[1];
            });
            datagram
        }
    };
    victim.receive(&datagram[..datagram.len().min(9000)]);
    let delivered = victim.delivered();
    let honest = attack.honest();
    victim.receive(&honest.0);
    assert!(victim.delivered().contains(&honest.1) || kind == 1, "an honest packet is delivered afterwards");
    for packet in &delivered {
        assert!(kind == 1 || (kind == 2 && *packet == inner(address(1, 2), address(1, 1), b"honest")), "forged");
        assert_eq!(packet.get(12..20), Some(&[address(1, 2).octets(), address(1, 1).octets()].concat()[..]));
        assert!(rest.starts_with(packet) || kind == 2, "delivered as it was sealed");
    }
    let drops = victim.planes.drops();
    let reasons: Vec<&str> =
        drops.iter().filter(|(_, packets)| *packets > 0).map(|(reason, _)| reason.name()).collect();
    format!("{kind}: {} delivered, {reasons:?}", delivered.len())
}

fn seeds() -> Vec<Vec<u8>> {
    let mut attack = Attack::new(1);
    let packet = inner(address(1, 2), address(1, 1), b"payload of some octets");
    let mut seeds =
        vec![[&[0], &attack.impostor.packet(&packet)[..]].concat(), vec![2, 20, 1], vec![2], vec![0, 0xff], vec![0]];
    seeds.extend([4, 41, 59, 0].map(|next| [&[1], &with_trailer(&packet, next)[..]].concat()));
    seeds.push([&[1], &with_trailer(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 59)[..]].concat());
    seeds
}

crate::fuzz::target!("esp", run, seeds);
