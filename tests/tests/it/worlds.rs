//! A thousand random hosts: invariants that every plan must keep, and that applying a plan a second time changes
//! nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use fastrand::Rng;
use guard::{
    agent::{
        Loaded, Trial, Wanted,
        apply::{Applier, Order, RollbackScope},
        gate::Gate,
        plan::{Plan, Runtimes, Target, plan},
    },
    api::actor::Actor,
    dataplane::{Closer, Force, pins::network_namespace},
    docker::{ConnectionState, Container, Inventory, Network, Publication, Runtime},
    host::{Host, Link, LinkAddress, Listener, Route, Sysctls},
    policy::{Entry, KernelTick, Tables, Timebase},
    state_store::Modes,
};
use guard_common::{exposure::NetworkKind, layout::PortProtocol, reason::Mode};
use ipnet::IpNet;
use jiff::Timestamp;
use lab::topology::{INTERFACE, Lab};

const WORLDS: u64 = 1_000;
const TICK_NS: u64 = 4_000_000;
const SOCKET: &str = "/var/run/docker.sock";

pub struct World {
    pub host: Host,
    pub runtimes: Runtimes,
    pub wanted: Wanted,
}

impl World {
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let host = random_host(&mut rng);
        let runtimes = random_runtimes(&mut rng, &host);
        let wanted = random_wanted(&mut rng);
        Self {
            host,
            runtimes,
            wanted,
        }
    }

    pub fn plan(&self) -> Plan {
        plan(&self.host, &self.runtimes, &self.wanted)
    }
}

/// Few prefixes, so that networks, links and routes overlap.
fn random_prefix(rng: &mut Rng) -> IpNet {
    let length = *rng
        .choice([8, 12, 16, 16, 16, 24, 24, 30, 31, 32].iter())
        .unwrap();
    if rng.u8(..8) == 0 {
        let address = format!("2001:db8:{:x}::{:x}", rng.u8(..3), rng.u8(..4));
        return IpNet::new(
            address.parse().unwrap(),
            *rng.choice([48, 64, 64, 126, 128].iter()).unwrap(),
        )
        .unwrap();
    }
    IpNet::new(random_v4(rng), length).unwrap()
}

fn random_v4(rng: &mut Rng) -> IpAddr {
    match rng.u8(..3) {
        0 => Ipv4Addr::new(172, rng.u8(17..20), rng.u8(..3), rng.u8(..5)),
        1 => Ipv4Addr::new(10, rng.u8(..2), rng.u8(..2), rng.u8(..5)),
        _ => Ipv4Addr::new(203, 0, 113, rng.u8(9..14)),
    }
    .into()
}

fn random_host(rng: &mut Rng) -> Host {
    let mut links = BTreeMap::new();
    for index in 1..rng.u32(3..10) {
        let kinds = [
            None,
            Some("bridge"),
            Some("bridge"),
            Some("veth"),
            Some("macvlan"),
            Some("vlan"),
            Some("wireguard"),
            Some("tun"),
        ];
        let kind = *rng.choice(kinds.iter()).unwrap();
        let name = match index {
            1 => "wan".to_owned(),
            2 => "docker0".to_owned(),
            index => format!("link{index}"),
        };
        let mut link = Link::ethernet(index, name);
        link.kind = kind.map(str::to_owned);
        if kind == Some("wireguard") {
            link.arphrd = 65_534;
        }
        link.peer_elsewhere = rng.bool();
        link.lower = rng.bool().then(|| rng.u32(1..10));
        link.controller = (rng.u8(..3) == 0).then(|| rng.u32(1..10));
        links.insert(index, link);
    }
    // The first interface is the lab's.
    if let Some(link) = links.get_mut(&1) {
        *link = Link::ethernet(1, "wan");
        link.controller = (rng.u8(..4) == 0).then_some(2);
    }
    let some_link = |rng: &mut Rng| rng.u32(1..=links.len() as u32);
    let addresses: Vec<LinkAddress> = (0..rng.usize(..8))
        .map(|_| LinkAddress::new(some_link(rng), random_prefix(rng)))
        .collect();
    let mut routes: Vec<Route> = (0..rng.usize(..6))
        .map(|_| Route {
            prefix: random_prefix(rng).trunc(),
            links: vec![some_link(rng)],
            gateways: if rng.bool() {
                vec![random_v4(rng)]
            } else {
                Vec::new()
            },
        })
        .collect();
    for _ in 0..rng.usize(..3) {
        routes.push(Route {
            prefix: "0.0.0.0/0".parse().unwrap(),
            links: vec![some_link(rng)],
            gateways: Vec::new(),
        });
    }
    let listeners: Vec<Listener> = (0..rng.usize(..4))
        .map(|_| Listener {
            protocol: PortProtocol::Tcp,
            address: SocketAddr::new(
                if rng.bool() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    random_v4(rng)
                },
                random_port(rng),
            ),
            dual_stack: rng.bool(),
        })
        .collect();
    let mut host = Host {
        links: links.into(),
        addresses: addresses.into(),
        routes: routes.into(),
        sysctls: Sysctls {
            local_ports: 32_768..=60_999,
            route_localnet: BTreeSet::new(),
            accept_local: BTreeSet::new(),
        }
        .into(),
        listeners: listeners.into(),
        ..Host::unread(TICK_NS)
    };
    // Some reads fail, with or without an earlier result.
    if rng.u8(..6) == 0 {
        host.addresses
            .renew(Err::<Vec<LinkAddress>, _>("no buffer space"));
        if rng.bool() {
            host.addresses.last = None;
        }
    }
    if rng.u8(..6) == 0 {
        host.routes.renew(Err::<Vec<Route>, _>("no buffer space"));
    }
    host
}

fn random_port(rng: &mut Rng) -> u16 {
    *rng.choice([22, 80, 443, 8_000, 8_001, 40_000].iter())
        .unwrap()
}

fn random_publication(rng: &mut Rng) -> Publication {
    let first = random_port(rng);
    Publication {
        protocol: *rng
            .choice([PortProtocol::Tcp, PortProtocol::Udp].iter())
            .unwrap(),
        address: match rng.u8(..4) {
            0 => Some(random_v4(rng)),
            1 => Some(Ipv4Addr::LOCALHOST.into()),
            _ => None,
        },
        first,
        last: first + rng.u16(..3),
        inside: 80,
    }
}

fn random_runtimes(rng: &mut Rng, host: &Host) -> Runtimes {
    let links: Vec<String> = host
        .links
        .known()
        .unwrap()
        .values()
        .map(|link| link.name.clone())
        .collect();
    let networks: Vec<Network> = (0..rng.usize(..4))
        .map(|n| Network {
            id: format!("{n}"),
            name: format!("network{n}"),
            driver: rng
                .choice(["bridge", "bridge", "macvlan"].iter())
                .unwrap()
                .to_string(),
            bridge: rng.choice(links.iter()).cloned(),
            parent: None,
            is_routed_ipv6: false,
            subnets: vec![random_prefix(rng).trunc()],
            gateways: Vec::new(),
            kind: *rng
                .choice([NetworkKind::Masqueraded, NetworkKind::Routed].iter())
                .unwrap(),
        })
        .collect();
    let containers = (0..rng.usize(..5)).map(|n| {
        let container = Container {
            name: format!("container{n}"),
            running: rng.bool(),
            on_host_network: rng.u8(..8) == 0,
            publishes: (0..rng.usize(..3))
                .map(|_| random_publication(rng))
                .collect(),
            addresses: (0..rng.usize(..3)).map(|_| random_v4(rng)).collect(),
            half_known: (rng.u8(..5) == 0).then(|| "it does not answer".to_owned()),
            is_file_unread: rng.bool(),
            ..Container::default()
        };
        (container.name.clone(), container)
    });
    let containers = containers.collect();
    let connection = match rng.u8(..6) {
        0 => ConnectionState::Lost {
            error: "broken pipe".to_owned(),
            since: Timestamp::UNIX_EPOCH,
        },
        1 => ConnectionState::NeverAnswered {
            error: "connection refused".to_owned(),
        },
        2 => ConnectionState::Reading,
        _ => ConnectionState::Connected,
    };
    let runtime = Runtime {
        connection,
        inventory: Arc::new(Inventory {
            containers,
            networks,
            ..Inventory::default()
        }),
        ..Runtime::new(SOCKET)
    };
    match rng.u8(..8) {
        0 => BTreeMap::new(),
        _ => [(SOCKET.to_owned(), runtime)].into(),
    }
}

pub fn loaded(text: &str) -> Arc<Loaded> {
    let clock = KernelTick { tick_ns: TICK_NS };
    Arc::new(Loaded::parse(text.into(), "world.toml".as_ref(), clock).unwrap())
}

fn random_policy(rng: &mut Rng) -> Arc<Loaded> {
    let mode = rng
        .choice(["enforce", "enforce", "enforce", "observe", "off"].iter())
        .unwrap();
    let scope = rng
        .choice(["containers", "containers", "host"].iter())
        .unwrap();
    let interfaces = [
        "",
        "interfaces = [\"wan\"]\n",
        "interfaces = [\"wan\", \"docker0\"]\n",
        "interfaces = [\"gone\"]\n",
    ];
    let interfaces = rng.choice(interfaces.iter()).unwrap();
    let service = if rng.bool() {
        "[[service]]\nname = \"web\"\nports = [\"tcp/80\", \"tcp/443\"]\n"
    } else {
        ""
    };
    loaded(&format!(
        "mode = \"{mode}\"\nscope = \"{scope}\"\n{interfaces}{service}"
    ))
}

fn random_wanted(rng: &mut Rng) -> Wanted {
    let trial = (rng.u8(..6) == 0).then(|| Trial {
        before: random_policy(rng),
        until: Timestamp::UNIX_EPOCH,
        until_ns: 1,
        by: Actor {
            user: "root".to_owned(),
            process: None,
        },
    });
    Wanted {
        loaded: random_policy(rng),
        revision: rng.u64(..3),
        trial,
        modes: Modes::default(),
        entries: Arc::new(Vec::<Entry>::new()),
        last_known: None,
        guarded: if rng.bool() {
            [("wan".to_owned(), 1)].into()
        } else {
            BTreeMap::new()
        },
        keeps_guarded: rng.bool(),
    }
}

/// Whether the plan's tables close an address as a container's.
fn closes(plan: &Plan, address: IpAddr) -> bool {
    let networks = &plan.content.containers.networks;
    networks
        .iter()
        .any(|network| network.prefix.contains(&address))
}

/// Links that are the bridge of a container network and carry only containers.
fn container_bridges(world: &World, plan: &Plan) -> BTreeSet<u32> {
    let mut guarded: BTreeSet<u32> = plan.targets.iter().map(|target| target.index).collect();
    guarded.extend(world.wanted.guarded.values());
    let runtimes = world.runtimes.values();
    let names = runtimes.flat_map(|runtime| &runtime.inventory.networks);
    let names = names.filter_map(|network| network.bridge.as_deref());
    let bridges = names.filter(|name| world.host.is_container_bridge(name, &guarded));
    bridges
        .filter_map(|name| Some(world.host.link_named(name)?.index))
        .collect()
}

#[test]
fn no_plan_closes_an_address_of_this_host_or_claims_to_enforce_what_is_open() {
    let (mut closed, mut enforcing, mut refused) = (0, 0, 0);
    for seed in 0..WORLDS {
        let world = World::random(seed);
        let plan = world.plan();
        assert_eq!(plan, world.plan(), "world {seed}");
        closed += plan.content.containers.networks.len();
        refused += usize::from(plan.refusal.is_some());
        let bridges = container_bridges(&world, &plan);
        for own in world.host.addresses.last.iter().flatten() {
            if !bridges.contains(&own.link) {
                assert!(!closes(&plan, own.address), "world {seed} closes {own:?}");
            }
        }
        if !plan.is_enforcing() {
            continue;
        }
        enforcing += 1;
        assert_eq!(plan.content.policy.mode, Mode::Enforce, "world {seed}");
        let now = Timebase {
            world: Timestamp::UNIX_EPOCH,
            boot_ns: 1,
        };
        let content = &plan.content;
        let tables = Tables::compile(
            &content.policy,
            &content.containers,
            &content.local_ports,
            now,
        );
        let Some(runtime) = world.runtimes.get(SOCKET) else {
            continue;
        };
        for container in runtime
            .inventory
            .containers
            .values()
            .filter(|one| one.running)
        {
            for port in container.published(None) {
                assert!(
                    tables.publishes(port),
                    "world {seed}: {port} of {}",
                    container.name
                );
            }
        }
    }
    // The test covers nothing if no world has closed addresses or claims to enforce.
    assert!(
        closed > 500 && enforcing > 100 && refused > 20,
        "{closed} closed, {enforcing} enforcing, {refused} refused"
    );
}

/// The number of worlds with the same policy: for each policy another program is loaded.
const WORLDS_OF_A_POLICY: u64 = 100;

#[test]
fn a_plan_that_is_applied_twice_changes_nothing_the_second_time() {
    let lab = Lab::new().unwrap();
    let pins = lab.pins();
    let applied = lab.host.enter(|| apply_worlds(pins));
    let changed = applied.unwrap();
    assert!(
        changed > WORLDS / 2,
        "only {changed} worlds changed anything"
    );
}

/// Applies the plans of all worlds to the lab's interface, each twice. Returns how many plans changed the tables.
fn apply_worlds(pins: PathBuf) -> u64 {
    let host = Host::read_once().unwrap();
    let wan = host.link_named(INTERFACE).unwrap().index;
    let gate = Gate::new(&pins);
    let namespace = network_namespace().unwrap();
    let mut applier = Applier::open(pins, namespace, gate.clone(), Closer::default());
    let mut changed = 0;
    let mut wanted = World::random(0).wanted;
    for seed in 0..WORLDS {
        let mut world = World::random(seed);
        if seed % WORLDS_OF_A_POLICY == 0 {
            wanted = world.wanted.clone();
            // The tables do not depend on a trial that is over.
            wanted.trial = None;
        }
        world.wanted = wanted.clone();
        let mut plan = world.plan();
        plan.refusal = None;
        plan.troubles.clear();
        plan.targets = vec![Target {
            index: wan,
            name: INTERFACE.to_owned(),
            above: BTreeSet::new(),
        }];
        let latest = || Arc::clone(&plan.content.containers);
        let order = Order {
            plan: &plan,
            loaded: &world.wanted.loaded,
            host: &host,
            epoch: gate.begin().0,
            force: Force::No,
            unit: RollbackScope::Whole,
            early: &BTreeSet::new(),
            latest: &latest,
            step: &|| (),
        };
        changed += u64::from(applier.apply(&order).unwrap());
        let again = applier.apply(&order).unwrap();
        assert!(
            !again,
            "world {seed}: the second application changes the tables"
        );
    }
    applier.detach();
    changed
}
