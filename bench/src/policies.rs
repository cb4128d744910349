//! The measured policies, for hosts with Docker as operators run them.

use std::net::Ipv4Addr;

use guard::policy::Action;

use crate::{
    frames::HOST_V4,
    guarded::{Setup, single},
};

/// The measured service.
pub const WEB: &str = "web";
pub const WEB_PORT: u16 = 80;

/// A service that is open only to [`FRIEND`]'s network.
pub const SSH: &str = "ssh";
pub const SSH_PORT: u16 = 22;
pub const FRIEND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 16);

/// A service on one address.
pub const PANEL: &str = "panel";
pub const PANEL_PORT: u16 = 8_443;

/// A service whose budget is used up, and sources that pass in spite of that.
pub const SPENT: &str = "spent";
pub const SPENT_PORT: u16 = 81;
pub const MONITOR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
pub const OFFICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 60);
pub const LET_THROUGH: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 70);

/// A source that an operator has denied at [`WEB`].
pub const UNWELCOME: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

/// The first address of the deny list.
pub const DENIED_FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
pub const DENIED_COUNT: u32 = 1_000_000;

/// The first denied prefix; every other /24 from here on is denied.
pub const DENIED_PREFIX: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const DENIED_PREFIXES: u32 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Open ports without a budget.
    Open,
    /// A budget of packets for each source.
    Packets,
    /// Budgets of packets and bytes for each source, and of packets for all sources together.
    AllBudgets,
    /// A budget of connections for each source.
    Connections,
    /// Used-up budgets of packets, of bytes, and of all sources.
    Spent,
    SpentBytes,
    SpentTotal,
    /// Packets that reach no service have a budget, too.
    Limits,
    /// Only the ports that containers publish are closed.
    Containers,
    /// Mode observe: no packet is dropped.
    Observe,
    /// A service with permitted sources.
    Restricted,
    /// A million denied addresses, a thousand denied prefixes.
    DenyList,
    DenyPrefixes,
    /// Sources that are exempt or have a factor.
    Exceptions,
    /// Every feature of a policy.
    Everything,
    /// This many services, the first at [`SERVICE_PORT`].
    Services(u32),
    /// This many published ports from 1 on, all closed.
    Published(u32),
    /// This many denied addresses.
    Denied(u32),
    /// A service for this many named sources, from [`NAMED`] on.
    Admitted(u32),
    /// This many named sources that are exempt at a service whose budget is used up.
    Exempt(u32),
}

/// The first port of [`Name::Services`], and the first named source.
pub const SERVICE_PORT: u32 = 20_000;
pub const NAMED: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 0);

/// Rates that no measured source reaches.
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

/// A policy in scope `host`: every port that no service lists is closed.
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

/// A named source for each address, with these keys.
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
