//! Empty: the program is the binary of this crate.
#![no_std]
