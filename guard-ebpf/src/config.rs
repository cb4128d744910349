//! The policy's switches. They are read-only when the program is loaded, so the verifier knows
//! their values and removes the code that they switch off.

use core::ptr::read_volatile;

use guard_common::{cell::HashKey, exposure::Scope, layout::Config, reason::Mode};

#[unsafe(no_mangle)]
static CONFIG: Config = Config::EMPTY;

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

#[inline(always)]
pub fn scope() -> Scope {
    Scope::from_raw(field!(scope))
}

/// Whether the policy uses any of these, which are of [`guard_common::layout::feature`].
#[inline(always)]
pub fn uses(features: u16) -> bool {
    field!(features) & features != 0
}

#[inline(always)]
pub fn hash_key() -> HashKey {
    HashKey([field!(hash_key.0[0]), field!(hash_key.0[1])])
}

/// Units of time in one jiffy.
#[inline(always)]
pub fn jiffy() -> u64 {
    field!(jiffy)
}
