//! Writes the blocks of pcapng (draft-ietf-opsawg-pcapng).

use std::borrow::Cow;

use bytes::{BufMut as _, BytesMut};
use guard_common::reason::Verdict;
use pcap_parser::{
    EPB_MAGIC, InterfaceDescriptionBlock, InterfaceStatisticsBlock, Linktype, OptionCode,
    PcapNGOption, SectionHeaderBlock, ToVec,
};

/// Times are in nanoseconds: 10^-9.
const RESOLUTION: u8 = 9;

/// epb_flags and epb_verdict (section 4.3), which `pcap_parser` does not name.
const EPB_FLAGS: OptionCode = OptionCode(2);
const EPB_VERDICT: OptionCode = OptionCode(7);

/// A value of the lowest two bits of epb_flags.
const INBOUND: u32 = 1;

/// The first byte of epb_verdict: the return code of an XDP program follows, in 64 bits.
const VERDICT_OF_XDP: u8 = 2;
const XDP_DROP: u64 = 1;
const XDP_PASS: u64 = 2;

/// A received packet.
#[derive(Clone, Copy, Debug)]
pub struct PcapngPacket<'a> {
    /// The number of the interface: the interface blocks are counted from 0.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// The captured part of the frame.
    pub frame: &'a [u8],
    /// The length of the whole frame, in bytes.
    pub length: u32,
    pub verdict: Verdict,
    pub comment: &'a str,
}

/// Writes a section header block, with which a file begins.
pub fn section(to: &mut BytesMut) {
    let writer = concat!("guard ", env!("CARGO_PKG_VERSION"));
    write(
        to,
        &mut SectionHeaderBlock {
            block_type: 0,
            block_len1: 0,
            bom: 0,
            major_version: 0,
            minor_version: 0,
            // The length of the section is not known in advance.
            section_len: -1,
            options: vec![option(OptionCode::ShbUserAppl, writer.as_bytes())],
            block_len2: 0,
        },
    );
}

/// Writes an interface description block. `snap_length`: the most recorded bytes of a frame.
pub fn interface(to: &mut BytesMut, name: &str, snap_length: u32) {
    write(
        to,
        &mut InterfaceDescriptionBlock {
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
        },
    );
}

/// Writes an enhanced packet block (section 4.3) directly into the body: `pcap_parser` would copy each frame twice.
pub fn packet(to: &mut BytesMut, packet: &PcapngPacket<'_>) {
    let returned = match packet.verdict {
        Verdict::Drop => XDP_DROP,
        Verdict::Pass => XDP_PASS,
    };
    let mut verdict = [VERDICT_OF_XDP; 9];
    verdict[1..].copy_from_slice(&returned.to_le_bytes());
    let options: [(OptionCode, &[u8]); 3] = [
        (OptionCode::Comment, packet.comment.as_bytes()),
        (EPB_FLAGS, &INBOUND.to_le_bytes()),
        (EPB_VERDICT, &verdict),
    ];
    let of_options = options.iter().map(|(_, value)| 4 + padded(value.len()));
    let length = EPB_FIXED + padded(packet.frame.len()) + of_options.sum::<usize>() + END.len();
    let length = length as u32;
    to.reserve(length as usize);
    to.put_u32_le(EPB_MAGIC);
    to.put_u32_le(length);
    to.put_u32_le(packet.interface);
    to.put_u32_le((packet.time_ns >> 32) as u32);
    to.put_u32_le(packet.time_ns as u32);
    to.put_u32_le(packet.frame.len() as u32);
    to.put_u32_le(packet.length);
    put_padded(to, packet.frame);
    for (OptionCode(code), value) in options {
        to.put_u16_le(code);
        // Comments are shorter than 64 KiB.
        to.put_u16_le(value.len() as u16);
        put_padded(to, value);
    }
    to.put_slice(&END);
    to.put_u32_le(length);
}

/// The fixed length of an enhanced packet block: seven words before the frame, and the length again at the end.
const EPB_FIXED: usize = 8 * 4;

/// opt_endofopt.
const END: [u8; 4] = [0; 4];

/// Rounds up to words of four bytes.
const fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn put_padded(to: &mut BytesMut, value: &[u8]) {
    to.put_slice(value);
    to.put_bytes(0, padded(value.len()) - value.len());
}

/// Writes an interface statistics block: the packets of an interface that matched until now, and those of them that are
/// not recorded.
pub fn statistics(to: &mut BytesMut, interface: u32, time_ns: u64, wanted: u64, missed: u64) {
    write(
        to,
        &mut InterfaceStatisticsBlock {
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
        },
    );
}

fn option<'a>(code: OptionCode, value: &'a [u8]) -> PcapNGOption<'a> {
    PcapNGOption {
        code,
        // Names and comments are shorter than 64 KiB.
        len: value.len() as u16,
        value: Cow::Borrowed(value),
    }
}

/// Writes a block. `to_vec` fills in the lengths and magic numbers, and does not fail for memory.
fn write(to: &mut BytesMut, block: &mut impl ToVec) {
    to.put_slice(&block.to_vec().unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use pcap_parser::EnhancedPacketBlock;

    use super::*;

    #[test]
    fn a_packet_is_written_as_the_library_writes_it() {
        for (frame, comment) in [
            (&[][..], ""),
            (&[1; 60], "drop: packet_limit at web"),
            (&[2; 61], "x"),
            (&[3; 62], "xy"),
            (&[4; 1_499], "büro"),
        ] {
            let mut verdict = vec![VERDICT_OF_XDP];
            verdict.extend(XDP_DROP.to_le_bytes());
            let time_ns = 1_700_000_000_123_456_789;
            let mut expected = BytesMut::from("before");
            let flags = INBOUND.to_le_bytes();
            let mut block = EnhancedPacketBlock {
                block_type: 0,
                block_len1: 0,
                if_id: 7,
                ts_high: (time_ns >> 32) as u32,
                ts_low: time_ns as u32,
                caplen: frame.len() as u32,
                origlen: 9_000,
                data: frame,
                options: vec![
                    option(OptionCode::Comment, comment.as_bytes()),
                    option(EPB_FLAGS, &flags),
                    option(EPB_VERDICT, &verdict),
                ],
                block_len2: 0,
            };
            write(&mut expected, &mut block);
            let mut written = BytesMut::from("before");
            packet(
                &mut written,
                &PcapngPacket {
                    interface: 7,
                    time_ns,
                    frame,
                    length: 9_000,
                    verdict: Verdict::Drop,
                    comment,
                },
            );
            assert_eq!(written, expected, "{} bytes", frame.len());
        }
    }
}
