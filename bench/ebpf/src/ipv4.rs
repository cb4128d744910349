//! The little that the programs beside guard's read of a packet.

use core::{mem::offset_of, ptr::read_unaligned};

use aya_ebpf::programs::XdpContext;
use network_types::{eth::EthHdr, ip::Ipv4Hdr};

pub const ETHER_TYPE_IPV4: u16 = 0x0800;

/// In network byte order. `None`: it is no IPv4.
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
