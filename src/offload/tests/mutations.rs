//! Whatever a device or a peer gives: nothing panics, nothing reads beyond it, and what is joined can be cut again. Each
//! case follows from its number, which a failure names.

use super::*;
use crate::offload::testing::repair_checksums;

/// Of each kind.
const CASES: u64 = 100_000;

/// Frames that are mutated: most of several packets.
const SEEDS: u64 = 64;

/// What is left of a longer frame: enough for several packets.
const FRAME_BYTES: usize = 2000;

/// Packets are short: their headers are what matters.
const PACKET_BYTES: usize = 600;

/// Where headers are.
const HEAD_BYTES: usize = 100;

/// Packets that are joined or not in one case.
const PACKETS: usize = 6;

fn seeds() -> Vec<Sent> {
    let one = |seed: u64| {
        let mut random = StdRng::seed_from_u64(seed);
        let mut traffic = traffic(seed % 2 == 1, &mut random);
        let mut all = std::iter::repeat_with(|| traffic.next(&mut random)).take(6);
        all.find(|sent| sent.packets[0].len() <= PACKET_BYTES && (seed.is_multiple_of(8) || sent.packets.len() > 2))
    };
    (0..).filter_map(one).take(SEEDS as usize).collect()
}

/// Names itself when it fails.
struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("case {} of {CASES}", self.0);
        }
    }
}

/// The choices of a case (SplitMix64): a cipher as generator would cost more than the code under test.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, or 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound as u64).max(1)) as usize
    }

    /// True so many times in a hundred.
    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Runs the cases: each with the number of the frame to mutate.
fn each_case(mut run: impl FnMut(usize, &mut Dice)) {
    for number in 0..CASES {
        let _named = Case(number);
        run((number % SEEDS) as usize, &mut Dice(number));
    }
}

fn mutate(octets: &mut [u8], dice: &mut Dice) {
    let head = octets.len().min(HEAD_BYTES);
    for _ in 0..dice.below(4) {
        if let Some(octet) = octets.get_mut(dice.below(head)) {
            *octet = match dice.below(4) {
                0 => 0,
                1 => u8::MAX,
                2 => *octet ^ (1 << dice.below(8)),
                _ => dice.next() as u8,
            };
        }
    }
}

#[test]
fn headers_of_devices_are_read_or_refused() {
    let seeds = seeds();
    let mut read = 0u64;
    each_case(|seed, dice| {
        let mut header = *seeds[seed].frame.first_chunk::<VNET_HEADER_LEN>().unwrap();
        mutate(&mut header, dice);
        if dice.percent(20) {
            header.fill_with(|| dice.next() as u8);
        }
        let Ok(parsed) = VnetHeader::parse(&header) else { return };
        assert_eq!(VnetHeader::parse(&parsed.emit()), Ok(parsed));
        let mut packet = seeds[seed].packets[0].clone();
        packet.truncate(dice.below(HEAD_BYTES + 1));
        let length = packet.len();
        let _ = finish(&parsed, &mut packet);
        assert_eq!(packet.len(), length);
        read += 1;
    });
    assert!(read > CASES / 10, "of {CASES} only {read} could be read");
}

#[test]
fn super_packets_are_cut_or_refused() {
    let seeds = seeds();
    let mut cuts = 0u64;
    each_case(|seed, dice| {
        let frame = &seeds[seed].frame;
        let mut frame = frame[..frame.len().min(dice.below(FRAME_BYTES))].to_vec();
        let fits = dice.percent(50);
        if let (true, Some(packet)) = (fits, frame.get_mut(VNET_HEADER_LEN..)) {
            shorten(packet);
        }
        mutate(&mut frame, dice);
        // Checks the lengths of the pieces.
        if let Ok(packets) = cut(&frame) {
            cuts += u64::from(packets.len() > 1);
        }
    });
    assert!(cuts > CASES / 20, "of {CASES} only {cuts} could be cut");
}

/// Writes the length that is left into the IP header.
fn shorten(packet: &mut [u8]) {
    let (at, length) = match packet.first().map(|first| first >> 4) {
        Some(4) => (2, packet.len()),
        Some(6) => (4, packet.len().saturating_sub(40)),
        _ => return,
    };
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&(length as u16).to_be_bytes());
    }
}

#[test]
fn what_is_joined_can_be_cut_into_the_same_packets() {
    let seeds = seeds();
    let mut joins = 0u64;
    each_case(|seed, dice| {
        let mut packets: Vec<Vec<u8>> = seeds[seed].packets.iter().take(PACKETS).cloned().collect();
        for packet in &mut packets {
            if dice.percent(30) {
                mutate(packet, dice);
            }
            if dice.percent(5) {
                packet.truncate(1 + dice.below(packet.len()));
            }
            // Else nearly everything would be refused for its checksum, and nothing behind that would be tried.
            if dice.percent(90) {
                repair_checksums(packet);
            }
        }
        let frames = joined(&packets);
        joins += u64::from(frames.len() < packets.len());
        let again: Vec<Vec<u8>> = frames.iter().flat_map(|frame| cut(frame).unwrap()).collect();
        assert_eq!(without_meaningless(&again), without_meaningless(&packets));
    });
    assert!(joins > CASES / 10, "of {CASES} only {joins} were joined");
}
