//! Reads captures (pcap and pcapng), and returns their packets as Ethernet frames.

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

/// The longest frame that a cut packet is padded to, whatever length the file claims: longer than any IP packet.
const LONGEST: usize = 1 << 17;

/// A packet as it was recorded.
pub struct Recorded {
    /// Nanoseconds since 1970. If the packet's time cannot be read, the time of the packet before.
    pub time_ns: i64,
    /// Why the packet's time cannot be read.
    pub odd_time: Option<String>,
    /// Copied out of the file's buffer, which is reused.
    pub frame: Bytes,
    /// `In`, unless the file records the direction: most do not.
    pub direction: Direction,
}

/// Fills the whole buffer, except at the end: a read from a pipe returns only what was written at once.
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

/// The name of a capture in errors.
fn name_of(path: &Path) -> String {
    if path == Path::new(STDIN) {
        return "standard input".to_owned();
    }
    path.display().to_string()
}

/// Calls `on_packet` with every packet of a file, in order. `-` is standard input.
///
/// # Errors
/// The file cannot be read, is malformed, or ends in the middle of a packet, as while a capture is still running. The
/// packets before that place have been handled. An error of `on_packet` ends reading.
pub fn read(path: &Path, mut on_packet: impl FnMut(Recorded) -> Result<()>) -> Result<()> {
    let name = name_of(path);
    let file: Box<dyn Read + Send> = if path == Path::new(STDIN) {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("{name} cannot be read"))?)
    };
    let mut reader = create_reader(BUFFER, FullReader(file))
        .map_err(|_| anyhow::anyhow!("{name} is not a capture: guard reads pcap and pcapng"))?;
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
            Err(_) => bail!(
                "{}: the capture is malformed from here on",
                place(path, packets)
            ),
        }
    }
}

/// Names a packet in an error, by the number that `guard replay --each` gives it.
pub fn place(path: &Path, packet: u64) -> String {
    format!("{}: packet {packet}, counted from 0", name_of(path))
}

/// The interfaces that the file describes.
#[derive(Default)]
struct Interfaces {
    all: Vec<PcapInterface>,
    /// The time of the last packet whose time could be read, in nanoseconds since 1970.
    last_ns: i64,
}

#[derive(Clone, Copy)]
struct PcapInterface {
    linktype: Linktype,
    /// `None`: the unit of time does not fit 64 bits.
    ticks_per_second: Option<u64>,
    /// Seconds.
    offset: i64,
    /// The length of the frame check sequence after each frame, in bytes.
    fcs: usize,
}

impl Interfaces {
    /// Returns the packet of a block; `None` for other blocks, whose descriptions of interfaces are stored.
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
            // A simple packet has no time. A file with simple packets has no other ones, so all have the same time.
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

/// Parses if_tsresol: a negative power of ten or, with its highest bit set, of two (draft-ietf-opsawg-pcapng, section
/// 4.2). `pcap_parser` 0.17 does not support powers of two.
fn ticks_per_second(if_tsresol: u8) -> Option<u64> {
    let exponent = u32::from(if_tsresol & 0x7f);
    if if_tsresol & 0x80 == 0 {
        10u64.checked_pow(exponent)
    } else {
        1u64.checked_shl(exponent)
    }
}

/// Returns if_fcslen, in bytes (draft-ietf-opsawg-pcapng, section 4.2); 0 if the option is missing.
fn fcs_of(description: &InterfaceDescriptionBlock<'_>) -> usize {
    const FCS_LENGTH: OptionCode = OptionCode(13);
    let mut options = description.options.iter();
    let fcs = options.find(|option| option.code == FCS_LENGTH);
    let length = fcs.and_then(|option| option.as_bytes().ok()?.first().copied());
    length.unwrap_or_default().into()
}

/// Whether the lowest two bits of epb_flags are `outbound` (draft-ietf-opsawg-pcapng, section 4.3).
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
        /// The link type is in the lower 16 bits. The higher bits hold the length of a frame check sequence, in units
        /// of 16 bits, and a flag whether it is present (draft-ietf-opsawg-pcap, section 4).
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

    /// Converts a time of the interface, as seconds and ticks after its offset, into nanoseconds since 1970.
    fn nanoseconds(self, seconds: i64, ticks: u64) -> Result<i64> {
        let per_second = self.ticks_per_second.filter(|ticks| *ticks != 0);
        let per_second =
            per_second.context("its interface counts time in a unit that guard does not read")?;
        let seconds = i128::from(seconds) + i128::from(self.offset);
        let ticks_ns = u128::from(ticks) * 1_000_000_000 / u128::from(per_second);
        let time_ns = i128::try_from(ticks_ns)
            .ok()
            .and_then(|ticks_ns| (seconds * 1_000_000_000).checked_add(ticks_ns));
        let time_ns = time_ns.and_then(|time_ns| i64::try_from(time_ns).ok());
        time_ns.context("its time is not between the years 1677 and 2262, which guard reads")
    }

    /// Returns the packet as an Ethernet frame. If the capture cut it, zeros fill it to its length, so that the lengths
    /// in its headers are true.
    fn recorded(self, data: &[u8], length: usize) -> Result<Recorded> {
        // XDP gets frames without a frame check sequence. A packet that the capture cut has none left.
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
                "its link type is {}, which guard does not read: use Ethernet, raw IP, Linux cooked, BSD \
                 loopback or PPP",
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

/// An EtherType that is not IP, so that the program passes the frame (IEEE 802, "Local Experimental").
const NOT_IP: [u8; 2] = [0x88, 0xb5];

/// The EtherType of an IP packet, by its version.
fn ether_type_of(packet: &[u8]) -> [u8; 2] {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => [0x08, 0x00],
        Some(6) => [0x86, 0xdd],
        _ => NOT_IP,
    }
}

/// BSD loopback (LINKTYPE_NULL and LINKTYPE_LOOP): an address family of four bytes in either byte order. Its number for
/// IPv6 differs between systems, so the version in the IP header is used instead.
fn loopback(data: &[u8]) -> (Option<[u8; 2]>, &[u8], Direction) {
    let packet = data.get(4..).unwrap_or_default();
    (Some(ether_type_of(packet)), packet, Direction::In)
}

/// PPP (RFC 1661), with or without HDLC framing (RFC 1662), and with a protocol of one or two bytes (RFC 1661, section
/// 6.5).
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

/// The number of a link type, with its name if it is common (tcpdump.org, "Link-layer header types").
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

/// A Linux cooked capture. `header` is the length of the header; `protocol` and `kind` are the offsets of the EtherType
/// and of the packet type in it.
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
