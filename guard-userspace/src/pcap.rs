//! Reads recorded packets: pcap and pcapng, as Ethernet frames.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use pcap_parser::{
    Block, EnhancedPacketBlock, InterfaceDescriptionBlock, Linktype, PcapBlockOwned, PcapError,
    PcapHeader, create_reader, pcapng::OptionCode, traits::PcapNGPacketBlock as _,
};

use crate::dataplane::Direction;

/// Larger than any block that a capture tool writes.
const BUFFER: usize = 1 << 20;

/// A frame is not made longer than IP can be, whatever a file claims.
const LONGEST: usize = 1 << 17;

/// A packet as it was recorded.
pub struct Recorded {
    /// Nanoseconds since 1970; that of the packet before, if this one's cannot be read.
    pub time_ns: i64,
    /// Why its own time cannot be read.
    pub odd_time: Option<String>,
    /// Copied out of the file's buffer, which is used again.
    pub frame: Bytes,
    /// As far as the file says it; most do not.
    pub direction: Direction,
}

/// Reads as much as there is room for, or to the end: a pipe hands over what was written at once.
struct FullReader<R>(R);

impl<R: Read> Read for FullReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self(reader) = self;
        let mut filled = 0;
        while filled < buffer.len() {
            match reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// Stands for standard input.
const STDIN: &str = "-";

/// What errors call a capture.
fn name_of(path: &Path) -> String {
    if path == Path::new(STDIN) {
        return "standard input".to_owned();
    }
    path.display().to_string()
}

/// Hands over every packet of a file, in order; of `-` those of standard input.
///
/// A file that is cut off, as one that is still being written, is an error after its last whole
/// packet.
pub fn read(path: &Path, mut on_packet: impl FnMut(Recorded) -> Result<()>) -> Result<()> {
    let name = name_of(path);
    let file: Box<dyn Read + Send> = if path == Path::new(STDIN) {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("{name} cannot be read"))?)
    };
    let mut reader = create_reader(BUFFER, FullReader(file))
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
    format!("{}: packet {packet}, counted from 0", name_of(path))
}

/// What the file says of where its packets come from.
#[derive(Default)]
struct Interfaces {
    all: Vec<PcapInterface>,
    /// Nanoseconds since 1970: of the last packet whose time could be read.
    last_ns: i64,
}

#[derive(Clone, Copy)]
struct PcapInterface {
    linktype: Linktype,
    /// `None`: its unit of time is none that can be counted in.
    ticks_per_second: Option<u64>,
    /// Seconds.
    offset: i64,
    /// How many bytes of frame check sequence are behind each frame.
    fcs: usize,
}

impl Interfaces {
    /// The packet in a block; `None` if it holds something else.
    fn read(&mut self, block: PcapBlockOwned<'_>) -> Result<Option<Recorded>> {
        let Self { all, last_ns } = self;
        let mut timed = |time: Result<i64>, mut recorded: Recorded| {
            match time {
                Ok(time_ns) => *last_ns = time_ns,
                Err(problem) => recorded.odd_time = Some(problem.to_string()),
            }
            recorded.time_ns = *last_ns;
            Some(recorded)
        };
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                *all = vec![PcapInterface::of_pcap(&header)];
                Ok(None)
            }
            PcapBlockOwned::Legacy(packet) => {
                let interface = interface(all, 0)?;
                let ticks = u64::from(packet.ts_usec);
                let time = interface.nanoseconds(packet.ts_sec.into(), ticks);
                let length = packet.origlen as usize;
                Ok(timed(time, interface.recorded(packet.data, length)?))
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                all.clear();
                Ok(None)
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
                all.push(PcapInterface {
                    linktype: description.linktype,
                    ticks_per_second: ticks_per_second(description.if_tsresol),
                    offset: description.ts_offset(),
                    fcs: fcs_of(&description),
                });
                Ok(None)
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let interface = interface(all, packet.if_id as usize)?;
                let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let time = interface.nanoseconds(0, ticks);
                let length = packet.origlen as usize;
                let data = packet.data;
                // The packet's data may be padded to four bytes.
                let data = data.get(..packet.caplen as usize).unwrap_or(data);
                let mut recorded = interface.recorded(data, length)?;
                if is_outbound(&packet) {
                    recorded.direction = Direction::Out;
                }
                Ok(timed(time, recorded))
            }
            // It has no time. Files that use it have no others, so every packet comes at once.
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                let interface = interface(all, 0)?;
                let length = packet.origlen as usize;
                let data = packet.data;
                let data = data.get(..length).unwrap_or(data);
                interface.recorded(data, length).map(Some)
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

/// What if_fcslen says, in bytes (draft-ietf-opsawg-pcapng, section 4.2).
fn fcs_of(description: &InterfaceDescriptionBlock<'_>) -> usize {
    const FCS_LENGTH: OptionCode = OptionCode(13);
    let mut options = description.options.iter();
    let fcs = options.find(|option| option.code == FCS_LENGTH);
    let length = fcs.and_then(|option| option.as_bytes().ok()?.first().copied());
    length.unwrap_or_default().into()
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
        /// The link type is in the lower 16 bits. Above are the length of a frame check sequence, in units of 16 bits,
        /// and whether that is known (draft-ietf-opsawg-pcap, section 4).
        const TYPE: i32 = 0xffff;
        const FCS_PRESENT: u32 = 1 << 26;
        let is_ns = header.is_nanosecond_precision();
        let Linktype(network) = header.network;
        let upper = network.cast_unsigned();
        let has_fcs = upper & FCS_PRESENT != 0;
        Self {
            linktype: Linktype(network & TYPE),
            fcs: if has_fcs {
                (upper >> 28) as usize * 2
            } else {
                0
            },
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
    fn recorded(self, data: &[u8], length: usize) -> Result<Recorded> {
        // The driver takes it off before XDP sees the frame. A capture that was cut short has none of it.
        let length = length.saturating_sub(self.fcs);
        let data = data.get(..length).unwrap_or(data);
        const PPP: i32 = 9;
        const PPP_HDLC: i32 = 50;
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
            Linktype::NULL | Linktype::LOOP => loopback(data),
            Linktype(PPP | PPP_HDLC) => ppp(data),
            Linktype(other) => bail!(
                "its link type is {}, which is not read: Ethernet, raw IP, Linux cooked, BSD loopback and PPP are",
                name_of_linktype(other)
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
            time_ns: 0,
            odd_time: None,
            frame: frame.freeze(),
            direction,
        })
    }
}

/// The length of Ethernet's header: two addresses and a type.
const ETHERNET: usize = 14;

/// A type that XDP passes as none of IP's (IEEE 802, "Local Experimental").
const NOT_IP: [u8; 2] = [0x88, 0xb5];

/// The EtherType of an IP packet, by its version.
fn ether_type_of(packet: &[u8]) -> [u8; 2] {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => [0x08, 0x00],
        Some(6) => [0x86, 0xdd],
        _ => NOT_IP,
    }
}

/// BSD loopback (LINKTYPE_NULL and LINKTYPE_LOOP): an address family of four bytes in either order, whose number for
/// IPv6 is another one on each system. The packet's own version tells.
fn loopback(data: &[u8]) -> (Option<[u8; 2]>, &[u8], Direction) {
    let packet = data.get(4..).unwrap_or_default();
    (Some(ether_type_of(packet)), packet, Direction::In)
}

/// PPP (RFC 1661), perhaps in HDLC's framing (RFC 1662) and with a protocol of one byte (RFC 1661, section 6.5).
fn ppp(data: &[u8]) -> (Option<[u8; 2]>, &[u8], Direction) {
    const IPV4: u16 = 0x0021;
    const IPV6: u16 = 0x0057;
    let data = data.strip_prefix(&[0xff, 0x03]).unwrap_or(data);
    let (protocol, packet) = match data {
        [short, packet @ ..] if short & 1 == 1 => (u16::from(*short), packet),
        [high, low, packet @ ..] => (u16::from_be_bytes([*high, *low]), packet),
        _ => (0, data),
    };
    let ether_type = match protocol {
        IPV4 | IPV6 => ether_type_of(packet),
        _ => NOT_IP,
    };
    (Some(ether_type), packet, Direction::In)
}

/// What a link type is called that people try (tcpdump.org, "Link-layer header types").
fn name_of_linktype(linktype: i32) -> String {
    let name = match linktype {
        105 => "IEEE 802.11",
        119 | 127 | 163 => "IEEE 802.11 with a radio's header",
        187 | 201 | 254 | 255 => "Bluetooth",
        189 | 220 | 249 => "USB",
        227 => "CAN",
        _ => return linktype.to_string(),
    };
    format!("{linktype} ({name})")
}

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
