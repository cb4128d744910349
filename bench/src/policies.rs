//! The policies: hosts with Docker, as operators have them.

use std::net::Ipv4Addr;

use guard::policy::Action;

use crate::{
    frames::HOST_V4,
    guarded::{Setup, single},
};

/// The service that is measured.
pub const WEB: &str = "web";
pub const WEB_PORT: u16 = 80;

/// A service that is open to [`FRIEND`]'s network alone.
pub const SSH: &str = "ssh";
pub const SSH_PORT: u16 = 22;
pub const FRIEND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 16);

/// A service on one address alone.
pub const PANEL: &str = "panel";
pub const PANEL_PORT: u16 = 8_443;

/// A service whose budget is used up, and sources that pass all the same.
pub const SPENT: &str = "spent";
pub const SPENT_PORT: u16 = 81;
pub const MONITOR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
pub const OFFICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 60);
pub const LET_THROUGH: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 70);

/// An operator has denied it at [`WEB`].
pub const UNWELCOME: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

/// The deny list, from this address on.
pub const DENIED_FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
pub const DENIED_COUNT: u32 = 1_000_000;

/// The denied prefixes, every other /24 from this one on.
pub const DENIED_PREFIX: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const DENIED_PREFIXES: u32 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Ports are open, without any budget.
    Open,
    /// A budget of packets for each source.
    Packets,
    /// Packets and bytes of each source, and packets of all together.
    AllBudgets,
    /// Connections of each source.
    Connections,
    /// Budgets that are used up: of packets, of bytes, of all sources.
    Spent,
    SpentBytes,
    SpentTotal,
    /// What reaches no service has a budget, too.
    Limits,
    /// Nothing but the ports that containers publish is closed.
    Containers,
    /// Nothing is dropped.
    Observe,
    /// A service that only some sources may reach.
    Restricted,
    /// A million denied addresses, a thousand denied prefixes.
    DenyList,
    DenyPrefixes,
    /// Sources with exceptions.
    Exceptions,
    /// All that a policy can have.
    Everything,
    /// So many services, the first at [`SERVICE_PORT`].
    Services(u32),
    /// So many published ports from 1 on, all closed.
    Published(u32),
    /// So many denied addresses.
    Denied(u32),
    /// A service for so many named sources, from [`NAMED`] on.
    Admitted(u32),
    /// So many named sources that are exempt at a service whose budget is used up.
    Exempt(u32),
}

/// Where the services of [`Name::Services`] and the named sources are.
pub const SERVICE_PORT: u32 = 20_000;
pub const NAMED: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 0);

/// Rates that no source reaches here.
const PACKETS: &str = "limit.packets = \"1G/s\"\n";
const BYTES: &str = "limit.bytes = \"100GB/s\"\n";
const CONNECTIONS: &str = "limit.connections = \"1G/s\"\n";
const TOTAL: &str = "total.packets = \"1G/s\"\n";

/// Rates that the first packet uses up.
const NO_PACKETS: &str = "limit.packets = { rate = \"1/h\", burst = 1 }\n";
const NO_BYTES: &str = "limit.bytes = { rate = \"1B/s\", burst = \"1600B\" }\n";
const NO_TOTAL: &str = "total.packets = { rate = \"1/h\", burst = 1 }\n";

impl Name {
    pub fn setup(self) -> Setup {
        match self {
            Self::Open => host(&[&web("")]),
            Self::Packets => host(&[&web(PACKETS)]),
            Self::AllBudgets => host(&[&web(&[PACKETS, BYTES, TOTAL].concat())]),
            Self::Connections => host(&[&web(CONNECTIONS)]),
            Self::Spent => host(&[&web(NO_PACKETS)]),
            Self::SpentBytes => host(&[&web(NO_BYTES)]),
            Self::SpentTotal => host(&[&web(NO_TOTAL)]),
            Self::Limits => host(&["[limits]\npackets = \"1G/s\"\n", &web(PACKETS)]),
            Self::Containers => Setup::policy(format!(
                "mode = \"enforce\"\nscope = \"containers\"\n{}",
                web(PACKETS)
            )),
            Self::Observe => Setup::policy(format!(
                "mode = \"observe\"\nscope = \"host\"\n{}",
                web(PACKETS)
            )),
            Self::Restricted => host(&[&web(PACKETS), &ssh()]),
            Self::DenyList => host(&[&web(PACKETS), &deny_list(DENIED_COUNT)]),
            Self::DenyPrefixes => host(&[&web(PACKETS), &deny_prefixes()]),
            Self::Exceptions => with_entries(host(&[&web(PACKETS), &spent(), &exceptions()])),
            Self::Everything => everything(),
            Self::Services(count) => host(&[&services(count)]),
            Self::Published(count) => Setup::policy(format!(
                "mode = \"enforce\"\nscope = \"containers\"\n{}",
                service(WEB, "\"udp/443\"", PACKETS)
            ))
            .publishing((1..=count).filter_map(|port| u16::try_from(port).ok())),
            Self::Denied(count) => host(&[&web(PACKETS), &deny_list(count)]),
            Self::Admitted(count) => host(&[&web(PACKETS), &admitted(count)]),
            Self::Exempt(count) => {
                host(&[&web(PACKETS), &spent(), &named(count, "exempt = true\n")])
            }
        }
    }
}

/// Every port is closed that no service lists.
fn host(parts: &[&str]) -> Setup {
    Setup::policy(format!(
        "mode = \"enforce\"\nscope = \"host\"\n{}",
        parts.concat()
    ))
}

fn service(name: &str, ports: &str, rest: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\nports = [{ports}]\n{rest}")
}

fn web(budgets: &str) -> String {
    service(WEB, "\"tcp/80\", \"tcp/443\", \"udp/443\"", budgets)
}

fn ssh() -> String {
    let from = format!("from = [\"{FRIEND}/28\"]\n");
    service(SSH, &format!("\"tcp/{SSH_PORT}\""), &from)
}

fn panel() -> String {
    let rest = format!("address = \"{HOST_V4}\"\n{PACKETS}");
    service(PANEL, &format!("\"tcp/{PANEL_PORT}\""), &rest)
}

fn spent() -> String {
    service(SPENT, &format!("\"tcp/{SPENT_PORT}\""), NO_PACKETS)
}

fn exceptions() -> String {
    format!(
        "[[source]]\nname = \"monitor\"\ncidrs = [\"{MONITOR}\"]\nexempt = true\n\
         [[source]]\nname = \"office\"\ncidrs = [\"{OFFICE}\"]\nfactor = 20\n"
    )
}

fn services(count: u32) -> String {
    let services = (0..count).map(|number| {
        let port = SERVICE_PORT + number;
        service(
            &format!("service-{number}"),
            &format!("\"tcp/{port}\""),
            PACKETS,
        )
    });
    services.collect()
}

/// A source for each address, with what it is.
fn named(count: u32, what: &str) -> String {
    let sources = (0..count).map(|number| {
        let address = Ipv4Addr::from(u32::from(NAMED) + number);
        format!("[[source]]\nname = \"source-{number}\"\ncidrs = [\"{address}\"]\n{what}")
    });
    sources.collect()
}

fn admitted(count: u32) -> String {
    let names = (0..count).map(|number| format!("\"source-{number}\","));
    let from = format!("from = [{}]\n", names.collect::<String>());
    let ssh = service(SSH, &format!("\"tcp/{SSH_PORT}\""), &from);
    ssh + &named(count, "")
}

fn with_entries(setup: Setup) -> Setup {
    setup.entry(Action::Allow, single(LET_THROUGH), None).entry(
        Action::Deny,
        single(UNWELCOME),
        Some(WEB),
    )
}

fn everything() -> Setup {
    let all = [PACKETS, BYTES, CONNECTIONS, TOTAL].concat();
    with_entries(host(&[
        "[limits]\npackets = \"1G/s\"\nbytes = \"100GB/s\"\n",
        &web(&all),
        &ssh(),
        &panel(),
        &spent(),
        &exceptions(),
        &deny_list(100_000),
        &deny_prefixes(),
    ]))
}

fn deny_list(count: u32) -> String {
    let first = u32::from(DENIED_FIRST);
    let addresses = (first..first + count).map(Ipv4Addr::from);
    denied("feed", addresses.map(|address| format!("\"{address}\",\n")))
}

fn deny_prefixes() -> String {
    let first = u32::from(DENIED_PREFIX);
    let networks = (0..DENIED_PREFIXES).map(|n| Ipv4Addr::from(first + (n << 9)));
    denied(
        "networks",
        networks.map(|network| format!("\"{network}/24\",\n")),
    )
}

fn denied(name: &str, cidrs: impl Iterator<Item = String>) -> String {
    let cidrs: String = cidrs.collect();
    format!("[[source]]\nname = \"{name}\"\ndeny = true\ncidrs = [\n{cidrs}]\n")
}
