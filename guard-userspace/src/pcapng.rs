//! Writes pcapng (draft-ietf-opsawg-pcapng), a block at a time.

use std::borrow::Cow;

use guard_common::reason::Verdict;
use pcap_parser::{
    EnhancedPacketBlock, InterfaceDescriptionBlock, InterfaceStatisticsBlock, Linktype, OptionCode,
    PcapNGOption, SectionHeaderBlock, ToVec,
};

/// Times are in nanoseconds: 10^-9.
const RESOLUTION: u8 = 9;

/// epb_flags and epb_verdict (section 4.3), which `pcap_parser` does not name.
const EPB_FLAGS: OptionCode = OptionCode(2);
const EPB_VERDICT: OptionCode = OptionCode(7);

/// In the first two bits of epb_flags.
const INBOUND: u32 = 1;

/// In the first byte of epb_verdict: what an XDP program returned follows, in 64 bits.
const VERDICT_OF_XDP: u8 = 2;
const XDP_DROP: u64 = 1;
const XDP_PASS: u64 = 2;

/// A packet as it came in over an interface, which is counted from 0 in the order of their blocks.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// The beginning of the frame, and its whole length in bytes.
    pub frame: &'a [u8],
    pub length: u32,
    pub verdict: Verdict,
    pub comment: &'a str,
}

/// A file begins with it.
pub fn section() -> Vec<u8> {
    let writer = concat!("guard ", env!("CARGO_PKG_VERSION"));
    bytes(&mut SectionHeaderBlock {
        block_type: 0,
        block_len1: 0,
        bom: 0,
        major_version: 0,
        minor_version: 0,
        // Its length is not known.
        section_len: -1,
        options: vec![option(OptionCode::ShbUserAppl, writer.as_bytes())],
        block_len2: 0,
    })
}

/// An interface with Ethernet frames, of which so many bytes are recorded.
pub fn interface(name: &str, snap_length: u32) -> Vec<u8> {
    bytes(&mut InterfaceDescriptionBlock {
        block_type: 0,
        block_len1: 0,
        linktype: Linktype::ETHERNET,
        reserved: 0,
        snaplen: snap_length,
        options: vec![
            option(OptionCode::IfName, name.as_bytes()),
            option(OptionCode::IfTsresol, &[RESOLUTION]),
        ],
        block_len2: 0,
        if_tsresol: RESOLUTION,
        if_tsoffset: 0,
    })
}

pub fn packet(packet: &Packet<'_>) -> Vec<u8> {
    let returned = match packet.verdict {
        Verdict::Drop => XDP_DROP,
        Verdict::Pass => XDP_PASS,
    };
    let mut verdict = vec![VERDICT_OF_XDP];
    verdict.extend(returned.to_le_bytes());
    bytes(&mut EnhancedPacketBlock {
        block_type: 0,
        block_len1: 0,
        if_id: packet.interface,
        ts_high: (packet.time_ns >> 32) as u32,
        ts_low: packet.time_ns as u32,
        caplen: packet.frame.len() as u32,
        origlen: packet.length,
        data: packet.frame,
        options: vec![
            option(OptionCode::Comment, packet.comment.as_bytes()),
            option(EPB_FLAGS, &INBOUND.to_le_bytes()),
            option(EPB_VERDICT, &verdict),
        ],
        block_len2: 0,
    })
}

/// How many packets of an interface were wanted until now, and how many of them are not recorded.
pub fn statistics(interface: u32, time_ns: u64, wanted: u64, missed: u64) -> Vec<u8> {
    bytes(&mut InterfaceStatisticsBlock {
        block_type: 0,
        block_len1: 0,
        if_id: interface,
        ts_high: (time_ns >> 32) as u32,
        ts_low: time_ns as u32,
        options: vec![
            option(OptionCode::IsbIfRecv, &wanted.to_le_bytes()),
            option(OptionCode::IsbIfDrop, &missed.to_le_bytes()),
        ],
        block_len2: 0,
    })
}

fn option<'a>(code: OptionCode, value: &'a [u8]) -> PcapNGOption<'a> {
    PcapNGOption {
        code,
        // Names and comments are short.
        len: value.len() as u16,
        value: Cow::Borrowed(value),
    }
}

/// Lengths and magic numbers are filled in. Writing into memory does not fail.
fn bytes(block: &mut impl ToVec) -> Vec<u8> {
    block.to_vec().unwrap_or_default()
}
