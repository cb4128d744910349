//! Empty: the programs are this crate's binaries.
#![no_std]
