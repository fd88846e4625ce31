//! Bytes that look random and can be made again anywhere from a seed.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// An endless stream of bytes that depends on its seed alone (SplitMix64).
#[derive(Clone, Debug)]
pub struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    /// The stream of `seed`, from its start.
    pub fn new(seed: u64) -> Pattern {
        Pattern { state: seed, word: [0; 8], used: 8 }
    }

    /// Fills `buffer` with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            if self.used == 8 {
                self.word = self.next_word().to_le_bytes();
                self.used = 0;
            }
            let count = rest.len().min(8 - self.used);
            let (part, later) = rest.split_at_mut(count);
            part.copy_from_slice(&self.word[self.used..self.used + count]);
            self.used += count;
            rest = later;
        }
    }

    fn next_word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Writes the first `length` bytes of the stream of `seed`.
pub fn write(to: &mut impl Write, length: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 65536];
    let mut left = length;
    while left > 0 {
        let part = &mut buffer[..left.min(65536) as usize];
        pattern.fill(part);
        to.write_all(part)?;
        left -= part.len() as u64;
    }
    Ok(())
}

/// Writes them to a file.
pub fn write_file(file: &Path, length: u64, seed: u64) -> io::Result<()> {
    let mut to = BufWriter::new(File::create(file)?);
    write(&mut to, length, seed)?;
    to.flush()
}

/// SHA-256 of the first `length` bytes of the stream of `seed`, in hexadecimal.
pub fn sha256(length: u64, seed: u64) -> String {
    let mut hash = Sha256::new();
    // Writing to a hash cannot fail.
    let _ = write(&mut hash, length, seed);
    hexadecimal(&hash.finalize())
}

/// SHA-256 of everything `from` yields, and how many bytes that was.
pub fn sha256_of(from: &mut impl Read) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let length = io::copy(from, &mut hash)?;
    Ok((hexadecimal(&hash.finalize()), length))
}

/// SHA-256 of a file.
pub fn sha256_of_file(file: &Path) -> io::Result<String> {
    Ok(sha256_of(&mut File::open(file)?)?.0)
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_does_not_depend_on_how_it_is_read() {
        let mut whole = vec![0; 1000];
        Pattern::new(7).fill(&mut whole);
        let mut pattern = Pattern::new(7);
        let mut parts = Vec::new();
        for size in [1, 7, 8, 9, 975] {
            let mut part = vec![0; size];
            pattern.fill(&mut part);
            parts.extend(part);
        }
        assert_eq!(whole, parts);
        let mut other = vec![0; 1000];
        Pattern::new(8).fill(&mut other);
        assert_ne!(whole, other);
    }

    #[test]
    fn hashes_agree() {
        let mut bytes = Vec::new();
        write(&mut bytes, 100_000, 3).unwrap();
        assert_eq!(bytes.len(), 100_000);
        assert_eq!(sha256_of(&mut &bytes[..]).unwrap(), (sha256(100_000, 3), 100_000));
        // The hash of nothing, FIPS 180-4.
        assert_eq!(
            sha256(0, 1),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
