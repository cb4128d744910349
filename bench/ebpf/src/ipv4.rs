//! The minimal parser of the programs beside guard's.

use core::{mem::offset_of, ptr::read_unaligned};

use aya_ebpf::programs::XdpContext;
use network_types::{eth::EthHdr, ip::Ipv4Hdr};

pub const ETHER_TYPE_IPV4: u16 = 0x0800;

/// The source address in network byte order. `None` if the packet is not IPv4.
#[inline(always)]
pub fn source(ctx: &XdpContext) -> Option<u32> {
    let start = ctx.data();
    if start + EthHdr::LEN + Ipv4Hdr::LEN > ctx.data_end() {
        return None;
    }
    // SAFETY: the bounds were checked.
    unsafe {
        let ether_type = (start + offset_of!(EthHdr, ether_type)) as *const u16;
        if u16::from_be(read_unaligned(ether_type)) != ETHER_TYPE_IPV4 {
            return None;
        }
        let source = (start + EthHdr::LEN + offset_of!(Ipv4Hdr, src_addr)) as *const u32;
        Some(read_unaligned(source))
    }
}
