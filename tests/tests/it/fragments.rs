//! Fragmented datagrams: complete ones pass in any order, and later fragments without a first do not fill the kernel's
//! reassembly.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Result;
use fastrand::Rng;
use guard_common::reason::Reason::*;
use lab::{
    guard::Guard,
    namespace::Namespace,
    process::{run, wait_for},
    topology::{self, INTERFACE, Lab, USER_V4, USER_V6},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use serde_json::{Value, json};

use crate::{
    clocked::{SECOND, Simulation},
    frames::{
        CLIENT_V4, CLIENT_V6, HOST_V4, IPV4_AT, IPV6_AT, as_fragment, flags::*, fragment, ipv4,
        ipv6, patched, protocol, tcp, udp,
    },
};

const PIECE: usize = 1_480;

/// The fragments of a UDP datagram to a port, in order, for a link with an MTU of 1,500.
fn fragments_v4(source: Ipv4Addr, port: u16, length: usize, identification: u16) -> Vec<Vec<u8>> {
    let datagram = udp(40_000, port, &vec![0x55; length]);
    let chunks: Vec<&[u8]> = datagram.chunks(PIECE).collect();
    let last = chunks.len() - 1;
    let piece = |(n, chunk): (usize, &&[u8])| {
        let frame = ipv4(source, protocol::UDP, chunk);
        let frame = as_fragment(&frame, (n * PIECE / 8) as u16, n < last);
        patched(&frame, IPV4_AT + 4, &identification.to_be_bytes())
    };
    chunks.iter().enumerate().map(piece).collect()
}

fn fragments_v6(port: u16, length: usize, identification: u32) -> Vec<Vec<u8>> {
    let datagram = udp(40_000, port, &vec![0x55; length]);
    let chunks: Vec<&[u8]> = datagram.chunks(1_448).collect();
    let last = chunks.len() - 1;
    let piece = |(n, chunk): (usize, &&[u8])| {
        let mut payload = fragment(protocol::UDP, (n * 1_448 / 8) as u16, n < last);
        payload[4..].copy_from_slice(&identification.to_be_bytes());
        payload.extend(*chunk);
        ipv6(CLIENT_V6, protocol::FRAGMENT, &payload)
    };
    chunks.iter().enumerate().map(piece).collect()
}

const OPEN: &str = "scope = \"host\"\n[[service]]\nname = \"dns\"\nports = [\"udp/53\"]\n";

/// The number of these frames that pass.
fn passed(simulation: &Simulation, frames: &[Vec<u8>]) -> usize {
    let reasons = frames.iter().map(|frame| simulation.reason(frame));
    reasons
        .filter(|reason| match reason {
            Allowed | Fragment => true,
            FragmentLimit | ClosedPort => false,
            other => panic!("{other:?}"),
        })
        .count()
}

/// A later fragment without a first, from a random source.
fn orphan(rng: &mut Rng) -> Vec<u8> {
    let source = Ipv4Addr::from_bits(0xc612_0000 | rng.u32(..) >> 15);
    let frame = ipv4(source, protocol::UDP, &[0; PIECE]);
    let frame = as_fragment(&frame, 185, rng.bool());
    patched(&frame, IPV4_AT + 4, &rng.u16(..).to_be_bytes())
}

#[test]
fn a_datagram_passes_whole_beside_ten_thousand_orphans_a_second() {
    let mut rng = Rng::with_seed(5);
    let mut simulation = Simulation::new(OPEN);
    let mut orphans_passed = 0;
    // For a minute a client sends a datagram of 4 kB every 20 ms.
    for tick in 0..3_000i64 {
        simulation.at(tick * SECOND / 50);
        let datagrams = [
            fragments_v4(CLIENT_V4, 53, 4_000, tick as u16),
            fragments_v6(53, 4_000, tick as u32),
        ];
        for datagram in &datagrams {
            for fragment in datagram {
                assert_eq!(
                    passed(&simulation, std::slice::from_ref(fragment)),
                    1,
                    "{tick}"
                );
                let orphans: Vec<Vec<u8>> = (0..33).map(|_| orphan(&mut rng)).collect();
                orphans_passed += passed(&simulation, &orphans);
            }
        }
    }
    // At most the burst and a minute of the total budget pass; the kernel holds fragments for at most 30 s.
    let (first, each) = ((1 << 20) / (1_514 + 1_024), (64 << 10) as f64 / 2_538.0);
    let most = f64::from(first) + 61.0 * each;
    assert!(orphans_passed as f64 <= most, "{orphans_passed}");
    assert!(orphans_passed as f64 >= 0.9 * most, "{orphans_passed}");
}

#[test]
fn a_datagram_passes_in_any_order_where_nobody_floods() {
    let mut rng = Rng::with_seed(9);
    for datagram in [
        fragments_v4(CLIENT_V4, 53, 65_000, 1),
        fragments_v6(53, 65_000, 1),
    ] {
        let count = datagram.len();
        let mut reversed = datagram.clone();
        reversed.reverse();
        assert_eq!(passed(&Simulation::new(OPEN), &reversed), count);
        let mut shuffled = datagram;
        for _ in 0..50 {
            rng.shuffle(&mut shuffled);
            assert_eq!(passed(&Simulation::new(OPEN), &shuffled), count);
        }
    }
}

#[test]
fn later_fragments_go_the_way_of_their_first() {
    let mut simulation = Simulation::new(OPEN);
    // Each source has used up its budget of fragments that come before their first.
    let exhaust = |simulation: &Simulation| {
        for n in 0..200 {
            for frame in [
                &fragments_v4(CLIENT_V4, 53, 4_000, 60_000 + n)[1],
                &fragments_v6(53, 4_000, 60_000 + u32::from(n))[1],
            ] {
                simulation.reason(frame);
            }
        }
    };
    exhaust(&simulation);
    let reasons = |simulation: &Simulation, frames: &[Vec<u8>]| -> Vec<_> {
        frames
            .iter()
            .map(|frame| simulation.reason(frame))
            .collect()
    };
    let (open, closed) = (
        fragments_v4(CLIENT_V4, 53, 4_000, 1),
        fragments_v4(CLIENT_V4, 54, 4_000, 2),
    );
    assert_eq!(reasons(&simulation, &open), [Allowed, Fragment, Fragment]);
    assert_eq!(
        reasons(&simulation, &closed),
        [ClosedPort, FragmentLimit, FragmentLimit]
    );
    let (open_v6, closed_v6) = (fragments_v6(53, 4_000, 1), fragments_v6(54, 4_000, 2));
    assert_eq!(
        reasons(&simulation, &open_v6),
        [Allowed, Fragment, Fragment]
    );
    assert_eq!(
        reasons(&simulation, &closed_v6),
        [ClosedPort, FragmentLimit, FragmentLimit]
    );
    // Fragments with another identification, source, destination or protocol.
    let later = &open[1];
    for other in [
        patched(later, IPV4_AT + 4, &[0, 9]),
        patched(later, IPV4_AT + 12, &[198, 51, 100, 8]),
        patched(later, IPV4_AT + 16, &[203, 0, 113, 11]),
        patched(later, IPV4_AT + 9, &[protocol::TCP]),
    ] {
        // Another source has its own budget.
        let expected = if other[IPV4_AT + 15] == 8 {
            Fragment
        } else {
            FragmentLimit
        };
        assert_eq!(simulation.reason(&other), expected, "{other:02x?}");
    }
    // The kernel's reassembly timeout is 30 s, and 60 s over IPv6.
    simulation.at(29 * SECOND);
    exhaust(&simulation);
    assert_eq!(simulation.reason(later), Fragment);
    simulation.at(31 * SECOND);
    exhaust(&simulation);
    assert_eq!(simulation.reason(later), FragmentLimit);
    assert_eq!(simulation.reason(&open_v6[1]), Fragment);
    simulation.at(61 * SECOND);
    exhaust(&simulation);
    assert_eq!(simulation.reason(&open_v6[1]), FragmentLimit);
}

#[test]
fn what_a_mode_lets_pass_takes_its_fragments_along() {
    let orphans = |simulation: &Simulation| {
        for n in 0..200 {
            simulation.reason(&fragments_v4(CLIENT_V4, 53, 4_000, 60_000 + n)[1]);
        }
    };
    // A service in mode observe lets its datagrams pass.
    let service = |mode: &str| {
        format!(
            "mode = \"{mode}\"\nscope = \"host\"\ndocker.socket = \"\"\n\
             [[service]]\nname = \"dns\"\nports = [\"udp/53\"]\nfrom = [\"192.0.2.0/24\"]\nmode = \"observe\"\n"
        )
    };
    let simulation = Simulation::with_text(&service("enforce"), &Default::default());
    orphans(&simulation);
    for fragment in fragments_v4(CLIENT_V4, 53, 4_000, 1) {
        let (_, outcome) = simulation.judged(&fragment);
        assert_eq!(
            outcome.verdict(),
            guard_common::reason::Verdict::Pass,
            "{outcome:?}"
        );
    }
    // A host in mode observe counts them as packets that it would drop.
    let simulation = Simulation::with_text(&service("observe"), &Default::default());
    orphans(&simulation);
    let pieces = fragments_v4(CLIENT_V4, 53, 4_000, 1);
    let would_drop = pieces.iter().map(|piece| {
        let (_, outcome) = simulation.judged(piece);
        assert_eq!(outcome.verdict(), guard_common::reason::Verdict::Pass);
        outcome.would_drop
    });
    assert_eq!(would_drop.collect::<Vec<_>>(), [true; 3]);
}

/// An atomic fragment (RFC 6946) is a complete datagram: it needs no budget and lets no later fragments pass.
#[test]
fn an_atomic_fragment_is_judged_by_itself() {
    let simulation = Simulation::new(OPEN);
    let mut payload = fragment(protocol::TCP, 0, false);
    payload.extend(tcp(8000, SYN, &[]));
    let frame = ipv6(CLIENT_V6, protocol::FRAGMENT, &payload);
    assert_eq!(simulation.reason(&frame), ClosedPort);
    assert_eq!(frame[IPV6_AT + 6], protocol::FRAGMENT);
}

/// Sends later fragments without a first from 198.18.0.0/15, until it is told to stop.
fn flood(internet: &Namespace, stop: &AtomicBool) -> Result<()> {
    internet.enter(|| {
        let raw = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::Raw,
        )?;
        let [a, b, c, d] = HOST_V4.octets();
        let to = SockaddrIn::new(a, b, c, d, 0);
        let mut rng = Rng::with_seed(1);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&raw);
        while !stop.load(Ordering::Relaxed) {
            let frame = orphan(&mut rng);
            match sendto(fd, &frame[IPV4_AT..], &to, MsgFlags::empty()) {
                Ok(_) | Err(nix::errno::Errno::ENOBUFS) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    })?
}

/// Sends datagrams of 4 kB to the host, and counts the answers.
fn ask(lab: &Lab, client: IpAddr, host: IpAddr, times: u32) -> usize {
    lab.internet
        .enter(|| {
            let socket = UdpSocket::bind((client, 0)).unwrap();
            socket.connect((host, 53)).unwrap();
            let patience = Duration::from_millis(500);
            socket.set_read_timeout(Some(patience)).unwrap();
            let is_answered = |n: &u32| {
                let mut datagram = vec![0x55; 4_000];
                datagram[..4].copy_from_slice(&n.to_be_bytes());
                socket.send(&datagram).unwrap();
                // A late answer belongs to an earlier datagram.
                let mut answer = [0; 4];
                while socket.recv(&mut answer).is_ok() {
                    if answer == n.to_be_bytes() {
                        return true;
                    }
                }
                false
            };
            (0..times).filter(is_answered).count()
        })
        .unwrap()
}

/// The whole way, through the kernel's reassembly.
#[test]
fn orphans_fill_nobodys_reassembly() {
    let lab = Lab::new().unwrap();
    let end: SocketAddr = (topology::HOST_V6, 53).into();
    let stop = AtomicBool::new(false);
    let (servers, clients) = lab
        .host
        .enter(|| {
            let servers = [(topology::HOST_V4, 53), (topology::HOST_V6, 53)]
                .map(|address| UdpSocket::bind(address).unwrap());
            (servers, [(USER_V4, topology::HOST_V4), (USER_V6, end.ip())])
        })
        .unwrap();
    let answer = |server: &UdpSocket| {
        server
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let mut datagram = [0; 4_096];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((4_000, client)) = server.recv_from(&mut datagram) {
                server.send_to(&datagram[..4], client).unwrap();
            }
        }
    };
    let policy = |mode: &str| {
        format!(
            "mode = \"{mode}\"\ninterfaces = [\"{INTERFACE}\"]\nscope = \"host\"\ndocker.socket = \"\"\n\
             [[service]]\nname = \"dns\"\nports = [\"udp/53\"]\n"
        )
    };
    std::thread::scope(|scope| {
        for server in &servers {
            scope.spawn(|| answer(server));
        }
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        for (client, host) in clients {
            // The first datagrams may be lost while ARP and neighbour discovery run.
            wait_for(Duration::from_secs(10), || {
                anyhow::ensure!(ask(&lab, client, host, 1) == 1);
                Ok(())
            })
            .unwrap();
            assert_eq!(ask(&lab, client, host, 20), 20, "before the flood");
        }
        let guard = Guard::start(&lab, &policy("enforce")).unwrap();
        let flooding = scope.spawn(|| flood(&lab.internet, &stop));
        // Enough fragments to fill the kernel's reassembly memory twice.
        let dropped = || {
            let limit = [("reason", json!("fragment_limit")), ("would", Value::Null)];
            let dropped = guard.packets(&limit)?;
            anyhow::ensure!(dropped > 6_000, "{dropped}");
            Ok(())
        };
        wait_for(Duration::from_secs(60), dropped).unwrap();
        for (client, host) in clients {
            assert_eq!(ask(&lab, client, host, 100), 100, "{client}");
        }
        // With mode off the flood fills the reassembly memory of all sources.
        guard.run(&["mode", "off"]).unwrap();
        wait_for(Duration::from_secs(60), || {
            anyhow::ensure!(ask(&lab, USER_V4, topology::HOST_V4, 3) == 0);
            Ok(())
        })
        .unwrap();
        let statistics = run(lab.host.command("cat").arg("/proc/net/snmp")).unwrap();
        assert!(statistics.contains("ReasmFails"), "{statistics}");
        stop.store(true, Ordering::Relaxed);
        flooding.join().unwrap().unwrap();
    });
}
