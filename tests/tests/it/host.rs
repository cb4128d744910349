//! The host picture follows the kernel, and reports the parts that could not be read.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    net::IpAddr,
    process::{Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard::host::{Host, HostWatch, Link, LinkAddress, NatRule, Route};
use guard_common::layout::PortProtocol;
use lab::{guard::output, namespace::Namespace, process::SLOWEST, topology::INTERFACE};
use nix::sys::socket::{UnixAddr, getsockname};
use tokio::time::timeout;

use crate::site::{Site, fails};

/// Runs a test in the namespace, on a tokio runtime whose threads are in the namespace, too.
fn follow<T: Send>(
    namespace: &Namespace,
    test: impl AsyncFnOnce(&mut HostWatch) -> Result<T> + Send,
) -> Result<T> {
    namespace.enter(|| follow_here(1 << 20, test))?
}

fn follow_here<T>(
    receive_buffer: usize,
    test: impl AsyncFnOnce(&mut HostWatch) -> Result<T>,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut watch = HostWatch::with_receive_buffer(receive_buffer).await?;
        test(&mut watch).await
    })
}

/// Waits until the picture is right, without a forced reading.
async fn see(
    watch: &mut HostWatch,
    within: Duration,
    what: &str,
    is_right: impl Fn(&Host) -> bool,
) -> Result<Duration> {
    let began = Instant::now();
    let mut host = watch.borrow();
    while !is_right(&host) {
        let left = (within * SLOWEST).saturating_sub(began.elapsed());
        let changed = timeout(left, watch.changed()).await;
        host = changed
            .with_context(|| format!("{what} is not in the picture: {host:#?}"))?
            .context("the watch ended")?;
    }
    Ok(began.elapsed())
}

const SECOND: Duration = Duration::from_secs(1);

fn namespace(name: &str) -> Result<Namespace> {
    Namespace::new(format!("guard-{name}-{}", std::process::id()))
}

fn has_address(host: &Host, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    host.own_addresses()
        .is_some_and(|own| own.contains(&address))
}

fn link(host: &Host, name: &str) -> Option<Link> {
    host.link_named(name).cloned()
}

fn route(host: &Host, prefix: &str) -> Option<Route> {
    let mut routes = host.routes.known()?.iter();
    let prefix = prefix.parse().unwrap();
    routes.find(|route| route.prefix == prefix).cloned()
}

/// A command for `ip`, the name of its effect, and whether the picture has the effect.
type Change = (&'static str, &'static str, fn(&Host) -> bool);

#[test]
fn what_changes_on_the_host_is_seen_within_a_second_both_ways() {
    let namespace = namespace("host").unwrap();
    let changes: [Change; 16] = [
        ("link add up0 type veth peer name far0", "a link", |host| {
            link(host, "up0").is_some_and(|link| {
                link.kind.as_deref() == Some("veth")
                    && link.is_ethernet()
                    && !link.up
                    && link.lower == host.link_named("far0").map(|far| far.index)
            })
        }),
        ("link set up0 up mtu 1400", "up and MTU", |host| {
            link(host, "up0").is_some_and(|link| link.up && link.mtu == 1_400)
        }),
        ("link set far0 up", "the other end", |host| {
            link(host, "far0").is_some_and(|link| link.up)
        }),
        ("address add 192.0.2.7/24 dev up0", "IPv4", |host| {
            let index = host.link_named("up0").map(|link| link.index);
            let own = LinkAddress::new(index.unwrap(), "192.0.2.7/24".parse().unwrap());
            host.addresses.known().unwrap().contains(&own)
        }),
        ("address add 2001:db8::7/64 dev up0", "IPv6", |host| {
            has_address(host, "2001:db8::7")
        }),
        (
            "address add 10.9.0.1 peer 10.9.0.2/32 dev up0",
            "an address with a peer",
            |host| has_address(host, "10.9.0.1") && !has_address(host, "10.9.0.2"),
        ),
        ("route add default via 192.0.2.1", "a route", |host| {
            let up0 = host.link_named("up0").map(|link| link.index).unwrap();
            let default = route(host, "0.0.0.0/0");
            default.is_some_and(|route| {
                route.links == [up0] && route.gateways == ["192.0.2.1".parse::<IpAddr>().unwrap()]
            }) && host.default_route_links() == Some(BTreeSet::from([up0]))
        }),
        (
            "-6 route add default via 2001:db8::1",
            "an IPv6 route",
            |host| route(host, "::/0").is_some(),
        ),
        ("link add br0 type bridge", "a bridge", |host| {
            link(host, "br0").is_some()
        }),
        ("link set up0 master br0", "an upper interface", |host| {
            let index = |name| host.link_named(name).unwrap().index;
            host.uppers(index("up0")) == BTreeSet::from([index("br0")])
        }),
        ("link set up0 name wan", "another name", |host| {
            link(host, "wan").is_some() && link(host, "up0").is_none()
        }),
        ("route del default via 192.0.2.1", "no route", |host| {
            route(host, "0.0.0.0/0").is_none()
        }),
        ("address del 192.0.2.7/24 dev wan", "no address", |host| {
            !has_address(host, "192.0.2.7")
        }),
        ("address del 2001:db8::7/64 dev wan", "no IPv6", |host| {
            !has_address(host, "2001:db8::7")
        }),
        ("link set wan down", "down", |host| {
            link(host, "wan").is_some_and(|link| !link.up)
        }),
        ("link del wan", "no link", |host| {
            ["wan", "far0"]
                .iter()
                .all(|name| link(host, name).is_none())
        }),
    ];
    let slowest = follow(&namespace, async |watch| {
        let mut slowest = Duration::ZERO;
        for (command, what, is_right) in changes {
            namespace.ip(command)?;
            slowest = slowest.max(see(watch, SECOND, what, is_right).await?);
        }
        Ok(slowest)
    });
    println!(
        "the slowest change was in the picture after {:?}",
        slowest.unwrap()
    );
}

#[test]
fn routes_of_the_main_table_alone_count_whatever_they_go_by() {
    let namespace = namespace("routes").unwrap();
    for command in [
        "link add a0 type ifb",
        "link add b0 type ifb",
        "link set a0 up",
        "link set b0 up",
        "address add 192.0.2.7/24 dev a0",
        "address add 198.51.100.7/24 dev b0",
        "address add 2001:db8::7/64 dev a0",
        // Routes in other tables, as wg-quick adds them.
        "route add default dev b0 table 77",
        "route add default dev b0 table 51820",
        "route add default nexthop via 192.0.2.1 nexthop via 198.51.100.1",
        "route add unreachable 203.0.113.0/24",
        "nexthop add id 7 via 192.0.2.9 dev a0",
        "nexthop add id 8 via 198.51.100.9 dev b0",
        "nexthop add id 9 group 7/8",
        "route add 10.0.0.0/8 nhid 7",
        "route add 11.0.0.0/8 nhid 9",
        "route add 12.0.0.0/8 via inet6 2001:db8::9 dev a0",
    ] {
        namespace.ip(command).unwrap();
    }
    for compatible in ["1", "0"] {
        let key = format!("net/ipv4/nexthop_compat_mode={compatible}");
        lab::process::run(namespace.command("sysctl").args(["-qw", &key])).unwrap();
        let host = follow(&namespace, async |watch| Ok(watch.borrow())).unwrap();
        assert_eq!(host.errors(), []);
        let index = |name| host.link_named(name).unwrap().index;
        let (a, b) = (index("a0"), index("b0"));
        let ways = |prefix: &str| {
            let route = route(&host, prefix).unwrap();
            let gateways = route.gateways.iter().map(IpAddr::to_string);
            (route.links, gateways.collect::<Vec<_>>().join(" "))
        };
        assert_eq!(host.default_route_links(), Some(BTreeSet::from([a, b])));
        assert_eq!(
            ways("0.0.0.0/0"),
            (vec![a, b], "192.0.2.1 198.51.100.1".into())
        );
        assert_eq!(
            ways("10.0.0.0/8"),
            (vec![a], "192.0.2.9".into()),
            "{compatible}"
        );
        assert_eq!(ways("11.0.0.0/8").0, [a, b], "{compatible}");
        assert_eq!(ways("12.0.0.0/8"), (vec![a], "2001:db8::9".into()));
        assert_eq!(ways("192.0.2.0/24"), (vec![a], String::new()));
        assert_eq!(route(&host, "203.0.113.0/24"), None);
    }
    namespace.ip("route del default").unwrap();
    let host = follow(&namespace, async |watch| Ok(watch.borrow())).unwrap();
    assert_eq!(host.default_route_links(), Some(BTreeSet::new()));
}

/// Commands for `count` addresses, each in its own /24.
fn many_addresses(command: &str, count: u32) -> String {
    let lines = (0..count).map(|n| {
        format!(
            "address {command} 10.{}.{}.1/24 dev many0\n",
            n >> 8,
            n & 0xff
        )
    });
    lines.collect()
}

fn batch(namespace: &Namespace, commands: &str) -> Result<()> {
    let mut ip = namespace.command("ip");
    let mut child = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    child
        .stdin
        .take()
        .context("no input")?
        .write_all(commands.as_bytes())?;
    ensure!(child.wait()?.success(), "ip -batch failed");
    Ok(())
}

#[test]
fn lost_notifications_lead_to_the_right_picture() {
    const MANY: u32 = 3_000;
    let namespace = namespace("burst").unwrap();
    namespace.ip("link add many0 type ifb").unwrap();
    namespace.ip("link set many0 up").unwrap();
    let test = async |watch: &mut HostWatch| {
        let count = |host: &Host| {
            let many0 = host.link_named("many0").unwrap().index;
            let addresses = host.addresses_of(many0);
            addresses.filter(|own| own.address.is_ipv4()).count()
        };
        batch(&namespace, &many_addresses("add", MANY))?;
        let right = |host: &Host| count(host) == MANY as usize;
        let after = see(watch, SECOND, "all of them", right).await?;
        let losses = watch.losses();
        ensure!(
            losses > 0,
            "no notification was lost: the test covers nothing"
        );
        batch(&namespace, &many_addresses("del", MANY - 1))?;
        see(watch, SECOND, "all but one gone", |host| count(host) == 1).await?;
        println!("{losses} losses, the picture was right {after:?} after the last change");
        Ok(())
    };
    // The kernel raises the size to SOCK_MIN_RCVBUF: room for a notification or two.
    let result = namespace.enter(|| follow_here(1, test)).unwrap();
    result.unwrap();
}

#[test]
fn a_reading_that_fails_keeps_the_last_picture_and_says_so() {
    let namespace = namespace("unread").unwrap();
    namespace.ip("link add own0 type ifb").unwrap();
    namespace.ip("address add 192.0.2.7/24 dev own0").unwrap();
    let test = async |watch: &mut HostWatch| {
        let before = watch.borrow();
        ensure!(before.errors().is_empty(), "{:?}", before.errors());
        // All descriptors are used up: no socket or file can be opened.
        let mut open_files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            open_files.push(file);
        }
        let without = watch.read_again().await?;
        let failed: Vec<&str> = without.errors().into_iter().map(|(what, _)| what).collect();
        ensure!(
            failed == ["interfaces", "addresses", "routes", "sysctls"],
            "{failed:?}"
        );
        ensure!(
            without.errors()[1].1.contains("Too many open files"),
            "{without:?}"
        );
        ensure!(
            without.links.last == before.links.last
                && without.addresses.last == before.addresses.last
                && without.routes.last == before.routes.last
                && without.sysctls.last == before.sysctls.last,
            "a part of the last picture is missing: {without:#?}"
        );
        ensure!(has_address(&without, "192.0.2.7") && without.addresses.is_stale());
        // A change made meanwhile is in the picture as soon as it can be read.
        change_meanwhile(&namespace, &mut open_files)?;
        let right = |host: &Host| host.errors().is_empty() && has_address(host, "192.0.2.8");
        see(watch, 6 * SECOND, "the new address", right).await?;
        Ok(())
    };
    let result = namespace.enter(|| {
        // This thread and those that it starts get their own descriptor table, so other tests are not affected.
        own_descriptors()?;
        follow_here(1 << 20, test)
    });
    result.unwrap().unwrap();
}

/// Adds an address while almost all descriptors are used up, and then closes them.
fn change_meanwhile(namespace: &Namespace, open_files: &mut Vec<File>) -> Result<()> {
    open_files.truncate(open_files.len().saturating_sub(16));
    namespace.ip("address add 192.0.2.8/24 dev own0")?;
    open_files.clear();
    Ok(())
}

/// Gives this thread its own descriptor table, without the files that other tests have open.
fn own_descriptors() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)?;
    let all = fs::read_dir("/proc/thread-self/fd")?;
    let all: Vec<i32> = all
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in all.into_iter().filter(|descriptor| *descriptor > 2) {
        // All tokio runtimes of a process share a socket pair for signals.
        if getsockname::<UnixAddr>(descriptor).is_err() {
            // The descriptor of the directory itself is closed already.
            let _result = nix::unistd::close(descriptor);
        }
    }
    Ok(())
}

#[test]
fn a_picture_that_is_asked_for_has_what_was_done_before() {
    let namespace = namespace("forced").unwrap();
    follow(&namespace, async |watch| {
        for n in 0..50 {
            namespace.ip(&format!("link add forced{n} type ifb"))?;
            let host: Arc<Host> = watch.read_again().await?;
            ensure!(host.link_named(&format!("forced{n}")).is_some(), "{n}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn sysctls_and_listeners_are_read() {
    let namespace = namespace("sysctls").unwrap();
    namespace.ip("link add own0 type ifb").unwrap();
    for setting in [
        "net/ipv4/conf/own0/route_localnet=1",
        "net/ipv4/ip_local_port_range=40000 50000",
    ] {
        lab::process::run(namespace.command("sysctl").args(["-qw", setting])).unwrap();
    }
    let (tcp, udp, v6_only) = namespace
        .enter(|| {
            (
                std::net::TcpListener::bind("[::]:2222").unwrap(),
                std::net::UdpSocket::bind("127.0.0.1:5353").unwrap(),
                std::net::TcpListener::bind("0.0.0.0:80").unwrap(),
            )
        })
        .unwrap();
    let host = follow(&namespace, async |watch| {
        ensure!(
            watch.borrow().listeners.known().is_none(),
            "read only on demand"
        );
        Ok(watch.read_listeners().await?)
    })
    .unwrap();
    drop((tcp, udp, v6_only));
    let sysctls = host.sysctls.known().unwrap();
    assert_eq!(sysctls.local_ports, 40_000..=50_000);
    assert!(sysctls.routes_localnet("own0") && !sysctls.routes_localnet("lo"));
    let listeners = host.listeners.known().unwrap().iter();
    let listeners: Vec<_> = listeners
        .map(|listener| {
            (
                listener.protocol,
                listener.address.to_string(),
                listener.dual_stack,
            )
        })
        .collect();
    assert_eq!(
        listeners,
        [
            (PortProtocol::Tcp, "0.0.0.0:80".to_owned(), false),
            (PortProtocol::Tcp, "[::]:2222".to_owned(), true),
            (PortProtocol::Udp, "127.0.0.1:5353".to_owned(), false),
        ]
    );
}

#[test]
fn nat_rules_of_nftables_and_iptables_are_read_on_demand() {
    let namespace = namespace("nat").unwrap();
    let run = |command: &str| {
        let mut words = command.split(' ');
        let mut program = namespace.command(words.next().unwrap());
        lab::process::run(program.args(words)).unwrap();
    };
    let read = || {
        follow(&namespace, async |watch| {
            ensure!(watch.borrow().nat.known().is_none(), "read only on demand");
            Ok(watch.read_nat().await?)
        })
        .unwrap()
    };
    assert_eq!(read().nat.known().unwrap().rules, []);
    run(
        "iptables-nft -t nat -A PREROUTING -p tcp --dport 8000 -j DNAT --to-destination 10.0.0.2:80",
    );
    run("ip6tables-nft -t nat -A PREROUTING -p udp --dport 53 -j REDIRECT");
    run("nft add table ip own");
    run("nft add chain ip own in { type nat hook prerouting priority -90; }");
    run("nft add rule ip own in tcp dport 9000 dnat to 10.0.0.4:90");
    let host = read();
    assert_eq!(host.errors(), []);
    let rules = &host.nat.known().unwrap().rules;
    let rules: Vec<String> = rules.iter().map(NatRule::to_string).collect();
    assert_eq!(
        rules,
        [
            "prerouting ip nat PREROUTING: IPv4 tcp/8000 -> 10.0.0.2:80",
            "prerouting ip own in: IPv4 tcp/9000 -> 10.0.0.4:90",
            "prerouting ip6 nat PREROUTING: IPv6 udp/53 -> this host",
        ]
    );
}

#[test]
fn a_program_on_a_device_above_is_named_and_force_is_not_offered() {
    let site = Site::new();
    let guard = site.start("observe", "");
    let pins = site.keep_program(&guard);
    guard.remove().unwrap();
    let host = &site.lab.host;
    let add = format!("link add link {INTERFACE} over0 type macvlan");
    host.ip(&add).unwrap();
    site.put_foreign("over0", &pins);
    let path = site.write("observe", "");
    let assert_no_force = |output: &Output| {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("--force"), "{stderr}");
        assert!(!stderr.contains("already has"), "{stderr}");
    };
    let run = |extra: &[&str]| {
        let all = [&["run", "--policy", &path], extra].concat();
        output(&site.lab, &all).unwrap()
    };
    for extra in [&[][..], &["--force"]] {
        let refused = run(extra);
        let words = [
            INTERFACE,
            "over0 stands on",
            "ip link set dev over0 xdp off",
        ];
        fails(&refused, 1, &words);
        assert_no_force(&refused);
    }
    let doctor = output(&site.lab, &["doctor", "--policy", &path]).unwrap();
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(text.contains("over0 is an upper device of it"), "{text}");
    fails(&doctor, 1, &["1 check fails"]);

    // In another network namespace, as a container's, the upper interface cannot be seen.
    let away = site.lab.internet.name();
    host.ip(&format!("link set over0 netns {away}")).unwrap();
    let refused = run(&[]);
    fails(&refused, 1, &[INTERFACE, "cannot be seen from here"]);
    assert_no_force(&refused);

    site.lab.internet.ip("link set dev over0 xdp off").unwrap();
    let guard = site.start("observe", "");
    guard.remove().unwrap();
}
