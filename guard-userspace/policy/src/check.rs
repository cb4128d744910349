//! Checks the values of a policy: each must be valid, and no two may contradict each other.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use guard_common::layout::{
    DEFAULT_CELLS, MAX_ADMITTED, MAX_DENIED, MAX_ENDED, MAX_EXEMPTIONS, MAX_NAME, MAX_SERVICES,
};
use guard_text::{Lines, any_of, nearest};
use ipnet::IpNet;
use jiff::{Timestamp, fmt::temporal::Pieces};
use toml::{Spanned, value::Datetime};

use super::{
    Admitted, Budgets, FloodProtection, From, Interface, KernelTick, Limit, Per, Policy, Ports,
    Service, Source, Treatment, file,
    place::{PortOwners, Problem, Unique},
    prefix::supernets,
    rate::{Budget, Period, Rate, Unit, parse_burst},
};

/// Interface names are shorter than the kernel's IFNAMSIZ.
const MAX_INTERFACE_NAME: usize = 15;

/// `docker.socket`, if the policy does not set it.
pub const DEFAULT_DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// From 4 MiB to 2 GiB of memory, at 32 bytes for each cell.
const MIN_CELLS: i64 = 1 << 17;
const MAX_CELLS: i64 = 1 << 26;

/// A higher factor would amount to no limit.
const MAX_FACTOR: i64 = 1_000_000;

pub fn check(
    file: file::File,
    lines: &Lines,
    sha256: String,
    clock: KernelTick,
) -> Result<Policy, Problem> {
    let file::File {
        mode,
        interfaces,
        scope,
        docker,
        web,
        cells,
        on_exit,
        limits,
        service,
        source,
    } = file;
    let interfaces = interfaces
        .map(|interfaces| check_interfaces(interfaces, lines))
        .transpose()?;
    let file::DockerToml { socket, labels } = docker;
    let sources = check_sources(source, lines)?;
    let services = check_services(service, &sources, lines, clock)?;
    let file::LimitsToml {
        packets,
        bytes,
        connections,
        per,
        total: limits_total,
    } = limits;
    let limits = file::LimitToml {
        packets,
        bytes,
        connections,
        per,
    };
    Ok(Policy {
        mode: mode.into(),
        interfaces,
        scope: scope.into(),
        docker_socket: check_socket(socket)?,
        docker_labels: labels.into(),
        web: web.listen.map(check_listen).transpose()?.flatten(),
        cells: cells.map_or(Ok(DEFAULT_CELLS), check_cells)?,
        limits: check_limit(&limits, clock)?,
        limits_total: check_total(&limits_total, clock)?,
        services,
        sources,
        on_exit: on_exit.into(),
        sha256,
    })
}

/// Returns the path of Docker's socket; `None`: no Docker.
fn check_socket(socket: Option<Spanned<String>>) -> Result<Option<String>, Problem> {
    let Some(socket) = socket else {
        return Ok(Some(DEFAULT_DOCKER_SOCKET.to_owned()));
    };
    let path = socket.get_ref();
    if path.is_empty() {
        return Ok(None);
    }
    if !path.starts_with('/') {
        let problem = match path.strip_prefix("unix://") {
            Some(right) if right.starts_with('/') => {
                format!("docker.socket = {path:?} is a URL: write the path alone, {right:?}")
            }
            _ => format!(
                "docker.socket = {path:?} is not an absolute path: write one such as \
                 \"{DEFAULT_DOCKER_SOCKET}\", or \"\" for no Docker"
            ),
        };
        return Err(Problem::at(&socket, problem));
    }
    Ok(Some(socket.into_inner()))
}

/// `None`: metrics and the page are not served.
fn check_listen(listen: Spanned<String>) -> Result<Option<SocketAddr>, Problem> {
    let text = listen.get_ref();
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(Some(address)),
        _ => {
            let right = meant_listen(text).unwrap_or_else(|| "127.0.0.1:9469".to_owned());
            let problem = format!(
                "web.listen = {text:?} is not an address and port: write one such as {right:?}, or leave the key \
                 out to serve no page"
            );
            Err(Problem::at(&listen, problem))
        }
    }
}

/// What was probably meant by `9469`, `:9469`, `localhost:9469`, `http://127.0.0.1:9469/` or an address alone.
fn meant_listen(text: &str) -> Option<String> {
    let (_, text) = text.split_once("://").unwrap_or(("", text));
    let text = text.trim_end_matches('/');
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, 9469).to_string());
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = match host {
        "" | "localhost" => "127.0.0.1",
        "*" => "0.0.0.0",
        host => host,
    };
    let right = format!("{host}:{port}");
    right.parse::<SocketAddr>().ok().map(|_| right)
}

fn check_cells(cells: Spanned<i64>) -> Result<u32, Problem> {
    let number = *cells.get_ref();
    if let Ok(valid) = u32::try_from(number)
        && (MIN_CELLS..=MAX_CELLS).contains(&number)
        && valid.is_power_of_two()
    {
        return Ok(valid);
    }
    let nearest = u64::try_from(number.clamp(MIN_CELLS, MAX_CELLS)).unwrap_or_default();
    let problem = format!(
        "cells = {number} is not valid: write a power of two from {MIN_CELLS} to {MAX_CELLS}, such \
         as {}",
        nearest.next_power_of_two()
    );
    Err(Problem::at(&cells, problem))
}

fn check_services(
    raw: Vec<file::ServiceToml>,
    sources: &[Source],
    lines: &Lines,
    clock: KernelTick,
) -> Result<Vec<Service>, Problem> {
    let mut names = Unique::new("a service", lines);
    let mut listed = PortOwners::new(lines);
    let sources: HashMap<&str, &Source> = sources
        .iter()
        .map(|source| (source.name.as_str(), source))
        .collect();
    let mut services = Vec::with_capacity(raw.len());
    let mut admitted = 0;
    for raw in raw {
        check_name(&raw.name)?;
        names.insert(&raw.name)?;
        if services.len() + 1 >= MAX_SERVICES as usize {
            let most = MAX_SERVICES - 1;
            let problem = format!("a policy can have at most {most} services");
            return Err(Problem::at(&raw.name, problem));
        }
        let place = Spanned::new(raw.name.span(), ());
        let service = check_service(raw, &mut listed, &sources, lines, clock)?;
        if let From::Admitted(prefixes) = &service.from {
            admitted += prefixes.len();
        }
        if admitted > MAX_ADMITTED as usize {
            let problem = format!(
                "all `from` lists together can have at most {MAX_ADMITTED} prefixes: this service exceeds that"
            );
            return Err(Problem::at(&place, problem));
        }
        services.push(service);
    }
    Ok(services)
}

fn check_sources(raw: Vec<file::SourceToml>, lines: &Lines) -> Result<Vec<Source>, Problem> {
    let mut names = Unique::new("a source", lines);
    let mut treated = HashMap::new();
    let (mut named, mut exempted, mut denied) = (0, 0, 0);
    let mut sources = Vec::with_capacity(raw.len());
    for raw in raw {
        check_name(&raw.name)?;
        if parse_prefix(raw.name.get_ref()).is_ok() || raw.name.get_ref() == "any" {
            let problem = format!(
                "a source cannot be named \"{}\": in `from`, \"any\" and CIDRs are not names; write another name",
                raw.name.get_ref()
            );
            return Err(Problem::at(&raw.name, problem));
        }
        names.insert(&raw.name)?;
        let place = Spanned::new(raw.name.span(), ());
        let source = check_source(raw, &mut treated, lines)?;
        let (used, most, keys) = match source.treatment {
            Treatment::Named => (&mut named, u32::MAX, "none of these keys"),
            Treatment::Factor(_) | Treatment::Exempt => {
                (&mut exempted, MAX_EXEMPTIONS, "`factor` or `exempt`")
            }
            Treatment::Denied => (&mut denied, MAX_DENIED, "`deny`"),
        };
        *used += source.cidrs.len();
        if *used > most as usize {
            let problem = format!(
                "sources with {keys} can have at most {most} prefixes together: this source exceeds that"
            );
            return Err(Problem::at(&place, problem));
        }
        sources.push(source);
    }
    check_nesting(&treated)?;
    Ok(sources)
}

/// A prefix of a source with `factor` or `exempt`.
struct Treated {
    source: String,
    /// The position in the policy's text, in bytes.
    offset: usize,
    ends: bool,
}

/// Refuses exemptions that the packet path might not find: it skips at most [`MAX_ENDED`] entries that have ended
/// before a wider one that holds.
fn check_nesting(treated: &HashMap<IpNet, Treated>) -> Result<(), Problem> {
    let most = MAX_ENDED as usize;
    let is_too_deep = |prefix: &IpNet, entry: &Treated| {
        let mut wider = supernets(*prefix).filter_map(|wider| treated.get(&wider));
        // With the entry itself, one more that ends than the packet path skips, and a wider one after them.
        entry.ends
            && wider.by_ref().take(most).filter(|wider| wider.ends).count() == most
            && wider.next().is_some()
    };
    let deep = treated
        .iter()
        .filter(|(prefix, entry)| is_too_deep(prefix, entry));
    let Some((prefix, entry)) = deep.min_by_key(|(_, entry)| entry.offset) else {
        return Ok(());
    };
    Err(Problem {
        text: format!(
            "{prefix} lies in more than {most} other prefixes with `factor` or `exempt`, and it and the \
             next {most} all have `expires`: once all of these have ended, the wider ones would not be \
             found; remove the sources that have ended"
        ),
        offset: entry.offset,
    })
}

/// `treated` holds the prefixes of all sources with `factor` or `exempt`.
fn check_source(
    source: file::SourceToml,
    treated: &mut HashMap<IpNet, Treated>,
    lines: &Lines,
) -> Result<Source, Problem> {
    let file::SourceToml {
        name,
        cidrs,
        factor,
        exempt,
        deny,
        owner,
        reason,
        expires,
    } = source;
    let treatment = match (&factor, exempt, deny) {
        (None, false, false) => Treatment::Named,
        (Some(factor), false, false) => Treatment::Factor(check_factor(factor)?),
        (None, true, false) => Treatment::Exempt,
        (None, false, true) => Treatment::Denied,
        _ => {
            let problem = format!(
                "source \"{}\" has more than one of `factor`, `exempt` and `deny`: write one of them",
                name.get_ref()
            );
            return Err(Problem::at(&name, problem));
        }
    };
    if cidrs.get_ref().is_empty() {
        let problem = "`cidrs` is empty: write prefixes, such as [\"198.51.100.0/24\"]";
        return Err(Problem::at(&cidrs, problem));
    }
    let expires = expires.map(|expires| check_expiry(&expires)).transpose()?;
    let mut prefixes = Vec::with_capacity(cidrs.get_ref().len());
    for cidr in cidrs.into_inner() {
        let prefix = parse_prefix(cidr.get_ref()).map_err(|problem| Problem::at(&cidr, problem))?;
        if matches!(treatment, Treatment::Factor(_) | Treatment::Exempt) {
            let entry = Treated {
                source: name.get_ref().clone(),
                offset: cidr.span().start,
                ends: expires.is_some(),
            };
            if let Some(other) = treated.insert(prefix, entry) {
                let problem = format!(
                    "{prefix} already has `factor` or `exempt` by source \"{}\" in line {}: a prefix can have \
                     only one",
                    other.source,
                    lines.line(other.offset)
                );
                return Err(Problem::at(&cidr, problem));
            }
        }
        prefixes.push(prefix);
    }
    Ok(Source {
        line: lines.line(name.span().start),
        name: name.into_inner(),
        cidrs: prefixes,
        treatment,
        owner,
        reason,
        expires,
    })
}

fn check_factor(factor: &Spanned<i64>) -> Result<u32, Problem> {
    let number = *factor.get_ref();
    match u32::try_from(number) {
        Ok(valid) if (1..=MAX_FACTOR).contains(&number) => Ok(valid),
        _ => {
            let problem = format!(
                "factor = {number} is not valid: write how many times the usual budgets the source gets, from \
                 1 to {MAX_FACTOR}"
            );
            Err(Problem::at(factor, problem))
        }
    }
}

fn check_expiry(expires: &Spanned<Datetime>) -> Result<Timestamp, Problem> {
    let written = expires.get_ref().to_string();
    parse_moment(&written).ok_or_else(|| {
        // A date alone, and a date and time without an offset.
        let complete = [format!("{written}T00:00:00Z"), format!("{written}Z")];
        let mut complete = complete.iter().map(|text| text.replace(' ', "T"));
        let right = complete.find(|text| parse_moment(text).is_some());
        let problem = format!(
            "expires = {written} is not complete: write date, time and offset, such as {}",
            right.as_deref().unwrap_or("2027-01-31T00:00:00Z")
        );
        Problem::at(expires, problem)
    })
}

/// Parses a date with its time and offset. A moment in the last hours of the year 9999 may be later than any
/// [`Timestamp`]: it becomes [`Timestamp::MAX`].
pub(super) fn parse_moment(text: &str) -> Option<Timestamp> {
    let pieces = Pieces::parse(text).ok()?;
    let (time, offset) = (pieces.time()?, pieces.to_numeric_offset()?);
    let moment = offset.to_timestamp(pieces.date().to_datetime(time));
    Some(moment.unwrap_or(Timestamp::MAX))
}

fn check_interfaces(
    interfaces: Spanned<Vec<Spanned<String>>>,
    lines: &Lines,
) -> Result<Vec<Interface>, Problem> {
    if interfaces.get_ref().is_empty() {
        let problem = "`interfaces` names no interface: name one or more, or leave the key out to guard \
                       those of the default routes";
        return Err(Problem::at(&interfaces, problem));
    }
    let mut names = Unique::new("an interface", lines);
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
            line: lines.line(name.span().start),
            name: name.into_inner(),
        });
    }
    Ok(checked)
}

fn check_name(name: &Spanned<String>) -> Result<(), Problem> {
    let valid = matches!(name.get_ref().len(), 1..=MAX_NAME)
        && name
            .get_ref()
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if valid {
        return Ok(());
    }
    let problem = format!(
        "{:?} cannot be a name: use 1 to {MAX_NAME} letters, digits, '-', '_' and '.'",
        name.get_ref()
    );
    // The letters that are allowed, with hyphens between the words.
    let plain = name.get_ref().to_ascii_lowercase();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let words = plain.split(|c| !allowed(c)).filter(|word| !word.is_empty());
    let right = words.collect::<Vec<&str>>().join("-");
    let problem = match right.len() {
        1..=MAX_NAME => format!("{problem}, such as {right:?}"),
        _ => problem,
    };
    Err(Problem::at(name, problem))
}

fn check_service(
    service: file::ServiceToml,
    listed: &mut PortOwners<'_>,
    sources: &HashMap<&str, &Source>,
    lines: &Lines,
    clock: KernelTick,
) -> Result<Service, Problem> {
    let file::ServiceToml {
        name,
        ports,
        address,
        from,
        mode,
        limit,
        total:
            file::Total {
                packets,
                bytes,
                connections,
            },
        flood,
    } = service;
    if ports.get_ref().is_empty() {
        let problem = "`ports` is empty: write ports, such as [\"tcp/80\"]";
        return Err(Problem::at(&ports, problem));
    }
    let address = address.map(|address| check_address(&address)).transpose()?;
    let place = from.as_ref().map(|from| Spanned::new(from.span(), ()));
    let from = from.map_or(Ok(From::Any), |from| check_from(from, sources))?;
    if let (Some(address), Some(place), From::Admitted(admitted)) = (address, place, &from)
        && let Some(entry) = admitted.first()
        && admitted
            .iter()
            .all(|entry| entry.prefix.addr().is_ipv4() != address.is_ipv4())
    {
        let problem = format!(
            "`from` has no {} prefix, and `address` is {address}: write prefixes of that version of IP, or \
             an address of the version of {}",
            ip_version(address),
            entry.prefix
        );
        return Err(Problem::at(&place, problem));
    }
    let owner = listed.add_owner(&name);
    let ports = ports
        .into_inner()
        .into_iter()
        .map(|port| {
            let ports: Ports = port
                .get_ref()
                .parse()
                .map_err(|problem: String| Problem::at(&port, problem))?;
            if let Some(address) = address
                && let Some(right) = ports.counterpart(address.is_ipv4())
            {
                let problem = format!(
                    "{ports} is not a protocol of {}, and `address` is {address}: write \"{right}\"",
                    ip_version(address)
                );
                return Err(Problem::at(&port, problem));
            }
            listed.insert(&ports, address, owner, &port)?;
            Ok(ports)
        })
        .collect::<Result<Vec<Ports>, Problem>>()?;
    let total = check_budgets(&packets, &bytes, &connections, clock)?;
    Ok(Service {
        line: lines.line(name.span().start),
        ports,
        address,
        from,
        mode: mode.unwrap_or(file::RawMode::Enforce).into(),
        limit: check_limit(&limit, clock)?,
        flood: check_flood(&flood, total.connections, clock)?,
        total,
        name: name.into_inner(),
        made: None,
    })
}

fn ip_version(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn check_address(address: &Spanned<String>) -> Result<IpAddr, Problem> {
    let parsed = address.get_ref().parse::<IpAddr>();
    match parsed {
        Ok(parsed) if !parsed.is_unspecified() && parsed == parsed.to_canonical() => Ok(parsed),
        _ => {
            let text = address.get_ref();
            let single = text.parse::<SocketAddr>().map(|socket| socket.ip());
            let single = single
                .ok()
                .or_else(|| Some(text.parse::<IpNet>().ok()?.addr()));
            let right = single.filter(|single| !single.is_unspecified());
            let right = right.map_or_else(
                || "203.0.113.5".to_owned(),
                |single| single.to_canonical().to_string(),
            );
            let problem = format!(
                "address = {text:?} cannot be an address of this host: write one such as {right:?}, or leave \
                 `address` out for all of them"
            );
            Err(Problem::at(address, problem))
        }
    }
}

pub(super) fn check_limit(limit: &file::LimitToml, clock: KernelTick) -> Result<Limit, Problem> {
    let file::LimitToml {
        packets,
        bytes,
        connections,
        per,
    } = limit;
    Ok(Limit {
        budgets: check_budgets(packets, bytes, connections, clock)?,
        per: check_per(per)?,
    })
}

fn check_total(total: &file::Total, clock: KernelTick) -> Result<Budgets, Problem> {
    let file::Total {
        packets,
        bytes,
        connections,
    } = total;
    check_budgets(packets, bytes, connections, clock)
}

fn check_budgets(
    packets: &Option<Spanned<file::BudgetToml>>,
    bytes: &Option<Spanned<file::BudgetToml>>,
    connections: &Option<Spanned<file::BudgetToml>>,
    clock: KernelTick,
) -> Result<Budgets, Problem> {
    let check = |budget: &Option<Spanned<file::BudgetToml>>, unit| {
        let budget = budget.as_ref();
        budget
            .map(|budget| check_budget(budget, unit, clock))
            .transpose()
    };
    Ok(Budgets {
        packets: check(packets, Unit::Packets)?,
        bytes: check(bytes, Unit::Bytes)?,
        connections: check(connections, Unit::Connections)?,
    })
}

/// `total`: the budget of connections of all sources together, which `attempts` defaults to.
fn check_flood(
    flood: &file::FloodToml,
    total: Option<Budget>,
    clock: KernelTick,
) -> Result<Option<FloodProtection>, Problem> {
    let file::FloodToml {
        protect,
        attempts,
        lane,
        replies,
        level2,
    } = flood;
    let check = |budget: &Option<Spanned<file::BudgetToml>>, unit, default: Rate| match budget {
        Some(budget) => check_budget(budget, unit, clock),
        None => Ok(Budget::by_default(default, unit)),
    };
    let attempts = match (attempts, total) {
        (None, Some(total)) => total,
        _ => check(attempts, Unit::Connections, DEFAULT_ATTEMPTS)?,
    };
    let lane = check(lane, Unit::Connections, DEFAULT_LANE)?;
    let replies = check(replies, Unit::Packets, DEFAULT_REPLIES)?;
    let level2 = level2.as_ref().map_or(Ok(DEFAULT_LEVEL2), check_level2)?;
    Ok(match protect.unwrap_or_default() {
        file::RawProtection::Off => None,
        file::RawProtection::Auto => Some(FloodProtection {
            attempts,
            lane,
            replies,
            level2,
        }),
    })
}

/// The defaults of a service's protection from floods.
const DEFAULT_ATTEMPTS: Rate = per_second(1_000);
const DEFAULT_LANE: Rate = per_second(500);
const DEFAULT_REPLIES: Rate = per_second(200_000);
const DEFAULT_LEVEL2: u32 = 16;

const fn per_second(count: u64) -> Rate {
    Rate {
        count,
        period: Period::Second,
    }
}

fn check_level2(level2: &Spanned<i64>) -> Result<u32, Problem> {
    let number = u32::try_from(*level2.get_ref()).ok();
    let valid = number.filter(|number| *number == 0 || number.is_power_of_two());
    valid.ok_or_else(|| {
        let problem = format!(
            "level2 = {} is not valid: write a power of two such as 16, or 0 for never",
            level2.get_ref()
        );
        Problem::at(level2, problem)
    })
}

fn check_from(
    from: Spanned<Vec<Spanned<String>>>,
    sources: &HashMap<&str, &Source>,
) -> Result<From, Problem> {
    if from.get_ref().is_empty() {
        let problem = "`from` is empty, so no source could reach this service: write [\"any\"] or CIDRs, \
                       or leave the service out to close its ports";
        return Err(Problem::at(&from, problem));
    }
    let mut any = false;
    let mut admitted = Vec::new();
    for entry in from.into_inner() {
        let text = entry.get_ref();
        if text == "any" {
            any = true;
        } else if let Some(source) = sources.get(text.as_str()) {
            if source.treatment == Treatment::Denied {
                let problem = format!(
                    "source \"{text}\" in line {} has `deny`, so it reaches no service: take it out of `from`",
                    source.line
                );
                return Err(Problem::at(&entry, problem));
            }
            let expires = source.expires;
            let cidrs = source.cidrs.iter();
            admitted.extend(cidrs.map(|prefix| Admitted {
                prefix: *prefix,
                expires,
            }));
        } else {
            let prefix = parse_from(text, || sources.keys().copied());
            admitted.push(Admitted {
                prefix: prefix.map_err(|problem| Problem::at(&entry, problem))?,
                expires: None,
            });
        }
    }
    Ok(if any {
        From::Any
    } else {
        From::Admitted(admitted)
    })
}

/// Parses a CIDR of a `from` list, which may also have the names of these sources.
pub(super) fn parse_from<'a, Names: Iterator<Item = &'a str>>(
    text: &str,
    names: impl FnOnce() -> Names,
) -> Result<IpNet, String> {
    let problem = match parse_prefix(text) {
        Ok(prefix) => return Ok(prefix),
        // It is meant as a prefix.
        Err(problem) if text.contains(['.', ':', '/']) => problem,
        Err(_) => {
            let known: Vec<&str> = names().collect();
            let meant = match text.to_lowercase().as_str() {
                "*" | "all" | "world" | "anyone" | "everyone" | "anywhere" | "internet" => {
                    Some("any")
                }
                text => nearest(text, known.iter().copied()).or_else(|| nearest(text, ["any"])),
            };
            let end = match meant {
                Some(meant) => format!("did you mean {meant:?}?"),
                None if known.is_empty() => {
                    "write \"any\" or a CIDR such as \"198.51.100.0/24\", or add a [[source]] with this name"
                        .to_owned()
                }
                None => format!(
                    "write \"any\", a CIDR such as \"198.51.100.0/24\", or the name of a [[source]], {}",
                    any_of(&known)
                ),
            };
            format!("{text:?} is neither a CIDR nor the name of a source: {end}")
        }
    };
    Err(problem)
}

/// Parses a CIDR, or an address as the CIDR of that single address.
pub fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let prefix = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| no_prefix(text))?;
    if prefix.trunc() != prefix {
        return Err(format!(
            "{text:?} has bits set after its prefix length: write \"{}\" for the network, or \"{}\" for \
             the single address",
            prefix.trunc(),
            prefix.addr()
        ));
    }
    if let IpNet::V6(v6) = prefix
        && let Some(v4) = v6.network().to_ipv4_mapped()
        && v6.prefix_len() >= 96
    {
        return Err(format!(
            "\"{text}\" is an IPv4-mapped IPv6 prefix, whose packets are always dropped: write \"{v4}/{}\"",
            v6.prefix_len() - 96
        ));
    }
    Ok(prefix)
}

fn no_prefix(text: &str) -> String {
    let what = format!("{text:?} is not an address or a CIDR");
    let words: Vec<&str> = text
        .split([',', ' '])
        .filter(|word| !word.is_empty())
        .collect();
    if words.len() > 1 && words.iter().all(|word| parse_prefix(word).is_ok()) {
        let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
        return format!(
            "{what}: write each in its own quotes, {}",
            quoted.join(", ")
        );
    }
    // `10.0.0.0/255.0.0.0`.
    let netmask = text.split_once('/').and_then(|(address, mask)| {
        IpNet::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok()
    });
    if let Some(prefix) = netmask {
        return format!(
            "{what}: write the length of the prefix instead of a netmask, \"{prefix}\""
        );
    }
    if let Some((address, length)) = text.split_once('/')
        && let Ok(address) = address.parse::<IpAddr>()
    {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        return format!("{what}: {length:?} is not a prefix length, write one from 0 to {longest}");
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return format!("{what}: a source has no port, write \"{}\"", socket.ip());
    }
    // `198.51.100.1-198.51.100.9`.
    let range = text.split_once('-').is_some_and(|(first, last)| {
        let is_address = |text: &str| text.trim().parse::<IpAddr>().is_ok();
        is_address(first) && is_address(last)
    });
    if range {
        return format!("{what}: write a range as one or more CIDRs, such as \"198.51.100.0/24\"");
    }
    // A name has letters that no address has; `fe80::1` has colons.
    let is_name = |c: char| matches!(c, 'g'..='z' | 'G'..='Z');
    if text.contains('.') && text.contains(is_name) && !text.contains([':', '/', ' ']) {
        return format!("{what}: names are not looked up, write the address of {text}");
    }
    format!("{what}: write one such as \"198.51.100.7\", \"198.51.100.0/24\" or \"2001:db8::/32\"")
}

fn check_per(per: &file::PerToml) -> Result<Per, Problem> {
    let length = |length: &Option<Spanned<i64>>, longest: u8, default: u8| match length {
        None => Ok(default),
        Some(length) => match u8::try_from(*length.get_ref()) {
            Ok(bits) if (1..=longest).contains(&bits) => Ok(bits),
            _ => {
                let problem = format!(
                    "{} is not a prefix length: write a number of bits from 1 to {longest}",
                    length.get_ref()
                );
                Err(Problem::at(length, problem))
            }
        },
    };
    let default = Per::default();
    Ok(Per {
        ipv4: length(&per.ipv4, 32, default.ipv4)?,
        ipv6: length(&per.ipv6, 128, default.ipv6)?,
    })
}

fn check_budget(
    budget: &Spanned<file::BudgetToml>,
    unit: Unit,
    clock: KernelTick,
) -> Result<Budget, Problem> {
    let file::BudgetToml { rate, burst } = budget.get_ref();
    let example = match unit {
        Unit::Packets | Unit::Connections => "200 or \"4k\"",
        Unit::Bytes => "\"40MB\"",
    };
    let burst =
        match burst {
            None => Ok(None),
            Some(file::Count::Number(number)) => u64::try_from(*number).map(Some).map_err(|_| {
                format!("burst = {number} is not valid: write a count such as {example}")
            }),
            Some(file::Count::Text(text)) => parse_burst(text, unit).map(Some).map_err(|right| {
                match right {
                    Some(right) => format!(
                        "burst = {text:?} uses bits or binary multiples: write {right:?}, in bytes"
                    ),
                    None => {
                        format!("burst = {text:?} is not valid: write a count such as {example}")
                    }
                }
            }),
        };
    Rate::parse(rate, unit)
        .map_err(|problem| meant_rate(rate, unit).unwrap_or(problem))
        .and_then(|rate| Budget::new(rate, burst?, unit, clock.tick_ns))
        .map_err(|problem| Problem::at(budget, problem))
}

/// The error for a rate to which only the period is missing, or the B of bytes.
fn meant_rate(rate: &str, unit: Unit) -> Option<String> {
    let number = rate.split('/').next().unwrap_or(rate).trim();
    let period = rate
        .split_once('/')
        .map_or("s", |(_, period)| period.trim());
    // `100rps`, `100pps`.
    let number = ["pps", "rps", "cps", "qps"]
        .iter()
        .find_map(|end| number.strip_suffix(end))
        .unwrap_or(number);
    let with_unit = match unit {
        Unit::Packets | Unit::Connections => number.to_owned(),
        Unit::Bytes => format!("{number}B"),
    };
    let rates = [
        format!("{number}/{period}"),
        format!("{with_unit}/{period}"),
    ];
    let right = rates
        .iter()
        .find(|right| Rate::parse(right, unit).is_ok())?;
    let what = match (rate.contains('/'), unit) {
        (true, Unit::Bytes) => "has no unit",
        (true, _) => return None,
        (false, _) => "has no period",
    };
    Some(format!(
        "{rate:?} is not a rate, it {what}: write {right:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_needs_date_time_and_offset_and_may_be_as_late_as_toml_can_write() {
        for text in ["2027-01-31T00:00:00Z", "2027-01-31T03:30:00.5+03:30"] {
            assert_eq!(parse_moment(text), Some(text.parse().unwrap()), "{text}");
        }
        for text in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59"] {
            assert_eq!(parse_moment(text), Some(Timestamp::MAX), "{text}");
        }
        assert!(parse_moment("0000-01-01T00:00:00+23:59").is_some());
        for text in ["2027-01-31", "2027-01-31T00:00:00", "00:00:00", ""] {
            assert_eq!(parse_moment(text), None, "{text}");
        }
    }
}
