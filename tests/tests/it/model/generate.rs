//! Generates random policies and packets: valid, nearly valid and garbage. They use few addresses and ports, so that
//! packets match the policies.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr};

use fastrand::Rng;
use guard::policy::{ContainerNetwork, Containers, PublishedAt, PublishedPort};
use guard_common::{exposure::NetworkKind, layout::PortProtocol};
use ipnet::IpNet;

use crate::frames;

/// A policy as plain values.
pub struct ModelPolicy {
    pub mode: &'static str,
    pub scope: &'static str,
    pub services: Vec<ModelService>,
    pub limits: Option<ModelService>,
    pub sources: Vec<(String, IpNet, Special)>,
    pub denied: Vec<IpNet>,
    /// Ports published on every address: protocol, port, and whether over IPv4.
    pub published: Vec<(&'static str, u16, bool)>,
    /// Ports published on one address.
    pub published_at: Vec<(&'static str, u16, IpAddr)>,
    /// Container networks, and whether each is routed.
    pub networks: Vec<(IpNet, bool)>,
    /// The host's own addresses: a received packet with such a source is a martian.
    pub own: Vec<IpAddr>,
}

pub struct ModelService {
    pub name: String,
    /// Protocol, first and last port.
    pub ports: Vec<(&'static str, u16, u16)>,
    pub address: Option<IpAddr>,
    /// Empty: any source.
    pub from: Vec<IpNet>,
    pub mode: &'static str,
    /// The kind of each budget (packet, byte, connection), and its burst.
    pub limit: Vec<(&'static str, u64)>,
    pub total: Vec<(&'static str, u64)>,
    pub per: (u8, u8),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Special {
    Factor(u32),
    Exempt,
}

pub struct GeneratedPolicy {
    pub text: String,
    pub containers: Containers,
    pub own: BTreeSet<IpAddr>,
}

const PORTS: [u16; 12] = [
    22, 53, 67, 68, 80, 123, 443, 546, 8000, 8001, 40_000, 60_999,
];
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
const PORTLESS: [&str; 4] = ["icmp", "icmpv6", "esp", "gre"];
/// IPIP, IGMP, AH, VRRP.
const NUMBERED: [u16; 4] = [4, 2, 51, 112];
const V4: [&str; 11] = [
    "198.51.100.7",
    "198.51.100.8",
    "198.51.101.9",
    "192.0.2.9",
    "203.0.113.10",
    "203.0.113.11",
    "172.17.0.2",
    "172.18.0.2",
    "10.50.3.3",
    "0.0.0.0",
    "224.0.0.1",
];
const V6: [&str; 10] = [
    "2001:db8:51::7",
    "2001:db8:51::8",
    "2001:db8:51:1::9",
    "2001:db8:99::9",
    "2001:db8:113::10",
    "2001:db8:113::11",
    "2001:db8:d0c::2",
    "fd00:d0c:0:7::2",
    "fe80::1",
    "::",
];
/// Martian addresses, and some of their neighbours.
const MARTIAN_V4: [&str; 6] = [
    "127.0.0.1",
    "127.255.255.254",
    "239.1.2.3",
    "255.255.255.255",
    "240.0.0.1",
    "126.0.0.1",
];
const MARTIAN_V6: [&str; 5] = [
    "::1",
    "::ffff:203.0.113.10",
    "::ffff:198.51.100.7",
    "ff02::1",
    "::203.0.113.10",
];
const PREFIXES: [&str; 12] = [
    "198.51.100.0/24",
    "198.51.100.7/32",
    "198.51.0.0/16",
    "192.0.2.0/25",
    "192.0.2.9/32",
    "0.0.0.0/0",
    "2001:db8:51::/48",
    "2001:db8:51::/64",
    "2001:db8:51::7/128",
    "2001:db8:99::/126",
    "2001:db8::/32",
    "::/0",
];
const NETWORKS: [&str; 6] = [
    "172.17.0.0/16",
    "172.18.0.0/31",
    "10.50.0.0/20",
    "2001:db8:d0c::/64",
    "fd00:d0c::/32",
    "fd00:d0c::/56",
];

fn pick<T: Copy>(rng: &mut Rng, list: &[T]) -> T {
    list[rng.usize(..list.len())]
}

fn address(rng: &mut Rng, v4: bool) -> IpAddr {
    let list: &[&str] = if v4 { &V4 } else { &V6 };
    pick(rng, list).parse().unwrap()
}

/// An address that can be on a wire; rarely a martian.
fn address_on_wire(rng: &mut Rng, v4: bool) -> IpAddr {
    if rng.u8(..50) != 0 {
        return address(rng, v4);
    }
    let list: &[&str] = if v4 { &MARTIAN_V4 } else { &MARTIAN_V6 };
    pick(rng, list).parse().unwrap()
}

fn prefix(rng: &mut Rng) -> IpNet {
    pick(rng, &PREFIXES).parse().unwrap()
}

/// Candidates for the host's addresses; one is inside a container network.
const OWN: [&str; 5] = [
    "203.0.113.10",
    "203.0.113.11",
    "172.17.0.2",
    "2001:db8:113::10",
    "2001:db8:113::11",
];

/// The policy of a seed.
pub fn policy_of(seed: u64) -> ModelPolicy {
    policy(&mut Rng::with_seed(seed))
}

/// Ports published on one address, for half of the policies.
fn published_at(rng: &mut Rng) -> Vec<(&'static str, u16, IpAddr)> {
    let most = if rng.bool() { 8 } else { 1 };
    let ports = (0..rng.usize(..most)).map(|_| {
        let own = pick(rng, &OWN).parse().unwrap();
        (pick(rng, &PROTOCOLS), pick(rng, &PORTS), own)
    });
    ports.collect()
}

/// The host's own addresses, for half of the policies.
fn own(rng: &mut Rng) -> Vec<IpAddr> {
    let known = rng.bool();
    let own = OWN.iter().filter(|_| known && rng.bool());
    own.map(|address| address.parse().unwrap()).collect()
}

pub fn policy(rng: &mut Rng) -> ModelPolicy {
    // Features that were added later use a second generator, so that the corpus' seeds still make the same policies.
    let mut aside = Rng::with_seed(rng.clone().u64(..));
    let mut services: Vec<ModelService> = Vec::new();
    for n in 0..rng.usize(..8) {
        let mut service = budgeted(rng, format!("s{n}"));
        service.mode = pick(rng, &["enforce", "enforce", "enforce", "observe", "off"]);
        service.address = (rng.u8(..4) == 0).then(|| {
            let v4 = rng.bool();
            // The policy parser rejects an unspecified address.
            loop {
                let address = address(rng, v4);
                if !address.is_unspecified() {
                    break address;
                }
            }
        });
        for _ in 0..rng.usize(1..4) {
            let ports = if rng.u8(..6) == 0 {
                (pick(rng, &PORTLESS), 0, 0)
            } else if rng.u8(..8) == 0 {
                let number = pick(rng, &NUMBERED);
                ("proto", number, number)
            } else {
                let first = pick(rng, &PORTS);
                (pick(rng, &PROTOCOLS), first, first + rng.u16(..2) * 3)
            };
            let overlaps = services.iter().any(|other| {
                let apart = other.address.is_some()
                    && service.address.is_some()
                    && other.address != service.address;
                !apart
                    && other
                        .ports
                        .iter()
                        .any(|o| o.0 == ports.0 && o.1 <= ports.2 && ports.1 <= o.2)
            });
            if !overlaps {
                service.ports.push(ports);
            }
        }
        if rng.bool() {
            service.from = (0..rng.usize(1..4)).map(|_| prefix(rng)).collect();
        }
        // The policy parser rejects a service that no source can reach.
        if let Some(address) = service.address {
            let (foreign, own) = match address {
                IpAddr::V4(_) => ("icmpv6", "198.51.0.0/16"),
                IpAddr::V6(_) => ("icmp", "2001:db8::/32"),
            };
            service.ports.retain(|(protocol, ..)| *protocol != foreign);
            let fits = |from: &IpNet| from.addr().is_ipv4() == address.is_ipv4();
            if !service.from.is_empty() && !service.from.iter().any(fits) {
                service.from.push(own.parse().unwrap());
            }
        }
        if !service.ports.is_empty() {
            services.push(service);
        }
    }
    let mut sources: Vec<(String, IpNet, Special)> = Vec::new();
    for n in 0..rng.usize(..4) {
        let prefix = prefix(rng);
        if sources.iter().all(|(_, other, _)| *other != prefix) {
            let special = if rng.bool() {
                Special::Exempt
            } else {
                Special::Factor(rng.u32(1..6))
            };
            sources.push((format!("n{n}"), prefix, special));
        }
    }
    let limits = (rng.u8(..3) == 0).then(|| budgeted(rng, String::new()));
    ModelPolicy {
        mode: pick(
            rng,
            &["enforce", "enforce", "enforce", "enforce", "observe", "off"],
        ),
        scope: pick(rng, &["containers", "host"]),
        services,
        limits: limits.filter(|limits| !(limits.limit.is_empty() && limits.total.is_empty())),
        sources,
        // Rarely every address.
        denied: (0..rng.usize(..3))
            .map(|_| prefix(rng))
            .filter(|prefix| prefix.prefix_len() > 16)
            .collect(),
        published: (0..rng.usize(..8))
            .map(|_| (pick(rng, &PROTOCOLS), pick(rng, &PORTS), rng.bool()))
            .collect(),
        published_at: published_at(&mut aside),
        own: own(&mut aside),
        networks: NETWORKS
            .iter()
            .filter_map(|network| {
                let chosen = rng.u8(..3) == 0;
                chosen.then(|| (network.parse().unwrap(), rng.bool()))
            })
            .collect(),
    }
}

fn budgeted(rng: &mut Rng, name: String) -> ModelService {
    let mut budgets = |chance: u8| -> Vec<(&'static str, u64)> {
        let bursts = [("packet", 400), ("byte", 60_000), ("connection", 60)];
        let chosen = bursts.into_iter().filter(|_| rng.u8(..chance) == 0);
        let chosen: Vec<(&str, u64)> = chosen.collect();
        chosen
            .into_iter()
            .map(|(what, most)| (what, 2_000 * u64::from(what == "byte") + rng.u64(1..most)))
            .collect()
    };
    let limit = budgets(3);
    let total = budgets(5);
    ModelService {
        name,
        ports: Vec::new(),
        address: None,
        from: Vec::new(),
        mode: "enforce",
        limit,
        total,
        per: (pick(rng, &[32, 32, 24, 8]), pick(rng, &[64, 64, 128, 48])),
    }
}

impl ModelService {
    pub fn lists(&self, protocol: &str, port: u16) -> bool {
        let mut ports = self.ports.iter();
        ports.any(|(p, first, last)| *p == protocol && (*first..=*last).contains(&port))
    }

    /// Writes budgets with rates so low that only the bursts matter in a run.
    fn budgets(&self, text: &mut String, table: &str, budgets: &[(&str, u64)]) {
        for (what, burst) in budgets {
            let (rate, suffix) = match *what {
                "byte" => ("4kB/h", "B"),
                _ => ("1/h", ""),
            };
            writeln!(
                text,
                "{table}{what}s = {{ rate = \"{rate}\", burst = \"{burst}{suffix}\" }}"
            )
            .unwrap();
        }
    }
}

impl ModelPolicy {
    pub fn is_denied(&self, source: IpAddr) -> bool {
        self.denied.iter().any(|prefix| prefix.contains(&source))
    }

    /// The factor or exemption of the longest prefix that contains the source.
    pub fn special(&self, source: IpAddr) -> Option<Special> {
        let sources = self.sources.iter();
        let matching = sources.filter(|(_, prefix, _)| prefix.contains(&source));
        matching
            .max_by_key(|(_, prefix, _)| prefix.prefix_len())
            .map(|(_, _, special)| *special)
    }

    pub fn to_text(&self) -> GeneratedPolicy {
        let Self { mode, scope, .. } = self;
        let mut text = format!("mode = \"{mode}\"\nscope = \"{scope}\"\ndocker.socket = \"\"\n");
        if let Some(limits) = &self.limits {
            limits.budgets(&mut text, "limits.", &limits.limit);
            limits.budgets(&mut text, "limits.total.", &limits.total);
            let (v4, v6) = limits.per;
            writeln!(text, "limits.per = {{ ipv4 = {v4}, ipv6 = {v6} }}").unwrap();
        }
        for service in &self.services {
            let ports = service.ports.iter().map(|(protocol, first, last)| {
                match (PORTLESS.contains(protocol), first == last) {
                    (true, _) => format!("{protocol:?}"),
                    (false, true) => format!("\"{protocol}/{first}\""),
                    (false, false) => format!("\"{protocol}/{first}-{last}\""),
                }
            });
            let ports: Vec<String> = ports.collect();
            let (name, mode) = (&service.name, service.mode);
            writeln!(text, "[[service]]\nname = \"{name}\"\nmode = \"{mode}\"").unwrap();
            writeln!(text, "ports = [{}]", ports.join(", ")).unwrap();
            if let Some(address) = service.address {
                writeln!(text, "address = \"{address}\"").unwrap();
            }
            if !service.from.is_empty() {
                let from: Vec<String> = service.from.iter().map(|p| format!("\"{p}\"")).collect();
                writeln!(text, "from = [{}]", from.join(", ")).unwrap();
            }
            service.budgets(&mut text, "limit.", &service.limit);
            service.budgets(&mut text, "total.", &service.total);
            let (v4, v6) = service.per;
            writeln!(text, "limit.per = {{ ipv4 = {v4}, ipv6 = {v6} }}").unwrap();
        }
        for (name, prefix, special) in &self.sources {
            writeln!(
                text,
                "[[source]]\nname = \"{name}\"\ncidrs = [\"{prefix}\"]"
            )
            .unwrap();
            match special {
                Special::Factor(factor) => writeln!(text, "factor = {factor}"),
                Special::Exempt => writeln!(text, "exempt = true"),
            }
            .unwrap();
        }
        for (n, prefix) in self.denied.iter().enumerate() {
            let source =
                format!("[[source]]\nname = \"d{n}\"\ncidrs = [\"{prefix}\"]\ndeny = true");
            writeln!(text, "{source}").unwrap();
        }
        let protocol = |name: &str| match name {
            "tcp" => PortProtocol::Tcp,
            "udp" => PortProtocol::Udp,
            _ => PortProtocol::Sctp,
        };
        let published = self.published.iter().map(|(name, port, v4)| PublishedPort {
            protocol: protocol(name),
            port: *port,
            at: if *v4 {
                PublishedAt::EveryIpv4
            } else {
                PublishedAt::EveryIpv6
            },
        });
        let published_at = self.published_at.iter();
        let published_at = published_at.map(|(name, port, own)| PublishedPort {
            protocol: protocol(name),
            port: *port,
            at: PublishedAt::Address(*own),
        });
        let networks = self
            .networks
            .iter()
            .map(|(prefix, routed)| ContainerNetwork {
                prefix: *prefix,
                kind: if *routed {
                    NetworkKind::Routed
                } else {
                    NetworkKind::Masqueraded
                },
            });
        GeneratedPolicy {
            text,
            containers: Containers {
                published: published.chain(published_at).collect(),
                networks: networks.collect(),
                labelled: Vec::new(),
            },
            own: self.own.iter().copied().collect(),
        }
    }
}

/// A frame, received or sent by this host.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedPacket {
    pub outgoing: bool,
    pub frame: Vec<u8>,
}

pub fn packet(rng: &mut Rng) -> GeneratedPacket {
    let outgoing = rng.u8(..50) == 0;
    let mut frame = match rng.u8(..40) {
        0 => (0..rng.usize(..200)).map(|_| rng.u8(..)).collect(),
        1 => frames::other(pick(rng, &[0x0806, 0x88cc, 46, 0x8864, 0x9100])),
        _ => ip(rng),
    };
    if rng.u8(..6) == 0 && frame.len() >= 14 {
        let tags: Vec<u16> = (0..rng.usize(1..4))
            .map(|_| pick(rng, &[0x8100, 0x88a8]))
            .collect();
        frame = frames::tagged(&frame, &tags);
    }
    if rng.u8(..10) == 0 {
        frame.extend((0..rng.usize(..30)).map(|_| 0x50));
    }
    if rng.u8(..10) == 0 {
        frame.truncate(rng.usize(..frame.len() + 1));
    }
    // Flipped bits, mostly in the headers.
    while rng.u8(..8) == 0 && frame.len() > 14 {
        let at = rng.usize(12..frame.len().min(100));
        frame[at] ^= 1 << rng.u8(..8);
    }
    // The kernel does not run XDP on a frame shorter than the Ethernet header.
    if frame.len() < 14 {
        frame.resize(14, 0);
    }
    GeneratedPacket { outgoing, frame }
}

/// This host's answer to a frame, with addresses and ports swapped. `None` for a frame that is not plain UDP.
pub fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const UDP: u8 = frames::protocol::UDP;
    let (kind, protocol_v4, protocol_v6) =
        (question.get(12..15)?, *question.get(23)?, question[20]);
    let (addresses, width, ports) = match kind {
        [8, 0, 0x45] if protocol_v4 == UDP => (26, 4, 34),
        [0x86, 0xdd, _] if protocol_v6 == UDP => (22, 16, 54),
        _ => return None,
    };
    let mut frame = question.to_vec();
    for (at, width) in [(addresses, width), (ports, 2)] {
        frame.get_mut(at..at + 2 * width)?.rotate_left(width);
    }
    Some(frame)
}

fn ip(rng: &mut Rng) -> Vec<u8> {
    let v4 = rng.bool();
    let source = address_on_wire(rng, v4);
    let destination = address_on_wire(rng, v4);
    let (protocol, payload) = transport(rng, v4);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut frame = frames::ipv4(source, protocol, &payload);
            frame = frames::patched(&frame, frames::IPV4_AT + 16, &destination.octets());
            if rng.u8(..6) == 0 {
                frame = frames::patched(&frame, frames::IPV4_AT + 8, &[1]);
            }
            if rng.u8(..6) == 0 {
                frame = frames::with_options(&frame, rng.u8(5..16));
            }
            if rng.u8(..6) == 0 {
                let offset = pick(rng, &[0, 0, 1, 185, 8191]);
                frame = frames::as_fragment(&frame, offset, rng.bool());
                // Few identifications, so that some later fragments have a first one.
                let identification = [0, rng.u8(..4)];
                frame = frames::patched(&frame, frames::IPV4_AT + 4, &identification);
            }
            frame
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (next, payload) = extended(rng, protocol, payload);
            let frame = frames::ipv6(source, next, &payload);
            let frame = frames::patched(&frame, frames::IPV6_AT + 24, &destination.octets());
            let hop_limit = pick(rng, &[64, 255, 1]);
            frames::patched(&frame, frames::IPV6_AT + 7, &[hop_limit])
        }
        _ => unreachable!("both addresses are of one family"),
    }
}

fn transport(rng: &mut Rng, v4: bool) -> (u8, Vec<u8>) {
    use frames::protocol::*;
    let port = pick(rng, &PORTS);
    let data = vec![0; pick(rng, &[0, 0, 7, 1400])];
    match rng.u8(..16) {
        0..=6 => {
            let flags = match rng.u8(..4) {
                0 => rng.u8(..),
                1 => frames::flags::ACK,
                _ => frames::flags::SYN,
            };
            let mut segment = frames::tcp(port, flags, &data);
            if rng.u8(..8) == 0 {
                segment[12] = rng.u8(..) & 0xf0;
            }
            (TCP, segment)
        }
        7..=10 => {
            let mut datagram = frames::udp(pick(rng, &PORTS), port, &data);
            if rng.u8(..8) == 0 {
                let length = rng.u16(..20);
                datagram[4..6].copy_from_slice(&length.to_be_bytes());
            }
            (UDP, datagram)
        }
        11 => (SCTP, frames::sctp(port)),
        12 | 13 => {
            let kind = pick(
                rng,
                &[0, 1, 2, 3, 4, 8, 11, 12, 128, 129, 130, 133, 135, 137, 143],
            );
            (if v4 { ICMP } else { ICMPV6 }, frames::icmp(kind))
        }
        14 => (pick(rng, &[47, 50, 4, 41, 58, 1, 2, 2, 51, 112]), data),
        _ => (rng.u8(..), data),
    }
}

/// The payload behind a chain of IPv6 extension headers; the chain is mostly empty.
fn extended(rng: &mut Rng, protocol: u8, payload: Vec<u8>) -> (u8, Vec<u8>) {
    use frames::protocol::*;
    let (mut next, mut payload) = (protocol, payload);
    if rng.u8(..3) != 0 {
        return (next, payload);
    }
    let most = pick(rng, &[2, 4, 10]);
    for _ in 0..rng.usize(..most) {
        let kind = pick(
            rng,
            &[
                HOP_BY_HOP,
                ROUTING,
                FRAGMENT,
                AUTHENTICATION,
                DESTINATION_OPTIONS,
            ],
        );
        let header = match kind {
            FRAGMENT => {
                let offset = pick(rng, &[0, 0, 0, 1, 185]);
                frames::fragment(next, offset, rng.bool())
            }
            AUTHENTICATION => frames::authentication(next, pick(rng, &[2, 3, 6])),
            _ => frames::extension(next, pick(rng, &[1, 1, 2, 7])),
        };
        payload = [header, payload].concat();
        next = kind;
    }
    (next, payload)
}
