//! The clocks: the kernel's, or for replay a map's.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use guard_common::layout;

use crate::{config, maps::CLOCK};

pub trait Clock {
    /// Whether many packets have the same time. Only then is it worth keeping accounts.
    const IN_TICKS: bool;

    /// The number of the current tick, from which [`Self::time_of`] computes the time. Clocks without ticks return the
    /// time.
    fn tick() -> u64;

    /// The time of a tick in the units of [`guard_common::gcra`].
    fn time_of(tick: u64) -> u64;

    /// The time in these units.
    #[inline(always)]
    fn now() -> u64 {
        Self::time_of(Self::tick())
    }

    /// Nanoseconds of CLOCK_BOOTTIME, which goes on while the host sleeps.
    fn boot_ns() -> u64;
}

/// Jiffies: nearly free to read, and as coarse as the kernel's tick.
pub struct KernelClock;

impl Clock for KernelClock {
    const IN_TICKS: bool = true;

    #[inline(always)]
    fn tick() -> u64 {
        // SAFETY: the helper has no preconditions (Linux 5.5 and later).
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn time_of(tick: u64) -> u64 {
        tick.wrapping_mul(config::jiffy())
    }

    #[inline(always)]
    fn boot_ns() -> u64 {
        // SAFETY: the helper has no preconditions (Linux 5.8 and later).
        unsafe { bpf_ktime_get_boot_ns() }
    }
}

/// The time stamp of the recorded packet.
pub struct ReplayClock;

impl ReplayClock {
    #[inline(always)]
    fn read() -> layout::ReplayTime {
        CLOCK.get(0).copied().unwrap_or_default()
    }
}

impl Clock for ReplayClock {
    const IN_TICKS: bool = false;

    #[inline(always)]
    fn tick() -> u64 {
        Self::read().now
    }

    #[inline(always)]
    fn time_of(tick: u64) -> u64 {
        tick
    }

    #[inline(always)]
    fn boot_ns() -> u64 {
        Self::read().boot_ns
    }
}

/// A clock that stands at the boot of this host: with it, no entry has ended yet.
pub struct BootClock;

impl Clock for BootClock {
    const IN_TICKS: bool = false;

    #[inline(always)]
    fn tick() -> u64 {
        0
    }

    #[inline(always)]
    fn time_of(tick: u64) -> u64 {
        tick
    }

    #[inline(always)]
    fn boot_ns() -> u64 {
        0
    }
}
