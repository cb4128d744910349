//! Tables that are variables of the program.
//!
//! The verifier knows where a variable is and how long: a look at it is one load. A map of the same values
//! costs seven instructions more, for a key in memory, its bound and a pointer that may be null. In return
//! user space writes all of a variable at once.

use core::{arch::asm, cell::UnsafeCell, mem};

/// `N` must be a power of two.
pub struct Global<T, const N: usize>(UnsafeCell<[T; N]>);

// SAFETY: the kernel program only reads it, by words. User space writes words whole.
unsafe impl<T, const N: usize> Sync for Global<T, N> {}

impl<T, const N: usize> Global<T, N> {
    const MASK: usize = {
        assert!(N.is_power_of_two());
        N - 1
    };

    /// # Safety
    /// A `T` of zeros must be a value.
    pub const unsafe fn zeroed() -> Self {
        // SAFETY: the caller's.
        Self(UnsafeCell::new(unsafe { mem::zeroed() }))
    }

    /// The value at `index` modulo `N`.
    #[inline(always)]
    pub fn get(&'static self, index: usize) -> &'static T {
        let offset = (index & Self::MASK) * size_of::<T>();
        let mut value = self.0.get().cast::<T>().cast_const();
        // A variable that the program never writes, the compiler takes for what it is compiled with.
        // SAFETY: it is the one instruction that it says.
        unsafe {
            asm!("{0} += {1}", inout(reg) value, in(reg) offset, options(pure, nomem, nostack));
        }
        // SAFETY: the place lies within the array, and any bytes are a value.
        unsafe { &*value }
    }
}

/// The index modulo `N`, a power of two, for the verifier as well: it does not know what the compiler knows of a
/// number behind a byte swap.
#[inline(always)]
pub fn bounded<const N: usize>(mut index: usize) -> usize {
    const { assert!(N.is_power_of_two()) };
    // SAFETY: it is the one instruction that it says.
    unsafe { asm!("{0} &= {1}", inout(reg) index, const N - 1, options(pure, nomem, nostack)) };
    index
}
