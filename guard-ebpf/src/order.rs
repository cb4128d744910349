//! What the compiler must not see through, so that it asks in this order, or the verifier sees what it knows.

use core::arch::asm;

/// The same number, of which the compiler knows nothing: a question about it stays behind the questions before it,
/// and does not become one search with them.
#[inline(always)]
pub fn unforeseen(mut number: u64) -> u64 {
    // SAFETY: it is the one instruction that it says; of none at all, the kernel would refuse the line numbers. Not
    // `pure`: else it could be moved.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}

/// The number's bits under the mask, also where the compiler knows that it has no others: the verifier may not.
#[inline(always)]
pub fn masked<const MASK: u64>(mut number: u64) -> u64 {
    // SAFETY: it is the one instruction that it says.
    unsafe {
        asm!("{0} &= {1}", inout(reg) number, const MASK, options(pure, nomem, nostack, preserves_flags));
    }
    number
}
