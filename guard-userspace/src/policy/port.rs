//! Ports as a policy names them: `tcp/80`, `udp/8000-8010`, `icmp`.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use guard_common::layout::{PortProtocol, port_index, protocol_index};

/// Ports of one transport protocol, or a protocol that has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    Range {
        protocol: PortProtocol,
        /// In 1 to 65535, and not empty.
        ports: RangeInclusive<u16>,
    },
    Protocol {
        name: &'static str,
        number: u8,
    },
}

/// Protocols without ports that a service can list, with their IANA numbers.
const PROTOCOLS: [(&str, u8); 4] = [("icmp", 1), ("gre", 47), ("esp", 50), ("icmpv6", 58)];

impl Ports {
    /// The places in the port table that these ports take.
    pub fn indices(&self) -> RangeInclusive<u32> {
        match self {
            Self::Range { protocol, ports } => {
                port_index(*protocol, *ports.start())..=port_index(*protocol, *ports.end())
            }
            Self::Protocol { number, .. } => {
                let index = protocol_index(*number);
                index..=index
            }
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
            Self::Protocol { name, .. } => formatter.write_str(name),
        }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((name, number)) = PROTOCOLS.into_iter().find(|(name, _)| *name == text) {
            return Ok(Self::Protocol { name, number });
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
                "\"{text}\" is no range of ports: write the smaller one first, {last}-{first}"
            ));
        }
        Ok(Self::Range { protocol, ports })
    }
}

fn unknown(text: &str) -> String {
    format!(
        "{text:?} names no port: write \"tcp/80\", \"udp/443\", \"tcp/8000-8010\", \"icmp\", \
         \"icmpv6\", \"esp\" or \"gre\""
    )
}

fn parse_port(text: &str) -> Result<u16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if port != 0 && is_number => Ok(port),
        _ if is_number => Err(format!(
            "there is no port {text}: ports are numbers from 1 to 65535"
        )),
        _ => Err(format!(
            "{text:?} is no port: ports are numbers from 1 to 65535"
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
        ] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
        assert_eq!("tcp/80-80".parse::<Ports>().unwrap().to_string(), "tcp/80");
    }

    #[test]
    fn what_is_no_port_is_refused_with_what_would_be() {
        for (text, hint) in [
            ("tcp/70000", "1 to 65535"),
            ("tcp/99999999999999999999", "1 to 65535"),
            ("tcp/0", "1 to 65535"),
            ("tcp/-1", "1 to 65535"),
            ("tcp/+1", "1 to 65535"),
            ("tcp/", "1 to 65535"),
            ("tcp/http", "1 to 65535"),
            ("tcp/90-80", "80-90"),
            ("80", "\"tcp/80\""),
            ("", "\"tcp/80\""),
            ("dccp/80", "\"tcp/80\""),
            ("TCP/80", "\"tcp/80\""),
        ] {
            let error = text.parse::<Ports>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
