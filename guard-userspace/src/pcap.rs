//! Reads recorded packets: pcap and pcapng, as Ethernet frames.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use pcap_parser::{
    Block, EnhancedPacketBlock, Linktype, PcapBlockOwned, PcapError, PcapHeader, create_reader,
    pcapng::OptionCode, traits::PcapNGPacketBlock as _,
};

use crate::dataplane::Direction;

/// Larger than any block that a capture tool writes.
const BUFFER: usize = 1 << 20;

/// A frame is not made longer than IP can be, whatever a file claims.
const LONGEST: usize = 1 << 17;

/// A packet as it was recorded.
pub struct Recorded {
    /// Nanoseconds since 1970.
    pub time_ns: i64,
    /// Copied out of the file's buffer, which is used again.
    pub frame: Bytes,
    /// As far as the file says it; most do not.
    pub direction: Direction,
}

/// Hands over every packet of a file, in order.
///
/// A file that is cut off, as one that is still being written, is an error after its last whole
/// packet.
pub fn read(path: &Path, mut on_packet: impl FnMut(Recorded) -> Result<()>) -> Result<()> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name} cannot be read"))?;
    let mut reader = create_reader(BUFFER, file)
        .map_err(|_| anyhow::anyhow!("{name} is no capture: guard reads pcap and pcapng"))?;
    let mut interfaces = Interfaces::default();
    let mut packets = 0;
    let mut refilled = 0;
    loop {
        let at_end = reader.reader_exhausted();
        match reader.next() {
            Ok((length, block)) => {
                refilled = 0;
                let recorded = interfaces.read(block);
                if let Some(recorded) = recorded.with_context(|| place(path, packets))? {
                    on_packet(recorded)?;
                    packets += 1;
                }
                reader.consume(length);
            }
            Err(PcapError::Eof) => return Ok(()),
            Err(PcapError::Incomplete(_)) if refilled < 2 && !at_end => {
                refilled += 1;
                if reader.refill().is_err() {
                    bail!("{name} cannot be read to its end");
                }
            }
            Err(PcapError::Incomplete(_) | PcapError::UnexpectedEof) => {
                bail!("{name} is cut off in the middle of a packet")
            }
            Err(_) => bail!("{name} is no sound capture from here on"),
        }
    }
}

/// Names a packet in an error, by the number that `guard replay --each` gives it.
pub fn place(path: &Path, packet: u64) -> String {
    format!("{}: packet {packet}, counted from 0", path.display())
}

/// What the file says of where its packets come from.
#[derive(Default)]
struct Interfaces(Vec<PcapInterface>);

#[derive(Clone, Copy)]
struct PcapInterface {
    linktype: Linktype,
    /// `None`: its unit of time is none that can be counted in.
    ticks_per_second: Option<u64>,
    /// Seconds.
    offset: i64,
}

impl Interfaces {
    /// The packet in a block; `None` if it holds something else.
    fn read(&mut self, block: PcapBlockOwned<'_>) -> Result<Option<Recorded>> {
        let Self(interfaces) = self;
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                *interfaces = vec![PcapInterface::of_pcap(&header)];
                Ok(None)
            }
            PcapBlockOwned::Legacy(packet) => {
                let interface = interface(interfaces, 0)?;
                let ticks = u64::from(packet.ts_usec);
                let time_ns = interface.nanoseconds(packet.ts_sec.into(), ticks)?;
                let length = packet.origlen as usize;
                interface.recorded(time_ns, packet.data, length).map(Some)
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                interfaces.clear();
                Ok(None)
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
                interfaces.push(PcapInterface {
                    linktype: description.linktype,
                    ticks_per_second: ticks_per_second(description.if_tsresol),
                    offset: description.ts_offset(),
                });
                Ok(None)
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let interface = interface(interfaces, packet.if_id as usize)?;
                let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let time_ns = interface.nanoseconds(0, ticks)?;
                let length = packet.origlen as usize;
                let data = packet.data;
                // The packet's data may be padded to four bytes.
                let data = data.get(..packet.caplen as usize).unwrap_or(data);
                let mut recorded = interface.recorded(time_ns, data, length)?;
                if is_outbound(&packet) {
                    recorded.direction = Direction::Out;
                }
                Ok(Some(recorded))
            }
            // It has no time. Files that use it have no others, so every packet comes at once.
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                let interface = interface(interfaces, 0)?;
                let length = packet.origlen as usize;
                let data = packet.data;
                let data = data.get(..length).unwrap_or(data);
                interface.recorded(0, data, length).map(Some)
            }
            PcapBlockOwned::NG(_) => Ok(None),
        }
    }
}

fn interface(interfaces: &[PcapInterface], number: usize) -> Result<PcapInterface> {
    let interface = interfaces.get(number);
    interface.copied().with_context(|| {
        format!("it came over interface {number}, which the file does not describe")
    })
}

/// What if_tsresol says: a power of ten or, with its first bit set, of two (draft-ietf-opsawg-pcapng,
/// section 4.2). `pcap_parser` 0.17 knows no power of two.
fn ticks_per_second(if_tsresol: u8) -> Option<u64> {
    let exponent = u32::from(if_tsresol & 0x7f);
    if if_tsresol & 0x80 == 0 {
        10u64.checked_pow(exponent)
    } else {
        1u64.checked_shl(exponent)
    }
}

/// What the first two bits of epb_flags say (draft-ietf-opsawg-pcapng, section 4.3).
fn is_outbound(packet: &EnhancedPacketBlock<'_>) -> bool {
    /// epb_flags.
    const FLAGS: OptionCode = OptionCode(2);
    const OUTBOUND: u32 = 2;
    let mut options = packet.options.iter();
    let flags = options.find(|option| option.code == FLAGS);
    let bytes = flags.and_then(|option| option.as_bytes().ok()?.try_into().ok());
    bytes.is_some_and(|bytes| {
        let flags = if packet.big_endian() {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        };
        flags & 3 == OUTBOUND
    })
}

impl PcapInterface {
    fn of_pcap(header: &PcapHeader) -> Self {
        let is_ns = header.is_nanosecond_precision();
        Self {
            linktype: header.network,
            ticks_per_second: Some(if is_ns { 1_000_000_000 } else { 1_000_000 }),
            offset: 0,
        }
    }

    /// Nanoseconds since 1970 of a moment so many seconds and ticks after the interface's own beginning.
    fn nanoseconds(self, seconds: i64, ticks: u64) -> Result<i64> {
        let per_second = self.ticks_per_second.filter(|ticks| *ticks != 0);
        let per_second = per_second.context("its interface counts time in no unit that is read")?;
        let seconds = i128::from(seconds) + i128::from(self.offset);
        let ticks_ns = u128::from(ticks) * 1_000_000_000 / u128::from(per_second);
        let time_ns = i128::try_from(ticks_ns)
            .ok()
            .and_then(|ticks_ns| (seconds * 1_000_000_000).checked_add(ticks_ns));
        let time_ns = time_ns.and_then(|time_ns| i64::try_from(time_ns).ok());
        time_ns.context(
            "its time is none between the years 1677 and 2262, which are those that are read",
        )
    }

    /// The packet as an Ethernet frame. What the capture left off its end is filled with zeros, so
    /// that its lengths are true.
    fn recorded(self, time_ns: i64, data: &[u8], length: usize) -> Result<Recorded> {
        let missing = length.min(LONGEST).saturating_sub(data.len());
        let (ether_type, packet, direction) = match self.linktype {
            Linktype::ETHERNET => (None, data, Direction::In),
            Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 => {
                let is_v6 = data.first().is_some_and(|byte| byte >> 4 == 6);
                let ether_type: u16 = if is_v6 { 0x86dd } else { 0x0800 };
                (Some(ether_type.to_be_bytes()), data, Direction::In)
            }
            Linktype::LINUX_SLL => cooked(data, 16, 14, 1),
            Linktype::LINUX_SLL2 => cooked(data, 20, 0, 10),
            Linktype(other) => bail!(
                "its link type is {other}, which is not read: Ethernet, raw IP and Linux cooked are"
            ),
        };
        let mut frame = BytesMut::with_capacity(ETHERNET + packet.len() + missing);
        if let Some(ether_type) = ether_type {
            frame.put_bytes(0, ETHERNET - ether_type.len());
            frame.put_slice(&ether_type);
        }
        frame.put_slice(packet);
        frame.put_bytes(0, missing);
        Ok(Recorded {
            time_ns,
            frame: frame.freeze(),
            direction,
        })
    }
}

/// The length of Ethernet's header: two addresses and a type.
const ETHERNET: usize = 14;

/// A Linux cooked capture, with a header of this length that has the protocol and the packet's type
/// at these places.
fn cooked(
    data: &[u8],
    header: usize,
    protocol: usize,
    kind: usize,
) -> (Option<[u8; 2]>, &[u8], Direction) {
    /// PACKET_OUTGOING (linux/if_packet.h).
    const OUTGOING: u8 = 4;
    let Some((header, payload)) = data.split_at_checked(header) else {
        return (None, &[], Direction::In);
    };
    let direction = if header[kind] == OUTGOING {
        Direction::Out
    } else {
        Direction::In
    };
    let ether_type = [header[protocol], header[protocol + 1]];
    (Some(ether_type), payload, direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_time_are_powers_of_ten_and_of_two() {
        for (if_tsresol, ticks) in [
            (0, Some(1)),
            (6, Some(1_000_000)),
            (19, Some(10_000_000_000_000_000_000)),
            (20, None),
            (0x80, Some(1)),
            (0x8a, Some(1_024)),
            (0xbf, Some(1 << 63)),
            (0xc0, None),
            (0xff, None),
        ] {
            assert_eq!(ticks_per_second(if_tsresol), ticks, "{if_tsresol:#x}");
        }
    }
}
