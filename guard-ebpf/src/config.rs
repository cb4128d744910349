//! The policy's switches. They stand in the program's instructions, so the verifier knows their values and
//! removes the code that they switch off. Only what operators change while the program runs is a variable.

use core::{cell::UnsafeCell, hint::assert_unchecked, ptr::read_volatile};

use guard_common::{cell::HashKey, exposure::Scope, literal::Literal, reason::Mode};

/// Of [`guard_common::layout::live`]: the one variable, so it is the whole of its section.
#[unsafe(no_mangle)]
static LIVE: LiveVariable = LiveVariable(UnsafeCell::new(0));

struct LiveVariable(UnsafeCell<u32>);

// SAFETY: the kernel program only reads it, as one word.
unsafe impl Sync for LiveVariable {}

/// What the tables hold at this moment.
#[inline(always)]
pub fn live() -> u32 {
    // SAFETY: the pointer comes from a reference to a static; user space writes the whole word.
    unsafe { read_volatile(LIVE.0.get()) }
}

/// The part of it that says what is denied.
#[inline(always)]
pub fn denied() -> u32 {
    // SAFETY: as above. The first byte is the lowest: this machine has no other order.
    let denied = unsafe { read_volatile(LIVE.0.get().cast::<u8>()) };
    denied.into()
}

/// Whether the tables hold any of these at this moment.
#[inline(always)]
pub fn has(any: u32) -> bool {
    live() & any != 0
}

/// The number that user space has written over this placeholder.
macro_rules! number {
    ($placeholder:expr) => {{
        let number: u64;
        // SAFETY: it is the one instruction that it says. Not `pure`: to load a number again costs less than to
        // keep it.
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

/// Whether the policy uses any of these, which are of [`guard_common::layout::feature`].
macro_rules! uses {
    ($any:expr) => {
        $crate::config::number!(guard_common::literal::Literal::Features.masked($any)) != 0
    };
}

pub(crate) use {number, uses};

/// A number of which the compiler knows that it is below 256.
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

/// The host's mode is [`Mode::Off`].
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

/// Of the hash key, where one word is enough.
#[inline(always)]
pub fn first_hash_key() -> u64 {
    number!(Literal::FirstHashKey.placeholder())
}

/// When this policy's trial ends, in nanoseconds of CLOCK_BOOTTIME; 0: it is no trial.
#[inline(always)]
pub fn trial_until() -> u64 {
    number!(Literal::TrialUntil.placeholder())
}

/// How many bits the number of a line of the deny list has; 0: there is none.
#[inline(always)]
pub fn deny_line_bits() -> u32 {
    u32::from(byte!(Literal::DenyLineBits))
}

/// Units of time in one jiffy.
#[inline(always)]
pub fn jiffy() -> u64 {
    number!(Literal::Jiffy.placeholder())
}

/// Whether developers want to be told.
#[inline(always)]
pub fn is_debugged() -> bool {
    number!(Literal::IsDebugged.placeholder()) != 0
}
