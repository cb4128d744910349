//! Tests of the plan on small hosts that are written as data. Each test is a failure that was found on a real host.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use guard_common::{exposure::NetworkKind, layout::PortProtocol, reason::Mode};
use ipnet::IpNet;
use jiff::Timestamp;

use super::{Plan, Runtimes, plan};
use crate::{
    agent::{Loaded, Trial, Wanted},
    api::actor::Actor,
    docker::{ConnectionState, Container, Inventory, Network, Publication, Runtime},
    host::{Host, Link, LinkAddress, Listener, Route, Sysctls, XdpState},
    policy::{ContainerNetwork, Containers, KernelTick, Policy, PublishedPort},
    state_store::{ChangedMode, KnownContainers, Modes},
};

pub const TICK_NS: u64 = 4_000_000;
pub const SOCKET: &str = "/var/run/docker.sock";

/// The uplink of every world.
pub const UPLINK: u32 = 2;
pub const DOCKER0: u32 = 3;

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    Link {
        kind: kind.map(str::to_owned),
        ..Link::ethernet(index, name)
    }
}

pub fn route(prefix: &str, index: u32, gateway: Option<&str>) -> Route {
    Route {
        prefix: net(prefix),
        links: vec![index],
        gateways: gateway.map(address).into_iter().collect(),
    }
}

/// A host with one uplink and Docker's bridge, without containers.
pub fn host() -> Host {
    let links = [
        link(UPLINK, "eth0", None),
        link(DOCKER0, "docker0", Some("bridge")),
    ];
    Host {
        links: links
            .into_iter()
            .map(|link| (link.index, link))
            .collect::<BTreeMap<_, _>>()
            .into(),
        addresses: vec![
            LinkAddress::new(UPLINK, net("203.0.113.10/24")),
            LinkAddress::new(DOCKER0, net("172.17.0.1/16")),
        ]
        .into(),
        routes: vec![
            route("0.0.0.0/0", UPLINK, Some("203.0.113.1")),
            route("203.0.113.0/24", UPLINK, None),
            route("172.17.0.0/16", DOCKER0, None),
        ]
        .into(),
        sysctls: Sysctls {
            local_ports: 32_768..=60_999,
            route_localnet: Default::default(),
            accept_local: Default::default(),
        }
        .into(),
        ..Host::unread(TICK_NS)
    }
}

pub fn add_link(host: &mut Host, link: Link) {
    host.links.last.as_mut().unwrap().insert(link.index, link);
}

pub fn add_address(host: &mut Host, index: u32, prefix: &str) {
    let own = LinkAddress::new(index, net(prefix));
    host.addresses.last.as_mut().unwrap().push(own);
}

pub fn bridge(name: &str, bridge: &str, subnet: &str) -> Network {
    Network {
        id: format!("{name}-id"),
        name: name.to_owned(),
        driver: "bridge".to_owned(),
        parent: None,
        is_routed_ipv6: false,
        bridge: Some(bridge.to_owned()),
        subnets: vec![net(subnet)],
        gateways: Vec::new(),
        kind: NetworkKind::Masqueraded,
    }
}

pub fn tcp(port: u16) -> Publication {
    Publication {
        protocol: PortProtocol::Tcp,
        address: None,
        first: port,
        last: port,
        inside: 80,
    }
}

pub fn container(name: &str, publishes: &[Publication], at: &[&str]) -> Container {
    Container {
        name: name.to_owned(),
        running: true,
        publishes: publishes.iter().cloned().collect(),
        addresses: at.iter().map(|text| address(text)).collect(),
        ..Container::default()
    }
}

pub fn runtime(containers: Vec<Container>, networks: Vec<Network>) -> Runtime {
    let containers = containers.into_iter();
    Runtime {
        daemon: Some("daemon-a".to_owned()),
        connection: ConnectionState::Connected,
        inventory: Arc::new(Inventory {
            containers: containers.map(|one| (one.name.clone(), one)).collect(),
            networks,
            networks_left_out: Vec::new(),
        }),
        ..Runtime::new(SOCKET)
    }
}

pub fn runtimes(runtime: Runtime) -> Runtimes {
    [(runtime.socket.clone(), runtime)].into()
}

/// Docker's own network and these containers on it.
pub fn containers(containers: Vec<Container>) -> Runtimes {
    let networks = vec![bridge("bridge", "docker0", "172.17.0.0/16")];
    runtimes(runtime(containers, networks))
}

pub fn loaded(policy: &str) -> Arc<Loaded> {
    let clock = KernelTick { tick_ns: TICK_NS };
    Arc::new(Loaded::parse(policy.into(), "test.toml".as_ref(), clock).unwrap())
}

pub fn wanted(policy: &str) -> Wanted {
    Wanted {
        loaded: loaded(policy),
        revision: 1,
        trial: None,
        modes: Modes::default(),
        entries: Arc::default(),
        last_known: None,
        guarded: BTreeMap::new(),
        keeps_guarded: false,
    }
}

pub const ENFORCE: &str = "mode = \"enforce\"\n";

fn names(plan: &Plan) -> Vec<&str> {
    plan.targets
        .iter()
        .map(|target| target.name.as_str())
        .collect()
}

pub fn published(plan: &Plan) -> Vec<String> {
    let published = plan.content.containers.published.iter();
    let mut published: Vec<String> = published.map(PublishedPort::to_string).collect();
    published.dedup();
    published
}

/// Whether the tables close an address as a container address.
pub fn closes(plan: &Plan, one: &str) -> bool {
    let networks = &plan.content.containers.networks;
    networks
        .iter()
        .any(|network| network.prefix.contains(&address(one)))
}

fn has_words(lines: &[String], words: &str) -> bool {
    lines.iter().any(|line| line.contains(words))
}

#[test]
fn a_vpn_that_a_default_route_leads_to_is_a_warning() {
    let mut host = host();
    let mut tun = link(9, "tun0", Some("tun"));
    tun.arphrd = 65_534;
    add_link(&mut host, tun);
    let routes = host.routes.last.as_mut().unwrap();
    routes.push(route("0.0.0.0/0", 9, None));
    let plan = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
    assert_eq!((names(&plan), &plan.refusal), (vec!["eth0"], &None));
    assert!(has_words(&plan.warnings, "tun0"), "{:?}", plan.warnings);
    assert!(plan.is_enforcing(), "{:?}", plan.obstacles);
}

#[test]
fn an_interface_that_the_policy_names_and_that_cannot_be_guarded_is_refused() {
    let mut host = host();
    let mut tun = link(9, "tun0", Some("tun"));
    tun.arphrd = 65_534;
    add_link(&mut host, tun);
    let wanted = wanted("interfaces = [\"eth0\", \"tun0\"]\n");
    let plan = plan(&host, &containers(Vec::new()), &wanted);
    let refusal = plan.refusal.unwrap();
    assert!(
        refusal.starts_with("test.toml:1: tun0 is not an Ethernet interface"),
        "{refusal}"
    );
}

#[test]
fn one_interface_of_two_that_is_missing_is_trouble_and_the_other_is_guarded() {
    let wanted = wanted("mode = \"enforce\"\ninterfaces = [\"eth0\", \"eth7\"]\n");
    let plan = plan(&host(), &containers(Vec::new()), &wanted);
    assert_eq!((names(&plan), &plan.refusal), (vec!["eth0"], &None));
    assert_eq!(plan.troubles[0].name, "eth7");
    assert!(!plan.is_enforcing());
}

#[test]
fn a_macvlan_whose_lower_device_is_not_guarded_is_a_warning() {
    let mut host = host();
    let macvlan = Link {
        lower: Some(UPLINK),
        ..link(7, "mv0", Some("macvlan"))
    };
    host.links.last.as_mut().unwrap().insert(7, macvlan);
    let warnings = |interfaces: &str| {
        let wanted = wanted(&format!("mode = \"enforce\"\ninterfaces = {interfaces}\n"));
        plan(&host, &containers(Vec::new()), &wanted).warnings
    };
    assert!(has_words(
        &warnings("[\"mv0\"]"),
        "mv0 is a device on eth0, which is not guarded"
    ));
    assert!(!has_words(
        &warnings("[\"mv0\", \"eth0\"]"),
        "is not guarded"
    ));
}

#[test]
fn no_interface_at_all_refuses_the_policy_and_says_what_to_write() {
    let mut host = host();
    host.routes = Vec::new().into();
    let plan = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
    let refusal = plan.refusal.unwrap();
    assert!(
        refusal.contains("there is no default route") && refusal.contains("interfaces = ["),
        "{refusal}"
    );
}

#[test]
fn an_interface_stays_guarded_while_its_default_route_is_gone() {
    let mut host = host();
    host.routes = Vec::new().into();
    let mut wanted = wanted(ENFORCE);
    wanted.guarded = [("eth0".to_owned(), UPLINK)].into();
    wanted.keeps_guarded = true;
    let plan = plan(&host, &containers(Vec::new()), &wanted);
    assert_eq!((names(&plan), &plan.refusal), (vec!["eth0"], &None));
}

#[test]
fn routes_that_cannot_be_read_leave_the_interfaces_as_they_were() {
    let mut host = host();
    host.routes.renew(Err::<Vec<Route>, _>("out of files"));
    let plan = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
    assert_eq!((names(&plan), &plan.refusal), (vec!["eth0"], &None));
    assert!(has_words(&plan.warnings, "out of files"));
}

#[test]
fn an_interface_is_followed_when_it_is_renamed() {
    let mut host = host();
    add_link(&mut host, link(UPLINK, "lan0", None));
    let mut wanted = wanted("mode = \"enforce\"\ninterfaces = [\"eth0\"]\n");
    wanted.guarded = [("eth0".to_owned(), UPLINK)].into();
    let plan = plan(&host, &containers(Vec::new()), &wanted);
    assert_eq!((names(&plan), &plan.refusal), (vec!["lan0"], &None));
    assert!(has_words(&plan.warnings, "eth0") && plan.is_enforcing());
}

#[test]
fn a_device_is_attached_before_those_above_it() {
    let mut host = host();
    let port = Link {
        controller: Some(5),
        ..link(UPLINK, "eth0", None)
    };
    add_link(&mut host, port);
    add_link(&mut host, link(5, "br0", Some("bridge")));
    let wanted = wanted("interfaces = [\"br0\", \"eth0\"]\n");
    let plan = plan(&host, &containers(Vec::new()), &wanted);
    assert_eq!(names(&plan), ["eth0", "br0"]);
    assert_eq!(plan.targets[0].above, [5].into());
}

#[test]
fn a_foreign_program_above_an_interface_is_named() {
    let mut host = host();
    let macvlan = Link {
        lower: Some(UPLINK),
        xdp: Some(XdpState {
            program_id: 7,
            native: false,
        }),
        ..link(9, "macvlan0", Some("macvlan"))
    };
    add_link(&mut host, macvlan);
    assert_eq!(
        host.xdp_above(UPLINK).map(|link| link.name.as_str()),
        Some("macvlan0")
    );
}

#[test]
fn a_container_that_cannot_be_inspected_hides_no_other() {
    let mut broken = container("broken", &[tcp(8001)], &[]);
    broken.half_known = Some("a layer is missing".to_owned());
    let plan = plan(
        &host(),
        &containers(vec![
            broken,
            container("web", &[tcp(8000)], &["172.17.0.2"]),
        ]),
        &wanted(ENFORCE),
    );
    assert_eq!(published(&plan), ["tcp/8000", "tcp/8001"]);
    assert!(
        has_words(&plan.container_warnings, "broken"),
        "{:?}",
        plan.container_warnings
    );
    assert!(plan.is_enforcing(), "{:?}", plan.obstacles);
}

#[test]
fn a_container_with_unknown_ports_is_an_obstacle() {
    let with = |is_file_unread: bool, published: &[_]| {
        let mut broken = container("broken", published, &[]);
        broken.half_known = Some("no answer within 2 s".to_owned());
        broken.is_file_unread = is_file_unread;
        plan(&host(), &containers(vec![broken]), &wanted(ENFORCE))
    };
    let open = with(true, &[]);
    assert!(!open.is_enforcing());
    assert!(has_words(&open.obstacles, "broken"), "{:?}", open.obstacles);
    // Not an obstacle: its configuration file publishes nothing, or the runtime's list has its ports.
    assert!(with(false, &[]).is_enforcing());
    assert!(with(true, &[tcp(8001)]).is_enforcing());
}

#[test]
fn an_address_of_this_host_inside_a_container_network_is_never_closed() {
    let na = || {
        let networks = vec![bridge("na", "br-na", "172.18.0.0/16")];
        runtimes(runtime(
            vec![container("web", &[], &["172.18.0.2"])],
            networks,
        ))
    };
    let mut host = host();
    add_link(&mut host, link(4, "br-na", Some("bridge")));
    add_address(&mut host, 4, "172.18.0.1/16");
    let before = plan(&host, &na(), &wanted(ENFORCE));
    assert!(closes(&before, "172.18.0.1") && closes(&before, "172.18.77.7"));

    let alone = host.addresses.clone();
    add_address(&mut host, UPLINK, "172.18.0.50/16");
    let after = plan(&host, &na(), &wanted(ENFORCE));
    assert!(!closes(&after, "172.18.0.50") && !closes(&after, "172.18.77.7"));
    assert!(closes(&after, "172.18.0.1") && closes(&after, "172.18.0.2"));
    assert!(has_words(&after.container_warnings, "overlaps"));

    host.addresses = alone.clone();
    assert_eq!(
        plan(&host, &na(), &wanted(ENFORCE)).content.containers,
        before.content.containers
    );

    // A host address with a /32 mask leaves the rest of the prefix closed.
    add_address(&mut host, UPLINK, "172.18.0.50/32");
    let after = plan(&host, &na(), &wanted(ENFORCE));
    assert!(!closes(&after, "172.18.0.50"));
    assert!(
        closes(&after, "172.18.0.49")
            && closes(&after, "172.18.0.51")
            && closes(&after, "172.18.77.7")
    );
}

#[test]
fn a_bridge_with_the_uplink_as_its_port_is_no_containers_own() {
    let mut host = host();
    let port = Link {
        controller: Some(5),
        ..link(UPLINK, "eth0", None)
    };
    add_link(&mut host, port);
    add_link(&mut host, link(5, "br0", Some("bridge")));
    host.addresses = vec![LinkAddress::new(5, net("203.0.113.10/24"))].into();
    host.routes = vec![
        route("0.0.0.0/0", 5, Some("203.0.113.1")),
        route("203.0.113.0/24", 5, None),
    ]
    .into();
    let lan = runtimes(runtime(
        vec![container("web", &[], &["203.0.113.77"])],
        vec![bridge("lan", "br0", "203.0.113.0/24")],
    ));
    for policy in ["mode = \"enforce\"\ninterfaces = [\"eth0\"]\n", ENFORCE] {
        let plan = plan(&host, &lan, &wanted(policy));
        assert!(
            !closes(&plan, "203.0.113.10") && !closes(&plan, "203.0.113.1"),
            "{policy}"
        );
        assert!(closes(&plan, "203.0.113.77"), "{policy}");
    }
}

#[test]
fn a_route_that_is_wider_than_a_container_network_does_not_reach_it() {
    let closes_a_free_address = |prefix: &str| {
        let mut host = host();
        add_link(&mut host, link(9, "wg0", Some("wireguard")));
        let routes = host.routes.last.as_mut().unwrap();
        routes.push(route(prefix, 9, None));
        let plan = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
        let is_told = has_words(&plan.container_warnings, "overlaps");
        assert_eq!(closes(&plan, "172.17.0.99"), !is_told, "{prefix}");
        !is_told
    };
    for wider in ["0.0.0.0/1", "128.0.0.0/1", "172.16.0.0/12", "10.0.0.0/8"] {
        assert!(closes_a_free_address(wider), "{wider}");
    }
    for inside in ["172.17.0.0/16", "172.17.0.0/24", "172.17.0.50/32"] {
        assert!(!closes_a_free_address(inside), "{inside}");
    }
}

#[test]
fn a_second_address_on_a_container_bridge_opens_nothing() {
    let mut host = host();
    add_address(&mut host, DOCKER0, "172.17.9.9/16");
    let plan = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
    for closed in ["172.17.9.9", "172.17.0.1", "172.17.0.2", "172.17.200.1"] {
        assert!(closes(&plan, closed), "{closed}");
    }
}

#[test]
fn the_last_known_addresses_are_used_while_they_cannot_be_read() {
    let mut host = host();
    add_address(&mut host, UPLINK, "172.17.0.50/32");
    let known = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
    host.addresses
        .renew(Err::<Vec<LinkAddress>, _>("no buffer space"));
    let stale = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
    assert_eq!(stale.content.containers, known.content.containers);
    assert!(!closes(&stale, "172.17.0.50") && closes(&stale, "172.17.0.2"));
    assert!(
        has_words(&stale.warnings, "last known") && stale.is_enforcing(),
        "{:?}",
        stale.warnings
    );

    // If the addresses have never been read, no prefix is closed, and that is an obstacle.
    host.addresses.last = None;
    let unknown = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
    assert!(!closes(&unknown, "172.17.0.50"));
    assert!(
        has_words(&unknown.obstacles, "no buffer space"),
        "{:?}",
        unknown.obstacles
    );
}

#[test]
fn interfaces_that_cannot_be_read_are_an_obstacle() {
    let mut host = host();
    let known = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
    assert!(known.is_enforcing(), "{:?}", known.obstacles);
    host.links
        .renew(Err::<BTreeMap<u32, Link>, _>("no buffer space"));
    let stale = plan(&host, &containers(Vec::new()), &wanted(ENFORCE));
    assert_eq!(stale.targets, known.targets);
    assert!(!stale.is_enforcing());
    assert!(
        has_words(&stale.obstacles, "no buffer space"),
        "{:?}",
        stale.obstacles
    );
}

fn last_known(socket: &str) -> KnownContainers {
    KnownContainers {
        socket: Some(socket.to_owned()),
        daemon: Some("daemon-a".to_owned()),
        containers: Containers {
            published: tcp(8000).reachable().collect(),
            networks: vec![ContainerNetwork {
                prefix: net("172.17.0.0/16"),
                kind: NetworkKind::Masqueraded,
            }],
            labelled: Vec::new(),
        },
    }
}

fn silent(socket: &str) -> Runtimes {
    let connection = ConnectionState::NeverAnswered {
        error: "connection refused".to_owned(),
    };
    runtimes(Runtime {
        connection,
        ..Runtime::new(socket)
    })
}

#[test]
fn ports_that_a_silent_runtime_last_reported_stay_closed_and_its_silence_is_an_obstacle() {
    let mut wanted = wanted(ENFORCE);
    wanted.last_known = Some(last_known(SOCKET));
    let plan = plan(&host(), &silent(SOCKET), &wanted);
    assert_eq!(published(&plan), ["tcp/8000"]);
    assert!(closes(&plan, "172.17.0.2") && !closes(&plan, "203.0.113.10"));
    assert!(!plan.is_enforcing() && has_words(&plan.obstacles, "connection refused"));
}

#[test]
fn ports_of_one_daemon_are_not_attributed_to_another() {
    let mut wanted = wanted("mode = \"enforce\"\ndocker.socket = \"/run/other.sock\"\n");
    wanted.last_known = Some(last_known(SOCKET));
    let plan = plan(&host(), &silent("/run/other.sock"), &wanted);
    assert_eq!(published(&plan), Vec::<String>::new());
    assert!(!plan.is_enforcing() && has_words(&plan.obstacles, "connection refused"));
}

#[test]
fn a_runtime_that_is_lost_keeps_its_ports_closed_and_is_an_obstacle() {
    let mut runtimes = containers(vec![container("web", &[tcp(8000)], &["172.17.0.2"])]);
    runtimes.get_mut(SOCKET).unwrap().connection = ConnectionState::Lost {
        error: "broken pipe".to_owned(),
        since: Timestamp::UNIX_EPOCH,
    };
    let lost = plan(&host(), &runtimes, &wanted(ENFORCE));
    assert_eq!(published(&lost), ["tcp/8000"]);
    assert!(!lost.is_enforcing() && has_words(&lost.obstacles, "broken pipe"));
    // No obstacle in scope `host`: published ports are closed like all others.
    let scope_host = "mode = \"enforce\"\nscope = \"host\"\n";
    assert!(plan(&host(), &runtimes, &wanted(scope_host)).is_enforcing());
    let observed = plan(&host(), &runtimes, &wanted(""));
    assert_eq!(
        (observed.obstacles.len(), observed.is_enforcing()),
        (0, false)
    );
}

#[test]
fn a_port_that_a_socket_of_this_host_holds_is_a_containers_once_it_runs() {
    let mut host = host();
    host.listeners = vec![Listener {
        protocol: PortProtocol::Tcp,
        address: "0.0.0.0:22".parse().unwrap(),
        dual_stack: false,
    }]
    .into();
    let mut created = container("sneaky", &[tcp(22), tcp(8000)], &[]);
    created.running = false;
    let ports = |created: &Container, host: &Host| {
        let plan = plan(host, &containers(vec![created.clone()]), &wanted(ENFORCE));
        published(&plan)
    };
    assert_eq!(ports(&created, &host), ["tcp/8000"]);
    created.running = true;
    assert_eq!(ports(&created, &host), ["tcp/22", "tcp/8000"]);
    // A socket on another address does not have this published port.
    created.running = false;
    created.publishes = [Publication {
        address: Some(address("203.0.113.11")),
        ..tcp(22)
    }]
    .into();
    host.listeners.last.as_mut().unwrap()[0].address = "203.0.113.10:22".parse().unwrap();
    assert_eq!(ports(&created, &host).len(), 1);
}

#[test]
fn a_trial_keeps_guarded_interfaces_and_has_the_previous_policy_as_fallback() {
    let mut wanted = wanted("mode = \"enforce\"\ninterfaces = [\"docker0\"]\n");
    wanted.trial = Some(Trial {
        before: loaded(ENFORCE),
        until: Timestamp::UNIX_EPOCH,
        until_ns: 77,
        by: Actor {
            user: "root".to_owned(),
            process: None,
        },
    });
    wanted.guarded = [("eth0".to_owned(), UPLINK)].into();
    wanted.keeps_guarded = true;
    let tried = plan(&host(), &containers(Vec::new()), &wanted);
    assert_eq!(names(&tried), ["eth0", "docker0"]);
    assert_eq!(tried.content.trial_until_ns, 77);
    assert_eq!(tried.fallback.unwrap().policy.interfaces, None);
    // In mode off there is no fallback: the end of the trial does not switch the guard on.
    wanted.modes.host = Some(ChangedMode {
        mode: Mode::Off,
        ..changed_mode()
    });
    let off = plan(&host(), &containers(Vec::new()), &wanted);
    assert_eq!((off.content.trial_until_ns, off.fallback), (0, None));
    assert_eq!(off.content.policy.mode, Mode::Off);
}

fn changed_mode() -> ChangedMode {
    serde_json::from_str(r#"{"mode": "off", "since": "2026-01-01T00:00:00Z", "by": "ana"}"#)
        .unwrap()
}

#[test]
fn a_plan_is_the_same_for_the_same_world() {
    let runtimes = containers(vec![container("web", &[tcp(8000)], &["172.17.0.2"])]);
    let wanted = wanted(ENFORCE);
    let (one, other) = (
        plan(&host(), &runtimes, &wanted),
        plan(&host(), &runtimes, &wanted),
    );
    assert_eq!(one, other);
    assert!(
        one.content.is_same_program(&other.content) && one.content.has_same_tables(&other.content)
    );
    let policy: &Policy = &one.content.policy;
    assert_eq!(policy.mode, Mode::Enforce);
}
