//! Guard's program, loaded for a policy: the policy's text is parsed and compiled as in the agent, and the tables are
//! filled as in production.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use anyhow::{Context as _, Result};
use aya::programs::Xdp;
use guard::{
    dataplane::Generation,
    host::{self, UdpFlow},
    policy::{
        Action, CompileInput, ContainerNetwork, Containers, Entry, KernelTick, Policy, PublishedAt,
        PublishedPort, ServiceIds, Tables,
    },
};
use guard_common::{exposure::NetworkKind, layout::PortProtocol, reason::Outcome};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::frames::{CLIENT_V4, HOST_V4};

/// The kernel's default local port range.
const LOCAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// A port that a container publishes.
pub const PUBLISHED: u16 = 8_000;

/// An address in the first of [`NETWORKS`].
pub const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

/// The host's end of a flow that it has opened; `ASKED` is the peer's end.
pub const ASKED_FROM: SocketAddr = SocketAddr::new(IpAddr::V4(HOST_V4), 40_053);
const OWN: [IpAddr; 2] = [
    IpAddr::V4(HOST_V4),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10)),
];

pub const ASKED: SocketAddr = SocketAddr::new(IpAddr::V4(CLIENT_V4), 53);

/// The first networks that Docker creates.
const NETWORKS: [&str; 4] = [
    "172.17.0.0/16",
    "172.18.0.0/16",
    "172.19.0.0/16",
    "fd00:d0c::/64",
];

/// A policy, and the operators' allow and deny entries.
#[derive(Default)]
pub struct Setup {
    pub policy: String,
    pub entries: Vec<Entry>,
    /// TCP ports that containers publish in addition to [`PUBLISHED`].
    pub published: Vec<u16>,
}

impl Setup {
    pub fn policy(policy: impl Into<String>) -> Self {
        Self {
            policy: policy.into(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn publishing(mut self, ports: impl Iterator<Item = u16>) -> Self {
        self.published.extend(ports);
        self
    }

    #[must_use]
    pub fn entry(mut self, action: Action, prefix: IpNet, service: Option<&str>) -> Self {
        self.entries.push(Entry {
            id: self.entries.len() as u64,
            action,
            prefix,
            service: service.map(str::to_owned),
            owner: None,
            reason: None,
            by: None,
            process: None,
            created: Timestamp::UNIX_EPOCH,
            expires: None,
        });
        self
    }
}

pub fn single(address: Ipv4Addr) -> IpNet {
    IpNet::from(IpAddr::from(address))
}

/// The loaded program, which is not attached.
pub struct GuardProgram(Generation);

/// The name of the matched service, if any, and the outcome.
pub type CounterKey = (Option<String>, Outcome);

pub type CounterSums = BTreeMap<CounterKey, u64>;

impl GuardProgram {
    pub fn load(setup: &Setup) -> Result<Self> {
        let tick_ns = host::tick_ns()?;
        let policy = Policy::parse(&setup.policy, "bench.toml", KernelTick { tick_ns })?;
        let containers = containers(&setup.published)?;
        // Own addresses of both families, as on a host: the program tests their bits in the bitmap for every packet.
        let own_sources = OWN.into();
        let compile_input = CompileInput {
            containers: &containers,
            local_ports: &LOCAL_PORTS,
            now: host::timebase()?,
            entries: &setup.entries,
            own_sources: &own_sources,
        };
        let tables = Tables::compile_at(&policy, &compile_input, &ServiceIds::new(&policy));
        let generation = Generation::load(tables, tick_ns)?;
        generation.seed_flows(&[UdpFlow {
            local: ASKED_FROM,
            peer: ASKED,
        }])?;
        Ok(Self(generation))
    }

    pub fn program(&self) -> Result<&Xdp> {
        let Self(generation) = self;
        Ok(generation.program()?)
    }

    pub fn counted(&self) -> Result<CounterSums> {
        let Self(generation) = self;
        let rows = generation.counters()?.into_iter();
        Ok(rows
            .map(|row| ((row.service, row.outcome), row.packets))
            .collect())
    }
}

/// The containers of a host with Docker: a few networks, and published ports that no service lists.
fn containers(published: &[u16]) -> Result<Containers> {
    let ports = published.iter().copied().chain([PUBLISHED]);
    let published = ports.flat_map(|port| {
        PublishedAt::EVERYWHERE.map(|at| PublishedPort {
            protocol: PortProtocol::Tcp,
            port,
            at,
        })
    });
    let networks = NETWORKS.iter().map(|prefix| {
        Ok(ContainerNetwork {
            prefix: prefix.parse().context(*prefix)?,
            kind: NetworkKind::Masqueraded,
        })
    });
    Ok(Containers {
        published: published.collect(),
        networks: networks.collect::<Result<_>>()?,
        labelled: Vec::new(),
    })
}
