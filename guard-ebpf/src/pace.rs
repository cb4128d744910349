//! Two ways through the same rules.
//!
//! Most packets need no more than a look at a few arrays. They are judged quickly, in code that holds nothing
//! for later questions: a machine word that a list, a table of flows or a crowd's budget may ask for has to be
//! saved before every packet and for every one of them. Whatever needs such a question begins again and is
//! judged thoroughly.
//!
//! It is worth its generics. Measured with `cargo xtask bench` on Linux 6.18 (x86-64, two CPUs of a virtual machine in
//! use by others; runs of 21 rounds, 4 of them for the last column; the least median of each, in ns):
//!
//! | row | as it is | one parser's value, judged in two paces | one parser's value, judged thoroughly |
//! | --- | --- | --- | --- |
//! | `closed` (bar 8) | 6.1 | 7.9 | 9.0 |
//! | `closed-published` (bar 8) | 6.6 | 8.4 | 10.3 |
//! | `open` (bar 15) | 10.3 | 12.6 | 13.8 |
//! | `budgets` (bar 30) | 17.0 | 19.1 | 21.7 |
//! | `over` (bar 15) | 10.1 | 12.3 | 13.3 |
//!
//! To judge thoroughly where each kind of packet is read does not link: the program's jumps have 16 bits ("Branch
//! target out of insn range", LLVM 22).

use core::convert::Infallible;

/// How closely a packet is looked at.
pub trait Pace {
    /// Why there is no answer.
    type Unsure;

    const IS_QUICK: bool;

    /// What follows is for a closer look. Nothing has been counted for the packet yet, nor charged, unless it
    /// was within all of its budgets and another CPU took the room of one while it charged them.
    fn look_closer() -> Result<(), Self::Unsure>;
}

/// Answers what can be answered at once.
pub struct Quick;

/// The packet needs a closer look.
pub struct Unsure;

impl Pace for Quick {
    type Unsure = Unsure;

    const IS_QUICK: bool = true;

    #[inline(always)]
    fn look_closer() -> Result<(), Unsure> {
        Err(Unsure)
    }
}

/// Answers everything.
pub struct Thorough;

impl Pace for Thorough {
    type Unsure = Infallible;

    const IS_QUICK: bool = false;

    #[inline(always)]
    fn look_closer() -> Result<(), Infallible> {
        Ok(())
    }
}
