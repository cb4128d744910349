//! The packets of a replay that are dropped or would be: by source, by port and by service.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fmt::{self, Write as _},
    net::IpAddr,
};

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use guard_common::layout::PortProtocol;
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    commands::figures::whole,
    dataplane::source_of,
    policy::{Per, Ports},
};

/// At most so many rows of each table are printed; JSON has all.
const LISTED: usize = 20;

/// At most so many sources are told apart, as a flood may have a new one in each packet.
const MOST_SOURCES: usize = 100_000;

/// Of the ports at which a source is dropped, so many are kept for each reason: a scan has all of them.
const PORTS_KEPT: usize = 4;

/// Where a packet was sent to, as a policy writes it, and why it is dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PortKey {
    reason: &'static str,
    /// `tcp/8000`; empty: the packet has none.
    port: String,
    /// Empty: none.
    service: String,
}

/// Why packets of a source are dropped.
#[derive(Debug, Serialize)]
struct SourceReason {
    reason: &'static str,
    service: Option<String>,
    packets: u64,
    /// The first ports of these packets.
    ports: Vec<String>,
    /// Whether these packets have other ports as well.
    more_ports: bool,
}

#[derive(Debug, Default)]
struct DroppedSource {
    packets: u64,
    reasons: Vec<SourceReason>,
}

/// Counts packets that are dropped or would be.
#[derive(Debug, Default)]
pub struct DropTally {
    packets: u64,
    sources: HashMap<IpNet, DroppedSource>,
    /// Packets of sources beyond [`MOST_SOURCES`].
    of_other_sources: u64,
    ports: BTreeMap<PortKey, u64>,
}

/// What `--json` prints of a [`DropTally`].
#[derive(Serialize)]
pub struct DropReport<'a> {
    dropped_by_source: Vec<SourceRow<'a>>,
    /// Packets of sources that are not told apart, because there are too many.
    dropped_of_other_sources: u64,
    dropped_by_port: Vec<PortRow<'a>>,
    dropped_by_service: Vec<ServiceRow<'a>>,
}

#[derive(Serialize)]
struct SourceRow<'a> {
    /// An IPv4 address, or an IPv6 prefix of 64 bits.
    source: String,
    packets: u64,
    reasons: &'a [SourceReason],
}

#[derive(Serialize)]
struct PortRow<'a> {
    reason: &'static str,
    port: Option<&'a str>,
    service: Option<&'a str>,
    packets: u64,
}

#[derive(Serialize)]
struct ServiceRow<'a> {
    /// `null`: packets that reach no service.
    service: Option<&'a str>,
    reason: &'static str,
    packets: u64,
}

impl DropTally {
    /// Counts a packet that is dropped, or would be.
    pub fn add(&mut self, frame: &[u8], reason: &'static str, service: Option<&str>) {
        self.packets += 1;
        let port = destination_of(frame).map(|port| port.to_string());
        let key = PortKey {
            reason,
            port: port.clone().unwrap_or_default(),
            service: service.unwrap_or_default().to_owned(),
        };
        *self.ports.entry(key).or_default() += 1;
        let Some(source) = source_of(frame).map(source_prefix) else {
            self.of_other_sources += 1;
            return;
        };
        if self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(&source) {
            self.of_other_sources += 1;
            return;
        }
        self.sources
            .entry(source)
            .or_default()
            .add(reason, service, port);
    }

    fn sources(&self) -> Vec<SourceRow<'_>> {
        let mut rows: Vec<(&IpNet, &DroppedSource)> = self.sources.iter().collect();
        rows.sort_by_key(|(source, dropped)| (Reverse(dropped.packets), **source));
        let rows = rows.into_iter().map(|(source, dropped)| SourceRow {
            source: describe_source(source),
            packets: dropped.packets,
            reasons: &dropped.reasons,
        });
        rows.collect()
    }

    fn ports(&self) -> Vec<PortRow<'_>> {
        let rows = self.ports.iter().map(|(key, packets)| PortRow {
            reason: key.reason,
            port: named(&key.port),
            service: named(&key.service),
            packets: *packets,
        });
        let mut rows: Vec<PortRow<'_>> = rows.collect();
        // The sort keeps the order of equal rows.
        rows.sort_by_key(|row| Reverse(row.packets));
        rows
    }

    fn services(&self) -> Vec<ServiceRow<'_>> {
        let mut counts: BTreeMap<(&str, &'static str), u64> = BTreeMap::new();
        for (key, packets) in &self.ports {
            *counts.entry((&key.service, key.reason)).or_default() += packets;
        }
        let rows = counts
            .into_iter()
            .map(|((service, reason), packets)| ServiceRow {
                service: named(service),
                reason,
                packets,
            });
        let mut rows: Vec<ServiceRow<'_>> = rows.collect();
        rows.sort_by_key(|row| Reverse(row.packets));
        rows
    }

    pub fn report(&self) -> DropReport<'_> {
        DropReport {
            dropped_by_source: self.sources(),
            dropped_of_other_sources: self.of_other_sources,
            dropped_by_port: self.ports(),
            dropped_by_service: self.services(),
        }
    }

    /// The tables, below a heading such as `WOULD BE DROPPED`; nothing if no packet is dropped.
    pub fn describe(&self, text: &mut String, heading: &str) -> fmt::Result {
        if self.packets == 0 {
            return Ok(());
        }
        let sources = self.sources();
        let rows = sources.iter().map(|row| {
            let reasons: Vec<String> = row.reasons.iter().map(SourceReason::describe).collect();
            [row.source.clone(), whole(row.packets), reasons.join("; ")]
        });
        list(
            text,
            &format!("{heading}, BY SOURCE"),
            ["SOURCE", "PACKETS", "FOR"],
            rows,
        )?;
        if self.of_other_sources > 0 {
            writeln!(
                text,
                "packets of further sources: {}",
                whole(self.of_other_sources)
            )?;
        }
        let ports = self.ports();
        let rows = ports.iter().map(|row| {
            let service = row.service.map(|service| format!(" at {service}"));
            let why = format!("{}{}", row.reason, service.unwrap_or_default());
            [row.port.unwrap_or("-").to_owned(), whole(row.packets), why]
        });
        let head = ["PORT", "PACKETS", "FOR"];
        list(text, &format!("{heading}, BY PORT"), head, rows)?;
        let services = self.services();
        let rows = services.iter().map(|row| {
            let service = row.service.unwrap_or("-").to_owned();
            [service, whole(row.packets), row.reason.to_owned()]
        });
        let head = ["SERVICE", "PACKETS", "FOR"];
        list(text, &format!("{heading}, BY SERVICE"), head, rows)
    }
}

impl DroppedSource {
    fn add(&mut self, reason: &'static str, service: Option<&str>, port: Option<String>) {
        self.packets += 1;
        let mut known = self.reasons.iter();
        let is_same =
            |one: &SourceReason| one.reason == reason && one.service.as_deref() == service;
        let place = known.position(is_same).unwrap_or_else(|| {
            self.reasons.push(SourceReason {
                reason,
                service: service.map(str::to_owned),
                packets: 0,
                ports: Vec::new(),
                more_ports: false,
            });
            self.reasons.len() - 1
        });
        let Some(entry) = self.reasons.get_mut(place) else {
            return;
        };
        entry.packets += 1;
        match port {
            Some(port) if entry.ports.contains(&port) => {}
            Some(port) if entry.ports.len() < PORTS_KEPT => entry.ports.push(port),
            Some(_) => entry.more_ports = true,
            None => {}
        }
    }
}

impl SourceReason {
    /// `closed_port tcp/22, tcp/8000`, `packet_limit at web`.
    fn describe(&self) -> String {
        let Self {
            reason,
            service,
            packets: _,
            ports,
            more_ports,
        } = self;
        match service {
            Some(service) => format!("{reason} at {service}"),
            None if ports.is_empty() => (*reason).to_owned(),
            None => {
                let more = if *more_ports { " and more" } else { "" };
                format!("{reason} {}{more}", ports.join(", "))
            }
        }
    }
}

fn named(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// What counts as one source unless a policy says otherwise.
fn source_prefix(source: IpAddr) -> IpNet {
    let Per { ipv4, ipv6 } = Per::default();
    let length = if source.is_ipv4() { ipv4 } else { ipv6 };
    IpNet::new(source, length).map_or_else(|_| source.into(), |prefix| prefix.trunc())
}

fn describe_source(source: &IpNet) -> String {
    match source.prefix_len() == source.max_prefix_len() {
        true => source.addr().to_string(),
        false => source.to_string(),
    }
}

/// The port that a frame is sent to, or its protocol.
fn destination_of(frame: &[u8]) -> Option<Ports> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let at = |protocol, port: u16| {
        Some(Ports::Range {
            protocol,
            ports: port..=port,
        })
    };
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => return at(PortProtocol::Tcp, tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => return at(PortProtocol::Udp, udp.destination_port()),
        _ => {}
    }
    let payload = match &packet.net {
        Some(LaxNetSlice::Ipv4(ipv4)) => ipv4.payload(),
        Some(LaxNetSlice::Ipv6(ipv6)) => ipv6.payload(),
        Some(LaxNetSlice::Arp(_)) | None => return None,
    };
    if let (IpNumber::SCTP, false, [_, _, high, low, ..]) =
        (payload.ip_number, payload.fragmented, payload.payload)
    {
        return at(PortProtocol::Sctp, u16::from_be_bytes([*high, *low]));
    }
    Some(Ports::Protocol {
        number: payload.ip_number.0,
    })
}

fn list(
    text: &mut String,
    heading: &str,
    head: [&str; 3],
    rows: impl ExactSizeIterator<Item = [String; 3]>,
) -> fmt::Result {
    let count = rows.len();
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(head);
    table.add_rows(rows.take(LISTED));
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(text, "\n{heading}")?;
    for line in table.to_string().lines() {
        writeln!(text, "{}", line.trim_end())?;
    }
    if count > LISTED {
        let more = whole((count - LISTED) as u64);
        writeln!(text, "… and {more} more (`--json` has all)")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn tcp(source: [u8; 4], port: u16) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [2; 6])
            .ipv4(source, [203, 0, 113, 10], 64)
            .tcp(40_000, port, 1, 1_000);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[]).unwrap();
        frame
    }

    #[test]
    fn the_largest_come_first_and_the_rest_is_counted() {
        let mut tally = DropTally::default();
        for n in 0..30 {
            tally.add(&tcp([192, 0, 2, n], 8000), "closed_port", None);
        }
        for port in 1..=6 {
            tally.add(&tcp([198, 51, 100, 66], port), "closed_port", None);
        }
        for _ in 0..1_200 {
            tally.add(&tcp([198, 51, 100, 7], 443), "packet_limit", Some("web"));
        }
        let arp = [[0xff; 12].as_slice(), &[8, 6], &[0; 28]].concat();
        tally.add(&arp, "malformed", None);
        let mut text = String::new();
        tally.describe(&mut text, "WOULD BE DROPPED").unwrap();
        insta::assert_snapshot!(text, @r#"

        WOULD BE DROPPED, BY SOURCE
         SOURCE         PACKETS  FOR
         198.51.100.7     1,200  packet_limit at web
         198.51.100.66        6  closed_port tcp/1, tcp/2, tcp/3, tcp/4 and more
         192.0.2.0            1  closed_port tcp/8000
         192.0.2.1            1  closed_port tcp/8000
         192.0.2.2            1  closed_port tcp/8000
         192.0.2.3            1  closed_port tcp/8000
         192.0.2.4            1  closed_port tcp/8000
         192.0.2.5            1  closed_port tcp/8000
         192.0.2.6            1  closed_port tcp/8000
         192.0.2.7            1  closed_port tcp/8000
         192.0.2.8            1  closed_port tcp/8000
         192.0.2.9            1  closed_port tcp/8000
         192.0.2.10           1  closed_port tcp/8000
         192.0.2.11           1  closed_port tcp/8000
         192.0.2.12           1  closed_port tcp/8000
         192.0.2.13           1  closed_port tcp/8000
         192.0.2.14           1  closed_port tcp/8000
         192.0.2.15           1  closed_port tcp/8000
         192.0.2.16           1  closed_port tcp/8000
         192.0.2.17           1  closed_port tcp/8000
        … and 12 more (`--json` has all)
        packets of further sources: 1

        WOULD BE DROPPED, BY PORT
         PORT      PACKETS  FOR
         tcp/443     1,200  packet_limit at web
         tcp/8000       30  closed_port
         tcp/1           1  closed_port
         tcp/2           1  closed_port
         tcp/3           1  closed_port
         tcp/4           1  closed_port
         tcp/5           1  closed_port
         tcp/6           1  closed_port
         -               1  malformed

        WOULD BE DROPPED, BY SERVICE
         SERVICE  PACKETS  FOR
         web        1,200  packet_limit
         -             36  closed_port
         -              1  malformed
        "#);
        let json = serde_json::to_value(tally.report()).unwrap();
        assert_eq!(json["dropped_by_source"].as_array().unwrap().len(), 32);
        assert_eq!(json["dropped_of_other_sources"], 1);
        insta::assert_snapshot!(json["dropped_by_source"][1], @r#"{"packets":6,"reasons":[{"more_ports":true,"packets":6,"ports":["tcp/1","tcp/2","tcp/3","tcp/4"],"reason":"closed_port","service":null}],"source":"198.51.100.66"}"#);
        insta::assert_snapshot!(json["dropped_by_port"][0], @r#"{"packets":1200,"port":"tcp/443","reason":"packet_limit","service":"web"}"#);
        insta::assert_snapshot!(json["dropped_by_service"][1], @r#"{"packets":36,"reason":"closed_port","service":null}"#);
    }

    #[test]
    fn nothing_is_printed_if_nothing_is_dropped() {
        let mut text = String::new();
        DropTally::default().describe(&mut text, "DROPPED").unwrap();
        assert_eq!(text, "");
    }

    #[test]
    fn an_ipv6_source_is_its_64_bits() {
        let source = source_prefix("2001:db8:1:2:3::4".parse().unwrap());
        assert_eq!(describe_source(&source), "2001:db8:1:2::/64");
        let source = source_prefix("192.0.2.1".parse().unwrap());
        assert_eq!(describe_source(&source), "192.0.2.1");
    }
}
