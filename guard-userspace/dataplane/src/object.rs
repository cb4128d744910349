//! The kernel program's object file, with the constants of one generation written into its instructions.

use guard_common::literal::Config;

use super::LoadError;

/// Compiled for the BPF virtual machine by this crate's build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard-ebpf"));

const WORD: usize = size_of::<u64>();

/// The bytes of the file, stored in words because the ELF reader requires that alignment.
pub struct Object(Vec<u64>);

impl Object {
    /// Writes the constants into a copy of the file.
    ///
    /// # Errors
    /// [`LoadError::Incomplete`] if the program has no placeholder for a constant.
    pub fn with(config: &Config) -> Result<Self, LoadError> {
        let mut words = words(OBJECT);
        if config.write_into(&mut words) == 0 {
            return Err(LoadError::Incomplete("switches"));
        }
        Ok(Self(words))
    }

    pub fn bytes(&self) -> &[u8] {
        let Self(words) = self;
        // SAFETY: every byte of a word is a valid u8.
        let (_, bytes, _) = unsafe { words.align_to() };
        bytes.get(..OBJECT.len()).unwrap_or(bytes)
    }
}

/// The last word is padded with zeros.
fn words(bytes: &[u8]) -> Vec<u64> {
    let words = bytes.chunks(WORD).map(|chunk| {
        let mut word = [0; WORD];
        word.iter_mut()
            .zip(chunk)
            .for_each(|(to, from)| *to = *from);
        u64::from_ne_bytes(word)
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use guard_common::{
        cell::HashKey, exposure::Scope, literal::Literal, reason::Mode, siphash::SipKey,
    };

    use super::*;

    #[test]
    fn every_constant_is_written_and_nothing_else() {
        let config = Config {
            jiffy: 1,
            hash_key: HashKey([2, 3]),
            challenge_key: SipKey([4, 5]),
            trial_until: 4,
            deny_line_bits: 5,
            mode: Mode::Observe,
            scope: Scope::Host,
            features: 0,
            is_debugged: false,
        };
        let Object(mut written) = Object::with(&config).unwrap();
        // The file is as long as before, and no placeholder is left, neither whole nor in a half of an instruction.
        assert_eq!(config.write_into(&mut written), 0);
        let object = Object(written);
        assert_eq!(object.bytes().len(), OBJECT.len());
        let mark = (Literal::Mode.placeholder() >> 32) as u32;
        let is_mark = |bytes: &[u8]| bytes == mark.to_le_bytes();
        assert!(OBJECT.windows(4).any(is_mark) && !object.bytes().windows(4).any(is_mark));
        let mut numbers = 0;
        for (before, after) in OBJECT.chunks(WORD).zip(object.bytes().chunks(WORD)) {
            if before != after {
                numbers += 1;
                // The opcode and register of the first half, or the zeros of the second half (BPF_LD_IMM64).
                assert_eq!(before[..4], after[..4]);
            }
        }
        assert!(numbers > 100, "{numbers} halves of numbers are written");
    }
}
