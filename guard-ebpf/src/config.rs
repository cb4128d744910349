//! The policy's switches. They are read-only when the program is loaded, so the verifier knows
//! their values and removes the code that they switch off. Only what operators change while the
//! program runs is a variable.

use core::{cell::UnsafeCell, ptr::read_volatile};

use guard_common::{cell::HashKey, exposure::Scope, layout::Config, reason::Mode};

#[unsafe(no_mangle)]
static CONFIG: Config = Config::EMPTY;

/// Of [`guard_common::layout::live`]: the one variable, so it is the whole of its section.
#[unsafe(no_mangle)]
static LIVE: Live = Live(UnsafeCell::new(0));

struct Live(UnsafeCell<u32>);

// SAFETY: the kernel program only reads it, as one word.
unsafe impl Sync for Live {}

/// What the tables hold at this moment.
#[inline(always)]
pub fn live() -> u32 {
    // SAFETY: the pointer comes from a reference to a static; user space writes the whole word.
    unsafe { read_volatile(LIVE.0.get()) }
}

/// Whether the tables hold any of these at this moment.
#[inline(always)]
pub fn has(any: u32) -> bool {
    live() & any != 0
}

/// Reads one field as it is when the program is loaded, not as it is compiled.
macro_rules! field {
    ($($field:tt)+) => {
        // SAFETY: the pointer comes from a reference to a static.
        unsafe { read_volatile(&raw const CONFIG.$($field)+) }
    };
}

#[inline(always)]
pub fn mode() -> Mode {
    Mode::from_raw(field!(mode))
}

/// The host's mode is [`Mode::Off`].
#[inline(always)]
pub fn is_off() -> bool {
    field!(mode) == Mode::Off as u8
}

#[inline(always)]
pub fn scope() -> Scope {
    Scope::from_raw(field!(scope))
}

/// What the policy uses, of [`guard_common::layout::feature`].
#[inline(always)]
pub fn features() -> u16 {
    field!(features)
}

/// Whether the policy uses any of these, which are of [`guard_common::layout::feature`].
#[inline(always)]
pub fn uses(any: u16) -> bool {
    features() & any != 0
}

#[inline(always)]
pub fn hash_key() -> HashKey {
    HashKey([field!(hash_key.0[0]), field!(hash_key.0[1])])
}

/// Which packets are looked at for the talkers depends on this.
#[inline(always)]
pub fn sampling_key() -> u64 {
    field!(hash_key.0[0])
}

/// When this policy's trial ends, in nanoseconds of CLOCK_BOOTTIME; 0: it is no trial.
#[inline(always)]
pub fn trial_until() -> u64 {
    field!(trial_until)
}

/// How many bits the number of a line of the deny list has; 0: there is none.
#[inline(always)]
pub fn deny_line_bits() -> u32 {
    field!(deny_line_bits)
}

/// Units of time in one jiffy.
#[inline(always)]
pub fn jiffy() -> u64 {
    field!(jiffy)
}
