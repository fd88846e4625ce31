//! Initial sequence numbers (RFC 6528), and how smoltcp is made to use them.

use siphasher::sip::SipHasher13;
use smoltcp::time::Instant;

use crate::seq;
use crate::tuple::Tuple;

/// Chooses initial sequence numbers: a clock of 4 µs plus a keyed hash of the tuple (RFC 6528 section 3).
#[derive(Clone, Debug)]
pub(crate) struct IsnSource {
    hasher: SipHasher13,
}

impl IsnSource {
    pub(crate) fn new(key: &[u8; 16]) -> Self {
        Self { hasher: SipHasher13::new_with_key(key) }
    }

    pub(crate) fn isn(&self, now: Instant, tuple: &Tuple) -> u32 {
        let clock = (now.total_micros() / 4) as u32;
        clock.wrapping_add(tuple.with_key(|key| self.hasher.hash(key)) as u32)
    }

    /// As [`IsnSource::isn`], but beyond what the previous connection of this tuple used (RFC 1122 section 4.2.2.13).
    pub(crate) fn isn_beyond(&self, now: Instant, tuple: &Tuple, used: u32) -> u32 {
        let isn = self.isn(now, tuple);
        let beyond = used.wrapping_add(REUSE_GAP);
        if seq::before(isn, beyond) { beyond } else { isn }
    }
}

/// The `random_seed` of a smoltcp interface whose next initial sequence number is `isn`.
///
/// smoltcp has no other way to choose one. Its generator is an invertible linear congruential generator with a permuted
/// output; `Interface::new` draws one identification (again while it is zero), and the first draw after that is the number.
/// The order of draws is an implementation detail of smoltcp, for which reason a stack verifies it when it starts.
pub(crate) fn seed_for(isn: u32) -> u64 {
    let mut low: u64 = 0;
    loop {
        // The three highest bits are zero, so that the output is the state shifted by 29.
        let after_isn = (u64::from(isn) << 29) | low;
        let after_ident = step_back(after_isn);
        let ident = (after_ident >> (29 - (after_ident >> 61))) as u32;
        if (ident ^ (ident >> 16)) as u16 != 0 {
            return step_back(after_ident);
        }
        low += 1;
    }
}

fn step_back(state: u64) -> u64 {
    state.wrapping_sub(INCREMENT).wrapping_mul(MULTIPLIER_INVERSE)
}

/// The inverse of an odd number modulo 2⁶⁴, by Newton's iteration.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut i = 0;
    while i < 6 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        i += 1;
    }
    x
}

const MULTIPLIER: u64 = 0xbb2e_fcec_3c39_611d;
const INCREMENT: u64 = 0x7590_ef39;
const MULTIPLIER_INVERSE: u64 = inverse(MULTIPLIER);
const REUSE_GAP: u32 = 0x1_0000;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn tuple(port: u16) -> Tuple {
        let local: SocketAddr = "192.0.2.1:80".parse().unwrap();
        Tuple::new(local, SocketAddr::new("198.51.100.9".parse().unwrap(), port))
    }

    #[test]
    fn the_inverse_is_one() {
        assert_eq!(MULTIPLIER.wrapping_mul(MULTIPLIER_INVERSE), 1);
    }

    #[test]
    fn numbers_grow_with_the_clock_and_differ_by_tuple_and_key() {
        let source = IsnSource::new(&[7; 16]);
        let at = |micros| source.isn(Instant::from_micros(micros), &tuple(1));
        assert_eq!(at(4_000).wrapping_sub(at(0)), 1_000);
        assert_ne!(source.isn(Instant::ZERO, &tuple(1)), source.isn(Instant::ZERO, &tuple(2)));
        assert_ne!(at(0), IsnSource::new(&[8; 16]).isn(Instant::ZERO, &tuple(1)));
    }

    #[test]
    fn a_reused_tuple_gets_a_later_number() {
        let source = IsnSource::new(&[7; 16]);
        let natural = source.isn(Instant::ZERO, &tuple(1));
        for used in [natural.wrapping_sub(1 << 20), natural, natural.wrapping_add(1 << 30)] {
            let isn = source.isn_beyond(Instant::ZERO, &tuple(1), used);
            assert!(seq::after(isn, used));
        }
    }
}
