//! Tables that are global variables of the program.
//!
//! The verifier knows the address and size of a variable, so a lookup is one load. An array map of the same values
//! costs seven instructions more: a key on the stack, a bounds check and a null check. In return, user space can only
//! write a variable as a whole.

use core::{
    arch::asm,
    cell::UnsafeCell,
    mem,
    ptr::{read_volatile, write_volatile},
};

/// `N` must be a power of two.
pub struct Global<T, const N: usize>(UnsafeCell<[T; N]>);

// SAFETY: the kernel program reads and writes it word by word, and user space never writes half a word.
unsafe impl<T, const N: usize> Sync for Global<T, N> {}

impl Global<u64, 1> {
    /// The word, which other CPUs may write.
    #[inline(always)]
    pub fn load(&'static self) -> u64 {
        // SAFETY: the pointer comes from a reference.
        unsafe { read_volatile(self.0.get().cast()) }
    }

    /// Writes the word.
    #[inline(always)]
    pub fn store(&'static self, word: u64) {
        // SAFETY: the pointer comes from a reference. An aligned 64-bit store does not tear.
        unsafe { write_volatile(self.0.get().cast(), word) }
    }
}

impl<T, const N: usize> Global<T, N> {
    const MASK: usize = {
        assert!(N.is_power_of_two());
        N - 1
    };

    /// # Safety
    /// A `T` of zeros must be a value.
    pub const unsafe fn zeroed() -> Self {
        // SAFETY: the caller guarantees it.
        Self(UnsafeCell::new(unsafe { mem::zeroed() }))
    }

    /// The value at `index` modulo `N`.
    #[inline(always)]
    pub fn get(&'static self, index: usize) -> &'static T {
        self.at(index & Self::MASK)
    }

    /// [`Self::get`] for an index that contains a byte-swapped number. The compiler knows the bounds of such a number
    /// and would omit the mask, but the verifier does not know them.
    #[inline(always)]
    pub fn get_behind_swap(&'static self, mut index: usize) -> &'static T {
        // SAFETY: the assembly is this one instruction.
        unsafe {
            asm!("{0} &= {1}", inout(reg) index, const Self::MASK, options(pure, nomem, nostack));
        }
        self.at(index)
    }

    /// `index`: below `N`.
    #[inline(always)]
    #[expect(
        clippy::pointers_in_nomem_asm_block,
        reason = "the instruction computes a pointer from another and dereferences neither"
    )]
    fn at(&'static self, index: usize) -> &'static T {
        let mut value = self.0.get().cast::<T>().cast_const();
        // The compiler would assume that a variable that the program never writes keeps its initial value: the
        // assembly hides the address.
        // SAFETY: the assembly is this one instruction.
        unsafe {
            let offset = index * size_of::<T>();
            asm!("{0} += {1}", inout(reg) value, in(reg) offset, options(pure, nomem, nostack));
        }
        // SAFETY: the place lies within the array, and any bytes are a value.
        unsafe { &*value }
    }
}
