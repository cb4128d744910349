//! `GET /v1/capture`: streams packets until the client closes the connection.

use std::{
    mem,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use anyhow::bail;

use axum::{
    body::Body,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use futures_util::stream;
pub use guard_api::capture::{
    CaptureRequest, Captured, DEFAULT_RATE, Form, HIGHEST_RATE, Line, reason,
};
use guard_common::{layout::SNAP_LENGTH, reason::Verdict};
use jiff::Timestamp;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Interval, MissedTickBehavior, interval, sleep},
};
use tracing::warn;

use crate::{
    dataplane::{CapturedPacket, ROUNDS, Round, Tap},
    host,
    pcapng::{self, PcapngPacket},
    policy::Timebase,
};

/// An interface, with the numbers of its packets that matched the capture, and of those that were missed.
struct CaptureSource {
    interface: Arc<str>,
    wanted: u64,
    missed: u64,
}

/// How long a client may read nothing until its capture ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state of a capture, which ends early if the client does not read.
struct Held {
    /// `None`: the client has not read for too long.
    tap: Option<(Tap, OwnedSemaphorePermit)>,
    /// The client numbers the interfaces in this order.
    sources: Vec<CaptureSource>,
    last_read: Instant,
}

impl Held {
    /// The number of an interface. `head` writes the description of a new interface.
    fn number(&mut self, interface: &Arc<str>, head: impl FnOnce(&str)) -> u32 {
        let mut sources = self.sources.iter();
        let number = sources.position(|source| source.interface == *interface);
        let number = number.unwrap_or_else(|| {
            head(interface);
            self.sources.push(CaptureSource {
                interface: Arc::clone(interface),
                wanted: 0,
                missed: 0,
            });
            self.sources.len() - 1
        });
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Counts packets of an interface that matched, and those of them that were missed.
    fn count(&mut self, number: u32, (wanted, missed): (u64, u64)) {
        if let Some(source) = self.sources.get_mut(number as usize) {
            source.wanted += wanted;
            source.missed += missed;
        }
    }
}

type SharedCapture = Arc<Mutex<Held>>;

/// Locks the state. No holder waits inside, and a panic leaves the state consistent.
fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running capture. Dropping it ends the capture.
struct CaptureStream {
    held: SharedCapture,
    head: Bytes,
    form: Form,
    length: usize,
    beat: Interval,
    rounds: u32,
}

/// Ends a capture whose client does not read, so that it does not block the next client.
async fn end_if_unread(held: Weak<Mutex<Held>>) {
    loop {
        sleep(PATIENCE / 4).await;
        let Some(held) = held.upgrade() else { return };
        let mut held = lock(&held);
        if held.last_read.elapsed() > PATIENCE {
            held.tap = None;
            warn!(
                "a capture has ended: its client has not read for {} s",
                PATIENCE.as_secs()
            );
            return;
        }
    }
}

/// Streams packets until the client closes the connection. A client that reads slowly gets fewer packets.
pub fn answer(request: &CaptureRequest, tap: Tap, turn: OwnedSemaphorePermit) -> Response {
    let sources = tap.interfaces().map(|interface| CaptureSource {
        interface: Arc::clone(interface),
        wanted: 0,
        missed: 0,
    });
    let mut beat = interval(Duration::from_secs(1) / ROUNDS);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let length = request.length.unwrap_or(SNAP_LENGTH).clamp(1, SNAP_LENGTH);
    let sources: Vec<CaptureSource> = sources.collect();
    let head = match request.form {
        Form::Json => Bytes::new(),
        Form::Pcapng => {
            let mut head = BytesMut::new();
            pcapng::section(&mut head);
            for CaptureSource { interface, .. } in &sources {
                pcapng::interface(&mut head, interface, length);
            }
            head.freeze()
        }
    };
    let held = Arc::new(Mutex::new(Held {
        tap: Some((tap, turn)),
        sources,
        last_read: Instant::now(),
    }));
    tokio::spawn(end_if_unread(Arc::downgrade(&held)));
    let capture = CaptureStream {
        held,
        head,
        form: request.form,
        length: length as usize,
        beat,
        rounds: 0,
    };
    let blocks = stream::try_unfold(capture, |mut capture| async move {
        let block = capture.next().await?;
        Ok::<_, anyhow::Error>(Some((block, capture)))
    });
    let kind = match request.form {
        Form::Pcapng => "application/x-pcapng",
        Form::Json => "application/x-ndjson",
    };
    ([(CONTENT_TYPE, kind)], Body::from_stream(blocks)).into_response()
}

impl CaptureStream {
    /// Waits for the next bytes to send.
    async fn next(&mut self) -> anyhow::Result<Bytes> {
        if !self.head.is_empty() {
            return Ok(mem::take(&mut self.head));
        }
        loop {
            self.beat.tick().await;
            let mut block = self.round()?;
            self.rounds += 1;
            if self.rounds.is_multiple_of(ROUNDS) {
                // Sent even if nothing is missed: writing finds out whether the client is still connected.
                self.write_missed(&mut block)?;
            }
            if !block.is_empty() {
                return Ok(block.freeze());
            }
        }
    }

    /// Writes the packets of a round, in the order in which they came in.
    fn round(&mut self) -> anyhow::Result<BytesMut> {
        let now = host::timebase()?;
        let mut held = lock(&self.held);
        let Some((tap, _turn)) = &mut held.tap else {
            bail!("the client has not read for {} s", PATIENCE.as_secs());
        };
        let Round {
            mut packets,
            missed,
        } = tap.round()?;
        held.last_read = Instant::now();
        packets.sort_by_key(|packet| packet.boot_ns);
        let mut block = BytesMut::new();
        for (interface, missed) in missed {
            // An interface without packets is not described to the client.
            if missed != 0 {
                let source = self.number(&mut held, &mut block, &interface);
                held.count(source, (missed, missed));
            }
        }
        for packet in packets {
            let interface = Arc::clone(&packet.interface);
            let source = self.number(&mut held, &mut block, &interface);
            held.count(source, (1, 0));
            self.write(&mut block, (source, &interface), packet, now)?;
        }
        Ok(block)
    }

    /// The number of an interface in this capture.
    fn number(&self, held: &mut Held, block: &mut BytesMut, interface: &Arc<str>) -> u32 {
        held.number(interface, |name| {
            if self.form == Form::Pcapng {
                pcapng::interface(block, name, self.length as u32);
            }
        })
    }

    fn write(
        &self,
        block: &mut BytesMut,
        (number, interface): (u32, &str),
        mut packet: CapturedPacket,
        now: Timebase,
    ) -> anyhow::Result<()> {
        packet.frame.truncate(self.length);
        let time_ns = unix_ns(now, packet.boot_ns);
        match self.form {
            Form::Pcapng => {
                let packet = PcapngPacket {
                    interface: number,
                    time_ns,
                    frame: &packet.frame,
                    length: packet.length,
                    verdict: packet.outcome.verdict(),
                    comment: &comment(&packet),
                };
                pcapng::packet(block, &packet);
            }
            Form::Json => {
                let line = Line::Packet(Box::new(seen(interface, &packet, time_ns)));
                serde_json::to_writer(block.writer(), &line)?;
                block.put_u8(b'\n');
            }
        }
        Ok(())
    }

    fn write_missed(&self, block: &mut BytesMut) -> anyhow::Result<()> {
        let now = host::timebase()?;
        let held = lock(&self.held);
        if self.form == Form::Json {
            let missed = held.sources.iter().map(|source| source.missed).sum();
            serde_json::to_writer(block.writer(), &Line::Missed { missed })?;
            block.put_u8(b'\n');
            return Ok(());
        }
        for (number, source) in (0..).zip(&held.sources) {
            let time_ns = unix_ns(now, now.boot_ns);
            let CaptureSource { wanted, missed, .. } = source;
            pcapng::statistics(block, number, time_ns, *wanted, *missed);
        }
        Ok(())
    }
}

/// Converts a time of CLOCK_BOOTTIME into nanoseconds since 1970.
fn unix_ns(now: Timebase, boot_ns: u64) -> u64 {
    let world = u64::try_from(now.world.as_nanosecond()).unwrap_or_default();
    world.saturating_sub(now.boot_ns.saturating_sub(boot_ns))
}

/// `drop: packet_limit at web`.
fn comment(packet: &CapturedPacket) -> String {
    let CapturedPacket {
        outcome,
        service,
        one_of,
        ..
    } = packet;
    let would = if outcome.would_drop { "would " } else { "" };
    let verdict = outcome.reason.verdict().name();
    let service = service.as_ref().map(|service| format!(" at {service}"));
    let sample = (*one_of > 1).then(|| format!("; one of {one_of}"));
    format!(
        "{would}{verdict}: {}{}{}",
        outcome.reason.name(),
        service.unwrap_or_default(),
        sample.unwrap_or_default()
    )
}

fn seen(interface: &str, packet: &CapturedPacket, time_ns: u64) -> Captured {
    let CapturedPacket {
        outcome,
        service,
        length,
        frame,
        one_of,
        ..
    } = packet;
    let (source, destination, protocol) = ends(frame);
    let time = Timestamp::from_nanosecond(time_ns.into());
    Captured {
        time: time.unwrap_or_default(),
        interface: interface.to_owned(),
        verdict: outcome.verdict().name().to_owned(),
        would: outcome.would_drop.then(|| Verdict::Drop.name().to_owned()),
        reason: outcome.reason.name().to_owned(),
        service: service.clone(),
        source,
        destination,
        protocol,
        length: *length,
        one_of: *one_of,
    }
}

type FrameEnds = (Option<String>, Option<String>, Option<String>);

/// The source, the destination and the protocol of a frame, as far as it can be parsed.
fn ends(frame: &[u8]) -> FrameEnds {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else {
        return (None, None, None);
    };
    let (source, destination) = match packet.net {
        Some(LaxNetSlice::Ipv4(ipv4)) => {
            let header = ipv4.header();
            let ends = (header.source_addr(), header.destination_addr());
            (ends.0.into(), ends.1.into())
        }
        Some(LaxNetSlice::Ipv6(ipv6)) => {
            let header = ipv6.header();
            let ends = (header.source_addr(), header.destination_addr());
            (ends.0.into(), ends.1.into())
        }
        Some(LaxNetSlice::Arp(_)) => return (None, None, Some("arp".to_owned())),
        None => return (None, None, None),
    };
    let ports = |source_port, destination_port| {
        (
            Some(SocketAddr::new(source, source_port).to_string()),
            Some(SocketAddr::new(destination, destination_port).to_string()),
        )
    };
    let ((source, destination), protocol) = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (ports(tcp.source_port(), tcp.destination_port()), "tcp"),
        Some(TransportSlice::Udp(udp)) => (ports(udp.source_port(), udp.destination_port()), "udp"),
        other => {
            let protocol = match other {
                Some(TransportSlice::Icmpv4(_)) => "icmp",
                Some(TransportSlice::Icmpv6(_)) => "icmpv6",
                _ => "ip",
            };
            let ends = (Some(source.to_string()), Some(destination.to_string()));
            (ends, protocol)
        }
    };
    (source, destination, Some(protocol.to_owned()))
}
