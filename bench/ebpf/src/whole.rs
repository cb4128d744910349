//! The panic handler, which is never reached, and the licence: every program needs both.

#[cfg(target_arch = "bpf")]
use core::panic::PanicInfo;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
