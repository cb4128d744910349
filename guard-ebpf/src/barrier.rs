//! Barriers for the compiler: they keep tests in the order in which they are written, and bounds where the verifier
//! sees them.

use core::arch::asm;

/// The same number, opaque to the compiler: a test of it stays behind the tests before it, and is not merged with them
/// into one jump table or binary search.
#[inline(always)]
pub fn opaque(mut number: u64) -> u64 {
    // SAFETY: the assembly is this one instruction. With no instruction at all, the kernel would refuse the line
    // numbers. Not `pure`: the compiler could then move it.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}

/// Masks a number even where the compiler knows its bounds: the verifier may not know them.
#[inline(always)]
pub fn masked<const MASK: u64>(mut number: u64) -> u64 {
    // SAFETY: the assembly is this one instruction.
    unsafe {
        asm!("{0} &= {1}", inout(reg) number, const MASK, options(pure, nomem, nostack, preserves_flags));
    }
    number
}
