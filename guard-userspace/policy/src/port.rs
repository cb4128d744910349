//! Ports as a policy writes them: `tcp/80`, `udp/8000-8010`, `icmp`, `proto/112`.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, str::FromStr};

use guard_common::layout::{IndexedPort, PortProtocol, port_index, port_of_index, protocol_index};

/// Ports of one transport protocol, or a protocol without ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    Range {
        protocol: PortProtocol,
        /// From 1 to 65535; never empty.
        ports: RangeInclusive<u16>,
    },
    Protocol {
        /// The IANA protocol number.
        number: u8,
    },
}

/// The names of protocols without ports that a policy can write, with their IANA numbers.
const PROTOCOLS: [(&str, u8); 4] = [("icmp", ICMP), ("gre", 47), ("esp", 50), ("icmpv6", ICMPV6)];

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The protocols whose ports a service lists, with their IANA numbers.
const WITH_PORTS: [(PortProtocol, u8); 3] = [
    (PortProtocol::Tcp, 6),
    (PortProtocol::Udp, 17),
    (PortProtocol::Sctp, 132),
];

/// The IPv6 extension headers that the packet path skips to find the transport header. The authentication header is
/// not among them: over IPv4 it is a protocol like any other.
const READ_THROUGH: [u8; 4] = [0, 43, 44, 60];

impl Ports {
    /// The indices of these ports in the port table.
    pub fn indices(&self) -> RangeInclusive<u32> {
        match self {
            Self::Range { protocol, ports } => {
                port_index(*protocol, *ports.start())..=port_index(*protocol, *ports.end())
            }
            Self::Protocol { number } => {
                let index = protocol_index(*number);
                index..=index
            }
        }
    }

    /// The single port or protocol with this index in the port table. `None`: no packet has this index.
    pub fn of_index(index: u32) -> Option<Self> {
        Some(match port_of_index(index)? {
            IndexedPort::Port(protocol, port) => Self::Range {
                protocol,
                ports: port..=port,
            },
            IndexedPort::Protocol(number) => Self::Protocol { number },
        })
    }

    /// The name of the same protocol in the other version of IP, if this one does not exist over the given version.
    pub fn counterpart(&self, is_ipv4: bool) -> Option<&'static str> {
        match (self, is_ipv4) {
            (Self::Protocol { number: ICMPV6 }, true) => Some("icmp"),
            (Self::Protocol { number: ICMP }, false) => Some("icmpv6"),
            _ => None,
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { protocol, ports } => {
                let protocol = protocol.name();
                let (first, last) = (ports.start(), ports.end());
                if first == last {
                    write!(formatter, "{protocol}/{first}")
                } else {
                    write!(formatter, "{protocol}/{first}-{last}")
                }
            }
            Self::Protocol { number } => match name(*number) {
                Some(name) => formatter.write_str(name),
                None => write!(formatter, "proto/{number}"),
            },
        }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map_err(|problem| {
            if let Ok(socket) = text.parse::<SocketAddr>() {
                return format!(
                    "{text:?} is not a port: write \"tcp/{}\", and the address into `address` of the service",
                    socket.port()
                );
            }
            match (meant(text), several(text)) {
                (Some(right), _) => format!("{text:?} is not a port or protocol: write {right:?}"),
                (None, Some(right)) => {
                    format!("{text:?} is more than one port: write each in its own quotes, {right}")
                }
                (None, None) => problem,
            }
        })
    }
}

fn parse(text: &str) -> Result<Ports, String> {
    if let Some((_, number)) = PROTOCOLS.into_iter().find(|(name, _)| *name == text) {
        return Ok(Ports::Protocol { number });
    }
    if let Some(number) = text.strip_prefix("proto/") {
        return parse_protocol(number).map(|number| Ports::Protocol { number });
    }
    let (protocol, ports) = text.split_once('/').ok_or_else(|| unknown(text))?;
    let protocol = match protocol {
        "tcp" => PortProtocol::Tcp,
        "udp" => PortProtocol::Udp,
        "sctp" => PortProtocol::Sctp,
        _ => return Err(unknown(text)),
    };
    let ports = match ports.split_once('-') {
        Some((first, last)) => parse_port(first)?..=parse_port(last)?,
        None => {
            let port = parse_port(ports)?;
            port..=port
        }
    };
    if ports.is_empty() {
        let (first, last) = ports.into_inner();
        return Err(format!(
            "\"{text}\" is not a range of ports: write the smaller port first, {last}-{first}"
        ));
    }
    Ok(Ports::Range { protocol, ports })
}

/// Names of ports and protocols in other tools, as guard writes them.
const NAMES: [(&[&str], &str); 17] = [
    (&["http", "web"], "tcp/80"),
    (&["https", "tls", "ssl"], "tcp/443"),
    (&["http3", "quic", "h3"], "udp/443"),
    (&["ssh", "sftp"], "tcp/22"),
    (&["dns", "domain"], "udp/53"),
    (&["smtp"], "tcp/25"),
    (&["ntp"], "udp/123"),
    (&["postgres", "postgresql"], "tcp/5432"),
    (&["mysql", "mariadb"], "tcp/3306"),
    (&["redis"], "tcp/6379"),
    (&["wireguard"], "udp/51820"),
    (&["ping", "icmp4", "icmpv4"], "icmp"),
    (&["icmp6", "ipv6-icmp"], "icmpv6"),
    (&["ipsec"], "esp"),
    (&["vrrp"], "proto/112"),
    (&["ospf"], "proto/89"),
    (&["*", "any", "all"], "tcp/1-65535"),
];

/// What was probably meant by a text that is no port or protocol: `tcp/80` by `80`, `80/tcp`, `TCP/80`, `tcp:80` or
/// `http`.
pub fn meant(text: &str) -> Option<String> {
    let plain = text.trim().to_lowercase();
    let mut named = NAMES.iter();
    if let Some((_, right)) = named.find(|(names, _)| names.contains(&plain.as_str())) {
        return Some((*right).to_owned());
    }
    let is_between = |c: char| matches!(c, '/' | ':' | ' ');
    let protocols = ["tcp", "udp", "sctp"];
    let found = protocols.into_iter().find_map(|protocol| {
        let after = plain.strip_prefix(protocol);
        let before = plain.strip_suffix(protocol);
        let after = after.and_then(|rest| rest.strip_prefix(is_between));
        let before = before.and_then(|rest| rest.strip_suffix(is_between));
        Some((protocol, after.or(before)?.trim()))
    });
    let (protocol, ports) = match found {
        Some(found) => found,
        // A range, or ports of the host and of a container.
        None if plain.starts_with(|first: char| first.is_ascii_digit()) => ("tcp", plain.as_str()),
        None => return None,
    };
    let ports = match named_port(ports) {
        Some(port) => port.to_owned(),
        // `8000:8010`, and the `8000:80` of compose files: the port of the host comes first.
        None => match ports.split_once(':') {
            Some((first, last)) => match (first.parse::<u16>(), last.parse::<u16>()) {
                (Ok(low), Ok(high)) if low < high => format!("{low}-{high}"),
                (Ok(port), Ok(_)) => port.to_string(),
                _ => return None,
            },
            None => ports.replace(['–', ':'], "-"),
        },
    };
    let right = format!("{protocol}/{ports}");
    (right != text && parse(&right).is_ok()).then_some(right)
}

/// The elements for `tcp/80,443` or `tcp/80, udp/443`.
fn several(text: &str) -> Option<String> {
    let (first, _) = text.split_once(',')?;
    let protocol = first
        .split_once('/')
        .map_or("tcp", |(protocol, _)| protocol);
    let words = text.split(',').map(str::trim);
    let words = words.filter(|word| !word.is_empty());
    let ports = words.map(|word| {
        let whole = match word.contains('/') {
            true => word.to_owned(),
            false => format!("{protocol}/{word}"),
        };
        let port = parse(&whole).ok().map(|ports| ports.to_string());
        Some(format!("{:?}", port.or_else(|| meant(word))?))
    });
    Some(ports.collect::<Option<Vec<String>>>()?.join(", "))
}

/// The number of `http` in `tcp/http`.
fn named_port(name: &str) -> Option<&'static str> {
    let (_, right) = NAMES.iter().find(|(names, _)| names.contains(&name))?;
    let (protocol, port) = right.split_once('/')?;
    (protocol != "proto").then_some(port)
}

fn unknown(text: &str) -> String {
    format!(
        "{text:?} is not a port or protocol: write \"tcp/80\", \"udp/443\", \"tcp/8000-8010\", \"icmp\", \
         \"icmpv6\", \"esp\", \"gre\" or, for any other protocol, its number, such as \"proto/112\""
    )
}

/// The name of a protocol in [`PROTOCOLS`].
fn name(protocol: u8) -> Option<&'static str> {
    let mut named = PROTOCOLS.into_iter();
    named
        .find(|(_, number)| *number == protocol)
        .map(|(name, _)| name)
}

/// Parses the number of a protocol that has neither a name nor ports here.
fn parse_protocol(text: &str) -> Result<u8, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u8>().ok().filter(|_| is_number);
    let number = number.ok_or_else(|| {
        format!(
            "{text:?} is not a protocol number: write one from 0 to 255, such as \"proto/112\" for VRRP"
        )
    })?;
    if let Some(name) = name(number) {
        return Err(format!("protocol {number} has a name: write \"{name}\""));
    }
    let mut with_ports = WITH_PORTS.into_iter();
    if let Some((protocol, _)) = with_ports.find(|(_, with_ports)| *with_ports == number) {
        let name = protocol.name();
        return Err(format!(
            "protocol {number} has ports: write them, such as \"{name}/443\", or \"{name}/1-65535\" for all"
        ));
    }
    if READ_THROUGH.contains(&number) {
        return Err(format!(
            "protocol {number} is an IPv6 extension header, which is read through: write the protocol that \
             follows it"
        ));
    }
    Ok(number)
}

fn parse_port(text: &str) -> Result<u16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if port != 0 && is_number => Ok(port),
        _ if is_number => Err(format!(
            "there is no port {text}: ports are numbers from 1 to 65535"
        )),
        _ => Err(format!(
            "{text:?} is not a port: ports are numbers from 1 to 65535"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_read_as_they_are_written() {
        for text in [
            "tcp/80",
            "udp/443",
            "sctp/3868",
            "tcp/8000-8010",
            "tcp/1-65535",
            "icmp",
            "icmpv6",
            "esp",
            "gre",
            "proto/2",
            "proto/51",
            "proto/112",
            "proto/255",
        ] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
        assert_eq!("tcp/80-80".parse::<Ports>().unwrap().to_string(), "tcp/80");
    }

    #[test]
    fn an_invalid_port_is_refused_and_the_error_says_what_to_write() {
        for (text, hint) in [
            ("tcp/70000", "1 to 65535"),
            ("tcp/99999999999999999999", "1 to 65535"),
            ("tcp/0", "1 to 65535"),
            ("tcp/-1", "1 to 65535"),
            ("tcp/+1", "1 to 65535"),
            ("tcp/", "1 to 65535"),
            ("tcp/http", "\"tcp/80\""),
            ("tcp/90-80", "80-90"),
            ("80", "\"tcp/80\""),
            ("", "\"tcp/80\""),
            ("dccp/80", "\"tcp/80\""),
            ("TCP/80", "\"tcp/80\""),
            ("vrrp", "\"proto/112\""),
            ("proto/", "0 to 255"),
            ("proto/256", "0 to 255"),
            ("proto/+2", "0 to 255"),
            ("proto/4-5", "0 to 255"),
            ("proto/1", "write \"icmp\""),
            ("proto/47", "write \"gre\""),
            ("proto/50", "write \"esp\""),
            ("proto/58", "write \"icmpv6\""),
            ("proto/6", "\"tcp/443\""),
            ("proto/17", "\"udp/1-65535\""),
            ("proto/132", "\"sctp/443\""),
            ("proto/0", "read through"),
            ("proto/60", "read through"),
        ] {
            let error = text.parse::<Ports>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
