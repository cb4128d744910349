//! Parses the ports of a service: `8000`, `8000:8000`, `127.0.0.1:8000-8010:80/udp`, and the long form.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use granit_parser::ScalarStyle;
use guard_common::layout::PortProtocol;

use super::{
    fix::Fix,
    source::{ComposeError, Place},
    yaml::{Mapping, Node, Scalar, ScalarType, Value},
};
use crate::address::is_of_network;

pub struct Port {
    pub place: Place,
    pub address: BindAddress,
    pub host: HostPorts,
    pub container: RangeInclusive<u16>,
    pub protocol: PortProtocol,
    /// The fix that publishes it on the loopback address.
    pub fix: Option<Fix>,
    /// The fix that puts it in quotes, if YAML 1.1 parsers read it as a number in base 60.
    pub quoted: Option<Fix>,
    /// Variables in it that have no value.
    pub unset: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BindAddress {
    Every,
    EveryIpv4,
    EveryIpv6,
    One(IpAddr),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPorts {
    /// Docker chooses.
    Random,
    Ports(RangeInclusive<u16>),
}

/// The parsed facts of a port, without its place.
#[derive(Debug, PartialEq, Eq)]
struct Spec {
    address: BindAddress,
    host: HostPorts,
    container: RangeInclusive<u16>,
    protocol: PortProtocol,
}

/// The reason a port is refused, by the step at which Compose or Docker refuses it.
#[derive(Debug, PartialEq, Eq)]
enum PortProblem {
    Compose(String),
    /// Compose refuses it after it has merged all files, or hands the value unchanged to Docker, which refuses it.
    Late(String),
}

impl BindAddress {
    pub fn is_loopback(&self) -> bool {
        matches!(self, Self::One(address) if address.is_loopback())
    }

    /// Whether the address can be reached only from its own network or from the host.
    pub fn is_private(&self) -> bool {
        matches!(self, Self::One(address) if address.is_loopback() || is_of_network(*address))
    }

    /// `None`: no address is written.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Every => None,
            Self::EveryIpv4 => Some(Ipv4Addr::UNSPECIFIED.into()),
            Self::EveryIpv6 => Some(Ipv6Addr::UNSPECIFIED.into()),
            Self::One(address) => Some(*address),
        }
    }

    fn is_ipv6(&self) -> bool {
        match self {
            Self::Every | Self::EveryIpv4 => false,
            Self::EveryIpv6 => true,
            Self::One(address) => address.is_ipv6(),
        }
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => formatter.write_str("every address"),
            Self::EveryIpv4 => formatter.write_str("every IPv4 address"),
            Self::EveryIpv6 => formatter.write_str("every IPv6 address"),
            Self::One(address) if self.is_private() => write!(formatter, "{address}"),
            Self::One(address) => write!(formatter, "{address}, a public address"),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name();
        let inside = format!("{}/{protocol}", Range(&self.container));
        match &self.host {
            HostPorts::Random => write!(formatter, "{inside} of the container"),
            HostPorts::Ports(ports) if *ports == self.container => formatter.write_str(&inside),
            HostPorts::Ports(ports) => {
                write!(
                    formatter,
                    "{}/{protocol}, which is {inside} of the container,",
                    Range(ports)
                )
            }
        }
    }
}

struct Range<'a>(&'a RangeInclusive<u16>);

impl fmt::Display for Range<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(range) = self;
        match (range.start(), range.end()) {
            (first, last) if first == last => write!(formatter, "{first}"),
            (first, last) => write!(formatter, "{first}-{last}"),
        }
    }
}

impl Port {
    /// `None`: the port depends on variables that are not set.
    pub fn read(node: &Node) -> Result<Option<Self>, ComposeError> {
        Self::judge(node, |spec, unset| {
            let Spec {
                address,
                host,
                container,
                protocol,
            } = spec?;
            Ok(Self {
                place: node.place.clone(),
                address,
                host,
                container,
                protocol,
                fix: on_loopback(node, address),
                quoted: quoted(node),
                unset,
            })
        })
    }

    /// Checks a port as Compose does for each file: some values of the long form may be wrong, since a later file can
    /// remove them.
    pub fn check(node: &Node) -> Result<Option<()>, ComposeError> {
        Self::judge(node, |spec, _| match spec {
            Ok(_) | Err(PortProblem::Late(_)) => Ok(()),
            Err(problem) => Err(problem),
        })
    }

    fn judge<T>(
        node: &Node,
        of_spec: impl FnOnce(Result<Spec, PortProblem>, Vec<String>) -> Result<T, PortProblem>,
    ) -> Result<Option<T>, ComposeError> {
        let values = match node.mapping() {
            Some(mapping) => mapping
                .values()
                .filter_map(|entry| entry.node.scalar())
                .collect(),
            None => Vec::from_iter(node.scalar()),
        };
        let references = || values.iter().filter_map(|scalar| scalar.reference.as_ref());
        if references().any(|reference| !reference.required.is_empty()) {
            return Ok(None);
        }
        let unset: Vec<String> = references()
            .flat_map(|reference| reference.unset.clone())
            .collect();
        let is_set = unset.is_empty();
        match of_spec(Spec::read(node), unset) {
            Ok(port) => Ok(Some(port)),
            Err(_) if !is_set => Ok(None),
            Err(PortProblem::Compose(problem) | PortProblem::Late(problem)) => {
                Err(node.place.error(format!("is no port: {problem}")))
            }
        }
    }

    /// The container's port for a port of the host. `None`: it is not published, or Docker chooses one of several.
    pub fn inside(&self, on_host: u16) -> Option<u16> {
        let ports = self.host_ports().filter(|ports| ports.contains(&on_host))?;
        let is_even = ports.len() == self.container.len();
        is_even.then(|| self.container.start() + (on_host - ports.start()))
    }

    /// The ports on the host. `None`: Docker chooses them.
    pub fn host_ports(&self) -> Option<&RangeInclusive<u16>> {
        match &self.host {
            HostPorts::Random => None,
            HostPorts::Ports(ports) => Some(ports),
        }
    }
}

impl std::str::FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.rsplitn(3, ':');
        let mut container = parts.next().unwrap_or_default().split('/');
        let host = parts.next().unwrap_or_default();
        let address = parts.next().unwrap_or_default();
        let inside = container.next().unwrap_or_default();
        if inside.is_empty() {
            return Err(format!("\"{text}\" names no port of the container"));
        }
        let protocol = container.next().unwrap_or_default();
        Self::new(short_address(address)?, host, inside, protocol)
    }
}

impl Spec {
    fn read(node: &Node) -> Result<Self, PortProblem> {
        match (node.scalar(), node.mapping()) {
            (Some(scalar), _) => Self::read_short(scalar).map_err(PortProblem::Compose),
            (None, Some(mapping)) => LongPort::read(mapping)
                .map_err(PortProblem::Compose)?
                .spec()
                .map_err(PortProblem::Late),
            _ => {
                let problem = "write it as \"127.0.0.1:8000:8000\", or with target: and published:";
                Err(PortProblem::Compose(problem.to_owned()))
            }
        }
    }

    fn read_short(scalar: &Scalar) -> Result<Self, String> {
        match scalar.resolve() {
            ScalarType::Integer(number) => number.to_string().parse(),
            ScalarType::Text => scalar.text.parse(),
            ScalarType::Float(_) | ScalarType::Other => Err(no_text(&scalar.text)),
        }
    }

    fn new(
        address: BindAddress,
        host: &str,
        container: &str,
        protocol: &str,
    ) -> Result<Self, String> {
        let container = range(container)?;
        if *container.start() == 0 {
            return Err("a container has no port 0".to_owned());
        }
        let host = match host {
            "" => None,
            host => Some(range(host)?),
        };
        if let Some(ports) = &host
            && ports.len() != container.len()
            && container.len() != 1
        {
            return Err(format!(
                "{} on the host are not as many ports as {} in the container",
                Range(ports),
                Range(&container)
            ));
        }
        let host = match host {
            Some(ports) if ports != (0..=0) => HostPorts::Ports(ports),
            _ => HostPorts::Random,
        };
        Ok(Self {
            address,
            host,
            container,
            protocol: parse_protocol(protocol)?,
        })
    }
}

/// The long form, with its values as texts.
struct LongPort<'a> {
    target: Cow<'a, str>,
    /// Empty: Docker chooses.
    published: Cow<'a, str>,
    protocol: &'a str,
    host_ip: Option<&'a str>,
}

impl<'a> LongPort<'a> {
    fn read(mapping: &'a Mapping) -> Result<Self, String> {
        let keys = mapping.iter();
        let keys = keys.filter(|(key, entry)| !entry.node.is_reset() && !key.starts_with("x-"));
        let (mut target, mut published) = (None, Cow::Borrowed(""));
        let (mut protocol, mut host_ip) = ("", None);
        for (key, entry) in keys {
            let scalar = match &entry.node.value {
                Value::Scalar(scalar) => scalar,
                _ => return Err(format!("{key} takes a text or a number")),
            };
            match key.as_str() {
                "target" => target = Some(target_port(scalar)?),
                "published" => published = published_ports(scalar)?,
                "protocol" => protocol = own_text(key, scalar)?,
                "host_ip" => host_ip = Some(own_text(key, scalar)?),
                "mode" | "name" | "app_protocol" => {
                    own_text(key, scalar)?;
                }
                _ => return Err(format!("a port has no key \"{key}\"")),
            }
        }
        let target = target.ok_or("it has no target:, the port of the container")?;
        Ok(Self {
            target,
            published,
            protocol,
            host_ip,
        })
    }

    fn spec(&self) -> Result<Spec, String> {
        let Self {
            target,
            published,
            protocol,
            host_ip,
        } = self;
        let address = host_ip.map_or(Ok(BindAddress::Every), long_address)?;
        Spec::new(address, published, target, protocol)
    }
}

fn no_text(text: &str) -> String {
    format!("{text} without quotes is not a whole number")
}

fn own_text<'a>(key: &str, scalar: &'a Scalar) -> Result<&'a str, String> {
    match scalar.resolve() {
        ScalarType::Text => Ok(&scalar.text),
        _ => Err(format!("{key} is text: write it in quotes")),
    }
}

/// Compose converts `target` to a number, with or without quotes.
fn target_port(scalar: &Scalar) -> Result<Cow<'_, str>, String> {
    match scalar.resolve() {
        ScalarType::Integer(number) => Ok(number.to_string().into()),
        ScalarType::Float(number) if number.fract() == 0.0 => Ok(number.to_string().into()),
        ScalarType::Text => {
            let number = scalar.text.parse::<i64>();
            let problem = |_| format!("target is one number, not {:?}", scalar.text);
            Ok(number.map_err(problem)?.to_string().into())
        }
        ScalarType::Float(_) | ScalarType::Other => Err(no_text(&scalar.text)),
    }
}

/// Reads `published`. `08080` is a whole float in YAML: Compose refuses it only after it has merged all files.
fn published_ports(scalar: &Scalar) -> Result<Cow<'_, str>, String> {
    match scalar.resolve() {
        ScalarType::Integer(number) => Ok(number.to_string().into()),
        ScalarType::Text => Ok(scalar.text.as_str().into()),
        ScalarType::Float(number) if number.fract() == 0.0 => Ok(format!("{number:.1}").into()),
        ScalarType::Float(_) | ScalarType::Other => Err(no_text(&scalar.text)),
    }
}

/// The address of the short form: IPv6 in brackets, IPv4 without.
fn short_address(text: &str) -> Result<BindAddress, String> {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    match inner {
        None if text.contains(':') => Err(format!(
            "{text:?} is no address of this host: write IPv6 in brackets, such as [::1]"
        )),
        inner => parse_address(inner.unwrap_or(text)),
    }
}

/// The address of `host_ip`, without brackets.
fn long_address(text: &str) -> Result<BindAddress, String> {
    match text {
        "" => Err("host_ip is empty: remove it, or write an address".to_owned()),
        text => parse_address(text),
    }
}

/// Parses an address without brackets. An empty text is every address.
pub fn parse_address(text: &str) -> Result<BindAddress, String> {
    if text.is_empty() {
        return Ok(BindAddress::Every);
    }
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is no address of this host: write one such as 127.0.0.1"))?;
    Ok(match address.to_canonical() {
        IpAddr::V4(address) if address.is_unspecified() => BindAddress::EveryIpv4,
        IpAddr::V6(address) if address.is_unspecified() => BindAddress::EveryIpv6,
        address => BindAddress::One(address),
    })
}

/// Parses a protocol. An empty text is TCP.
fn parse_protocol(text: &str) -> Result<PortProtocol, String> {
    if text.is_empty() {
        return Ok(PortProtocol::Tcp);
    }
    let protocols = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp];
    let mut protocols = protocols.into_iter();
    protocols
        .find(|protocol| text.eq_ignore_ascii_case(protocol.name()))
        .ok_or_else(|| format!("{text:?} is no protocol: write tcp, udp or sctp"))
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse::<u16>().ok().filter(|_| is_number);
        port.ok_or_else(|| format!("{text:?} is not a number from 0 to 65535"))
    };
    let mut ends = text.split('-');
    // Of `8000-8002-8004`, Docker reads only the first two ports.
    let first = ends.next().unwrap_or_default();
    let range = port(first)?..=port(ends.next().unwrap_or(first))?;
    if range.is_empty() {
        return Err(format!(
            "{text:?} is no range: write the smaller number first"
        ));
    }
    Ok(range)
}

fn on_loopback(node: &Node, address: BindAddress) -> Option<Fix> {
    let is_ipv6 = address.is_ipv6();
    let Some(scalar) = node.scalar() else {
        let loopback = if is_ipv6 { "::1" } else { "127.0.0.1" };
        return match node.get("host_ip") {
            Some(address) => Fix::scalar(address, address.scalar()?, loopback),
            None => Fix::first_key(node, "host_ip", loopback),
        };
    };
    let loopback = if is_ipv6 { "[::1]" } else { "127.0.0.1" };
    let written = written(scalar);
    let pieces = pieces(&written);
    if pieces.len() != self::pieces(&scalar.text).len() {
        return None;
    }
    let text = match pieces.as_slice() {
        [.., host, _] if may_hold_address(host) => return None,
        [container] => format!("{loopback}::{container}"),
        [.., host, container] => format!("{loopback}:{host}:{container}"),
        [] => return None,
    };
    Fix::scalar(node, scalar, &text)
}

/// The text before variables were replaced.
fn written(scalar: &Scalar) -> Cow<'_, str> {
    match &scalar.reference {
        Some(reference) => Cow::Borrowed(&reference.written),
        None => scalar.decimal(),
    }
}

/// Splits a text at its colons, except those in braces and brackets.
fn pieces(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|character| {
        match character {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ':' && depth == 0
    })
    .collect()
}

/// Whether a variable's default or alternative has a colon: `${PORT:-127.0.0.1:8000}`. For some values of the variable,
/// an address before it would be a second address.
fn may_hold_address(host: &str) -> bool {
    let operators = [":-", ":+", ":?"];
    let without = |text: String, operator: &&str| text.replace(operator, "");
    let rest = operators.iter().fold(host.to_owned(), without);
    rest.contains(':')
}

/// The fix for a number in base 60 of YAML 1.1: `22:22` is 1342.
fn quoted(node: &Node) -> Option<Fix> {
    let scalar = node.scalar()?;
    if scalar.style != ScalarStyle::Plain || scalar.reference.is_some() {
        return None;
    }
    let (first, rest) = scalar.text.split_once(':')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_digit = |text: &str| {
        is_number(text) && text.len() <= 2 && text.parse::<u8>().is_ok_and(|digit| digit < 60)
    };
    let is_base_60 = is_number(first) && !first.starts_with('0') && rest.split(':').all(is_digit);
    is_base_60.then(|| Fix {
        place: node.place.clone(),
        text: format!("\"{}\"", scalar.text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        text.parse()
            .unwrap_or_else(|problem| panic!("{text}: {problem}"))
    }

    #[test]
    fn ports_are_read_as_docker_does() {
        let every = BindAddress::Every;
        let one = |address: &str| BindAddress::One(address.parse().unwrap());
        let at = |first: u16, last: u16| HostPorts::Ports(first..=last);
        for (text, address, host, container) in [
            ("80", every, HostPorts::Random, 80..=80),
            ("8000-8002", every, HostPorts::Random, 8000..=8002),
            ("8080:80", every, at(8080, 8080), 80..=80),
            (":80", every, HostPorts::Random, 80..=80),
            ("8000-8002:9000-9002", every, at(8000, 8002), 9000..=9002),
            ("8000-8010:80", every, at(8000, 8010), 80..=80),
            (
                "127.0.0.1:8080:80",
                one("127.0.0.1"),
                at(8080, 8080),
                80..=80,
            ),
            (
                "127.0.0.1::80",
                one("127.0.0.1"),
                HostPorts::Random,
                80..=80,
            ),
            (
                "0.0.0.0:8080:80",
                BindAddress::EveryIpv4,
                at(8080, 8080),
                80..=80,
            ),
            (
                "[::]:8080:80",
                BindAddress::EveryIpv6,
                at(8080, 8080),
                80..=80,
            ),
            ("[::1]:8080:80", one("::1"), at(8080, 8080), 80..=80),
            ("[127.0.0.1]:1:80", one("127.0.0.1"), at(1, 1), 80..=80),
            ("[]:1:80", every, at(1, 1), 80..=80),
            ("1-2-3:80-81-9/tcp/udp", every, at(1, 2), 80..=81),
            ("80/", every, HostPorts::Random, 80..=80),
        ] {
            let protocol = PortProtocol::Tcp;
            let expected = Spec {
                address,
                host,
                container,
                protocol,
            };
            assert_eq!(spec(text), expected, "{text}");
        }
        assert_eq!(spec("53:53/UDP").protocol, PortProtocol::Udp);
    }

    #[test]
    fn a_variable_that_may_hold_an_address_is_told() {
        for (host, expected) in [
            ("8000", false),
            ("${PORT}", false),
            ("${PORT:-8000}", false),
            ("${FIRST:?}-${LAST:-8010}", false),
            ("${BOUND:+${BOUND}:}8000", true),
            ("${PORT:-127.0.0.1:8000}", true),
        ] {
            assert_eq!(may_hold_address(host), expected, "{host}");
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            "80a",
            "80:",
            "70000",
            "8000-8001:80-82",
            "9-8",
            "80/icmp",
            "localhost:80:80",
            "a:1:2:3",
            "-1",
            "+80",
            "8000:+80",
            "0x50:80",
            "80 ",
            "::1:8080:80",
            "[::1]:80",
            "[::1]x:80:80",
            "0",
            "/tcp",
            "8080/udp:80",
            "127.0.0.01:80:80",
            "[fe80::1%eth0]:80:80",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}
