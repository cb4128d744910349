//! The policy's switches. The loader writes them into the program's instructions, so the verifier knows their values
//! and removes the code that they switch off. Only the flags that operators change while the program runs are in a
//! variable.

use core::{cell::UnsafeCell, hint::assert_unchecked, ptr::read_volatile};

use guard_common::{
    cell::HashKey, exposure::Scope, literal::Literal, reason::Mode, siphash::SipKey,
};

/// Flags of [`guard_common::layout::live`]. It is the only variable of its section, and so fills it.
#[unsafe(no_mangle)]
static LIVE: LiveVariable = LiveVariable(UnsafeCell::new(0));

struct LiveVariable(UnsafeCell<u32>);

// SAFETY: the kernel program only reads it, as one word.
unsafe impl Sync for LiveVariable {}

/// Which tables have entries at this moment.
#[inline(always)]
pub fn live() -> u32 {
    // SAFETY: the pointer comes from a reference to a static; user space writes the whole word.
    unsafe { read_volatile(LIVE.0.get()) }
}

/// The flags of denied sources.
#[inline(always)]
pub fn denied() -> u32 {
    // SAFETY: as above. The first byte is the lowest, because the machine is little-endian.
    let denied = unsafe { read_volatile(LIVE.0.get().cast::<u8>()) };
    denied.into()
}

/// Whether any of these tables has entries at this moment.
#[inline(always)]
pub fn has(any: u32) -> bool {
    live() & any != 0
}

/// The number that the loader has written over this placeholder.
macro_rules! number {
    ($placeholder:expr) => {{
        let number: u64;
        // SAFETY: the assembly is this one instruction. Not `pure`: loading a number again costs less than keeping it.
        unsafe {
            core::arch::asm!(
                "{0} = {1} ll",
                out(reg) number,
                const $placeholder,
                options(nomem, nostack, preserves_flags)
            );
        }
        number
    }};
}

/// Whether the policy uses any of these flags of [`guard_common::layout::feature`].
macro_rules! uses {
    ($any:expr) => {
        $crate::config::number!(guard_common::literal::Literal::Features.masked($any)) != 0
    };
}

pub(crate) use {number, uses};

/// A number that the compiler knows to be below 256.
macro_rules! byte {
    ($literal:expr) => {{
        let number = number!($literal.placeholder());
        // SAFETY: user space writes a byte there.
        unsafe { assert_unchecked(number <= u8::MAX as u64) };
        number as u8
    }};
}

#[inline(always)]
pub fn mode() -> Mode {
    Mode::from_raw(byte!(Literal::Mode))
}

/// Whether the host's mode is [`Mode::Off`].
#[inline(always)]
pub fn is_off() -> bool {
    number!(Literal::Mode.placeholder()) == Mode::Off as u64
}

#[inline(always)]
pub fn scope() -> Scope {
    Scope::from_raw(byte!(Literal::Scope))
}

#[inline(always)]
pub fn hash_key() -> HashKey {
    HashKey([
        number!(Literal::FirstHashKey.placeholder()),
        number!(Literal::SecondHashKey.placeholder()),
    ])
}

/// The first word of the hash key, for uses that need only one.
#[inline(always)]
pub fn first_hash_key() -> u64 {
    number!(Literal::FirstHashKey.placeholder())
}

/// The key of challenges' cookies.
#[inline(always)]
pub fn challenge_key() -> SipKey {
    SipKey([
        number!(Literal::FirstChallengeKey.placeholder()),
        number!(Literal::SecondChallengeKey.placeholder()),
    ])
}

/// When this policy's trial ends, in nanoseconds of CLOCK_BOOTTIME; 0: the policy is not on trial.
#[inline(always)]
pub fn trial_until() -> u64 {
    number!(Literal::TrialUntil.placeholder())
}

/// How many bits index a line of the deny list; 0: there is no list.
#[inline(always)]
pub fn deny_line_bits() -> u32 {
    u32::from(byte!(Literal::DenyLineBits))
}

/// Units of time in one jiffy.
#[inline(always)]
pub fn jiffy() -> u64 {
    number!(Literal::Jiffy.placeholder())
}

/// Whether messages for developers are on.
#[inline(always)]
pub fn is_debugged() -> bool {
    number!(Literal::IsDebugged.placeholder()) != 0
}
