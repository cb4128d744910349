//! Answers to segments of a flood: the frame that came in goes back as a challenge, or as a reset.
//!
//! An answer is never longer than what it answers, so a flood with spoofed sources is not amplified. It has no options
//! and no data. Its checksums are computed from nothing, because those of a frame from the same machine may be partial.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use guard_common::{
    address::Family,
    challenge::Endpoints,
    packet::{protocol, tcp_flags},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    maps::ANSWER,
    parse::{Frame, Header, Segment},
};

/// The shortest Ethernet frame without its checksum, in bytes (IEEE 802.3, section 3.2.7).
const SHORTEST_FRAME: usize = 60;

/// The hops of an answer, Linux's default (`net.ipv4.ip_default_ttl`).
const HOPS: u8 = 64;

/// The TCP window of an answer, in bytes. A challenge with a window of 0 could be taken for a zero-window probe.
const WINDOW: u16 = u16::MAX;

/// A TCP segment that is sent back instead of the packet: its flags, and its number. One word: an enum would have
/// fields that are uninitialised for some variants, which the verifier refuses.
#[derive(Clone, Copy)]
pub struct Answer(u64);

impl Answer {
    /// Nothing is sent.
    pub const NOTHING: Self = Self(0);

    const FLAGS_SHIFT: u32 = 32;

    #[inline(always)]
    const fn new(flags: u8, number: u32) -> Self {
        Self((flags as u64) << Self::FLAGS_SHIFT | number as u64)
    }

    /// An ACK with this acknowledgment number: a weak challenge.
    #[inline(always)]
    pub const fn ack(number: u32) -> Self {
        Self::new(tcp_flags::ACK, number)
    }

    /// A SYN-ACK with this sequence number: a strong challenge.
    #[inline(always)]
    pub const fn syn_ack(number: u32) -> Self {
        Self::new(tcp_flags::SYN | tcp_flags::ACK, number)
    }

    /// A reset with this sequence number.
    #[inline(always)]
    pub const fn reset(number: u32) -> Self {
        Self::new(tcp_flags::RST, number)
    }

    /// Keeps the answer until the packet is counted and captured: then [`send`] writes it over the packet.
    #[inline(always)]
    pub fn prepare(self) {
        if let Some(answer) = ANSWER.get_ptr_mut(0) {
            // SAFETY: the pointer is to this CPU's own value.
            unsafe { *answer = self.0 };
        }
    }

    #[inline(always)]
    fn prepared() -> Self {
        match ANSWER.get_ptr(0) {
            // SAFETY: as above.
            Some(answer) => Self(unsafe { *answer }),
            None => Self::NOTHING,
        }
    }

    #[inline(always)]
    const fn flags(self) -> u8 {
        (self.0 >> Self::FLAGS_SHIFT) as u8
    }

    #[inline(always)]
    const fn number(self) -> u32 {
        self.0 as u32
    }
}

/// Writes the prepared answer over the packet, and returns the XDP action: it is sent, or dropped if it cannot be.
#[inline(always)]
pub fn send(ctx: &XdpContext) -> u32 {
    guard_send_answer(ctx.ctx)
}

/// A global function: the verifier checks it once (Linux 5.6).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_send_answer(ctx: *mut xdp_md) -> u32 {
    match write_answer(ctx) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_DROP,
    }
}

#[inline(always)]
fn write_answer(ctx: *mut xdp_md) -> Option<()> {
    let answer = Answer::prepared();
    let context = XdpContext::new(ctx);
    let segment = Segment::read(&Frame::of_xdp(&context))?;
    let (flags, number) = (answer.flags(), answer.number());
    if flags == 0 {
        return None;
    }
    let is_weak = flags == tcp_flags::ACK;
    let acknowledgment = if is_weak {
        number
    } else if flags & tcp_flags::ACK != 0 {
        segment.sequence.wrapping_add(1)
    } else {
        0
    };
    let sequence = if is_weak { 0 } else { number };
    let tcp = TcpAnswer {
        sequence,
        acknowledgment,
        flags,
        to: segment.endpoints,
    };
    let ip_length = match segment.endpoints.family {
        Family::Ipv4 => Ipv4Hdr::LEN,
        Family::Ipv6 => Ipv6Hdr::LEN,
    };
    let headers = segment.link_end + ip_length + TcpHdr::LEN;
    shorten(ctx, headers.max(SHORTEST_FRAME))?;
    let frame = Frame::of_xdp(&context);
    swap_link_addresses(&frame)?;
    match segment.endpoints.family {
        Family::Ipv4 => {
            let header = frame.header::<(Ipv4Hdr, TcpHdr)>(segment.link_end)?;
            tcp.write_ipv4(header);
        }
        Family::Ipv6 => {
            let header = frame.header::<(Ipv6Hdr, TcpHdr)>(segment.link_end)?;
            tcp.write_ipv6(header);
        }
    }
    Some(())
}

const _: () = assert!(size_of::<(Ipv4Hdr, TcpHdr)>() == Ipv4Hdr::LEN + TcpHdr::LEN);
const _: () = assert!(size_of::<(Ipv6Hdr, TcpHdr)>() == Ipv6Hdr::LEN + TcpHdr::LEN);

/// Cuts the frame to this length, if it is longer. `None`: the driver does not allow it.
#[inline(always)]
fn shorten(ctx: *mut xdp_md, length: usize) -> Option<()> {
    // SAFETY: the context is the one this program was called with (Linux 5.18 and later).
    let now = unsafe { bpf_xdp_get_buff_len(ctx) } as usize;
    if now <= length {
        return Some(());
    }
    // SAFETY: as above (Linux 4.18 and later).
    let result = unsafe { bpf_xdp_adjust_tail(ctx, (length as i32).wrapping_sub(now as i32)) };
    (result == 0).then_some(())
}

#[inline(always)]
fn swap_link_addresses(frame: &Frame) -> Option<()> {
    let ethernet = frame.header::<EthHdr>(0)?;
    let destination: [u8; 6] = ethernet.bytes(offset_of!(EthHdr, dst_addr));
    let source: [u8; 6] = ethernet.bytes(offset_of!(EthHdr, src_addr));
    ethernet.write(offset_of!(EthHdr, dst_addr), source);
    ethernet.write(offset_of!(EthHdr, src_addr), destination);
    Some(())
}

/// A TCP segment without data and options, to where the packet came from.
struct TcpAnswer {
    sequence: u32,
    acknowledgment: u32,
    flags: u8,
    /// The endpoints of the packet that is answered.
    to: Endpoints,
}

impl TcpAnswer {
    /// `header`: has room for both headers.
    #[inline(always)]
    fn write_ipv4(&self, header: Header) {
        const LENGTH: u16 = (Ipv4Hdr::LEN + TcpHdr::LEN) as u16;
        // Version 4 and five words; no fragment may be made of it (RFC 791).
        const FIRST: u32 = 0x4500 << 16 | LENGTH as u32;
        const SECOND: u32 = 0x4000;
        const THIRD: u32 = (HOPS as u32) << 24 | (protocol::TCP as u32) << 16;
        let (source, destination) = (self.to.destination.low as u32, self.to.source.low as u32);
        let addresses = Sum::default().words([source, destination]);
        let checksum = addresses.words([FIRST, SECOND, THIRD]).checksum();
        let words = [
            FIRST,
            SECOND,
            THIRD | u32::from(checksum),
            source,
            destination,
        ];
        for (nth, word) in words.into_iter().enumerate() {
            header.write(4 * nth, word.to_be());
        }
        self.write_tcp(header, Ipv4Hdr::LEN, addresses);
    }

    /// `header`: has room for both headers.
    #[inline(always)]
    fn write_ipv6(&self, header: Header) {
        let Endpoints {
            source,
            destination,
            ..
        } = self.to;
        let words = [
            6 << 60 | (TcpHdr::LEN as u64) << 16 | u64::from(protocol::TCP) << 8 | u64::from(HOPS),
            destination.high,
            destination.low,
            source.high,
            source.low,
        ];
        for (nth, word) in words.into_iter().enumerate() {
            header.write(8 * nth, word.to_be());
        }
        let mut sum = Sum::default();
        for word in &words[1..] {
            sum = sum.words([(word >> 32) as u32, *word as u32]);
        }
        self.write_tcp(header, Ipv6Hdr::LEN, sum);
    }

    /// `addresses`: the sum of both addresses, for the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1).
    #[inline(always)]
    fn write_tcp(&self, header: Header, offset: usize, addresses: Sum) {
        let Endpoints {
            source_port,
            destination_port,
            ..
        } = self.to;
        // Five words of header.
        let control = 5 << 28 | u32::from(self.flags) << 16 | u32::from(WINDOW);
        let words = [
            u32::from(destination_port) << 16 | u32::from(source_port),
            self.sequence,
            self.acknowledgment,
            control,
        ];
        let pseudo_header = [protocol::TCP.into(), TcpHdr::LEN as u32];
        let checksum = addresses.words(pseudo_header).words(words).checksum();
        for (nth, word) in words.into_iter().enumerate() {
            header.write(offset + 4 * nth, word.to_be());
        }
        let last = u32::from(checksum) << 16;
        header.write(offset + 16, last.to_be());
    }
}

/// The one's complement sum of the internet checksum (RFC 1071).
#[derive(Clone, Copy, Default)]
struct Sum(u64);

impl Sum {
    #[inline(always)]
    fn words<const WORDS: usize>(mut self, words: [u32; WORDS]) -> Self {
        for word in words {
            self.0 += u64::from(word);
        }
        self
    }

    #[inline(always)]
    fn checksum(self) -> u16 {
        let mut sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        !(sum as u16)
    }
}
