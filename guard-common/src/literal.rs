//! Numbers that user space writes into the program's instructions.
//!
//! A number that is fixed for one generation of the program needs no map. The program has an instruction that loads a
//! placeholder, and user space overwrites the placeholder with the number before it loads the program. The verifier
//! then knows the number and removes dead code, and the load waits for no memory.

#[cfg(target_endian = "big")]
compile_error!(
    "instructions and the bytes of tables are taken for those of a machine with little-endian words"
);

use crate::{cell::HashKey, exposure::Scope, reason::Mode, siphash::SipKey};

/// The numbers that are fixed for one generation of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Units of time in one jiffy (see [`crate::gcra`]).
    pub jiffy: u64,
    pub hash_key: HashKey,
    /// The key of challenges' cookies.
    pub challenge_key: SipKey,
    /// When the policy's trial ends, in nanoseconds of CLOCK_BOOTTIME; 0: the policy is not on trial.
    pub trial_until: u64,
    /// The number of bits of a line's index in [`crate::layout::DENIED_LINES`]; 0: there is no list.
    pub deny_line_bits: u32,
    /// The host's mode.
    pub mode: Mode,
    pub scope: Scope,
    /// Flags of [`crate::layout::feature`].
    pub features: u16,
    /// Whether the program logs messages for developers.
    pub is_debugged: bool,
}

/// `BPF_LD | BPF_IMM | BPF_DW` without its register: it loads a 64-bit immediate (RFC 9669, section 5.4).
const LOAD: u64 = 0x18;
const REGISTER: u64 = 0x0f00;

/// The upper half of every placeholder, and the byte below it.
const MARK: u64 = 0x6775_6172_6400_0000;
const MARK_MASK: u64 = 0xffff_ffff_ff00_0000;
const MASK_BITS: u32 = 16;

/// One of the numbers.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Literal {
    Jiffy = 1,
    FirstHashKey = 2,
    SecondHashKey = 3,
    TrialUntil = 4,
    DenyLineBits = 5,
    Mode = 6,
    Scope = 7,
    /// The features in a mask.
    Features = 8,
    IsDebugged = 9,
    FirstChallengeKey = 10,
    SecondChallengeKey = 11,
}

impl Literal {
    const ALL: [Self; 11] = [
        Self::Jiffy,
        Self::FirstHashKey,
        Self::SecondHashKey,
        Self::TrialUntil,
        Self::DenyLineBits,
        Self::Mode,
        Self::Scope,
        Self::Features,
        Self::IsDebugged,
        Self::FirstChallengeKey,
        Self::SecondChallengeKey,
    ];

    /// The number that the compiled program has in its place.
    pub const fn placeholder(self) -> u64 {
        self.masked(u16::MAX)
    }

    /// The placeholder for the bits of the number that are in `mask`.
    pub const fn masked(self, mask: u16) -> u64 {
        MARK | (self as u64) << MASK_BITS | mask as u64
    }

    /// The number that a placeholder stands for, and its mask. `None`: it is no placeholder.
    fn find(placeholder: u64) -> Option<(Self, u16)> {
        if placeholder & MARK_MASK != MARK {
            return None;
        }
        let number = (placeholder >> MASK_BITS) as u8;
        let literal = Self::ALL
            .into_iter()
            .find(|literal| *literal as u8 == number)?;
        Some((literal, placeholder as u16))
    }
}

impl Config {
    fn value(&self, literal: Literal, mask: u16) -> u64 {
        let [first, second] = self.hash_key.0;
        match literal {
            Literal::Jiffy => self.jiffy,
            Literal::FirstHashKey => first,
            Literal::SecondHashKey => second,
            Literal::FirstChallengeKey => self.challenge_key.0[0],
            Literal::SecondChallengeKey => self.challenge_key.0[1],
            Literal::TrialUntil => self.trial_until,
            Literal::DenyLineBits => self.deny_line_bits.into(),
            Literal::Mode => self.mode as u64,
            Literal::Scope => self.scope as u64,
            Literal::Features => (self.features & mask).into(),
            Literal::IsDebugged => self.is_debugged.into(),
        }
    }

    /// Writes the numbers into a program's object file, given as words of 8 bytes in this machine's order. Returns how
    /// many numbers it has written.
    pub fn write_into(&self, object: &mut [u64]) -> usize {
        let mut written = 0;
        for place in 1..object.len() {
            // Two words: the instruction with the lower half of the number, and its upper half.
            let [first, second] = [object[place - 1], object[place]];
            if first & u64::from(u32::MAX) & !REGISTER != LOAD || second & u64::from(u32::MAX) != 0
            {
                continue;
            }
            let number = second & !u64::from(u32::MAX) | first >> 32;
            let Some((literal, mask)) = Literal::find(number) else {
                continue;
            };
            let value = self.value(literal, mask);
            object[place - 1] = first & u64::from(u32::MAX) | value << 32;
            object[place] = value & !u64::from(u32::MAX);
            written += 1;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::feature;

    const CONFIG: Config = Config {
        jiffy: 7,
        hash_key: HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]),
        challenge_key: SipKey([8, 9]),
        trial_until: u64::MAX,
        deny_line_bits: 16,
        mode: Mode::Enforce,
        scope: Scope::Host,
        features: feature::PACKETS | feature::NARROW,
        is_debugged: true,
    };

    /// As the compiler writes it: `r3 = NUMBER ll`.
    fn load(number: u64) -> [u64; 2] {
        [LOAD | 3 << 8 | number << 32, number & !u64::from(u32::MAX)]
    }

    fn written(number: u64) -> u64 {
        let mut object = load(number);
        CONFIG.write_into(&mut object);
        let [first, second] = object;
        assert_eq!(first & u64::from(u32::MAX), LOAD | 3 << 8);
        second | first >> 32
    }

    #[test]
    fn each_number_is_written_where_its_placeholder_is() {
        let numbers = Literal::ALL.map(|literal| written(literal.placeholder()));
        let [first, second] = CONFIG.hash_key.0;
        let features = u64::from(CONFIG.features);
        assert_eq!(
            numbers,
            [7, first, second, u64::MAX, 16, 2, 1, features, 1, 8, 9]
        );
        let uses = |mask| written(Literal::Features.masked(mask));
        assert_eq!(
            uses(feature::PACKETS | feature::BYTES),
            feature::PACKETS.into()
        );
        assert_eq!(uses(feature::TOTALS), 0);
    }

    #[test]
    fn other_instructions_stay_as_they_are() {
        let unknown = MARK | 0xff << MASK_BITS;
        let others = [load(0), load(u64::MAX), load(unknown), load(MARK)];
        // An instruction with the same bytes that loads the address of a map, and bytes that are no instruction.
        let [first, second] = load(Literal::Mode.placeholder());
        let address = [first | 1 << 12, second];
        let mut object: Vec<u64> = others.into_iter().chain([address]).flatten().collect();
        object.push(Literal::Mode.placeholder());
        let before = object.clone();
        assert_eq!(CONFIG.write_into(&mut object), 0);
        assert_eq!(object, before);
        assert_eq!(CONFIG.write_into(&mut []), 0);
    }
}
