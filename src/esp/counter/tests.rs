//! The limits of the counter.

use super::*;

#[test]
fn numbers_start_at_one() {
    let mut counter = PacketCounter::new();
    assert_eq!(counter.draw(), CounterAnswer::Fine(1));
    assert_eq!(counter.draw(), CounterAnswer::Fine(2));
    assert_eq!(counter.used(), 2);
}

#[test]
fn nothing_happens_at_2_to_the_32() {
    let mut counter = PacketCounter::after(u64::from(u32::MAX) - 1, HARD_LIMIT_PACKETS);
    for expected in [0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001] {
        assert_eq!(counter.draw(), CounterAnswer::Fine(expected));
    }
}

#[test]
fn the_soft_limit_is_said_once() {
    let mut counter = PacketCounter::after(SOFT_LIMIT_PACKETS - 2, HARD_LIMIT_PACKETS);
    assert_eq!(counter.draw(), CounterAnswer::Fine(SOFT_LIMIT_PACKETS - 1));
    assert_eq!(counter.draw(), CounterAnswer::SoftLimit(SOFT_LIMIT_PACKETS));
    assert_eq!(counter.draw(), CounterAnswer::Fine(SOFT_LIMIT_PACKETS + 1));
}

#[test]
fn the_hard_limit_is_final() {
    let mut counter = PacketCounter::after(HARD_LIMIT_PACKETS - 1, HARD_LIMIT_PACKETS);
    assert_eq!(counter.draw(), CounterAnswer::Fine(HARD_LIMIT_PACKETS));
    for _ in 0..3 {
        assert_eq!(counter.draw(), CounterAnswer::Exhausted);
        assert_eq!(counter.used(), HARD_LIMIT_PACKETS);
    }
}
