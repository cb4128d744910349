//! Fibonacci hashing (Knuth, "The Art of Computer Programming", 6.4): the upper bits of a product with 2^n divided by
//! the golden ratio are well spread for keys with any stride.

/// 2^32 divided by the golden ratio, an odd number.
pub(crate) const GOLDEN: u32 = 0x9e37_79b9;

/// The product with 2^64 divided by the golden ratio.
#[inline(always)]
pub(crate) const fn spread(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
