//! Reads recorded packets: pcap and pcapng, as Ethernet frames.

use std::{borrow::Cow, fs::File, path::Path};

use anyhow::{Context as _, Result, bail};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, PcapHeader, create_reader};

use crate::dataplane::Direction;

/// Larger than any block that a capture tool writes.
const BUFFER: usize = 1 << 20;

/// A frame is not made longer than IP can be, whatever a file claims.
const LONGEST: usize = 1 << 17;

/// A packet as it was recorded.
pub struct Recorded<'a> {
    /// Nanoseconds since 1970.
    pub time_ns: i64,
    pub frame: Cow<'a, [u8]>,
    /// As far as the file says it; most do not.
    pub direction: Direction,
}

/// Hands over every packet of a file, in order.
///
/// A file that is cut off, as one that is still being written, is an error after its last whole
/// packet.
pub fn read(path: &Path, mut on_packet: impl FnMut(Recorded<'_>) -> Result<()>) -> Result<()> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name} cannot be read"))?;
    let mut reader = create_reader(BUFFER, file)
        .map_err(|_| anyhow::anyhow!("{name} is no capture: guard reads pcap and pcapng"))?;
    let mut interfaces = Interfaces::default();
    let mut refilled = 0;
    loop {
        let at_end = reader.reader_exhausted();
        match reader.next() {
            Ok((length, block)) => {
                refilled = 0;
                if let Some(recorded) = interfaces.read(block)? {
                    on_packet(recorded)?;
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

/// What the file says of where its packets come from.
#[derive(Default)]
struct Interfaces(Vec<Interface>);

#[derive(Clone, Copy)]
struct Interface {
    linktype: Linktype,
    ticks_per_second: u64,
    /// Seconds.
    offset: i64,
}

impl Interfaces {
    /// The packet in a block; `None` if it holds something else.
    fn read<'a>(&mut self, block: PcapBlockOwned<'a>) -> Result<Option<Recorded<'a>>> {
        let Self(interfaces) = self;
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                *interfaces = vec![Interface::of_pcap(&header)];
                Ok(None)
            }
            PcapBlockOwned::Legacy(packet) => {
                let interface = interface(interfaces, 0)?;
                let ticks = u64::from(packet.ts_usec);
                let time_ns = interface.nanoseconds(packet.ts_sec.into(), ticks);
                let length = packet.origlen as usize;
                interface.recorded(time_ns, packet.data, length).map(Some)
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                interfaces.clear();
                Ok(None)
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
                interfaces.push(Interface {
                    linktype: description.linktype,
                    ticks_per_second: description.ts_resolution().unwrap_or(1_000_000),
                    offset: description.ts_offset(),
                });
                Ok(None)
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let interface = interface(interfaces, packet.if_id as usize)?;
                let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let per_second = interface.ticks_per_second.max(1);
                let seconds = i64::try_from(ticks / per_second).unwrap_or(i64::MAX);
                let time_ns = interface.nanoseconds(seconds, ticks % per_second);
                let length = packet.origlen as usize;
                let data = packet.data;
                // The packet's data may be padded to four bytes.
                let data = data.get(..packet.caplen as usize).unwrap_or(data);
                interface.recorded(time_ns, data, length).map(Some)
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

fn interface(interfaces: &[Interface], number: usize) -> Result<Interface> {
    let interface = interfaces.get(number);
    interface
        .copied()
        .context("a packet belongs to an interface that the file does not describe")
}

impl Interface {
    fn of_pcap(header: &PcapHeader) -> Self {
        let is_ns = header.is_nanosecond_precision();
        Self {
            linktype: header.network,
            ticks_per_second: if is_ns { 1_000_000_000 } else { 1_000_000 },
            offset: 0,
        }
    }

    fn nanoseconds(self, seconds: i64, ticks: u64) -> i64 {
        let per_second = u128::from(self.ticks_per_second.max(1));
        let fraction = u128::from(ticks) * 1_000_000_000 / per_second;
        let fraction = i64::try_from(fraction).unwrap_or(0);
        seconds
            .saturating_add(self.offset)
            .saturating_mul(1_000_000_000)
            .saturating_add(fraction)
    }

    /// The packet as an Ethernet frame. What the capture left off its end is filled with zeros, so
    /// that its lengths are true.
    fn recorded(self, time_ns: i64, data: &[u8], length: usize) -> Result<Recorded<'_>> {
        let missing = length.min(LONGEST).saturating_sub(data.len());
        let (frame, direction) = match self.linktype {
            Linktype::ETHERNET => (Cow::Borrowed(data), Direction::In),
            Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 => {
                let is_v6 = data.first().is_some_and(|byte| byte >> 4 == 6);
                let ether_type: u16 = if is_v6 { 0x86dd } else { 0x0800 };
                (ethernet(ether_type.to_be_bytes(), data), Direction::In)
            }
            Linktype::LINUX_SLL => cooked(data, 16, 14, 1),
            Linktype::LINUX_SLL2 => cooked(data, 20, 0, 10),
            other => bail!(
                "packets of link type {other} are not read: Ethernet, raw IP and Linux cooked are"
            ),
        };
        let frame = if missing == 0 {
            frame
        } else {
            let mut frame = frame.into_owned();
            frame.resize(frame.len() + missing, 0);
            Cow::Owned(frame)
        };
        Ok(Recorded {
            time_ns,
            frame,
            direction,
        })
    }
}

/// A Linux cooked capture, with a header of this length that has the protocol and the packet's type
/// at these places.
fn cooked(data: &[u8], header: usize, protocol: usize, kind: usize) -> (Cow<'_, [u8]>, Direction) {
    /// PACKET_OUTGOING (linux/if_packet.h).
    const OUTGOING: u8 = 4;
    let Some((header, payload)) = data.split_at_checked(header) else {
        return (Cow::Borrowed(&[]), Direction::In);
    };
    let direction = if header[kind] == OUTGOING {
        Direction::Out
    } else {
        Direction::In
    };
    (
        ethernet([header[protocol], header[protocol + 1]], payload),
        direction,
    )
}

fn ethernet(ether_type: [u8; 2], payload: &[u8]) -> Cow<'static, [u8]> {
    let mut frame = vec![0; 12];
    frame.extend(ether_type);
    frame.extend(payload);
    Cow::Owned(frame)
}
