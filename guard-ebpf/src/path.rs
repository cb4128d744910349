//! The fast path and the slow path: two ways through the same rules.
//!
//! Most packets need only lookups in a few arrays. The fast path judges them in code that keeps no values for later
//! steps: values that a list, the flow table or a crowd's budget might need would have to be saved to the stack for
//! every packet. A packet that needs such a step is deferred: the slow path judges it from the beginning.
//!
//! The gain is worth the generics. Measured with `cargo xtask bench` on Linux 6.18 (x86-64, two CPUs of a virtual
//! machine in use by others; runs of 21 rounds, 4 of them for the last column; the least median of each, in ns):
//!
//! | row | as it is | parser returns a value, two paths | parser returns a value, slow path alone |
//! | --- | --- | --- | --- |
//! | `closed` (bar 8) | 6.1 | 7.9 | 9.0 |
//! | `closed-published` (bar 8) | 6.6 | 8.4 | 10.3 |
//! | `open` (bar 15) | 10.3 | 12.6 | 13.8 |
//! | `budgets` (bar 30) | 17.0 | 19.1 | 21.7 |
//! | `over` (bar 15) | 10.1 | 12.3 | 13.3 |
//!
//! If the slow path is inlined where each kind of packet is parsed, the program does not link: its jumps have 16 bits
//! ("Branch target out of insn range", LLVM 22).

use core::convert::Infallible;

/// The path that judges a packet.
pub trait PathKind {
    /// The error of a step that returns no verdict.
    type Deferred;

    const IS_FAST: bool;

    /// The steps after this call belong to the slow path: the fast path returns here. The packet has not been counted
    /// yet. It has not been charged either, unless it was within all of its budgets and another CPU took the room of
    /// one of them meanwhile.
    fn defer() -> Result<(), Self::Deferred>;
}

/// Returns a verdict if lookups in a few arrays are enough for it.
pub struct FastPath;

/// The packet needs the slow path.
pub struct Deferred;

impl PathKind for FastPath {
    type Deferred = Deferred;

    const IS_FAST: bool = true;

    #[inline(always)]
    fn defer() -> Result<(), Deferred> {
        Err(Deferred)
    }
}

/// Returns a verdict for every packet.
pub struct SlowPath;

impl PathKind for SlowPath {
    type Deferred = Infallible;

    const IS_FAST: bool = false;

    #[inline(always)]
    fn defer() -> Result<(), Infallible> {
        Ok(())
    }
}
