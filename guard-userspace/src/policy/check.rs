//! Checks what a policy says: every value means something, and no two contradict each other.

use std::{collections::HashMap, net::IpAddr};

use guard_common::layout::{MAX_ADMITTED, MAX_SERVICES};
use ipnet::IpNet;
use toml::Spanned;

use super::{
    Clock, From, Interface, Per, Policy, Ports, Service, file,
    rate::{Budget, Rate, parse_count},
};

/// What is wrong, and where in the text.
#[derive(Debug)]
pub struct Problem {
    pub text: String,
    pub offset: usize,
}

impl Problem {
    fn at<T>(place: &Spanned<T>, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            offset: place.span().start,
        }
    }

    /// The line in the text, counted from 1.
    pub fn line(&self, text: &str) -> usize {
        line(text, self.offset)
    }
}

fn line(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}

/// Interface names are shorter than the kernel's IFNAMSIZ.
const MAX_INTERFACE_NAME: usize = 15;

const MAX_SERVICE_NAME: usize = 64;

pub fn check(
    file: file::File,
    text: &str,
    sha256: String,
    clock: Clock,
) -> Result<Policy, Problem> {
    let file::File {
        mode,
        interfaces,
        scope,
        docker: file::Docker { socket },
        service,
    } = file;
    let interfaces = interfaces
        .map(|interfaces| check_interfaces(interfaces, text))
        .transpose()?;
    let mut names = Unique::new("a service", text);
    let mut listed = Listed::new(text);
    let mut services = Vec::with_capacity(service.len());
    let mut admitted = 0;
    for raw in service {
        check_service_name(&raw.name)?;
        names.insert(&raw.name)?;
        if services.len() + 1 >= MAX_SERVICES as usize {
            let most = MAX_SERVICES - 1;
            let problem = format!("there are too many services: the most is {most}");
            return Err(Problem::at(&raw.name, problem));
        }
        let place = Spanned::new(raw.name.span(), ());
        let service = check_service(raw, &mut listed, clock)?;
        if let From::Prefixes(prefixes) = &service.from {
            admitted += prefixes.len();
        }
        if admitted > MAX_ADMITTED as usize {
            let problem = format!(
                "all `from` lists together hold more than {MAX_ADMITTED} prefixes, which is the most"
            );
            return Err(Problem::at(&place, problem));
        }
        services.push(service);
    }
    Ok(Policy {
        mode: mode.into(),
        interfaces,
        scope: scope.into(),
        docker_socket: (!socket.is_empty()).then_some(socket),
        services,
        sha256,
    })
}

fn check_interfaces(
    interfaces: Spanned<Vec<Spanned<String>>>,
    text: &str,
) -> Result<Vec<Interface>, Problem> {
    if interfaces.get_ref().is_empty() {
        let problem = "no interface would be guarded: name some, or leave `interfaces` out to guard \
                       those of the default routes";
        return Err(Problem::at(&interfaces, problem));
    }
    let mut names = Unique::new("an interface", text);
    let mut checked = Vec::new();
    for name in interfaces.into_inner() {
        let valid = matches!(name.get_ref().len(), 1..=MAX_INTERFACE_NAME)
            && !name
                .get_ref()
                .contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if !valid {
            let problem = format!(
                "{:?} cannot be the name of an interface: write one such as \"eth0\", as `ip link` \
                 shows it",
                name.get_ref()
            );
            return Err(Problem::at(&name, problem));
        }
        names.insert(&name)?;
        checked.push(Interface {
            line: line(text, name.span().start),
            name: name.into_inner(),
        });
    }
    Ok(checked)
}

fn check_service_name(name: &Spanned<String>) -> Result<(), Problem> {
    let valid = matches!(name.get_ref().len(), 1..=MAX_SERVICE_NAME)
        && name
            .get_ref()
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if valid {
        return Ok(());
    }
    let problem = format!(
        "{:?} cannot be the name of a service: use 1 to {MAX_SERVICE_NAME} letters, digits, '-', '_' \
         and '.'",
        name.get_ref()
    );
    Err(Problem::at(name, problem))
}

fn check_service(
    service: file::Service,
    listed: &mut Listed<'_>,
    clock: Clock,
) -> Result<Service, Problem> {
    let file::Service {
        name,
        ports,
        from,
        mode,
        limit: file::Limit { packets, per },
    } = service;
    if ports.get_ref().is_empty() {
        let problem = "a service without ports opens nothing: name some, such as [\"tcp/80\"]";
        return Err(Problem::at(&ports, problem));
    }
    let ports = ports
        .into_inner()
        .into_iter()
        .map(|port| {
            let ports = port
                .get_ref()
                .parse()
                .map_err(|problem: String| Problem::at(&port, problem))?;
            listed.insert(&ports, &name, &port)?;
            Ok(ports)
        })
        .collect::<Result<Vec<Ports>, Problem>>()?;
    Ok(Service {
        ports,
        from: from.map_or(Ok(From::Any), check_from)?,
        mode: mode.unwrap_or(file::RawMode::Enforce).into(),
        per: check_per(per)?,
        packets: packets
            .map(|packets| check_budget(&packets, clock))
            .transpose()?,
        name: name.into_inner(),
    })
}

fn check_from(from: Spanned<Vec<Spanned<String>>>) -> Result<From, Problem> {
    if from.get_ref().is_empty() {
        let problem = "nobody could reach this service: write [\"any\"] or CIDRs, or leave the \
                       service out to close its ports";
        return Err(Problem::at(&from, problem));
    }
    let mut any = false;
    let mut prefixes = Vec::new();
    for entry in from.into_inner() {
        if entry.get_ref() == "any" {
            any = true;
        } else {
            let prefix = parse_prefix(entry.get_ref());
            prefixes.push(prefix.map_err(|problem| Problem::at(&entry, problem))?);
        }
    }
    Ok(if any {
        From::Any
    } else {
        From::Prefixes(prefixes)
    })
}

/// Parses a CIDR, or an address as the CIDR of itself alone.
fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let prefix = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| {
            format!(
                "\"{text}\" is neither \"any\" nor a CIDR: write one such as \"198.51.100.0/24\" or \
                 \"2001:db8::/32\""
            )
        })?;
    if prefix.trunc() != prefix {
        return Err(format!(
            "\"{text}\" has bits set behind its prefix: write \"{}\" for the network, or \"{}\" for \
             the one address",
            prefix.trunc(),
            prefix.addr()
        ));
    }
    if let IpNet::V6(v6) = prefix
        && let Some(v4) = v6.network().to_ipv4_mapped()
        && v6.prefix_len() >= 96
    {
        return Err(format!(
            "\"{text}\" is an IPv4 prefix in IPv6 clothes and no packet carries it: write \"{v4}/{}\"",
            v6.prefix_len() - 96
        ));
    }
    Ok(prefix)
}

fn check_per(per: file::Per) -> Result<Per, Problem> {
    let length = |length: Option<Spanned<i64>>, longest: u8, default: u8| match length {
        None => Ok(default),
        Some(length) => match u8::try_from(*length.get_ref()) {
            Ok(bits) if (1..=longest).contains(&bits) => Ok(bits),
            _ => {
                let problem = format!(
                    "{} is no prefix length: write a number of bits from 1 to {longest}",
                    length.get_ref()
                );
                Err(Problem::at(&length, problem))
            }
        },
    };
    let default = Per::default();
    Ok(Per {
        ipv4: length(per.ipv4, 32, default.ipv4)?,
        ipv6: length(per.ipv6, 128, default.ipv6)?,
    })
}

fn check_budget(budget: &Spanned<file::Budget>, clock: Clock) -> Result<Budget, Problem> {
    let file::Budget { rate, burst } = budget.get_ref();
    let burst = match burst {
        None => Ok(None),
        Some(file::Count::Number(number)) => u64::try_from(*number)
            .map(Some)
            .map_err(|_| format!("{number} is no burst: write a count such as 200 or \"4k\"")),
        Some(file::Count::Text(text)) => parse_count(text)
            .map(Some)
            .ok_or_else(|| format!("\"{text}\" is no burst: write a count such as 200 or \"4k\"")),
    };
    Rate::parse(rate)
        .and_then(|rate| Budget::new(rate, burst?, clock.tick_ns))
        .map_err(|problem| Problem::at(budget, problem))
}

/// Names that may stand only once.
struct Unique<'a> {
    what: &'static str,
    text: &'a str,
    seen: HashMap<String, usize>,
}

impl<'a> Unique<'a> {
    fn new(what: &'static str, text: &'a str) -> Self {
        Self {
            what,
            text,
            seen: HashMap::new(),
        }
    }

    fn insert(&mut self, name: &Spanned<String>) -> Result<(), Problem> {
        let offset = name.span().start;
        match self.seen.insert(name.get_ref().clone(), offset) {
            None => Ok(()),
            Some(first) => {
                let problem = format!(
                    "{} named \"{}\" is already in line {}: names stand once",
                    self.what,
                    name.get_ref(),
                    line(self.text, first)
                );
                Err(Problem::at(name, problem))
            }
        }
    }
}

/// Which service lists which place of the port table.
struct Listed<'a> {
    text: &'a str,
    services: HashMap<u32, (String, usize)>,
}

impl<'a> Listed<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            services: HashMap::new(),
        }
    }

    fn insert(
        &mut self,
        ports: &Ports,
        service: &Spanned<String>,
        place: &Spanned<String>,
    ) -> Result<(), Problem> {
        let offset = place.span().start;
        for index in ports.indices() {
            let owner = (service.get_ref().clone(), offset);
            if let Some((other, first)) = self.services.insert(index, owner) {
                let problem = format!(
                    "{ports} is already listed by service \"{other}\" in line {}: a port belongs to \
                     one service",
                    line(self.text, first)
                );
                return Err(Problem::at(place, problem));
            }
        }
        Ok(())
    }
}
