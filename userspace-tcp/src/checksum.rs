//! The Internet checksum (RFC 1071), by whole words: the hottest loop of bulk transfer.

use std::net::IpAddr;

/// The sum of `data` as 16-bit words in native byte order, not folded yet. An odd last byte counts as padded with zero.
pub(crate) fn sum(data: &[u8]) -> u64 {
    let (words, rest) = data.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_ne_bytes(last));
    sum
}

/// The sum of the pseudo header of a TCP segment of `len` bytes.
pub(crate) fn pseudo_header(source: IpAddr, destination: IpAddr, len: usize) -> u64 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum(&source.octets()) + sum(&destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            sum(&source.octets()) + sum(&destination.octets())
        }
        _ => 0,
    };
    addresses + u64::from(PROTOCOL_TCP.to_be()) + u64::from((len as u32).to_be())
}

/// Folds a sum to sixteen bits, in native byte order; `0xffff` says that what was summed contains its right checksum.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

const PROTOCOL_TCP: u16 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let folded = fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]));
        assert_eq!(u16::from_be(folded), 0xddf2);
    }

    #[test]
    fn odd_lengths_are_padded() {
        for len in 0..9 {
            let data: Vec<u8> = (1..=len).collect();
            let mut padded = data.clone();
            padded.resize(12, 0);
            assert_eq!(fold(sum(&data)), fold(sum(&padded)));
        }
    }
}
