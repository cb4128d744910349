//! SipHash, a keyed hash whose outputs tell an attacker nothing about the key (Aumasson, Bernstein: "SipHash: a fast
//! short-input PRF", 2012). The hash of [`crate::cell`] is faster, but only for outputs that nobody sees.

/// The key of [`hash`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SipKey(pub [u64; 2]);

/// SipHash-1-3 of these words: one round for each word, and three at the end. Its input are the words' bytes, the
/// lowest first.
#[inline(always)]
pub const fn hash<const WORDS: usize>(SipKey([first, second]): SipKey, words: [u64; WORDS]) -> u64 {
    // The length in bytes is the last byte of the last word.
    let length = (WORDS as u64 * 8) << 56;
    let mut state = [
        first ^ 0x736f_6d65_7073_6575,
        second ^ 0x646f_7261_6e64_6f6d,
        first ^ 0x6c79_6765_6e65_7261,
        second ^ 0x7465_6462_7974_6573,
    ];
    let mut nth = 0;
    while nth < WORDS {
        state = compress(state, words[nth]);
        nth += 1;
    }
    state = compress(state, length);
    state[2] ^= 0xff;
    state = round(round(round(state)));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline(always)]
const fn compress(mut state: [u64; 4], word: u64) -> [u64; 4] {
    state[3] ^= word;
    state = round(state);
    state[0] ^= word;
    state
}

#[inline(always)]
const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;

    use siphasher::sip::SipHasher13;

    use super::*;

    #[test]
    fn it_returns_what_another_implementation_returns() {
        let mut word = 1u64;
        let mut next = || {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            word
        };
        for _ in 0..1_000 {
            let key = SipKey([next(), next()]);
            let words = [next(), next(), next(), next(), next()];
            for (found, length) in [(hash(key, [words[0], words[1]]), 2), (hash(key, words), 5)] {
                let SipKey([first, second]) = key;
                let mut hasher = SipHasher13::new_with_keys(first, second);
                for word in &words[..length] {
                    hasher.write(&word.to_le_bytes());
                }
                assert_eq!(found, hasher.finish());
            }
        }
    }
}
